"""Keyed Gumbel noise: client and server draw the same numbers without sending them."""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Bits = npt.NDArray[np.uint64]
"""Noise before its two logarithms; (V,) uint64."""

LOUD = 64
"""Tokens of a vocabulary whose noise alone may make them win; about so many are looked at whatever their logits."""
FEW = 2048
"""Tokens that are looked at all at once: choosing among so few costs more than it saves."""
SLACK = 1e-3
"""Far more than float32 loses in a score: what is left out surely loses."""


def gumbel_noise(seed: int, position: int, vocab_size: int) -> Tensor:
    """G[position, v] for all v: independent standard Gumbel numbers; (V,) float64, on the CPU.

    argmax(log p + G) is one exact sample of p. Noise depends on (seed, position, v) alone, so it is a prefix of
    the noise of a larger vocabulary, and both sides of a line may make it.

    Args:
        seed: any integer.
        position: index of the token in the answer, from 0.

    Source: the Gumbel-max trick; FedHLM spec, uplink 1.
    """
    return torch.from_numpy(gumbel(noise_bits(seed, position, vocab_size)))


def noise_bits(seed: int, position: int, vocab_size: int) -> Bits:
    """What `gumbel` makes the noise of; larger bits are larger noise."""
    # Words of a fixed width: 1, 0 and 10 must not be read as 1, 01 and 0.
    words = np.array([seed % 2**64, position], dtype=np.uint64).view(np.uint32)
    # A fast generator: at V = 150,000 these bits are most of what the loop costs.
    return np.random.SFC64(np.random.SeedSequence(words.tolist())).random_raw(vocab_size)


def gumbel(bits: Bits) -> npt.NDArray[np.float64]:
    """-log(-log(u)) of 52 bits and a half: u is never 0 and never 1, so both logarithms are finite."""
    uniform = ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return np.asarray(-np.log(-np.log(uniform)))


def best_two(scores: Tensor, bits: Bits) -> tuple[int, float]:
    """The token with the largest noisy score, and by how much it wins: `argmax(scores + gumbel(bits))`, exactly.

    The two logarithms are taken where they can matter: a winner is either loud (G >= t) or its score is within t of
    the second best noisy score among the loud ones.

    Args:
        scores: log-probabilities up to a constant, (V,) float32 or float64, on the CPU; not all -inf.
        bits: of the same place; (V,).

    Returns:
        The token, ties going to the lower id, and its margin in nats (inf if nothing else is possible).
    """
    z = scores.numpy()
    if len(z) <= FEW:
        return _best_of(np.arange(len(z)), z, bits)
    t = math.log(max(1.0, len(z) / LOUD))
    loud = bits >= _bits_at(t)
    noisy = z[loud] + gumbel(bits[loud])
    if len(noisy) < 2:
        return _best_of(np.arange(len(z)), z, bits)
    second = float(np.partition(noisy, -2)[-2])
    return _best_of(np.flatnonzero(loud | (z >= second - t - SLACK)), z, bits)


def _best_of(tokens: npt.NDArray[np.int64], z: npt.NDArray[np.floating], bits: Bits) -> tuple[int, float]:
    noisy = z[tokens] + gumbel(bits[tokens])
    best = int(noisy.argmax())
    return int(tokens[best]), lead(noisy, best)


def lead(values: npt.NDArray[np.floating], best: int) -> float:
    """How far the value at `best` lies above the next; inf where nothing else is finite."""
    others = [float(part.max()) for part in (values[:best], values[best + 1 :]) if len(part)]
    return float(values[best]) - max(others, default=-math.inf)


def _bits_at(t: float) -> np.uint64:
    """The smallest bits whose noise is surely t or more, less a little."""
    return np.uint64(int(math.exp(-math.exp(SLACK - t)) * 2.0**52) << 12)
