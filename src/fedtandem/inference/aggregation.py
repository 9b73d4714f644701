"""Thresholds of many clients as one, at the edge and in the cloud, also when some of them lie."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LOWEST, HIGHEST = 0.02, 0.98
"""Reports are clipped to this range."""
MAX_STEP = 0.1
"""How far a published threshold moves in one round."""
MAX_WEIGHT = 2.0
"""No client weighs more than so many medians."""
TRIM = 0.2
"""Share of the weight that the trimmed mean leaves out at each end."""


def weighted_mean(values: Floats, weights: Floats) -> float:
    """Σ n_k τ_k / Σ n_k: FedAvg. Equal weights make it the mean."""
    _check(values, weights)
    return float((values * weights).sum() / weights.sum())


def weighted_median(values: Floats, weights: Floats) -> float:
    """The value that half of the weight lies below; the middle of two where it falls between them."""
    _check(values, weights)
    order = np.argsort(values, kind="stable")
    ranked, w = values[order], weights[order]
    reached = np.cumsum(w) / w.sum()
    i = int(np.argmax(reached >= 0.5 - 1e-12))
    if abs(reached[i] - 0.5) <= 1e-12:
        following = i + 1 + int(np.argmax(w[i + 1 :] > 0))
        return float((ranked[i] + ranked[following]) / 2)
    return float(ranked[i])


def trimmed_mean(values: Floats, weights: Floats) -> float:
    """The weighted mean without the outer fifth of the weight at each end (`TRIM`)."""
    _check(values, weights)
    order = np.argsort(values, kind="stable")
    ranked, w = values[order], weights[order] / weights.sum()
    ends = np.cumsum(w)
    inside = np.clip(np.minimum(ends, 1 - TRIM) - np.maximum(ends - w, TRIM), 0, None)
    return float((ranked * inside).sum() / inside.sum())


AGGREGATORS: dict[str, Callable[[Floats, Floats], float]] = {
    "mean": weighted_mean,
    "median": weighted_median,
    "trimmed_mean": trimmed_mean,
}


def clipped(values: npt.ArrayLike) -> Floats:
    """Reports inside [0.02, 0.98]."""
    return np.clip(np.asarray(values, dtype=np.float64), LOWEST, HIGHEST)


def capped(weights: npt.ArrayLike) -> Floats:
    """Weights of at most two medians: nobody wins by claiming many tokens."""
    w = np.asarray(weights, dtype=np.float64)
    positive = w[w > 0]
    return np.minimum(w, MAX_WEIGHT * np.median(positive)) if len(positive) else w


def limited(new: npt.ArrayLike, last: npt.ArrayLike) -> Floats:
    """New thresholds at most `MAX_STEP` away from the last."""
    before = np.asarray(last, dtype=np.float64)
    return np.clip(np.asarray(new, dtype=np.float64), before - MAX_STEP, before + MAX_STEP)


def _check(values: Floats, weights: Floats) -> None:
    if values.shape != weights.shape or values.ndim != 1 or not len(values):
        raise ValueError(
            f"values {values.shape} and weights {weights.shape}; expected the same (C,) with C >= 1."
        )
    if not (np.isfinite(values).all() and (weights >= 0).all() and weights.sum() > 0):
        raise ValueError(
            "a threshold is not finite, a weight is negative, or all weights are 0; leave such clients out first."
        )
