"""A study of single trials: run those that are missing, one file each, then summary and page."""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from fedtandem.atomic import write_text
from fedtandem.errors import DataError
from fedtandem.federation.progress import Watch
from fedtandem.studies.bars import plain, to_json
from fedtandem.studies.page import study_page

Progress = Callable[[str, int, int], None]
"""What is done now, how many are, of how many."""
Cell = tuple[int, str]
"""Seed and line of the table."""
WHOLE = "whole"
"""The line of a study whose trial is a whole seed."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a trial came to.

    Attributes:
        figures: JSON values.
        items: test set -> value of each item, (n,), and in a second row its weight where that is not 1, (2, n): the
            figure is their quotient of sums.
    """

    figures: dict[str, Any]
    items: dict[str, np.ndarray] = field(default_factory=dict)


class Study(Protocol):
    """A study as `run` sees it."""

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

    def run(self, cell: Cell, progress: Progress) -> Outcome:
        """One trial."""

    def seconds(self, cells: Sequence[Cell]) -> float:
        """CPU seconds that these trials will take, roughly."""

    def summary(self, seeds: Sequence[int], done: Mapping[Cell, Outcome]) -> dict[str, Any]:
        """`bars`, `tables`, `rests_on` (a sentence) and figures of its own."""


def whole_seeds(seeds: Sequence[int], done: Mapping[Cell, Outcome]) -> list[Cell]:
    """`Study.missing` of a study whose trial is a whole seed."""
    return [(seed, WHOLE) for seed in seeds if (seed, WHOLE) not in done]


def figures_by_seed(seeds: Sequence[int], done: Mapping[Cell, Outcome]) -> dict[int, dict[str, Any]]:
    """Seed -> figures, of a study whose trial is a whole seed."""
    return {seed: done[seed, WHOLE].figures for seed in sorted(seeds) if (seed, WHOLE) in done}


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
                done[cell] = study.run(cell, watch)
                ran += 1
                _keep(output / "cells", key, cell, done[cell])
    summary = {
        "schema": 1, "kind": "trials", "name": study.name, "seeds": sorted({seed for seed, _ in done} & set(seeds)),
        "seeds_wanted": sorted(seeds), "settings": key,
        "versions": {package: version(package) for package in ("fedtandem", "torch")},
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
