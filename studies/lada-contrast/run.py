"""`python studies/lada-contrast/run.py`: results and page beside this file; goes on where it was stopped."""

from pathlib import Path

from fedtandem.studies.command import main
from fedtandem.studies.lada.contrast_study import SMALL, ContrastStudy, Settings

if __name__ == "__main__":
    raise SystemExit(  # seed 0 served to find the settings
        main(
            lambda flags: ContrastStudy(SMALL if flags.small else Settings()),
            Path(__file__).parent,
            seeds="1,2,3,4,5",
        )
    )
