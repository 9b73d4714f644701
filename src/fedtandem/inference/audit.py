"""Which skipped tokens are checked all the same: a keyed draw that nobody can steer and both sides can repeat."""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

RATE = 0.01
"""Of skipped tokens, once a scope has been calibrated."""
WANTED = 500
"""Audits a first calibration is to collect in each scope."""


def audited(
    key: bytes, client: str, sessions: Sequence[str], positions: npt.ArrayLike, rate: float
) -> npt.NDArray[np.bool_]:
    """Draw each token with probability `rate`, by a keyed hash of (client, session, position).

    The draw sees neither the token nor its uncertainty, so weighting by 1 / rate is unbiased; without the key a
    client cannot tell which of its tokens will be looked at.

    Args:
        key: secret of the tenant.
        client: who drafted.
        sessions: of each token, (N,).
        positions: inside its session, (N,) int.
        rate: in [0, 1].

    Returns:
        (N,) bool.

    Source: specification of FedHLM, section 6 (choice).
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"the audit rate is {rate}; give a probability in [0, 1].")
    places = np.asarray(positions, dtype=np.int64).tolist()
    # Lengths go first: ("ab", "c") and ("a", "bc") are different tokens.
    who = f"{len(client)}:{client}:".encode()
    begun = hashlib.blake2b(who, digest_size=8, key=hashlib.sha256(key).digest())
    limit = int(rate * 2**64)
    drawn = np.empty(len(places), dtype=bool)
    for i, (session, place) in enumerate(zip(sessions, places, strict=True)):
        one = begun.copy()
        one.update(f"{len(session)}:{session}:{place}".encode())
        drawn[i] = int.from_bytes(one.digest(), "big") < limit
    return drawn


def first_rate(expected_skipped: float) -> float:
    """The audit rate of a scope's first calibration: enough for about 500 audits.

    Source: specification of FedHLM, section 7.
    """
    return float(np.clip(WANTED / max(expected_skipped, 1.0), RATE, 1.0))
