"""Figures over seeds, the tables made of them, and the bars a study is held against."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fedtandem.reports.wording import MINUS, THIN
from fedtandem.studies.statistics import t_interval

SHOWN = "(shown)"
"""Begins the name of a bar that nobody asked for."""


@dataclass(frozen=True)
class Spread:
    """A figure over seeds: each value, the mean, and Student's t interval (None with one seed)."""

    per_seed: tuple[float, ...]
    mean: float
    interval: tuple[float, float] | None


def spread(values: Sequence[float]) -> Spread:
    """Mean and 95 % interval of per-seed values."""
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2 or not np.isfinite(array).all():
        return Spread(tuple(array.tolist()), float(array.mean()), None)
    _, low, high = t_interval(array)
    return Spread(tuple(array.tolist()), float(array.mean()), (float(low), float(high)))


@dataclass(frozen=True)
class Bar:
    """What was asked, what came out.

    Attributes:
        asked: in words, with the limit.
        measured: in words, with the interval.
        values: behind it.
        met: the mean is inside the limit.
        why: of a miss: the reason looked for; empty otherwise.
    """

    asked: str
    measured: str
    values: Spread
    met: bool
    why: str = ""


def bar(
    asked: str,
    values: Sequence[float],
    *,
    at_most: float | None = None,
    at_least: float | None = None,
    kind: str = "share",
    why: str = "",
) -> Bar:
    """A bar on a mean over seeds; `why` is kept for a miss alone."""
    found = spread(values)
    met = (at_most is None or found.mean <= at_most) and (at_least is None or found.mean >= at_least)
    return Bar(asked, shown(found, kind), found, met, "" if met else why)


def shown(value: Spread, kind: str) -> str:
    """`8.1 % (7.0 to 9.2)`."""
    ends = (
        ""
        if value.interval is None
        else f" ({number(value.interval[0], kind)} to {number(value.interval[1], kind)})"
    )
    return number(value.mean, kind, unit=True) + ends


def number(value: float, kind: str, *, unit: bool = False) -> str:
    """A figure: `share` and `points` in hundredths, `excess` with its sign, `plain` as it is."""
    if not np.isfinite(value):
        return "–"
    text = {"share": f"{100 * value:.1f}", "accuracy": f"{100 * value:.2f}", "points": f"{100 * value:+.2f}",
            "excess": f"{100 * value:+.2f}", "plain": f"{value:.3f}", "cost": f"{value:.4f}"}[kind]  # fmt: skip
    after = {"share": f"{THIN}%", "accuracy": f"{THIN}%", "excess": f"{THIN}%", "points": " points"}.get(
        kind, ""
    )
    return text.replace("-", MINUS) + (after if unit else "")


@dataclass(frozen=True)
class Table:
    """A table of words.

    Attributes:
        title: of the table.
        head: of its columns.
        rows: of as many cells.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def plain(value: Any) -> Any:
    """As JSON values, six digits each; what cannot be told is null."""
    if isinstance(value, Spread | Bar | Table):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def to_json(summary: Mapping[str, Any]) -> str:
    """A summary as JSON, a line for each of its parts and for each seed's cells."""
    whole = plain(summary)
    cells = whole.pop("cells")
    parts = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in whole.items()]
    seeds = ",\n".join(f"  {json.dumps(seed)}: {json.dumps(cell)}" for seed, cell in cells.items())
    return "{\n" + ",\n".join([*parts, f' "cells": {{\n{seeds}\n }}']) + "\n}\n"


def markdown(table: Mapping[str, Any]) -> str:
    """A table of a summary for a page of the documentation."""
    lines = [table["head"], ["---"] * len(table["head"]), *table["rows"]]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def bars_table(bars: Sequence[Bar], title: str = "What was asked") -> Table:
    """The bars as a table."""
    rows = tuple((b.asked, b.measured, _outcome(b)) for b in bars)
    return Table(title, ("asked", "measured (95 % t over seeds)", "outcome"), rows)


def _outcome(bar: Bar) -> str:
    if bar.asked.startswith(SHOWN):
        return "nothing was asked"
    return ("met" if bar.met else "**missed**") + (f": {bar.why}" if bar.why else "")
