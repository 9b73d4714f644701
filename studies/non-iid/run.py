"""`python studies/non-iid/run.py`: results and page beside this file; goes on where it was stopped."""

from pathlib import Path

from fedtandem.studies.routing.command import main

if __name__ == "__main__":
    raise SystemExit(main("non-iid", Path(__file__).parent))
