"""Who is asked: the gate on uncertainty, then the cheapest of local, peer and cloud.

Source: FedHLM, arXiv:2507.00082, as reported (own token, peers, cloud last); costs are specification, section 8.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

LOCAL, PEER, CLOUD = 0, 1, 2
TIERS = ("local", "peer", "cloud")
SMALLEST = 1e-9
PEER_COST = 0.05
"""c_p / c_L of the parity preset: 1 / 20."""


@dataclass(frozen=True)
class Costs:
    """What asking costs, in one currency: parity units, milliseconds, money.

    Attributes:
        local, peer, cloud: per decision; 0 / 1 / 20 is the parity preset.
        error: w_e, of one wrong decision.
        cloud_error: ε_L, how often the cloud itself is wrong, by the measure that β uses.
    """

    local: float = 0.0
    peer: float = 1.0
    cloud: float = 20.0
    error: float = 100.0
    cloud_error: float = 0.0

    @property
    def price(self) -> float:
        """λ = c_L / w_e: a call over an error."""
        return self.cloud / self.error


def is_sent(u: npt.ArrayLike, tau: npt.ArrayLike) -> Bools:
    """The routing bit δ: u > τ asks for help.

    u = 0 counts as the smallest uncertainty there is, so τ = 0 sends everything and τ = 1 nothing: the two ends a
    histogram's search may come to.
    """
    return np.asarray(np.maximum(np.asarray(u), SMALLEST) > np.asarray(tau))


def peers_pay(hit_rate: float, costs: Costs) -> bool:
    """The simple form: asking peers first pays iff ρ > c_p / c_L."""
    return hit_rate * costs.cloud > costs.peer


def tier_costs(
    beta: npt.ArrayLike, hit_rate: npt.ArrayLike, peer_error: npt.ArrayLike, costs: Costs
) -> Floats:
    """The expected cost of each tier, the complete form.

    Args:
        beta: β̂(u), expected rejection of keeping the draft; (...).
        hit_rate: ρ, the chance that a peer of this similarity serves; (...).
        peer_error: ε_p, how often such an answer is wrong; (...).

    Returns:
        (..., 3): local, peer, cloud.
    """
    b, rho, wrong = np.broadcast_arrays(
        *(np.asarray(a, dtype=np.float64) for a in (beta, hit_rate, peer_error))
    )
    local = costs.local + costs.error * b
    cloud = np.full_like(local, costs.cloud + costs.error * costs.cloud_error)
    peer = costs.peer + rho * costs.error * wrong + (1 - rho) * cloud
    return np.stack([local, peer, cloud], axis=-1)


def choose_tier(
    beta: npt.ArrayLike, hit_rate: npt.ArrayLike, peer_error: npt.ArrayLike, costs: Costs
) -> Ints:
    """The cheapest tier; at equal cost the nearer one. (...) of LOCAL, PEER, CLOUD."""
    return np.asarray(np.argmin(tier_costs(beta, hit_rate, peer_error, costs), axis=-1))
