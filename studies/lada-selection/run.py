"""`python studies/lada-selection/run.py`: results and page beside this file; goes on where it was stopped."""

from pathlib import Path

from fedtandem.studies.lada.command import main
from fedtandem.studies.lada.selection_study import SMALL, SelectionStudy, Settings

if __name__ == "__main__":
    raise SystemExit(
        main(lambda small, data: SelectionStudy(SMALL if small else Settings()), Path(__file__).parent)
    )
