"""Keyed Gumbel noise: client and server draw the same numbers without sending them."""

import numpy as np
import torch
from torch import Tensor

NOISE, CHANCE = 0, 1
"""The two streams that one seed keys; nothing of one says anything about the other."""


def gumbel_noise(seed: int, position: int, vocab_size: int) -> Tensor:
    """G[position, v] for all v: independent standard Gumbel numbers; (V,) float64, on the CPU.

    argmax(log p + G) is one exact sample of p. Noise depends on (seed, position, v) alone, so it is a prefix of
    the noise of a larger vocabulary, and both sides of a line may make it.

    Args:
        seed: any integer.
        position: index of the token in the answer, from 0.

    Source: the Gumbel-max trick; FedHLM spec, uplink 1.
    """
    raw = philox(seed, NOISE, position).random_raw(vocab_size)
    # 52 bits and a half: never 0 and never 1, so both logarithms are finite.
    uniform = torch.from_numpy((raw >> np.uint64(12)).view(np.int64)).double().add_(0.5).mul_(2.0**-52)
    return uniform.log_().neg_().log_().neg_()


def philox(seed: int, stream: int, position: int = 0) -> np.random.Philox:
    """A counter-based generator: any place of any stream without drawing what lies before it."""
    key = np.array([seed % 2**64, stream], dtype=np.uint64)
    # A position owns all 2^64 values of the lowest counter word.
    return np.random.Philox(key=key, counter=np.array([0, position, 0, 0], dtype=np.uint64))
