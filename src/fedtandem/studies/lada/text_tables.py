"""Tables and bars of `lada-text`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedtandem.studies.bars import Bar, Table, bars_table, spread
from fedtandem.studies.lada.paired import Done, decisions, paired, told
from fedtandem.studies.lada.selection_tables import chosen_table, expected_table

BITS, EXACT, RANDOM = "bits per byte", "exact path", "random"
FAMILY = ("confident_gap", "gap", "highest_loss", "lada")
"""Compared with random; named before the seeds were run."""


def tables_and_bars(
    lines: Sequence[str], strata: Sequence[str], seeds: Sequence[int], done: Done, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """What `summary.json` holds beside the cells."""
    family = {(line, RANDOM): paired(done, seeds, line, RANDOM, BITS, [BITS]) for line in FAMILY}
    claims = {pair for pair, found in decisions(family).items() if found.claim}
    best = min(family, key=lambda pair: family[pair].mean)
    bars = [
        Bar(
            f"{line} below random, bits per byte, claimed",
            told(family[line, RANDOM], per_cent=False), spread(family[line, RANDOM].differences),
            (line, RANDOM) in claims and family[line, RANDOM].mean < 0,
        )
        for line in dict.fromkeys(("confident_gap", best[0]))
    ]  # fmt: skip
    rows = []
    mean = {line: float(np.mean([done[seed, line].figures[BITS] for seed in seeds])) for line in lines}
    for line in sorted(lines, key=lambda line: mean[line]):
        gain = "" if line == RANDOM else told(
            paired(done, seeds, line, RANDOM, BITS, [BITS]), claim=(line, RANDOM) in claims, per_cent=False
        )  # fmt: skip
        per_seed = ", ".join(f"{done[seed, line].figures[BITS]:.3f}" for seed in seeds)
        exact = float(np.mean([done[seed, line].figures[EXACT] for seed in seeds]))
        rows.append((line, per_seed, f"{mean[line]:.3f}", gain, f"{100 * exact:.1f}"))
    head = (
        "selector",
        "per seed",
        "bits per byte",
        "minus random, 95 % t (bootstrap)",
        "whole path right, %",
    )
    recipe = settings["recipe"]
    return {
        "bars": bars,
        "tables": {
            "bars": bars_table(bars),
            "selectors": Table("Held-out rationales after equal items and equal updates", head, tuple(rows)),
            "chosen": chosen_table(lines, seeds, done, strata),
            "expected": expected_table(lines, seeds, done),
        },
        "rests_on": (
            f"GSM8K questions and rationales of at most {settings['longest']} bytes each; pool of {recipe['pool']}, "
            f"{recipe['rounds']} rounds of {recipe['budget']} items and {recipe['updates']} updates of "
            f"{recipe['batch_size']}; {recipe['tests']} test rationales. Student and teacher: stories260k, tuned on "
            f"{recipe['own']} and {settings['teacher_rows']} rationales."
        ),
    }
