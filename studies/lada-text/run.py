"""`python studies/lada-text/run.py`: results and page beside this file; goes on where it was stopped."""

from pathlib import Path

from fedtandem.studies.command import main
from fedtandem.studies.lada.text_study import SMALL, Settings, TextStudy

if __name__ == "__main__":
    raise SystemExit(  # seed 0 served to find the settings
        main(
            lambda flags: TextStudy(flags.data, SMALL if flags.small else Settings()),
            Path(__file__).parent,
            seeds="1,2,3,4,5",
        )
    )
