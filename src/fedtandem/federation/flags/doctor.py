"""`fedtandem doctor` as typed."""

import argparse
from pathlib import Path


def add(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("file", type=Path, help="site.toml")


def call(arguments: argparse.Namespace) -> int:
    """Do it; the exit code."""
    return 0
