"""`python studies/lada-text/run.py`: results and page beside this file; goes on where it was stopped."""

from pathlib import Path

from fedtandem.studies.lada.command import main
from fedtandem.studies.lada.text_study import SMALL, Settings, TextStudy

if __name__ == "__main__":
    raise SystemExit(
        main(lambda small, data: TextStudy(data, SMALL if small else Settings()), Path(__file__).parent)
    )
