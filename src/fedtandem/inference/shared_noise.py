"""Keyed Gumbel noise: client and server draw the same numbers without sending them."""

import math
from dataclasses import dataclass

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


@dataclass(frozen=True, eq=False)
class Noise:
    """The noise of one place, for client and server: its two logarithms are taken where they can matter.

    Attributes:
        bits: of every token.
        t: tokens whose noise is this or more are loud.
        loud: their ids, ascending; (L,) int64. All tokens of a small vocabulary.
        gumbel: of the loud ones; (L,) float64.
    """

    bits: Bits
    t: float
    loud: npt.NDArray[np.int64]
    gumbel: npt.NDArray[np.float64]


def noise_at(seed: int, position: int, vocab_size: int) -> Noise:
    """The noise that `gumbel_noise` gives, not worked out yet."""
    bits = noise_bits(seed, position, vocab_size)
    t = math.log(max(1.0, vocab_size / LOUD))
    loud = np.flatnonzero(bits >= _bits_at(t)) if vocab_size > FEW else np.arange(vocab_size)
    return Noise(bits, t, loud, gumbel(bits[loud]))


def best_two(scores: Tensor, noise: Noise) -> tuple[int, float]:
    """The token with the largest noisy score, and by how much it wins: the argmax of scores + noise, exactly.

    A winner is either loud, or its score alone is within t of the second best noisy score among the loud.

    Args:
        scores: log-probabilities up to a constant, (V,) float32 or float64, on the CPU; not all -inf.
        noise: of the same place.

    Returns:
        The token, ties going to the lower id, and its margin in nats (inf if nothing else is possible).
    """
    z = scores.numpy()
    noisy = z[noise.loud] + noise.gumbel
    if len(z) <= FEW:
        return _winner(noise.loud, noisy)
    second = float(np.partition(noisy, -2)[-2]) if len(noisy) > 1 else -math.inf
    may_win = z >= second - noise.t - SLACK
    may_win[noise.loud] = True
    tokens = np.flatnonzero(may_win)
    return _winner(tokens, z[tokens] + gumbel(noise.bits[tokens]))


def _winner(tokens: npt.NDArray[np.int64], noisy: npt.NDArray[np.float64]) -> tuple[int, float]:
    best = int(noisy.argmax())
    return int(tokens[best]), lead(noisy, best)


def lead(values: npt.NDArray[np.floating], best: int) -> float:
    """How far the value at `best` lies above the next; inf where nothing else is finite."""
    others = [float(part.max()) for part in (values[:best], values[best + 1 :]) if len(part)]
    return float(values[best]) - max(others, default=-math.inf)


def _bits_at(t: float) -> np.uint64:
    """The smallest bits whose noise is surely t or more, less a little."""
    return np.uint64(int(math.exp(-math.exp(SLACK - t)) * 2.0**52) << 12)
