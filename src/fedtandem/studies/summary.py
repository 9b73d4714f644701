"""From finished cells to a study's one table: means, spread, paired differences, and what may be claimed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedtandem.studies.budgets import CLIENTS, SERVER, are_equal, budget, of_party, payload_of
from fedtandem.studies.cells import Cell, Figure, Measured
from fedtandem.studies.statistics import (
    SEEDS_FOR_A_CLAIM,
    SEEDS_FOR_README,
    Comparison,
    PairedItems,
    compare,
    decide,
    t_interval,
)


@dataclass(frozen=True)
class Requirement:
    """A figure without which nothing is compared."""

    method: str
    party: str
    split: str
    metric: str
    at_least: float | None = None
    at_most: float | None = None


@dataclass(frozen=True)
class Pattern:
    """Comparisons named before the study ran; None stands for all."""

    method: str | None = None
    control: str | None = None
    party: str | None = None
    split: str | None = None
    metric: str | None = None

    def covers(self, row: Mapping[str, Any]) -> bool:
        """Whether it names this comparison."""
        return all(
            wanted is None or wanted == row[key]
            for key, wanted in (
                ("method", self.method),
                ("control", self.control),
                ("party", self.party),
                ("split", self.split),
                ("metric", self.metric),
            )
        )


@dataclass(frozen=True)
class Plan:
    """What a study compares.

    Attributes:
        rows: names in the order of the table.
        seeds: all seeds of a whole study.
        controls: row -> the rows it is compared with.
        requirements: the gates.
        claims: the comparisons Holm's correction runs over; empty for the server's and the mean clients'.
    """

    rows: tuple[str, ...]
    seeds: tuple[int, ...]
    controls: Mapping[str, tuple[str, ...]]
    requirements: tuple[Requirement, ...] = ()
    claims: tuple[Pattern, ...] = ()


@dataclass(frozen=True)
class _Series:
    """One row and measurement over the seeds that have it; per seed the figures of the parties it is a mean over."""

    seeds: tuple[int, ...]
    figures: tuple[tuple[Figure, ...], ...]

    @property
    def values(self) -> list[float]:
        return [float(np.mean([figure.value for figure in parties])) for parties in self.figures]


def summarise(plan: Plan, cells: Iterable[Cell], *, draws: int = 10_000) -> dict[str, Any]:
    """The study's summary as JSON values.

    Args:
        plan: what is compared.
        cells: those that are finished.
        draws: of the bootstrap.

    Returns:
        `rows` as the interface promises, and beside them what the result rests on: validity, budgets, curves,
        models, hashes of the public sets.
    """
    done = {(cell.row, cell.seed): cell for cell in cells}
    series = _all_series(plan, done)
    unmet = _unmet(plan.requirements, series)
    rows = _rows(plan, series, done, compared=not unmet, draws=draws)
    expected = {(row, seed) for row in plan.rows for seed in plan.seeds}
    any_cell = next(iter(done.values()), None)
    return {
        "schema": 1,
        "kind": "study",
        "complete": expected <= set(done),
        "cells_finished": len(expected & set(done)),
        "cells": len(expected),
        "valid": not unmet,
        "not_valid_because": unmet,
        "seeds": list(plan.seeds),
        "seeds_for_a_claim": SEEDS_FOR_A_CLAIM,
        "seeds_for_readme": SEEDS_FOR_README,
        "rows": rows,
        "curves": _curves(plan, done),
        "budgets": [budget(cell) for _, cell in sorted(done.items(), key=lambda item: _place(plan, item[0]))],
        "public_hashes": _public_hashes(done),
        "models": dict(any_cell.record.get("models", {})) if any_cell else {},
        "versions": dict(any_cell.record.get("versions", {})) if any_cell else {},
    }


def _place(plan: Plan, key: tuple[str, int]) -> tuple[int, int]:
    return plan.rows.index(key[0]), key[1]


def _all_series(plan: Plan, done: Mapping[tuple[str, int], Cell]) -> dict[tuple[str, Measured], _Series]:
    """Every row's measurements by party, and the mean over clients where there are several."""
    found: dict[tuple[str, Measured], _Series] = {}
    for row in plan.rows:
        cells = [done[row, seed] for seed in plan.seeds if (row, seed) in done]
        keys = dict.fromkeys(key for cell in cells for key in cell.figures)
        for key in keys:
            having = [cell for cell in cells if key in cell.figures]
            found[row, key] = _Series(tuple(c.seed for c in having), tuple((c.figures[key],) for c in having))
        for split, metric in dict.fromkeys((key[1], key[2]) for key in keys if key[0] != SERVER):
            clients = [key for key in keys if key[0] != SERVER and key[1:] == (split, metric)]
            having = [cell for cell in cells if all(key in cell.figures for key in clients)]
            if len(clients) > 1 and having:
                pooled = tuple(tuple(c.figures[key] for key in clients) for c in having)
                found[row, (CLIENTS, split, metric)] = _Series(tuple(c.seed for c in having), pooled)
    return found


