"""`python studies/NAME/run.py`: the command line that every study of trials has."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fedtandem.errors import FedtandemError
from fedtandem.studies.trials import Study, run


def main(
    make: Callable[[argparse.Namespace], Study],
    folder: Path,
    argv: Sequence[str] | None = None,
    *,
    seeds: str = "0,1,2,3,4",
) -> int:
    """The script of a study.

    Args:
        make: the study, from the parsed flags `data` (folder of shared data sets), `output` and `small`.
        folder: where its results lie by default.
        argv: words of the command line.
        seeds: run by default.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description=f"the study {folder.name}; goes on where it was stopped")
    shared = Path(os.environ.get("FEDTANDEM_SHARED") or "../shared")
    parser.add_argument("--output", type=Path, default=folder, help="folder of summary.json and report.html")
    parser.add_argument("--data", type=Path, default=shared / "data", help="folder of the shared data sets")
    parser.add_argument("--seeds", default=seeds, help=f"as {seeds}")
    parser.add_argument(
        "--small", action="store_true", help="a miniature that shows it runs; its figures mean nothing"
    )
    parser.add_argument(
        "--tables", action="store_true", help="run nothing: summary and page of what is finished"
    )
    arguments = parser.parse_args(argv)
    try:
        chosen = tuple(int(seed) for seed in arguments.seeds.split(","))
    except ValueError as error:
        print(f"--seeds {arguments.seeds}: {error}; give whole numbers as 1,2,3.", file=sys.stderr)
        return 2
    try:
        summary = run(make(arguments), arguments.output, chosen, only_tables=arguments.tables)
    except FedtandemError as fault:
        print(f"{folder.name}: {fault}", file=sys.stderr)
        return fault.exit_code
    for b in summary["bars"]:
        print(f"{'met   ' if b.met else 'MISSED'}  {b.asked}: {b.measured}{' · ' + b.why if b.why else ''}")
    print(f"{arguments.output / 'summary.json'}, {arguments.output / 'report.html'}")
    return 0
