"""Thresholds from a straight line β ≈ a u + b: a handful of sums per client."""

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

MIN_R2 = 0.5
"""Below this the line is not used; 0/1 feedback rarely reaches it, even where the mean is a line."""


@dataclass(frozen=True)
class LineSums:
    """Weighted sums over labelled tokens; they add up over clients.

    The published reading has five. R² needs a sixth, Σβ², and the line is to be used only where R² is high.
    """

    n: float
    u: float
    uu: float
    beta: float
    u_beta: float
    beta_beta: float

    def __add__(self, other: "LineSums") -> "LineSums":
        return LineSums(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class Line:
    """β ≈ slope · u + offset, and the share of β's variance it explains."""

    slope: float
    offset: float
    r2: float


def line_sums(u: npt.ArrayLike, beta: npt.ArrayLike, weight: npt.ArrayLike) -> LineSums:
    """Sums over labelled tokens; (N,) each. An audited token weighs 1 / audit rate."""
    x, y, w = (np.asarray(a, dtype=np.float64) for a in (u, beta, weight))
    return LineSums(*(float((w * column).sum()) for column in (np.ones_like(x), x, x * x, y, x * y, y * y)))


def fit_line(sums: LineSums) -> Line:
    """Least squares from the sums; a flat line where u does not vary."""
    if sums.n <= 0:
        raise ValueError("no labelled token: there is nothing to fit a line to.")
    mean_u, mean_beta = sums.u / sums.n, sums.beta / sums.n
    var_u = sums.uu / sums.n - mean_u**2
    var_beta = sums.beta_beta / sums.n - mean_beta**2
    covariance = sums.u_beta / sums.n - mean_u * mean_beta
    if var_u <= 1e-12:
        return Line(0.0, mean_beta, 0.0)
    slope = covariance / var_u
    r2 = covariance**2 / (var_u * var_beta) if var_beta > 1e-12 else 0.0
    return Line(slope, mean_beta - slope * mean_u, min(1.0, r2))


def line_threshold(line: Line, price: float) -> float:
    """τ = (λ - b)/a, clipped to [0, 1]; where the line does not rise, all or nothing by its mean.

    Source: specification of FedHLM, section 5, fact 1; the line is that of U-HLM, arXiv:2412.12687.
    """
    if line.slope <= 0:
        return 1.0 if line.slope / 2 + line.offset < price else 0.0
    return float(np.clip((price - line.offset) / line.slope, 0.0, 1.0))
