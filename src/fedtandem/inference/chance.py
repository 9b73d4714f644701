"""The two random decisions of a generation, kept apart from it so that a test may enumerate them."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from torch import Tensor

STREAM = 1
"""The half of a generator's key that is not the seed: what uses the same seed elsewhere says nothing of these."""


class Chance(Protocol):
    """Where drafts, refusals and resamples come from."""

    def choose(self, row: int, law: Tensor) -> int:
        """A token drawn from a law (V,) float64; never one of probability 0."""
        ...

    def happens(self, row: int, probability: float) -> bool:
        """True with this probability; never at 0, always at 1."""
        ...


class SeededChance:
    """One stream per row, so that a prompt's answer does not depend on its neighbours in the batch.

    Args:
        seeds: one per row.
        stream: other streams of the same seeds are independent of these.
    """

    def __init__(self, seeds: Sequence[int], stream: int = STREAM) -> None:
        self._keys = [np.array([seed % 2**64, stream], dtype=np.uint64) for seed in seeds]
        self._streams: dict[int, np.random.Generator] = {}

    def choose(self, row: int, law: Tensor) -> int:
        """By the inverse of the cumulative law."""
        cumulative = np.cumsum(law.numpy())
        # Strictly above: a token of probability 0 adds nothing and is never the first.
        place = int(np.searchsorted(cumulative, self._stream(row).random() * cumulative[-1], side="right"))
        # The product above may round up to the total itself.
        return place if place < len(law) else int(law.nonzero()[-1])

    def happens(self, row: int, probability: float) -> bool:
        """A uniform number in [0, 1) below `probability`."""
        return bool(self._stream(row).random() < probability)

    def _stream(self, row: int) -> np.random.Generator:
        """Made when it is first drawn from: most answers leave nothing to chance."""
        if row not in self._streams:
            self._streams[row] = np.random.Generator(np.random.Philox(key=self._keys[row]))
        return self._streams[row]
