"""`python studies/co-tuning-byzantine/run.py`: results and page beside this file; goes on where it was stopped."""

from pathlib import Path

from fedtandem.studies.command import main
from fedtandem.studies.lying_clients import SMALL, Lies, LyingClientsStudy

if __name__ == "__main__":
    raise SystemExit(
        main(lambda flags: LyingClientsStudy(SMALL if flags.small else Lies()), Path(__file__).parent)
    )
