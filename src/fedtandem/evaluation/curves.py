"""Quality against calls: what a ranking of decisions buys, beside chance and beside knowing everything."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

NO_GAP = 1e-12
"""Sums round differently in another order; less than this is no difference between two models."""


def quality_curve(rank: Floats, slm_score: Floats, llm_score: Floats) -> Floats:
    """Mean quality when the j highest-ranked decisions go to the LLM, for j = 0..N.

    Equal ranks are called in no particular order: between them the curve is a straight line.

    Args:
        rank: (N,), highest first; an uncertainty, say.
        slm_score, llm_score: (N,).

    Returns:
        (N + 1,).
    """
    order = np.argsort(-rank, kind="stable")
    ranked, gain = rank[order], (llm_score - slm_score)[order]
    _, first, count = np.unique(-ranked, return_index=True, return_counts=True)
    gain = np.repeat(np.add.reduceat(gain, first) / count, count)
    total = slm_score.sum() + np.concatenate([[0.0], np.cumsum(gain)])
    return np.asarray(total / len(rank))


def oracle_curve(slm_score: Floats, llm_score: Floats) -> Floats:
    """The curve of one who knows where the LLM is better, (N + 1,). It falls where only worse answers are left."""
    return quality_curve(llm_score - slm_score, slm_score, llm_score)


def random_curve(slm_score: Floats, llm_score: Floats) -> Floats:
    """The expected curve of calling by lot: a straight line, (N + 1,)."""
    return np.linspace(slm_score.mean(), llm_score.mean(), len(slm_score) + 1)


def at_share(curve: Floats, share: float) -> float:
    """A curve's value at a share of calls, between two points by a line."""
    return float(np.interp(share * (len(curve) - 1), np.arange(len(curve)), curve))


def pgr(quality: float, slm: float, llm: float) -> float:
    """The share of the gap between SLM and LLM that is recovered; NaN without a gap.

    Source: RouteLLM, arXiv:2406.18665.
    """
    return (quality - slm) / (llm - slm) if abs(llm - slm) >= NO_GAP else float("nan")


def apgr(curve: Floats) -> float:
    """The area under PGR over the share of calls: 0.5 is chance, NaN without a gap."""
    gap = curve[-1] - curve[0]
    if abs(gap) < NO_GAP:
        return float("nan")
    recovered = (curve - curve[0]) / gap
    return float((recovered[1:] + recovered[:-1]).sum() / 2 / (len(curve) - 1))


def calls_for(curve: Floats, quality: float) -> float:
    """CPT: the smallest share of calls that reaches a quality; NaN where none does."""
    reached = np.flatnonzero(curve >= quality - 1e-12)
    return float(reached[0] / (len(curve) - 1)) if len(reached) else float("nan")


def calls_for_pgr(curve: Floats, share_of_gap: float) -> float:
    """CPT(x): the smallest share of calls that recovers this share of the gap; NaN without a gap to recover."""
    if curve[-1] - curve[0] < NO_GAP:
        return float("nan")
    return calls_for(curve, float(curve[0] + share_of_gap * (curve[-1] - curve[0])))


def bootstrap_means(
    figures: Floats,
    groups: npt.NDArray[np.int64],
    generator: np.random.Generator,
    *,
    draws: int = 1000,
    item_draws: int = 200,
) -> Floats:
    """Means of several figures on redrawn decisions: clients first, then decisions inside each.

    Args:
        figures: (N, F).
        groups: client of each decision, (N,). With fewer than five clients only decisions are redrawn.
        draws: how many means.
        item_draws: resamples prepared per client, from which each draw takes one; fewer than `draws`, since they are
            what takes the time.

    Returns:
        (draws, F).
    """
    places = np.unique(groups, return_inverse=True)[1]
    if places.max() < 4:
        places, item_draws = np.zeros_like(places), draws
    pools, sizes = [], np.bincount(places).astype(np.float64)
    for c in range(len(sizes)):
        mine = figures[places == c]
        index = generator.integers(0, len(mine), (item_draws, len(mine)), dtype=np.int32)
        pools.append(np.stack([column[index].sum(axis=1) for column in mine.T], axis=1))  # (R, F)
    pool = np.stack(pools)  # (C, R, F)
    c = len(sizes)
    chosen = generator.integers(0, c, (draws, c)) if c > 1 else np.zeros((draws, 1), dtype=np.int64)
    replicate = generator.integers(0, item_draws, (draws, c))
    return np.asarray(pool[chosen, replicate].sum(axis=1) / sizes[chosen].sum(axis=1)[:, None])


def middle(draws: Floats) -> tuple[float, float]:
    """The 95 % percentile interval of draws."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def worst_decile(score: Floats, groups: npt.NDArray[np.int64]) -> float:
    """Mean quality of the worst tenth of the clients, at least one."""
    sums, counts = np.bincount(groups, weights=score), np.bincount(groups)
    means = np.sort(sums[counts > 0] / counts[counts > 0])
    return float(means[: max(1, round(len(means) / 10))].mean())
