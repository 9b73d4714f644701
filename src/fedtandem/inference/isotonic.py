"""Non-decreasing fits to many short rows at once: pool adjacent violators, in lockstep."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def isotonic(values: Floats, weights: Floats) -> Floats:
    """The non-decreasing fit of least weighted squares, row by row.

    Args:
        values: (..., B). What stands where the weight is 0 is not looked at.
        weights: (..., B), none negative.

    Returns:
        (..., B). A bin of weight 0 lies on the line between its weighted neighbours, or takes the only one's
        value; a row without any weight is NaN.

    Source: Ayer et al., Ann. Math. Statist. 26 (1955) 641-647.
    """
    if values.shape != weights.shape or not bool((weights >= 0).all()):
        raise ValueError(
            f"values {values.shape} and weights {weights.shape} must have one shape, and no weight may be negative."
        )
    rows = np.where(weights > 0, values, 0.0).reshape(-1, values.shape[-1]).astype(np.float64)
    w = weights.reshape(rows.shape).astype(np.float64)
    return _fill(_pool(rows, w), w > 0).reshape(values.shape)


def _pool(rows: Floats, w: Floats) -> Floats:
    """Each row keeps a stack of blocks; a block that lies below the one before is merged into it."""
    n, bins = rows.shape
    mean, weight = np.zeros((n, bins)), np.zeros((n, bins))
    size = np.zeros((n, bins), dtype=np.int64)
    top = np.full(n, -1)
    for b in range(bins):
        at = np.flatnonzero(w[:, b] > 0)
        top[at] += 1
        place = top[at]
        mean[at, place], weight[at, place], size[at, place] = rows[at, b], w[at, b], 1
        while True:
            at = at[top[at] >= 1]
            last = top[at]
            at = at[mean[at, last - 1] > mean[at, last]]
            if not len(at):
                break
            last = top[at]
            one, two = weight[at, last - 1], weight[at, last]
            mean[at, last - 1] = (one * mean[at, last - 1] + two * mean[at, last]) / (one + two)
            weight[at, last - 1] = one + two
            size[at, last - 1] += size[at, last]
            top[at] -= 1
    blocks = np.arange(bins) <= top[:, None]
    fit = np.full((n, bins), np.nan)
    fit[w > 0] = np.repeat(mean[blocks], size[blocks])
    return fit


def _fill(fit: Floats, known: npt.NDArray[np.bool_]) -> Floats:
    bins = fit.shape[1]
    place = np.arange(bins)
    left = np.maximum.accumulate(np.where(known, place, -1), axis=1)
    right = np.minimum.accumulate(np.where(known, place, bins)[:, ::-1], axis=1)[:, ::-1]
    left, right = np.where(left < 0, right, left), np.where(right >= bins, left, right)
    empty = left >= bins  # nothing known in the row at all
    left, right = np.where(empty, 0, left), np.where(empty, 0, right)
    low, high = np.take_along_axis(fit, left, axis=1), np.take_along_axis(fit, right, axis=1)
    share = (place - left) / np.maximum(right - left, 1)
    return np.where(known, fit, low + np.where(right > left, share, 0.0) * (high - low))
