"""`python studies/non-iid/run.py`: results and page beside this file; goes on where it was stopped."""

from pathlib import Path

from fedtandem.studies.command import main
from fedtandem.studies.routing.study import routing_study

if __name__ == "__main__":
    raise SystemExit(
        main(
            lambda flags: routing_study("non-iid", flags.data, flags.output, small=flags.small),
            Path(__file__).parent,
        )
    )
