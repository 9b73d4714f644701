"""`fedtandem calibrate` as typed."""

import argparse
from pathlib import Path


def add(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("trace", type=Path, help="recorded decisions (.parquet)")
    parser.add_argument("--budget", metavar="SHARE", help="at most this share of calls, e.g. 10%%")
    parser.add_argument("--max-loss", type=float, metavar="POINTS", help="lose at most so many points")
    parser.add_argument("--price", type=float, metavar="λ", help="a call's price over an error's, e.g. 0.05")
    parser.add_argument("--output", type=Path, default=Path("policy.json"), metavar="POLICY")
    parser.add_argument("--learn", choices=["histogram", "line", "gradient", "fixed"], default="histogram")
    parser.add_argument("--tau", type=float, default=0.5, help="of --learn fixed, and where others start")
    parser.add_argument(
        "--measure", help="expected (default), entropy, margin, max_prob, recorded or learned"
    )
    parser.add_argument(
        "--feedback", choices=["auto", "probabilities", "agreement", "quality"], default="auto"
    )
    parser.add_argument(
        "--audit",
        default="all",
        metavar="RATE",
        help="all (default): learn from every recorded answer; auto or 1%%: see only what a deployment would",
    )
    parser.add_argument("--clusters", type=int, metavar="K", help="group clients anew, by mean embedding")
    parser.add_argument(
        "--from", type=Path, dest="last", metavar="POLICY", help="start from the policy in force"
    )
    parser.add_argument("--rounds", type=int, default=30, metavar="N", help="of --learn gradient")
    parser.add_argument(
        "--masked",
        action="store_true",
        help="experimental: edges see sums of at least 3 clients, no single one's",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument("--json", action="store_true", help="print the result as JSON for machines")


def call(arguments: argparse.Namespace) -> int:
    """Do it; the exit code."""
    from fedtandem.federation.calibrate import CalibrateRequest, calibrate_command

    request = CalibrateRequest(
        trace=arguments.trace,
        output=arguments.output,
        budget=arguments.budget,
        max_loss=arguments.max_loss,
        price=arguments.price,
        measure=arguments.measure,
        feedback=arguments.feedback,
        learn=arguments.learn,
        audit=arguments.audit,
        rounds=arguments.rounds,
        tau=arguments.tau,
        clusters=arguments.clusters,
        last=arguments.last,
        seed=arguments.seed,
        masked=arguments.masked,
    )
    print(calibrate_command(request, json_output=arguments.json))
    return 0
