"""DP-SGD: the updates of one private phase, from Poisson samples, clipped and noised."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from fedtandem.distillation.step import StepLosses
from fedtandem.errors import PrivacyBudgetError
from fedtandem.tuning.accountant import (
    Accounting,
    Ledger,
    Spending,
    affordable_steps,
    epsilon_of,
    noise_for,
)
from fedtandem.tuning.batches import Example, Update
from fedtandem.tuning.per_sample import PerSample
from fedtandem.tuning.secret_noise import SecretNoise


@dataclass(frozen=True)
class DPSettings:
    """The privacy of one client's private phases; names are those of opacus' `PrivacyEngine`.

    Attributes:
        target_delta: δ of every ε that is told.
        target_epsilon: what may be spent in all; None: no bound.
        noise_multiplier: σ; None: the least that lets the planned updates keep `target_epsilon`.
        max_grad_norm: C, the norm every sample's gradient is cut to.
        accountant: `rdp` or `prv`.
        on_spent: `stop` raises when the budget is spent, `go_on` lets the rounds go on without private tuning.
    """

    target_delta: float
    target_epsilon: float | None = None
    noise_multiplier: float | None = None
    max_grad_norm: float = 1.0
    accountant: Accounting = "rdp"
    on_spent: Literal["stop", "go_on"] = "stop"


@dataclass(frozen=True)
class PrivateTraining:
    """What a client's private phases need to be private.

    Attributes:
        settings: how private.
        ledger: what was spent before; written before every phase.
        key: of the noise; secret.
        scope: names run and method in the ledger.
    """

    settings: DPSettings
    ledger: Ledger
    key: bytes
    scope: str = ""


@dataclass(frozen=True)
class DPReport:
    """What a phase cost.

    Attributes:
        epsilon: of all private phases up to and with this one, at δ.
        epsilon_phase: of this one alone.
        delta, noise_multiplier, max_grad_norm, sample_rate, steps: of this phase.
        planned: updates it would have made with budget enough.
        target_epsilon: None: no bound.
        per_sample: `hooks` (opacus) or `one by one`.
    """

    epsilon: float
    epsilon_phase: float
    delta: float
    noise_multiplier: float
    max_grad_norm: float
    sample_rate: float
    steps: int
    planned: int
    target_epsilon: float | None
    per_sample: str = ""


class DPSteps:
    """The updates of one phase: which samples, and their noised gradient.

    Args:
        report: what the phase may do, as `grant` found.
        noise: this phase's own.
    """

    def __init__(self, report: DPReport, noise: SecretNoise) -> None:
        self.report = report
        self.noise = noise
        self._gradients: PerSample | None = None

    def plan(self, n_examples: int) -> list[Update]:
        """Poisson sampling, as the accountant assumes: every sample is in an update with probability q, on its own.

        An update may hold any number of samples, none included.
        """
        draws = (self.noise.uniform(n_examples) < self.report.sample_rate for _ in range(self.report.steps))
        return [Update(tuple(int(i) for i in drawn.nonzero()[0]), ()) for drawn in draws]

    def set_gradients(
        self, lm: Any, examples: Sequence[Example], update: Update, batch_size: int
    ) -> StepLosses:
        """Put (Σ clipped gradients + σ C noise) / (q N) into the parameters' `.grad`.

        Args:
            examples: of the phase.
            update: one of `plan`.
            batch_size: how many go through the model at once.

        Returns:
            The losses of the drawn samples, without noise: not to be told to anybody.

        Source: Abadi et al., arXiv:1607.00133, algorithm 1.
        """
        if self._gradients is None:
            self._gradients = PerSample(lm, examples)
            how = "hooks" if self._gradients.uses_hooks else "one by one"
            self.report = replace(self.report, per_sample=how)
        report, total = self.report, list[Tensor]()
        nll, n_labels = 0.0, 0
        drawn = [examples[i] for i in update.own]
        for start in range(0, max(1, len(drawn)), batch_size):
            part, part_nll, part_labels = self._gradients.clipped_sum(
                drawn[start : start + batch_size], report.max_grad_norm
            )
            total = part if not total else [one + two for one, two in zip(total, part, strict=True)]
            nll, n_labels = nll + part_nll, n_labels + part_labels
        expected = report.sample_rate * len(examples)
        for parameter, gradient in zip(self._gradients.parameters, total, strict=True):
            if report.noise_multiplier:
                noise = self.noise.gaussian(tuple(gradient.shape)).to(gradient.device)
                gradient = gradient + report.noise_multiplier * report.max_grad_norm * noise
            parameter.grad = (gradient / expected).to(parameter.dtype)
        mean = nll / max(1, n_labels)
        return StepLosses(total=mean, hard=mean, soft=0.0, n_labels=n_labels, n_taught=0)


def grant(
    training: PrivateTraining,
    what: str,
    label: str,
    *,
    n_examples: int,
    update_size: int,
    steps: int,
    phases: int,
) -> DPSteps | None:
    """Let a phase begin: find its noise, hold it against the budget, and write it into the ledger.

    Args:
        what: the phase in words; with `label` unique in the ledger.
        label: decides the noise: a hash of all that decides the phase, so that the very same phase, and no other, gets
            the very same noise.
        n_examples: N, counted as public.
        update_size: samples of an update on average.
        steps: updates planned for this phase.
        phases: such phases planned in the whole run, for the noise that fits the budget.

    Returns:
        None where nothing is left and `on_spent` is `go_on`.

    Raises:
        PrivacyBudgetError: nothing is left and `on_spent` is `stop`.
    """
    dp = training.settings
    rate = min(1.0, update_size / n_examples)
    sigma = dp.noise_multiplier
    if sigma is None:
        if dp.target_epsilon is None:
            raise ValueError("neither target_epsilon nor noise_multiplier is set.")
        sigma = noise_for(dp.target_epsilon, dp.target_delta, rate, steps * phases, dp.accountant)
    name = f"{training.scope}{what}/{label[:16]}"
    # A phase that was killed and is done again is the same release: it is not paid twice.
    spent = [
        s
        for s in training.ledger.read()
        if (s.what, s.noise_multiplier, s.sample_rate) != (name, sigma, rate)
    ]
    planned = Spending(name, sigma, rate, steps)
    allowed = steps
    if dp.target_epsilon is not None:
        allowed = affordable_steps(spent, planned, dp.target_epsilon, dp.target_delta, dp.accountant)
    if allowed == 0:
        if dp.on_spent == "go_on":
            return None
        reached = epsilon_of(spent, dp.target_delta, dp.accountant)
        raise PrivacyBudgetError(
            f"{what}: the privacy budget is spent. {sum(s.steps for s in spent)} private updates cost epsilon "
            f"{reached:.3f} of {dp.target_epsilon:g} at delta {dp.target_delta:g}; one more (noise multiplier "
            f"{sigma:.3f}, sample rate {rate:.3g}) would exceed it. Rounds committed so far stand. Set dp.on_spent = "
            '"go_on" to let rounds go on without private tuning, or grant more with dp.target_epsilon.'
        )
    phase = replace(planned, steps=allowed)
    training.ledger.add(phase)
    report = DPReport(
        epsilon=epsilon_of([*spent, phase], dp.target_delta, dp.accountant),
        epsilon_phase=epsilon_of([phase], dp.target_delta, dp.accountant),
        delta=dp.target_delta, noise_multiplier=sigma, max_grad_norm=dp.max_grad_norm, sample_rate=rate,
        steps=allowed, planned=steps, target_epsilon=dp.target_epsilon,
    )  # fmt: skip
    return DPSteps(report, SecretNoise(training.key, f"{label}/{phase}/{dp.max_grad_norm!r}"))
