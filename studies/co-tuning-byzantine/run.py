"""`python studies/co-tuning-byzantine/run.py`: results and page beside this file; goes on where it was stopped."""

from pathlib import Path

from fedtandem.studies.privacy.command import main

if __name__ == "__main__":
    raise SystemExit(main("co-tuning-byzantine", Path(__file__).parent))