def _unmet(requirements: Sequence[Requirement], series: Mapping[tuple[str, Measured], _Series]) -> list[str]:
    """The gates that do not hold, in words."""
    reasons = []
    for need in requirements:
        key = (need.method, (need.party, need.split, need.metric))
        what = f"{need.metric} of {need.method} ({need.party}) on {need.split}"
        if key not in series:
            reasons.append(f"{what} was not measured")
            continue
        mean = float(np.mean(series[key].values))
        if need.at_least is not None and mean < need.at_least:
            reasons.append(f"{what} is {mean:.4g}, it must be at least {need.at_least:g}")
        if need.at_most is not None and mean > need.at_most:
            reasons.append(f"{what} is {mean:.4g}, it must be at most {need.at_most:g}")
    return reasons


def _rows(
    plan: Plan,
    series: Mapping[tuple[str, Measured], _Series],
    done: Mapping[tuple[str, int], Cell],
    *,
    compared: bool,
    draws: int,
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    made: list[tuple[dict[str, Any], Comparison]] = []
    for (row, key), own in series.items():
        base = _describe(row, key, own, done)
        controls = [name for name in plan.controls.get(row, ()) if (name, key) in series]
        for control in controls:
            comparison = _compare(own, series[control, key], draws, seed_of=len(made)) if compared else None
            if comparison is None:
                rows.append({**base, **_no_comparison(), "control": control})
                continue
            entry = {**base, **_difference(comparison, control, row, key, done)}
            rows.append(entry)
            made.append((entry, comparison))
        if not controls:
            rows.append({**base, **_no_comparison()})
    _decide(plan, series, made)
    return rows


def _describe(row: str, key: Measured, own: _Series, done: Mapping[tuple[str, int], Cell]) -> dict[str, Any]:
    values = np.asarray(own.values, dtype=np.float64)
    low: float | None
    high: float | None
    sd: float | None
    low, high, sd = None, None, None
    if len(values) >= 2:
        _, low_array, high_array = t_interval(values)
        low, high, sd = float(low_array), float(high_array), float(values.std(ddof=1))
    party, split, metric = key
    cells = [done[row, seed] for seed in own.seeds]
    updates = [of_party(cell.updates, party) for cell in cells]
    return {
        "method": row,
        "party": party,
        "split": split,
        "metric": metric,
        "higher_is_better": own.figures[0][0].higher_is_better,
        "mean": float(values.mean()),
        "sd": sd,
        "ci_low": low,
        "ci_high": high,
        "per_seed": values.tolist(),
        "seeds": list(own.seeds),
        "n": sum(figure.n for figure in own.figures[0]),
        "updates": float(np.mean(updates)),
        "cpu_seconds": float(np.mean([of_party(cell.cpu_of_party, party) for cell in cells])),
        "bytes": float(np.mean([payload_of(cell, party) for cell in cells])),
    }


def _no_comparison() -> dict[str, Any]:
    return {"control": None, "difference": None, "difference_ci": None}


def _compare(own: _Series, control: _Series, draws: int, *, seed_of: int) -> Comparison | None:
    """Pair the seeds both have."""
    seeds = [seed for seed in own.seeds if seed in control.seeds]
    if not seeds:
        return None
    ours = [own.figures[own.seeds.index(seed)] for seed in seeds]
    theirs = [control.figures[control.seeds.index(seed)] for seed in seeds]
    return compare(
        [float(np.mean([figure.value for figure in parties])) for parties in ours],
        [float(np.mean([figure.value for figure in parties])) for parties in theirs],
        _paired(ours, theirs),
        np.random.default_rng([1979, seed_of]),
        draws=draws,
    )


def _paired(
    ours: Sequence[tuple[Figure, ...]], theirs: Sequence[tuple[Figure, ...]]
) -> list[list[PairedItems]] | None:
    """Per seed and party the paired items; None where a run kept none or another number of them."""
    seeds = []
    for left, right in zip(ours, theirs, strict=True):
        if len(left) != len(right):
            return None
        parties = []
        for a, b in zip(left, right, strict=True):
            if a.items is None or b.items is None or a.items.value.shape != b.items.value.shape:
                return None
            parties.append(PairedItems(a.items, b.items))
        seeds.append(parties)
    return seeds


def _difference(
    comparison: Comparison, control: str, row: str, key: Measured, done: Mapping[tuple[str, int], Cell]
) -> dict[str, Any]:
    seeds = [seed for name, seed in done if name == row and (control, seed) in done]
    ours = float(np.mean([of_party(done[row, seed].updates, key[0]) for seed in seeds]))
    theirs = float(np.mean([of_party(done[control, seed].updates, key[0]) for seed in seeds]))
    return {
        "control": control,
        "difference": comparison.mean,
        "difference_ci": list(comparison.interval) if comparison.interval else None,
        "difference_per_seed": list(comparison.differences),
        "bootstrap_ci": list(comparison.bootstrap_interval) if comparison.bootstrap_interval else None,
        "p": comparison.p,
        "p_bootstrap": comparison.p_bootstrap,
        "control_updates": theirs,
        "equal_updates": are_equal(ours, theirs),
    }


def _decide(
    plan: Plan,
    series: Mapping[tuple[str, Measured], _Series],
    made: Sequence[tuple[dict[str, Any], Comparison]],
) -> None:
    """Fill in p_holm and claim of the family's comparisons; the others are shown without."""
    family = [(row, comparison) for row, comparison in made if _in_family(plan, series, row)]
    for (row, _), decision in zip(family, decide([comparison for _, comparison in family]), strict=True):
        row["p_holm"], row["claim"], row["why_no_claim"] = decision.p_holm, decision.claim, decision.why_not
        row["family"] = len(family)
    for row, _ in made:
        if "claim" not in row:
            row["p_holm"], row["claim"], row["family"] = None, False, 0
            row["why_no_claim"] = "not among the comparisons the study set out to make"


def _in_family(plan: Plan, series: Mapping[tuple[str, Measured], _Series], row: Mapping[str, Any]) -> bool:
    if plan.claims:
        return any(pattern.covers(row) for pattern in plan.claims)
    pooled = (row["method"], (CLIENTS, row["split"], row["metric"])) in series
    return row["party"] in (SERVER, CLIENTS) or not pooled


def _curves(plan: Plan, done: Mapping[tuple[str, int], Cell]) -> list[dict[str, Any]]:
    """Mean over seeds of each measurement by round."""
    points: dict[tuple[str, Measured, int], list[float]] = {}
    for (row, _), cell in done.items():
        for key, values in cell.curves.items():
            for round_number, value in values:
                points.setdefault((row, key, round_number), []).append(value)
    return [
        {"method": row, "party": key[0], "split": key[1], "metric": key[2], "round": number,
         "mean": float(np.mean(values)), "seeds": len(values)}
        for (row, key, number), values in sorted(
            points.items(), key=lambda item: (plan.rows.index(item[0][0]), item[0][1], item[0][2])
        )
    ]  # fmt: skip


def _public_hashes(done: Mapping[tuple[str, int], Cell]) -> dict[str, list[str]]:
    """Per seed the public sets its rows used; more than one where a row changes the public data on purpose."""
    hashes: dict[str, set[str]] = {}
    for (_, seed), cell in sorted(done.items()):
        hashes.setdefault(str(seed), set()).add(str(cell.record.get("public_hash")))
    return {seed: sorted(values) for seed, values in hashes.items()}
