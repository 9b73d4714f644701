"""What a check let through per kind of prompt, and what each party lost of what it once could."""

from collections.abc import Sequence
from typing import Any

from fedtandem.reports.record import Checked, RunRecord
from fedtandem.reports.wording import is_visible


def share_by_stratum(checked: Sequence[Checked]) -> dict[str, Any]:
    """A table: a row per round, producer and learner; a column per kind of prompt.

    Returns:
        `strata`, the columns; `rows`, each with its `of` and `cells` of (used share, right share of the used) or None.
    """
    strata = sorted({stratum for of in checked for stratum in of.strata})
    rows = [
        {"of": of, "cells": [_shares(of.strata.get(name)) for name in strata]} for of in checked if of.strata
    ]
    return {"strata": strata, "rows": rows}


def _shares(counted: tuple[int, int, int | None] | None) -> tuple[float, float | None] | None:
    if counted is None:
        return None
    written, used, right = counted
    return used / written, None if right is None or not used else right / used


def forgotten(run: RunRecord) -> list[dict[str, Any]]:
    """Of the run's method: per party and test set the best figure of any round and the last, where some was lost."""
    series: dict[tuple[str, str, str], dict[int, float]] = {}
    for point in run.points:
        if point.method == run.main:
            series.setdefault((point.party, point.split, point.metric), {})[point.round] = point.value
    better = {(s.party, s.split, s.metric): s.higher_is_better for s in run.scores}
    rows: list[dict[str, Any]] = []
    for key, values in series.items():
        sign = 1.0 if better.get(key, True) else -1.0
        best = max(values, key=lambda number: sign * values[number])
        lost = values[max(values)] - values[best]
        if best != max(values) and is_visible(lost, key[2]):
            party, split, metric = key
            rows.append({
                "party": party, "split": split, "metric": metric, "round": best, "best": values[best],
                "last": values[max(values)], "lost": lost,
            })  # fmt: skip
    return sorted(rows, key=lambda row: (run.parties.index(row["party"]), row["split"]))
