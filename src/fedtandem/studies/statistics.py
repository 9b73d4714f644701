"""What a difference between two methods is worth: two intervals, one correction, one rule for a claim.

A comparison is a method minus its control, paired by seed. Two intervals describe it:

- Student's t over the per-seed differences: the noise between seeds;
- a two-level bootstrap, seeds first and then test items inside a seed: that noise and the luck of the test set.

A percentile bootstrap over five seeds alone excludes 0 under the null in about 17 % of cases, so it never
stands alone. A claim is made when both intervals exclude 0 after Holm's correction over the family's
comparisons, from at least `SEEDS_FOR_A_CLAIM` seeds. The intervals shown are the plain 95 % ones; the
correction acts on the p-values, and the decision is the corrected one.

Pure: arrays in, values out; randomness is the caller's `numpy.random.Generator`.

Source: specification of studies, section 5; S. Holm, Scand. J. Statist. 6 (1979) 65-70.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr, stdtrit

Floats = npt.NDArray[np.float64]

ALPHA = 0.05
SEEDS_FOR_A_CLAIM = 5
SEEDS_FOR_README = 10
"""Seeds before a claim may stand in the README."""
DRAWS = 10_000
ITEM_DRAWS = 2_000


@dataclass(frozen=True)
class Items:
    """One measurement, item by item: its figure is sum(value) / sum(weight).

    Attributes:
        value: (n,) float; e.g. 1 or 0 per chain, or the bits spent on a text.
        weight: (n,) float; e.g. 1 per chain, or the bytes of that text.
    """

    value: Floats
    weight: Floats

    @property
    def figure(self) -> float:
        """The measured figure."""
        return float(self.value.sum(dtype=np.float64) / self.weight.sum(dtype=np.float64))


@dataclass(frozen=True)
class PairedItems:
    """The same n test items under a method and under its control, for one party and one seed."""

    method: Items
    control: Items

    def __post_init__(self) -> None:
        shapes = {array.shape for side in (self.method, self.control) for array in (side.value, side.weight)}
        if len(shapes) != 1 or len(next(iter(shapes))) != 1 or not next(iter(shapes))[0]:
            raise ValueError(
                f"paired items have the shapes {sorted(shapes)}; expected one shape (n,) with n >= 1 for all. "
                "Measure method and control on the same test items."
            )


@dataclass(frozen=True)
class Comparison:
    """A method minus its control.

    Attributes:
        differences: per seed, in the metric's own unit and sign.
        mean: their mean.
        interval: Student's t, 95 %; None with fewer than two seeds.
        p: its two-sided p-value; None with it.
        bootstrap_interval: two-level percentile bootstrap, 95 %; None without per-item values.
        p_bootstrap: its two-sided p-value; None with it.
    """

    differences: tuple[float, ...]
    mean: float
    interval: tuple[float, float] | None
    p: float | None
    bootstrap_interval: tuple[float, float] | None
    p_bootstrap: float | None


@dataclass(frozen=True)
class Decision:
    """What may be said of a comparison.

    Attributes:
        p_holm: the larger of the two p-values after Holm's correction; None where one is missing.
        claim: the difference may be called real.
        why_not: the first reason that forbids it; empty for a claim.
    """

    p_holm: float | None
    claim: bool
    why_not: str


def t_interval(values: Floats, confidence: float = 0.95) -> tuple[Floats, Floats, Floats]:
    """Mean and Student's t interval over the last axis.

    Args:
        values: (..., S) with S >= 2 seeds.

    Returns:
        (mean, low, high), each (...).
    """
    n = _seeds(values)
    mean = values.mean(axis=-1)
    half = stdtrit(n - 1, 0.5 + confidence / 2) * values.std(axis=-1, ddof=1) / np.sqrt(n)
    return mean, mean - half, mean + half


def t_p_value(values: Floats) -> Floats:
    """Two-sided p of "the mean is 0", by Student's t over the last axis.

    Args:
        values: (..., S) with S >= 2 seeds. Without any spread p is 0, or 1 where all values are 0.

    Returns:
        (...) in [0, 1].
    """
    n = _seeds(values)
    mean = values.mean(axis=-1)
    error = values.std(axis=-1, ddof=1) / np.sqrt(n)
    # Equal values differ from their mean by rounding; that is no spread.
    rounding = error <= 1e-12 * np.abs(values).max(axis=-1)
    t = np.abs(mean) / np.where(rounding, 1.0, error)
    p = 2 * stdtr(n - 1, -t)
    return np.asarray(np.where(rounding, np.where(mean == 0, 1.0, 0.0), p))


def holm(p_values: Floats) -> Floats:
    """Holm's step-down correction over the last axis.

    Args:
        p_values: (..., M) for a family of M comparisons.

    Returns:
        Adjusted p-values, same shape: at most alpha exactly where Holm's procedure rejects at alpha.
    """
    m = p_values.shape[-1]
    order = np.argsort(p_values, axis=-1, kind="stable")
    stepped = np.take_along_axis(p_values, order, axis=-1) * np.arange(m, 0, -1)
    adjusted = np.minimum(np.maximum.accumulate(stepped, axis=-1), 1.0)
    result = np.empty_like(adjusted)
    np.put_along_axis(result, order, adjusted, axis=-1)
    return result


def two_level_bootstrap(
    seeds: Sequence[Sequence[PairedItems]],
    generator: np.random.Generator,
    *,
    draws: int = DRAWS,
    item_draws: int = ITEM_DRAWS,
) -> Floats:
    """Draw the mean difference again: seeds with replacement, then test items with replacement inside each.

    Args:
        seeds: per seed, the paired items of each party the row is a mean over (one party: a list of one).
        generator: where all randomness comes from.
        draws: how many means are drawn.
        item_draws: item resamples prepared per seed, from which every draw takes its own at random. Resampling the
            items afresh for each of 10,000 draws changes the quantiles by less than their own noise.

    Returns:
        (draws,) means of the differences.
    """
    pools = np.stack([_resampled_differences(parties, generator, item_draws) for parties in seeds])  # (S, R)
    n = len(seeds)
    chosen = generator.integers(0, n, size=(draws, n))
    replicate = generator.integers(0, item_draws, size=(draws, n))
    return np.asarray(pools[chosen, replicate].mean(axis=1))


def _resampled_differences(
    parties: Sequence[PairedItems], generator: np.random.Generator, item_draws: int
) -> Floats:
    """(item_draws,) differences of one seed, each from its own resample of the test items."""
    total = np.zeros(item_draws)
    for pair in parties:
        n = len(pair.method.value)
        rows = max(1, 4_000_000 // n)  # at most 32 MB of indexes at a time
        for start in range(0, item_draws, rows):
            stop = min(start + rows, item_draws)
            index = generator.integers(0, n, size=(stop - start, n), dtype=np.int32)
            total[start:stop] += _ratio(pair.method, index) - _ratio(pair.control, index)
    return total / len(parties)


def _ratio(items: Items, index: npt.NDArray[np.int32]) -> Floats:
    weight = items.weight.astype(np.float64)
    value = items.value.astype(np.float64)
    if np.all(weight == weight[0]):
        return np.asarray(value[index].mean(axis=1) / weight[0])
    return np.asarray(value[index].sum(axis=1) / weight[index].sum(axis=1))


def percentile_interval(draws: Floats, confidence: float = 0.95) -> tuple[float, float]:
    """The middle share of bootstrap draws."""
    low, high = np.quantile(draws, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def bootstrap_p_value(draws: Floats) -> float:
    """Two-sided p: twice the smaller share of draws on one side of 0, never below 2 / (draws + 1)."""
    n = len(draws)
    smaller = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return min(1.0, 2 * (smaller + 1) / (n + 1))


def compare(
    method: Sequence[float],
    control: Sequence[float],
    items: Sequence[Sequence[PairedItems]] | None,
    generator: np.random.Generator,
    *,
    draws: int = DRAWS,
    item_draws: int = ITEM_DRAWS,
) -> Comparison:
    """Compare a method with its control.

    Args:
        method: its figure per seed.
        control: the control's, for the same seeds in the same order.
        items: per seed, the paired items of each party behind the figure; None where they were not kept.
        generator: for the bootstrap.

    Raises:
        ValueError: the two are not paired, or a figure is not finite.
    """
    if len(method) != len(control) or not method or (items is not None and len(items) != len(method)):
        raise ValueError(
            f"a method with {len(method)} seeds cannot be paired with a control with {len(control)}; "
            "give both the same seeds, in the same order."
        )
    differences = np.asarray(method, dtype=np.float64) - np.asarray(control, dtype=np.float64)
    if not np.isfinite(differences).all():
        raise ValueError(f"a figure is not finite: method {list(method)}, control {list(control)}.")
    interval, p = None, None
    if len(differences) >= 2:
        _, low, high = t_interval(differences)
        interval, p = (float(low), float(high)), float(t_p_value(differences))
    bootstrap_interval, p_bootstrap = None, None
    if items is not None:
        drawn = two_level_bootstrap(items, generator, draws=draws, item_draws=item_draws)
        bootstrap_interval, p_bootstrap = percentile_interval(drawn), bootstrap_p_value(drawn)
    values = tuple(float(value) for value in differences)
    return Comparison(values, float(differences.mean()), interval, p, bootstrap_interval, p_bootstrap)


def decide(
    family: Sequence[Comparison], *, alpha: float = ALPHA, seeds: int = SEEDS_FOR_A_CLAIM
) -> list[Decision]:
    """Which comparisons of a family may be claimed.

    The larger of a comparison's two p-values enters Holm's correction: a claim then needs both intervals to
    exclude 0 at the corrected level, and the family's rate of false claims is at most that of either.

    Args:
        family: all comparisons made in one table; a comparison without one of its p-values counts in the
            correction (as p = 1) but is never claimed.
        seeds: fewest seeds for a claim.
    """
    worst = [1.0 if c.p is None or c.p_bootstrap is None else max(c.p, c.p_bootstrap) for c in family]
    adjusted = holm(np.asarray(worst, dtype=np.float64)) if worst else np.zeros(0)
    return [_decide_one(c, float(p), alpha, seeds) for c, p in zip(family, adjusted, strict=True)]


def _decide_one(comparison: Comparison, p_holm: float, alpha: float, seeds: int) -> Decision:
    n = len(comparison.differences)
    if comparison.interval is None or comparison.bootstrap_interval is None:
        missing = "one seed has no spread" if comparison.interval is None else "no per-item values were kept"
        return Decision(None, False, missing)
    if n < seeds:
        return Decision(p_holm, False, f"{n} seeds, a claim needs {seeds}")
    if _includes_zero(comparison.interval):
        return Decision(p_holm, False, "the t interval includes 0")
    if _includes_zero(comparison.bootstrap_interval):
        return Decision(p_holm, False, "the bootstrap interval includes 0")
    if p_holm >= alpha:
        return Decision(p_holm, False, f"p = {p_holm:.2g} after Holm's correction")
    return Decision(p_holm, True, "")


def _includes_zero(interval: tuple[float, float]) -> bool:
    return interval[0] <= 0 <= interval[1]


def _seeds(values: Floats) -> int:
    n = int(values.shape[-1])
    if n < 2:
        raise ValueError(f"{n} value has no spread; Student's t needs at least two seeds.")
    return n
