"""Lines of a study compared seed by seed, and how a comparison is spelled."""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from fedtandem.reports.wording import MINUS
from fedtandem.studies.statistics import Comparison, Decision, Items, PairedItems, compare, decide
from fedtandem.studies.trials import Outcome

Done = Mapping[tuple[int, str], Outcome]


def paired(
    done: Done, seeds: Sequence[int], line: str, control: str, figure: str, splits: Sequence[str]
) -> Comparison:
    """A line minus its control; the figure is the mean over the splits, whose items feed the bootstrap."""
    mine, other = ([done[seed, name].figures[figure] for seed in seeds] for name in (line, control))
    items = [
        [
            PairedItems(*(_items(done[seed, name].items[split]) for name in (line, control)))
            for split in splits
        ]
        for seed in seeds
    ]
    chance = np.random.default_rng(zlib.crc32(f"{line}/{control}/{figure}".encode()))
    return compare(mine, other, items, chance)


def _items(values: np.ndarray) -> Items:
    """One row: a value per item; two rows: values, and weights."""
    if values.ndim == 1:
        return Items(values.astype(np.float64), np.ones(len(values)))
    return Items(values[0].astype(np.float64), values[1].astype(np.float64))


def decisions(family: Mapping[tuple[str, str], Comparison]) -> dict[tuple[str, str], Decision]:
    """Which of the comparisons named beforehand may be claimed."""
    return dict(zip(family, decide(list(family.values())), strict=True))


def told(found: Comparison, *, claim: bool = False, per_cent: bool = True) -> str:
    """`+29.1 (+20.3 to +37.9; +24.0 to +34.2)`: mean, Student's t, bootstrap; bold where it is a claim."""
    mean = number(found.mean, per_cent)
    ends = "; ".join(
        f"{number(low, per_cent)} to {number(high, per_cent)}"
        for low, high in (found.interval, found.bootstrap_interval)
        if low is not None
    ) if found.interval and found.bootstrap_interval else "–"  # fmt: skip
    return f"{f'**{mean}**' if claim else mean} ({ends})"


def number(value: float, per_cent: bool = True) -> str:
    """With its sign; in points, or as it is."""
    return (f"{100 * value:+.1f}" if per_cent else f"{value:+.3f}").replace("-", MINUS)
