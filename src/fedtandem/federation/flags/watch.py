"""`fedtandem watch` as typed."""

import argparse
from pathlib import Path


def add(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("run", type=Path, metavar="RUN", help="the run folder; it may not be there yet")
    parser.add_argument("--once", action="store_true", help="show it as it is now, and end")
    parser.add_argument(
        "--serve",
        type=int,
        nargs="?",
        const=8090,
        metavar="PORT",
        help="a live page on 127.0.0.1 instead (default port 8090; 0 takes a free one); Ctrl-C ends it",
    )
    parser.add_argument("--json", action="store_true", help="print it once as JSON for machines")


def call(arguments: argparse.Namespace) -> int:
    """Do it; the exit code."""
    if arguments.serve is not None:
        from fedtandem.reports.live_page import serve_command

        return serve_command(arguments.run, port=arguments.serve)
    from fedtandem.reports.live_terminal import watch_command

    return watch_command(arguments.run, once=arguments.once, json_output=arguments.json)
