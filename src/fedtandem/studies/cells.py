"""A study's cell: one row under one seed, in a run folder of its own; and what is read back from it."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from fedtandem.errors import DataError
from fedtandem.federation.events import read_events
from fedtandem.studies.statistics import Items

Measured = tuple[str, str, str]
"""(party, split, metric)."""


@dataclass(frozen=True)
class Figure:
    """A final measurement of one cell.

    Attributes:
        value: in the metric's unit.
        higher_is_better: which way is good.
        n: test items.
        items: the same, item by item; None where the run kept none.
    """

    value: float
    higher_is_better: bool
    n: int
    items: Items | None


@dataclass(frozen=True)
class Cell:
    """A finished cell.

    Attributes:
        row: the study's row.
        seed: its seed.
        figures: final measurements.
        curves: (party, split, metric) -> ((round, value), ...).
        updates: party -> optimizer updates.
        payload_bytes: party -> (up, down).
        cpu_seconds: of the whole cell.
        cpu_of_party: party -> CPU seconds.
        record: its run.json.
    """

    row: str
    seed: int
    figures: Mapping[Measured, Figure]
    curves: Mapping[Measured, tuple[tuple[int, float], ...]]
    updates: Mapping[str, int]
    payload_bytes: Mapping[str, tuple[int, int]]
    cpu_seconds: float
    cpu_of_party: Mapping[str, float]
    record: Mapping[str, Any]


def cell_folder(output: Path, row: str, seed: int) -> Path:
    """Where the cell's run folder lies."""
    return output / "cells" / row / f"seed-{seed}"


def is_finished(folder: Path, config_hash: str) -> bool:
    """Whether the folder holds a finished run of exactly this config."""
    path = folder / "run.json"
    if not path.is_file() or not (folder / "summary.json").is_file():
        return False
    record = json.loads(path.read_text(encoding="utf-8"))
    return bool(record.get("status") == "finished" and record.get("config_hash") == config_hash)


def read_cell(folder: Path, row: str, seed: int, method: str) -> Cell:
    """Read a finished cell.

    Raises:
        DataError: its per-item values do not add up to the figure beside them.
    """
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    arrays = _item_arrays(folder / "items" / f"{method}.safetensors")
    figures = {}
    for entry in summary["rows"]:
        if entry["method"] != method:
            continue  # the untouched models, measured on the way
        key = (entry["party"], entry["split"], entry["metric"])
        items = _items(arrays, key, float(entry["value"]), where=folder)
        figures[key] = Figure(float(entry["value"]), bool(entry["higher_is_better"]), int(entry["n"]), items)
    events = read_events(folder / "events.jsonl")
    updates: dict[str, int] = {}
    for event in events:
        if event["event"] == "phase" and event.get("steps"):
            updates[event["party"]] = updates.get(event["party"], 0) + int(event["steps"])
    payload: dict[str, tuple[int, int]] = {}
    for entry in summary["bytes"]:
        up, down = payload.get(entry["party"], (0, 0))
        payload[entry["party"]] = (up + int(entry["up"]), down + int(entry["down"]))
    cpu: dict[str, float] = {}
    for entry in summary["cpu_seconds"]:
        cpu[entry["party"]] = cpu.get(entry["party"], 0.0) + float(entry["value"])
    return Cell(
        row, seed, figures, _curves(events, method, figures), updates, payload, sum(cpu.values()), cpu, record
    )


def _item_arrays(path: Path) -> dict[str, Any]:
    return load_file(path) if path.is_file() else {}


def _items(arrays: Mapping[str, Any], key: Measured, value: float, *, where: Path) -> Items | None:
    name = "|".join(key)
    if f"{name}|value" not in arrays:
        return None
    items = Items(
        np.asarray(arrays[f"{name}|value"], dtype=np.float64),
        np.asarray(arrays[f"{name}|weight"], dtype=np.float64),
    )
    if not np.isclose(items.figure, value, rtol=1e-3, atol=1e-5):
        raise DataError(
            f"{where}: the per-item values of {name} make {items.figure:.6g}, its summary says {value:.6g}. "
            "The folder was changed after the run; delete the cell and run the study again."
        )
    return items


def _curves(
    events: list[dict[str, Any]], method: str, wanted: Iterable[Measured]
) -> dict[Measured, tuple[tuple[int, float], ...]]:
    points: dict[Measured, dict[int, float]] = {}
    for event in events:
        if event["event"] == "metric" and event["method"] == method:
            key = (event["party"], event["split"], event["metric"])
            points.setdefault(key, {})[int(event["round"])] = float(event["value"])
    return {key: tuple(sorted(points[key].items())) for key in wanted if key in points}
