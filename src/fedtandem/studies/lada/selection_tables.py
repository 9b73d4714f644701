"""Tables and bars of `lada-selection`."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedtandem.studies.bars import Bar, Table, bars_table, spread
from fedtandem.studies.lada.chains_client import NEW, OLD
from fedtandem.studies.lada.mixed_pool import SHARES
from fedtandem.studies.lada.paired import Done, decisions, number, paired, told
from fedtandem.studies.lada.trial import Recipe
from fedtandem.studies.statistics import Comparison

RANDOM, NULL, ALL = "random", "confident_gap, permuted", "all_matched"
HALF = "confident_gap, half shown"
SPLITS = (OLD, NEW)
FAMILY = (
    ("confident_gap", RANDOM), ("verified_gap", "random, checked"), ("lada", RANDOM),
    ("lada, checked", "random, checked"), ("lada", "confident_gap"), ("lada, checked", "verified_gap"),
    ("lada", "linucb"), (HALF, ALL),
)  # fmt: skip
"""Named before the seeds were run."""
NULL_POINTS, WANTED = 0.03, 0.15


def tables_and_bars(lines: Sequence[str], seeds: Sequence[int], done: Done, recipe: Recipe) -> dict[str, Any]:
    """What `summary.json` holds beside the cells."""
    asked = [pair for pair in FAMILY if set(pair) <= set(lines)]
    family = {pair: paired(done, seeds, *pair, "mean", SPLITS) for pair in asked}
    claims = {pair for pair, found in decisions(family).items() if found.claim}
    of_null = sorted(seed for seed, line in done if line == NULL and (seed, RANDOM) in done)
    null = paired(done, of_null, NULL, RANDOM, "mean", SPLITS)
    bars = [_best(lines, seeds, done), _null(null), *_against_everything(lines, seeds, done)]
    return {
        "bars": bars,
        "tables": {
            "bars": bars_table(bars),
            "selectors": _selectors(lines, seeds, done),
            "questions": Table(
                "Questions named beforehand",
                ("line", "against", "points, 95 % t (bootstrap)"),
                tuple((a, b, told(found, claim=(a, b) in claims)) for (a, b), found in family.items()),
            ),
            "chosen": chosen_table(lines, seeds, done, tuple(SHARES)),
            "expected": expected_table(lines, seeds, done),
        },
        "rests_on": (
            f"Pool of {recipe.pool} chains, {recipe.rounds} rounds of {recipe.budget} items and {recipe.updates} "
            f"updates of {recipe.batch_size}, {recipe.replay:.0%} of each batch own data, learning rate "
            f"{recipe.learning_rate:g}; {recipe.tests} test chains per skill. Server: embedded:chains-server; clients: "
            "Llama, two layers of 48, trained on one and two steps of + - * anew for every seed. The null rests on "
            f"{len(of_null)} seeds."
        ),
        "cpu_seconds_of_trials": round(sum(o.figures["cpu_seconds_whole"] for o in done.values())),
    }


def _mean(done: Done, seeds: Sequence[int], line: str, *keys: str) -> float:
    """Over the seeds, of the figure that lies under these keys."""
    values = []
    for seed in seeds:
        found: Any = done[seed, line].figures
        for key in keys:
            found = found[key]
        values.append(found)
    return float(np.mean(values))


def _deployable(line: str) -> bool:
    """Needs no right answers, is no control, and is not given the whole pool."""
    return not line.startswith(("random", "oracle", "all", "lada_shuffled")) and line != NULL


def _best(lines: Sequence[str], seeds: Sequence[int], done: Done) -> Bar:
    mean = {line: _mean(done, seeds, line, "mean") for line in lines if _deployable(line)}
    best = max(mean, key=lambda line: mean[line])
    found = paired(done, seeds, best, RANDOM, "mean", SPLITS)
    asked = "best deployable selector over random, points: at least +15"
    return Bar(asked, f"{best}: {told(found)}", spread(found.differences), found.mean >= WANTED)


def _null(found: Comparison) -> Bar:
    low, high = found.interval or (-1.0, 1.0)
    half = (high - low) / 2
    return Bar(
        "permuted scores minus random: includes 0, half-width at most 3 points",
        f"{told(found)}, half-width {100 * half:.1f}, {len(found.differences)} seeds",
        spread(found.differences), low <= 0 <= high and half <= NULL_POINTS,
    )  # fmt: skip


def _against_everything(lines: Sequence[str], seeds: Sequence[int], done: Done) -> list[Bar]:
    """Fewer bytes, and no worse than everything? Where logits travel, only those of chosen items do; text is shown."""
    bars = []
    for line, what in (
        ("verified_gap", "logits of the chosen alone"),
        ("verified_gap, half shown", "half of the texts shown"),
        (HALF, "half of the texts shown"),
    ):
        if line in lines and ALL in lines:
            found = paired(done, seeds, line, ALL, "mean", SPLITS)
            key = "bytes_learnt" if line == "verified_gap" else "bytes_shown"
            share = _mean(done, seeds, line, key) / _mean(done, seeds, line, "bytes_pool")
            low = (found.interval or (-1.0, 1.0))[0]
            bars.append(Bar(
                f"{line} ({what}) minus everything at equal updates, points: interval above -1 at <= 50 % of the bytes",
                f"{told(found)} at {100 * share:.0f} %", spread(found.differences), low > -0.01 and share <= 0.505,
            ))  # fmt: skip
    return bars


def _share(value: float) -> str:
    return f"{100 * value:.1f}"


def _selectors(lines: Sequence[str], seeds: Sequence[int], done: Done) -> Table:
    rows = []
    for line in sorted(lines, key=lambda line: -_mean(done, seeds, line, "mean")):
        per_seed = ", ".join(_share(done[seed, line].figures["mean"]) for seed in seeds)
        figures = [_share(_mean(done, seeds, line, k)) for k in ("mean", NEW, OLD)]
        gain = "" if line == RANDOM else told(paired(done, seeds, line, RANDOM, "mean", SPLITS))
        rows.append((line, per_seed, *figures, gain))
    head = (
        "selector",
        "per seed",
        "mean, %",
        "new skill",
        "old skill",
        "minus random, points, 95 % t (bootstrap)",
    )
    return Table("Exact match after equal items and equal updates", head, tuple(rows))


def chosen_table(lines: Sequence[str], seeds: Sequence[int], done: Done, strata: Sequence[str]) -> Table:
    """Shares of what each line trained on, in per cent, means over seeds."""
    rows = []
    for line in lines:
        shares = [f"{100 * _mean(done, seeds, line, 'strata', s):.0f}" for s in strata]
        right = f"{100 * _mean(done, seeds, line, 'right'):.0f}"
        distinct = f"{_mean(done, seeds, line, 'distinct'):.0f}"
        of_pool = [
            f"{100 * _mean(done, seeds, line, k) / _mean(done, seeds, line, 'bytes_pool'):.0f}"
            for k in ("bytes_shown", "bytes_learnt")
        ]
        rows.append((line, *shares, right, distinct, *of_pool))
    head = ("selector", *(f"{s}, %" for s in strata), "right paths, %", "different items", "bytes shown, %",
            "bytes learnt from, %")  # fmt: skip
    return Table("What was chosen", head, tuple(rows))


def expected_table(lines: Sequence[str], seeds: Sequence[int], done: Done) -> Table:
    """Rank correlations from the second round on, and CPU seconds."""
    rows = []
    for line in lines:
        per_round = [r for seed in seeds for r in done[seed, line].figures["rounds"][1:]]
        agreed = [r["predicted_realised"] for r in per_round if r["predicted_realised"] is not None]
        with_reward = [r["spearman"] for r in per_round if r.get("spearman") is not None]
        seconds = {
            phase: _mean(done, seeds, line, "cpu_seconds", phase)
            for phase in ("score", "choose", "reward", "filter", "public")
        }
        rows.append((
            line,
            number(float(np.mean(agreed)), False) if agreed else "–",
            number(float(np.mean(with_reward)), False) if with_reward else "–",
            f"{seconds['score'] + seconds['choose'] + seconds['reward']:.1f}", f"{seconds['filter']:.2f}",
            f"{seconds['public']:.1f}",
        ))  # fmt: skip
    head = ("selector", "score against realised gain, Spearman", "score against reward, Spearman", "scoring, CPU s",
            "filter, CPU s", "training, CPU s")  # fmt: skip
    return Table("What was expected of the items, and what they cost", head, tuple(rows))
