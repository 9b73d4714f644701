"""How a law becomes a token, on both sides: the likeliest, keyed noise, or chance."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedtandem.errors import ModelError
from fedtandem.inference.chance import Chance
from fedtandem.inference.row import Row
from fedtandem.inference.settings import DecodeSettings
from fedtandem.inference.shared_noise import Noise, best_two, lead, noise_at

NEAR_TIE = {"greedy": 0.05, "shared_noise": 1e-4}
"""Margins of the LLM's choice, in logits and in noisy log-probabilities, below which rounding may decide it."""


class Choice:
    """How a law becomes a token, for both sides.

    Laws come as scores: logits over the temperature. Where only the best place counts, nothing is normalised.
    """

    def __init__(self, settings: DecodeSettings, seeds: Sequence[int], chance: Chance) -> None:
        self.settings = settings
        self.chance = chance
        self._seeds = seeds
        self._noise: dict[int, tuple[int, list[Noise]]] = {}

    def scores(self, logits: Tensor) -> Tensor:
        """(..., V) raw logits to unnormalised log-probabilities."""
        is_plain = self.settings.temperature == 1 or self.settings.uplink == "greedy"
        return logits if is_plain else logits / self.settings.temperature

    def token(self, row: Row, place: int, scores: Tensor) -> int:
        """The token at `place` of an answer, from the whole law (V,); ties go to the lower id."""
        if self.settings.uplink == "greedy":
            return int(scores.numpy().argmax())  # ten times as fast as torch's
        if self.settings.uplink == "shared_noise":
            return best_two(scores, self._noise_at(row, place, scores.shape[-1]))[0]
        return self.chance.choose(row.index, scores.double().softmax(dim=-1))

    def tokens(self, row: Row, place: int, scores: Tensor) -> list[tuple[int, float]] | None:
        """Token and margin at each of the places from `place` on, (g, V); None where chance decides them.

        The margin is by how much the best token wins.
        """
        if self.settings.uplink not in NEAR_TIE:
            return None
        if self.settings.uplink == "shared_noise":
            vocab_size = scores.shape[-1]
            return [best_two(law, self._noise_at(row, place + i, vocab_size)) for i, law in enumerate(scores)]
        best = scores.numpy().argmax(axis=-1)
        return [(int(i), lead(law.numpy(), int(i))) for law, i in zip(scores, best, strict=True)]

    def _noise_at(self, row: Row, place: int, vocab_size: int) -> Noise:
        """The keyed noise of one place. The server asks again for what the client had: a block's are kept."""
        first, kept = self._noise.get(row.index, (0, []))
        start = len(row.written)
        if start > first:
            kept = kept[start - first :]
            first = start
        # Places are asked for in order, from what is written on.
        for missing in range(first + len(kept), place + 1):
            kept.append(noise_at(self._seeds[row.index], missing, vocab_size))
        self._noise[row.index] = (first, kept)
        return kept[place - first]


def checked_logits(logits: Tensor, rows: Sequence[Row], who: str) -> Tensor:
    """Logits (R, ..., V) on the CPU, in float32 or float64; an infinity may only forbid a token.

    Raises:
        ModelError: NaN, an infinite logit, or a law without any token; names the prompt.
    """
    logits = logits.to("cpu", torch.promote_types(logits.dtype, torch.float32))
    # The largest of numbers with a NaN among them is NaN.
    is_good = np.isfinite(np.maximum.reduce(logits.numpy(), axis=-1))
    if not np.logical_and.reduce(is_good, axis=None):
        bad = ~is_good
        worst = rows[int(bad.reshape(len(rows), -1).any(axis=1).argmax())]
        raise ModelError(
            f"prompt {worst.index}: the {who} gave NaN or infinite logits after {len(worst.prompt)} + "
            f"{len(worst.written)} tokens; load it in float32, or check its weights."
        )
    return logits
