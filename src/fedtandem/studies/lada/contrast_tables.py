"""Tables and bars of `lada-contrast`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedtandem.studies.bars import Bar, Table, bars_table, spread
from fedtandem.studies.lada.paired import Done, decisions, paired, told

CONTROL = "sft, equal compute"


def tables_and_bars(
    kinds: Sequence[str], arms: Sequence[str], seeds: Sequence[int], done: Done, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """What `summary.json` holds beside the cells."""
    contrasts = [arm for arm in arms if arm.startswith("contrast")]
    family = {
        (f"{kind}: {arm}", f"{kind}: {CONTROL}"): paired(
            done, seeds, f"{kind}: {arm}", f"{kind}: {CONTROL}", "secret", ["secret"]
        )
        for kind in kinds
        for arm in contrasts
    }
    claims = {pair for pair, found in decisions(family).items() if found.claim}
    bars = []
    for kind in kinds:
        (line, control), best = max(
            ((pair, found) for pair, found in family.items() if pair[0].startswith(kind)),
            key=lambda it: it[1].mean,
        )
        bars.append(Bar(
            f"{kind}: best contrast over SFT at equal compute, points: above 0, claimed", f"{line}: {told(best)}",
            spread(best.differences), best.mean > 0 and (line, control) in claims,
            "" if (line, control) in claims and best.mean > 0 else "so contrast_weight = 0 stays the default",
        ))  # fmt: skip
    rows = []
    for kind in kinds:
        for arm in arms:
            line = f"{kind}: {arm}"
            cells = [done[seed, line].figures for seed in seeds]
            gain = "" if arm == CONTROL else told(
                paired(done, seeds, line, f"{kind}: {CONTROL}", "secret", ["secret"]),
                claim=(line, f"{kind}: {CONTROL}") in claims,
            )  # fmt: skip
            rows.append((
                line, ", ".join(f"{100 * c['secret']:.1f}" for c in cells),
                f"{100 * np.mean([c['secret'] for c in cells]):.1f}",
                f"{100 * np.mean([c['old skill'] for c in cells]):.1f}", gain,
                f"{np.mean([c['updates'] for c in cells]):.0f}", f"{np.mean([c['compute'] for c in cells]):.2f}",
                f"{np.mean([c['cpu_seconds'] for c in cells]):.1f}",
            ))  # fmt: skip
    knew = [done[seed, f"{kind}: {arms[0]}"].figures["knew"] for kind in kinds for seed in seeds]
    head = ("student's tokenizer: arm", "per seed", "secret operator, %", "old skill, %",
            "minus SFT at equal compute, points, 95 % t (bootstrap)", "updates", "compute", "CPU s")  # fmt: skip
    return {
        "bars": bars,
        "tables": {
            "bars": bars_table(bars),
            "arms": Table("Exact match on the secret operator", head, tuple(rows)),
        },
        "rests_on": (
            f"{settings['prompts']} prompts, {settings['rounds']} rounds of {settings['updates']} updates of "
            f"{settings['batch_size']}, {settings['replay']:.0%} of each batch replayed; students are the shipped "
            f"clients, taught the operator until they solve {100 * min(knew):.0f} to {100 * max(knew):.0f} % of a "
            f"validation set; {settings['tests']} test chains."
        ),
    }
