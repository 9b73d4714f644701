"""`python studies/membership/run.py`: results and page beside this file; goes on where it was stopped."""

from pathlib import Path

from fedtandem.studies.command import main
from fedtandem.studies.membership import SETTINGS, SMALL, MembershipStudy

if __name__ == "__main__":
    raise SystemExit(
        main(lambda flags: MembershipStudy(SMALL if flags.small else SETTINGS), Path(__file__).parent)
    )
