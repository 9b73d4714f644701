"""How a law becomes a token, on both sides: the likeliest, keyed noise, or chance."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fedtandem.errors import ModelError
from fedtandem.inference.chance import Chance
from fedtandem.inference.row import Row
from fedtandem.inference.settings import DecodeSettings
from fedtandem.inference.shared_noise import gumbel_noise

NEAR_TIE = {"greedy": 0.05, "shared_noise": 1e-4}
"""Margins of the LLM's choice, in logits and in noisy log-probabilities, below which rounding may decide it."""


class Choice:
    """How a law becomes a token, for both sides."""

    def __init__(self, settings: DecodeSettings, seeds: Sequence[int], chance: Chance) -> None:
        self.settings = settings
        self.chance = chance
        self._seeds = seeds
        self._noise: dict[int, tuple[int, list[Tensor]]] = {}

    def log_law(self, logits: Tensor) -> Tensor:
        """(..., V) raw logits to log-probabilities, float64."""
        return (logits / self.settings.temperature).log_softmax(dim=-1)

    def token(self, row: Row, place: int, log_law: Tensor, law: Tensor | None = None) -> int:
        """The token at `place` of an answer; ties go to the lower id.

        Args:
            law: what to sample from, where that is not exp(log_law).
        """
        if self.settings.uplink == "greedy":
            return int(log_law.argmax())
        if self.settings.uplink == "shared_noise":
            return int((log_law + self.noise(row, place, len(log_law))).argmax())
        return self.chance.choose(row.index, log_law.exp() if law is None else law)

    def margin(self, row: Row, place: int, logits: Tensor, log_law: Tensor) -> float:
        """By how much the best token wins; infinite where chance decides or there is no second."""
        if self.settings.uplink not in NEAR_TIE or len(logits) < 2:
            return math.inf
        greedy = self.settings.uplink == "greedy"
        best = (logits if greedy else log_law + self.noise(row, place, len(logits))).topk(2).values
        return float(best[0] - best[1])

    def noise(self, row: Row, place: int, vocab_size: int) -> Tensor:
        """The keyed noise of one place. The server asks again for what the client had: a block's are kept."""
        first, kept = self._noise.get(row.index, (0, []))
        start = len(row.written)
        if start > first:
            kept = kept[start - first :]
            first = start
        # Places are asked for in order, from what is written on.
        for missing in range(first + len(kept), place + 1):
            kept.append(gumbel_noise(self._seeds[row.index], missing, vocab_size))
        self._noise[row.index] = (first, kept)
        return kept[place - first]


def checked_logits(logits: Tensor, rows: Sequence[Row], who: str) -> Tensor:
    """Logits (R, ..., V) on the CPU in float64; an infinity may only forbid a token.

    Raises:
        ModelError: NaN, an infinite logit, or a law without any token; names the prompt.
    """
    logits = logits.to("cpu", torch.float64)
    best = logits.amax(dim=-1)
    bad = ~best.isfinite()  # the largest of numbers with a NaN among them is NaN
    if bad.any():
        worst = rows[int(bad.reshape(len(rows), -1).any(dim=1).nonzero()[0])]
        raise ModelError(
            f"prompt {worst.index}: the {who} gave NaN or infinite logits after {len(worst.prompt)} + "
            f"{len(worst.written)} tokens; load it in float32, or check its weights."
        )
    return logits
