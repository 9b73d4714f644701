"""Thresholds by gradient descent on a smoothed routing bit: our reading of the published loss."""

import numpy as np
import numpy.typing as npt

KAPPA = 20.0
ETA = 0.05
LOCAL_STEPS = 5
START = 0.5


def smoothed_loss(
    tau: float,
    u: npt.ArrayLike,
    beta: npt.ArrayLike,
    price: float,
    *,
    weight: npt.ArrayLike = 1.0,
    kappa: float = KAPPA,
) -> float:
    """L(τ) = (1/n) Σ_t [(1 - s_t) β_t + λ s_t], s_t = sigmoid(κ (u_t - τ)): equations (3) and (4).

    Args:
        u, beta: (N,).
        price: λ, what a call costs in units of an error.
        weight: (N,); 1 / audit rate for audited tokens.
    """
    s, y, w = _smoothed(tau, u, beta, weight, kappa)
    return float((w * ((1 - s) * y + price * s)).sum() / w.sum())


def smoothed_slope(
    tau: float,
    u: npt.ArrayLike,
    beta: npt.ArrayLike,
    price: float,
    *,
    weight: npt.ArrayLike = 1.0,
    kappa: float = KAPPA,
) -> float:
    """dL/dτ = (κ/n) Σ_t s_t (1 - s_t)(β_t - λ): equation (5)."""
    s, y, w = _smoothed(tau, u, beta, weight, kappa)
    return float(kappa * (w * s * (1 - s) * (y - price)).sum() / w.sum())


def descend(
    tau: float,
    u: npt.ArrayLike,
    beta: npt.ArrayLike,
    price: float,
    *,
    weight: npt.ArrayLike = 1.0,
    kappa: float = KAPPA,
    eta: float = ETA,
    steps: int = LOCAL_STEPS,
) -> float:
    """A client's local steps τ ← clip(τ - η dL/dτ, 0, 1): equation (6). Without tokens τ stays.

    Source: specification of FedHLM, section 5 (reading); constants are choices.
    """
    x, y = np.asarray(u, dtype=np.float64), np.asarray(beta, dtype=np.float64)
    w = np.broadcast_to(np.asarray(weight, dtype=np.float64), x.shape)
    if not w.sum() > 0:
        return tau
    for _ in range(steps):
        tau = float(np.clip(tau - eta * smoothed_slope(tau, x, y, price, weight=w, kappa=kappa), 0.0, 1.0))
    return tau


def _smoothed(
    tau: float, u: npt.ArrayLike, beta: npt.ArrayLike, weight: npt.ArrayLike, kappa: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    x, y = np.asarray(u, dtype=np.float64), np.asarray(beta, dtype=np.float64)
    w = np.broadcast_to(np.asarray(weight, dtype=np.float64), x.shape)
    # tanh instead of exp: large κ overflows nothing.
    return 0.5 * (1 + np.tanh(0.5 * kappa * (x - tau))), y, w
