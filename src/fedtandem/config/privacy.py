"""[privacy], [clients.privacy], a site's [client.privacy]: DP-SGD of private tuning, noise on what is sent.

The run's section and the client's own hold together: of each value the stricter one.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from fedtandem.config.section import Section


class DPConfig(Section):
    """DP-SGD of a client's private phases, counted by opacus; keys are those of its `PrivacyEngine`."""

    target_delta: float = Field(gt=0, lt=1)
    """δ of every epsilon; well below 1 / private samples."""
    target_epsilon: float | None = Field(None, gt=0)
    """What all private phases together may cost. At a site: those of all its runs."""
    noise_multiplier: float | None = Field(None, ge=0)
    """Noise over max_grad_norm. Default: the least that lets the planned updates keep target_epsilon. 0 only clips."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Every sample's gradient is cut to this norm."""
    accountant: Literal["rdp", "prv"] = "rdp"
    """How opacus counts."""
    on_spent: Literal["stop", "go_on"] = "stop"
    """When the budget is spent: end with exit code 7, or go on without private tuning."""

    @model_validator(mode="after")
    def _says_how_much(self) -> Self:
        if self.target_epsilon is None and self.noise_multiplier is None:
            raise ValueError("set target_epsilon, noise_multiplier or both")
        if self.target_epsilon is not None and self.noise_multiplier == 0:
            raise ValueError("without noise no epsilon holds: raise noise_multiplier or leave it out")
        return self

    def and_(self, other: "DPConfig") -> "DPConfig":
        """Both hold: the smaller budget and norm, the larger noise; the accountant is this one's."""
        return DPConfig(
            target_delta=min(self.target_delta, other.target_delta),
            target_epsilon=_least(self.target_epsilon, other.target_epsilon),
            noise_multiplier=_most(self.noise_multiplier, other.noise_multiplier),
            max_grad_norm=min(self.max_grad_norm, other.max_grad_norm),
            accountant=self.accountant,
            on_spent="stop" if "stop" in (self.on_spent, other.on_spent) else "go_on",
        )


class PrivacyConfig(Section):
    """What protects a client's private data beyond never sending them."""

    dp: DPConfig | None = None
    """DP-SGD of private tuning; None: none."""
    score_clip: float | None = Field(None, gt=0)
    """Scores sent are cut to [0, this], in nats per byte (per token in `mined`)."""
    score_noise: float = Field(0.0, ge=0)
    """Standard deviation of Gaussian noise on each score sent, same unit. No epsilon is claimed for it."""
    row_clip: float | None = Field(None, gt=0)
    """Log-probabilities sent are raised to at least minus this, in nats."""
    row_noise: float = Field(0.0, ge=0)
    """Standard deviation of Gaussian noise on each log-probability sent, in nats. No epsilon is claimed for it."""

    def and_(self, other: "PrivacyConfig") -> "PrivacyConfig":
        """Both hold: of every value the stricter one; this one's accountant."""
        dp = self.dp.and_(other.dp) if self.dp is not None and other.dp is not None else self.dp or other.dp
        return PrivacyConfig(
            dp=dp,
            score_clip=_least(self.score_clip, other.score_clip),
            score_noise=max(self.score_noise, other.score_noise),
            row_clip=_least(self.row_clip, other.row_clip),
            row_noise=max(self.row_noise, other.row_noise),
        )


def _least(a: float | None, b: float | None) -> float | None:
    return min((x for x in (a, b) if x is not None), default=None)


def _most(a: float | None, b: float | None) -> float | None:
    return max((x for x in (a, b) if x is not None), default=None)
