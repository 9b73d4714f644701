"""How similar is similar enough: the cosine at which audited peer answers were right often enough."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

START = 0.92
"""δ_sim before anything was audited."""
PRECISION = 0.99
Z95 = 1.959963984540054


@dataclass(frozen=True)
class Similarity:
    """δ_sim of one (embedding model, task).

    Attributes:
        delta: cosine from which a peer's answer may be used.
        audits: audited answers at or above it.
        lower_bound: 95 % Wilson bound of their precision; 0 without audits.
        is_proven: the bound is high enough. Until then peers draft for the LLM and answer nothing.
    """

    delta: float
    audits: int
    lower_bound: float
    is_proven: bool


def wilson(
    right: npt.ArrayLike, n: npt.ArrayLike, *, z: float = Z95
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The 95 % interval of a proportion (of another `z` another one); (0, 1) where n = 0.

    Source: E. B. Wilson, J. Amer. Statist. Assoc. 22 (1927) 209-212.
    """
    k, total = np.asarray(right, dtype=np.float64), np.asarray(n, dtype=np.float64)
    safe = np.maximum(total, 1)
    p, z2 = k / safe, z**2
    middle = (p + z2 / (2 * safe)) / (1 + z2 / safe)
    half = z / (1 + z2 / safe) * np.sqrt(p * (1 - p) / safe + z2 / (4 * safe**2))
    low, high = np.clip(middle - half, 0, 1), np.clip(middle + half, 0, 1)
    return np.where(total > 0, low, 0.0), np.where(total > 0, high, 1.0)


def calibrate_similarity(
    similarity: npt.ArrayLike, right: npt.ArrayLike, *, precision: float = PRECISION
) -> Similarity:
    """The smallest δ_sim at or above which the audited precision is at least `precision` with 95 % confidence.

    380 audits without a fault are needed before 0.99 can be proven at all.

    Args:
        similarity: cosine of each audited peer answer, (N,).
        right: whether the cloud agreed, (N,) bool.

    Source: specification of FedHLM, section 8 (choice).
    """
    cosine, good = np.asarray(similarity, dtype=np.float64), np.asarray(right, dtype=bool)
    if cosine.shape != good.shape or not np.isfinite(cosine).all():
        raise ValueError(
            f"similarities {cosine.shape} and audits {good.shape}; expected finite (N,) and (N,)."
        )
    order = np.argsort(-cosine, kind="stable")
    ranked = cosine[order]
    bound, _ = wilson(np.cumsum(good[order]), np.arange(1, len(order) + 1))
    # Equal cosines stand or fall together.
    last_of_its_value = np.append(ranked[:-1] > ranked[1:], True) if len(ranked) else np.zeros(0, dtype=bool)
    proven = np.flatnonzero((bound >= precision) & last_of_its_value)
    if len(proven):
        i = int(proven[-1])
        return Similarity(float(ranked[i]), i + 1, float(bound[i]), True)
    n = int((cosine >= START).sum())
    low = float(wilson(int(good[cosine >= START].sum()), n)[0])
    return Similarity(START, n, low, False)


def audits_needed(precision: float = PRECISION) -> int:
    """Audits without any fault that prove a precision: z² p / (1 - p)."""
    return math.ceil(Z95**2 * precision / (1 - precision))
