"""`fedtandem route` as typed."""

import argparse
from pathlib import Path


def add(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("trace", type=Path, help="recorded decisions (.parquet)")
    parser.add_argument("--policy", type=Path, required=True, metavar="FILE", help="made by calibrate")
    parser.add_argument("--report", type=Path, metavar="FILE", help="also write a page (.html)")
    parser.add_argument(
        "--peer-cost",
        type=float,
        default=0.05,
        metavar="C",
        help="of asking peers, in units of a call (default 0.05): they are asked where that is cheaper on average",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument("--json", action="store_true", help="print the result as JSON for machines")


def call(arguments: argparse.Namespace) -> int:
    """Do it; the exit code."""
    from fedtandem.federation.route import route_command

    said = route_command(
        arguments.trace,
        arguments.policy,
        report=arguments.report,
        json_output=arguments.json,
        seed=arguments.seed,
        peer_cost=arguments.peer_cost,
    )
    print(said)
    return 0
