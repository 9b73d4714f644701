"""`fedtandem doctor` as typed."""

import argparse
from pathlib import Path


def add(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("file", type=Path, help="the site's own file (site.toml)")
    parser.add_argument("--superlink", metavar="HOST:PORT", help="also try to reach it")
    parser.add_argument(
        "--ca", type=Path, metavar="FILE", help="default: certificates/ca.pem beside the file"
    )
    parser.add_argument("--key", type=Path, metavar="FILE", help="default: key beside the file")
    parser.add_argument("--json", action="store_true", help="print the result as JSON for machines")


def call(arguments: argparse.Namespace) -> int:
    """Do it; the exit code."""
    from fedtandem.federation.doctor import Visit, doctor_command

    visit = Visit(arguments.file, arguments.superlink, arguments.ca, arguments.key)
    said, code = doctor_command(visit, json_output=arguments.json)
    print(said)
    return code
