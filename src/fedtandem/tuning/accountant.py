"""What private training has cost so far, counted by opacus' accountant."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Literal, Protocol

from fedtandem.errors import ConfigError

Accounting = Literal["rdp", "prv"]


@dataclass(frozen=True)
class Spending:
    """One private phase as an accountant sees it.

    Attributes:
        what: whose phase it was; unique for each phase.
        noise_multiplier: σ, the noise's standard deviation over the clipping norm.
        sample_rate: probability q of every sample to be in an update.
        steps: updates.
    """

    what: str
    noise_multiplier: float
    sample_rate: float
    steps: int


class Ledger(Protocol):
    """Spendings that survive a crash; `federation.privacy_ledger.PrivacyLedger` is one."""

    def read(self) -> list[Spending]: ...
    def add(self, spending: Spending) -> None:
        """Put it on the disk before the phase begins; the same one again changes nothing."""


def epsilon_of(spendings: Sequence[Spending], delta: float, accounting: Accounting = "rdp") -> float:
    """ε of all of them together at this δ, by opacus; inf where a phase had no noise, 0 without any.

    Raises:
        ConfigError: opacus is not installed.

    Source: Mironov, Talwar, Zhang, arXiv:1908.10530 (rdp); Gopi, Lee, Wutschitz, arXiv:2106.02848 (prv).
    """
    history = [(s.noise_multiplier, s.sample_rate, s.steps) for s in spendings if s.steps]
    if not history:
        return 0.0
    if any(sigma == 0 for sigma, _, _ in history):
        return math.inf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a bound that could be tighter
        if accounting == "rdp":
            # Rényi divergences add up, so what opacus finds for one update is asked for once.
            orders = _opacus().accountants.RDPAccountant.DEFAULT_ALPHAS
            total = sum(_divergence_of_one(sigma, rate) * steps for sigma, rate, steps in history)
            return float(
                _opacus().accountants.analysis.rdp.get_privacy_spent(orders=orders, rdp=total, delta=delta)[0]
            )
        accountant = _opacus().accountants.create_accountant(mechanism=accounting)
        accountant.history = history
        return float(accountant.get_epsilon(delta=delta))


@lru_cache(maxsize=64)
def _divergence_of_one(sigma: float, rate: float) -> Any:
    """Rényi divergence of one update at opacus' orders."""
    opacus = _opacus()
    return opacus.accountants.analysis.rdp.compute_rdp(
        q=rate, noise_multiplier=sigma, steps=1, orders=opacus.accountants.RDPAccountant.DEFAULT_ALPHAS
    )


def affordable_steps(
    spent: Sequence[Spending], planned: Spending, epsilon: float, delta: float, accounting: Accounting = "rdp"
) -> int:
    """How many of the planned updates keep the whole at or below ε; 0 to `planned.steps`."""

    def fits(steps: int) -> bool:
        phase = Spending(planned.what, planned.noise_multiplier, planned.sample_rate, steps)
        return epsilon_of([*spent, phase], delta, accounting) <= epsilon

    if fits(planned.steps):
        return planned.steps
    low, high = 0, planned.steps  # low fits or is nothing, high does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def noise_for(
    epsilon: float, delta: float, sample_rate: float, steps: int, accounting: Accounting = "rdp"
) -> float:
    """The smallest noise multiplier (to 0.01 in ε) with which `steps` updates cost at most ε.

    Raises:
        ConfigError: no noise is enough, or opacus is not installed.
    """
    find = _opacus().accountants.utils.get_noise_multiplier
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return float(
                find(
                    target_epsilon=epsilon, target_delta=delta, sample_rate=sample_rate, steps=steps,
                    accountant=accounting,
                )
            )  # fmt: skip
    except ValueError as error:
        raise ConfigError(
            f"target_epsilon = {epsilon:g} at target_delta = {delta:g} cannot be kept over {steps} updates at a "
            f"sample rate of {sample_rate:.3g}, whatever the noise: raise it, or make fewer or smaller updates."
        ) from error


def require_opacus() -> None:
    """Find out before anything is trained.

    Raises:
        ConfigError: opacus is not installed.
    """
    if find_spec("opacus") is None:
        raise ConfigError(
            "[privacy.dp] needs opacus, which is not installed: pip install 'fedtandem[dp]', or take the table out."
        )


def _opacus() -> Any:
    require_opacus()
    import opacus
    import opacus.accountants.analysis.rdp
    import opacus.accountants.utils

    return opacus
