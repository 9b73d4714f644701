"""Random numbers that only the holder of a key can repeat: the noise and the samples of private training.

A run's seed is known to every party, so noise drawn from it could be taken off again.
"""

import hashlib
import math

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

KEY_BYTES = 32


class SecretNoise:
    """A stream drawn from a key and a label; the same two give the same stream, bit for bit.

    SHAKE-256 of key and label gives uniform bits, the normal quantile function makes them Gaussian. Not defended:
    what the rounding of floating-point numbers itself may tell of a sum (Mironov, CCS 2012).

    Args:
        key: secret, 32 bytes.
        label: public; what the noise is for. Never used twice for different data.

    Raises:
        ValueError: the key has another length.
    """

    def __init__(self, key: bytes, label: str) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"the key has {len(key)} bytes; expected {KEY_BYTES}.")
        self._seed = key + label.encode()
        self._drawn = 0

    def uniform(self, n: int) -> np.ndarray:
        """n numbers in (0, 1); float64."""
        block = hashlib.shake_256(self._seed + self._drawn.to_bytes(8, "little")).digest(8 * n)
        self._drawn += 1
        bits = np.frombuffer(block, dtype="<u8") >> np.uint64(11)
        return (bits.astype(np.float64) + 0.5) * 2.0**-53

    def gaussian(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal numbers; float32 on the CPU."""
        values = ndtri(self.uniform(math.prod(shape))).astype(np.float32)
        return torch.from_numpy(values.reshape(shape))
