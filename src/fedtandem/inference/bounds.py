"""Upper bounds of β by uncertainty, from audited tokens: what `bounded` adds up.

    {"u": [0.05, 0.12, ...], "beta_upper": [0.01, 0.03, ...]}

A bound holds for uncertainties up to and including its `u`; beyond the last one it is 1: nothing is known there.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedtandem.errors import DataError

BINS = 12
LEAST = 50
"""Tokens of a bin, at least."""
DRAWS = 1_000


@dataclass(frozen=True)
class Bounds:
    """A step function, non-decreasing.

    Attributes:
        u: ascending; the upper end of each step.
        beta_upper: in [0, 1].
    """

    u: tuple[float, ...]
    beta_upper: tuple[float, ...]

    def __post_init__(self) -> None:
        if (
            len(self.u) != len(self.beta_upper)
            or list(self.u) != sorted(self.u)
            or not all(0 <= bound <= 1 for bound in self.beta_upper)
        ):
            raise DataError(
                f"{len(self.u)} ascending values of u and {len(self.beta_upper)} bounds in [0, 1] are needed alike."
            )

    def __call__(self, u: float) -> float:
        place = bisect_left(self.u, u)
        return self.beta_upper[place] if place < len(self.u) else 1.0


def bounds_from_audits(
    u: npt.ArrayLike,
    error: npt.ArrayLike,
    answer: Sequence[int] | npt.ArrayLike,
    generator: np.random.Generator,
    *,
    confidence: float = 0.95,
) -> Bounds:
    """One-sided upper confidence limits of the mean error, in bins of equal counts.

    Answers are drawn again, not tokens: errors of one answer hang together. Each bin's limit is at 1 - (1 -
    confidence) / bins, so that all of them hold at once; a bin without any error still gets 3 / n (the rule of
    three). Bounds are made to rise with u, upwards.

    Args:
        u, error: of N audited tokens, in [0, 1]; (N,).
        answer: which answer each token is of; (N,).
        generator: of the draws.

    Raises:
        DataError: fewer than LEAST tokens, or values outside [0, 1].
    """
    us, errors = (np.asarray(a, dtype=np.float64) for a in (u, error))
    groups = np.unique(np.asarray(answer), return_inverse=True)[1]
    if len(us) < LEAST or not all(bool(((a >= 0) & (a <= 1)).all()) for a in (us, errors)):
        raise DataError(
            f"{len(us)} audited tokens; at least {LEAST} with u and error in [0, 1] are needed. Audit more answers."
        )
    order = np.argsort(us, kind="stable")
    parts = np.array_split(order, max(1, min(BINS, len(us) // LEAST)))
    n_groups = int(groups.max()) + 1
    drawn = generator.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=DRAWS)
    weight = drawn.astype(np.float64)  # (DRAWS, answers): how often each answer is drawn
    level = 1 - (1 - confidence) / len(parts)
    edges, limits = [], []
    for part in parts:
        total = np.bincount(groups[part], weights=errors[part], minlength=n_groups)
        count = np.bincount(groups[part], minlength=n_groups)
        means = (weight @ total) / np.maximum(weight @ count, 1)
        edges.append(float(us[part[-1]]))
        limits.append(min(1.0, max(float(np.quantile(means, level)), 3 / len(part))))
    return Bounds(tuple(edges), tuple(np.maximum.accumulate(limits).tolist()))
