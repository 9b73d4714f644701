"""Spearman's rank correlation."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def spearman(a: Floats, b: Floats) -> float:
    """Rank correlation, ties at their mean rank; NaN where one does not vary."""
    x, y = _ranks(a), _ranks(b)
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x**2).sum() * (y**2).sum()))
    return float((x * y).sum() / scale) if scale > 0 else float("nan")


def _ranks(values: Floats) -> Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[inverse], dtype=np.float64)
