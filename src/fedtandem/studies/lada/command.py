"""One command per study of LaDa: run the trials that are missing, one file each, then write summary and page."""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from fedtandem.atomic import write_text
from fedtandem.errors import DataError, FedtandemError
from fedtandem.federation.progress import Watch
from fedtandem.studies.lada.trial import Outcome
from fedtandem.studies.routing.page import study_page
from fedtandem.studies.routing.tables import plain, to_json

Cell = tuple[int, str]
"""Seed and line of the table."""


class Study(Protocol):
    """A study as the command sees it."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> int:
        """Raised when the same settings would give other figures."""

    @property
    def settings(self) -> Any:
        """A frozen dataclass of plain values."""

    def missing(self, seeds: Sequence[int], done: Mapping[Cell, Outcome]) -> Iterable[Cell]:
        """The trials to run next, a seed's together; none when the study is complete."""

    def run(self, cell: Cell) -> Outcome:
        """One trial."""

    def seconds(self, cells: Sequence[Cell]) -> float:
        """CPU seconds that these trials will take, roughly."""

    def summary(self, seeds: Sequence[int], done: Mapping[Cell, Outcome]) -> dict[str, Any]:
        """`bars`, `tables`, `rests_on` (a sentence) and figures of its own."""


def run(
    study: Study, output: Path, seeds: Sequence[int], *, quiet: bool = False, only_tables: bool = False
) -> dict[str, Any]:
    """Do what is missing; write `summary.json` and `report.html`.

    Args:
        only_tables: run nothing; say what the finished trials say.

    Raises:
        DataError: trials of other settings lie in the folder.
    """
    torch.set_num_threads(1)
    key = json.loads(json.dumps({"version": study.version, **asdict(study.settings)}))
    done = _finished(output / "cells", key)
    with Watch(quiet=quiet) as watch:
        started, ran = time.process_time(), 0
        while not only_tables and (todo := list(study.missing(seeds, done))):
            watch(f"{study.name}: about {study.seconds(todo) / 60:.0f} CPU minutes", 0, 1)
            for i, cell in enumerate(todo):
                watch(f"seed {cell[0]}: {cell[1]}", i, len(todo))
                done[cell] = study.run(cell)
                ran += 1
                _keep(output / "cells", key, cell, done[cell])
    summary = {
        "schema": 1, "kind": "routing", "name": study.name, "seeds": sorted({seed for seed, _ in done} & set(seeds)),
        "seeds_wanted": sorted(seeds), "settings": key,
        **study.summary(seeds, done),
        "cpu_seconds_now": round(time.process_time() - started) if ran else 0,
        "cells": _by_seed(done),
    }  # fmt: skip
    write_text(output / "summary.json", to_json(summary))
    write_text(output / "report.html", study_page(plain(summary)))
    return summary


def _by_seed(done: Mapping[Cell, Outcome]) -> dict[int, dict[str, Any]]:
    return {
        seed: {line: outcome.figures for (s, line), outcome in sorted(done.items()) if s == seed}
        for seed in sorted({seed for seed, _ in done})
    }


def _finished(folder: Path, key: Mapping[str, Any]) -> dict[Cell, Outcome]:
    """The trials that lie in the folder."""
    done = {}
    for file in sorted(folder.glob("*.json")):
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["key"] != key:
            raise DataError(
                f"{file} was made with other settings or an older version; delete {folder} to run the study again, or "
                "give another --output."
            )
        items = {split: np.array(values) for split, values in kept["items"].items()}
        done[kept["seed"], kept["line"]] = Outcome(kept["figures"], items)
    return done


def _keep(folder: Path, key: Mapping[str, Any], cell: Cell, outcome: Outcome) -> None:
    seed, line = cell
    items = {split: plain(values.tolist()) for split, values in outcome.items.items()}
    kept = {"key": key, "seed": seed, "line": line, "figures": plain(outcome.figures), "items": items}
    name = "".join(c if c.isalnum() else "_" for c in line)
    write_text(folder / f"{seed:03d}-{name}.json", json.dumps(kept))


def main(make: Any, folder: Path, argv: Sequence[str] | None = None) -> int:
    """The script of a study.

    Args:
        make: (small, data) -> the study; `data` is the folder of shared data sets.
        folder: where its results lie by default.
        argv: words of the command line.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description=f"the study {folder.name}; goes on where it was stopped")
    shared = Path(os.environ.get("FEDTANDEM_SHARED") or "../shared")
    parser.add_argument("--output", type=Path, default=folder, help="folder of summary.json and report.html")
    parser.add_argument("--data", type=Path, default=shared / "data", help="folder of the shared data sets")
    parser.add_argument("--seeds", default="1,2,3,4,5", help="as 1,2,3; seed 0 served to find the settings")
    parser.add_argument(
        "--small", action="store_true", help="a miniature that shows it runs; its figures mean nothing"
    )
    parser.add_argument(
        "--tables", action="store_true", help="run nothing: summary and page of what is finished"
    )
    arguments = parser.parse_args(argv)
    try:
        seeds = tuple(int(seed) for seed in arguments.seeds.split(","))
    except ValueError as error:
        print(f"--seeds {arguments.seeds}: {error}; give whole numbers as 1,2,3.", file=sys.stderr)
        return 2
    try:
        study = make(arguments.small, arguments.data)
        summary = run(study, arguments.output, seeds, only_tables=arguments.tables)
    except FedtandemError as fault:
        print(f"{folder.name}: {fault}", file=sys.stderr)
        return fault.exit_code
    for b in summary["bars"]:
        print(f"{'met   ' if b.met else 'MISSED'}  {b.asked}: {b.measured}{' · ' + b.why if b.why else ''}")
    print(f"{arguments.output / 'summary.json'}, {arguments.output / 'report.html'}")
    return 0
