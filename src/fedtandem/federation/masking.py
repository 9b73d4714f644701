"""Sums of which no single term is seen: pairwise masks for additive statistics. Experimental.

Every client adds to its numbers one mask per other client, drawn from a key that the two agree on; what one adds
the other subtracts, so the masks cancel in the sum, exactly, modulo 2^64. The server is taken to be honest but
curious: it learns the masked vectors, who took part, and the sum. It is not held to what it says of others' keys
beyond their signatures, and two clients and the server together learn the third one's numbers from a sum of three.

Source: specification of the federation, section 8; the masks of Bonawitz et al., CCS 2017, section 4, without
their recovery of dropouts: here a dropout means another try under fresh masks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedtandem.errors import ConfigError, InvalidMessage, QuorumError
from fedtandem.exchange.masking import Offer

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

MIN_CLIENTS = 3
"""With two, the sum and one's own numbers are the other's numbers."""
Words = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Encoding:
    """Numbers as whole words: cut to [-clip, clip], in steps of 1 / scale.

    Attributes:
        clip: bound of every single number.
        scale: steps per unit; 1 keeps counts exact.
    """

    clip: float
    scale: float = 1.0

    def encode(self, values: npt.ArrayLike) -> Words:
        """Words modulo 2^64; any shape.

        Raises:
            InvalidMessage: a number is not finite.
        """
        array = np.asarray(values, dtype=np.float64)
        if not np.isfinite(array).all():
            raise InvalidMessage(
                f"a statistic to be masked holds {array[~np.isfinite(array)][0]}; expected finite numbers."
            )
        steps = np.rint(array.clip(-self.clip, self.clip) * self.scale)
        return steps.astype(np.int64).view(np.uint64)

    def decode(self, total: Words) -> npt.NDArray[np.float64]:
        """The sum in plain numbers."""
        return total.view(np.int64).astype(np.float64) / self.scale

    def check(self, n_clients: int) -> None:
        """Refuse what could run over.

        Raises:
            ConfigError: n_clients sums of the largest number do not fit.
        """
        if n_clients * self.clip * self.scale >= 2**62:
            raise ConfigError(
                f"masked sums of {n_clients} clients with clip = {self.clip:g} and scale = {self.scale:g} do not fit "
                "into 63 bits: lower one of them."
            )


@dataclass(frozen=True)
class Attempt:
    """Names one try: other masks for every other one."""

    run: str
    round: int
    attempt: int

    def context(self, *parts: bytes) -> bytes:
        """Unambiguous bytes of this try and of what is said in it."""
        fields = [
            b"fedtandem masking 1",
            self.run.encode(),
            str(self.round).encode(),
            str(self.attempt).encode(),
            *parts,
        ]
        return b"".join(len(field).to_bytes(4, "big") + field for field in fields)


class Masker:
    """A client's side of one attempt.

    Args:
        name: of the client.
        attempt: which try.
        signing: its registered P-384 key.
        known: registered public keys of all clients, by name; who is not there is not believed.
        secret: its X25519 private key of this attempt, 32 bytes, where it was drawn before; None draws one.
    """

    def __init__(
        self,
        name: str,
        attempt: Attempt,
        signing: "EllipticCurvePrivateKey",
        known: Mapping[str, "EllipticCurvePublicKey"],
        secret: bytes | None = None,
    ) -> None:
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

        self.name, self.attempt, self._known = name, attempt, known
        self._secret = (
            X25519PrivateKey.generate() if secret is None else X25519PrivateKey.from_private_bytes(secret)
        )
        public = self._secret.public_key().public_bytes_raw()
        signature = signing.sign(attempt.context(name.encode(), public), ec.ECDSA(hashes.SHA384()))
        self.offer = Offer(name, public, signature)
        self._used = False

    def mask(self, values: npt.ArrayLike, encoding: Encoding, offers: Sequence[Offer]) -> Words:
        """This client's numbers under the masks it shares with every other one; once per attempt.

        Args:
            values: its statistics.
            offers: of all that take part, its own included.

        Raises:
            QuorumError: fewer than three take part.
            InvalidMessage: an offer is not signed by its client's registered key, a name comes twice, or its own
                offer is missing; or a second vector is to be masked.
        """
        self._check(offers)
        encoding.check(len(offers))
        if self._used:
            raise InvalidMessage(f"{self.name}: masks are used once; begin another attempt with fresh keys.")
        words = encoding.encode(values)
        self._used = True
        total = words.copy()
        with np.errstate(over="ignore"):
            for offer in offers:
                if offer.name != self.name:
                    shared = self._stream(offer, words.size).reshape(words.shape)
                    total = total + shared if self.name < offer.name else total - shared
        return total

    def _check(self, offers: Sequence[Offer]) -> None:
        names = [offer.name for offer in offers]
        if len(set(names)) < MIN_CLIENTS:
            raise QuorumError(
                f"{self.name}: {len(set(names))} clients would be summed ({', '.join(sorted(set(names)))}); masked "
                f"sums need at least {MIN_CLIENTS}. Nothing was sent."
            )
        # Its own offer may carry an earlier signature of the same key, which is checked below like the others'.
        own = [offer.public_key for offer in offers if offer.name == self.name]
        if len(set(names)) < len(names) or own != [self.offer.public_key]:
            raise InvalidMessage(
                f"{self.name}: the list of keys names a client twice, or not this one as it is."
            )
        for offer in offers:
            check_offer(offer, self.attempt, self._known)

    def _stream(self, other: Offer, n: int) -> Words:
        """n words that this client and the other alone can draw."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        first, second = sorted((self.offer, other), key=lambda offer: offer.name)
        info = self.attempt.context(
            first.name.encode(), first.public_key, second.name.encode(), second.public_key
        )
        try:
            secret = self._secret.exchange(X25519PublicKey.from_public_bytes(other.public_key))
        except ValueError as error:  # a point of small order: everybody would know what is agreed on
            raise InvalidMessage(
                f"{other.name}'s key for masks is none that a secret can be agreed on with ({error}). Nothing was "
                "sent; ask what it runs."
            ) from error
        key = HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(secret)
        stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(8 * n))
        return np.frombuffer(stream, dtype="<u8").astype(np.uint64)


def check_offer(offer: Offer, attempt: Attempt, known: Mapping[str, "EllipticCurvePublicKey"]) -> None:
    """Refuse a key that its client did not sign for this very attempt.

    Raises:
        InvalidMessage: unknown client, or a bad signature.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    if offer.name not in known:
        raise InvalidMessage(
            f"{offer.name!r} offers a key for masks but is not registered: its NAME.pub is not among the keys that are "
            "known here."
        )
    try:
        known[offer.name].verify(
            offer.signature, attempt.context(offer.name.encode(), offer.public_key), ec.ECDSA(hashes.SHA384())
        )
    except InvalidSignature as error:
        raise InvalidMessage(
            f"{offer.name}'s key for masks is not signed by its registered key for run {attempt.run!r}, round "
            f"{attempt.round}, attempt {attempt.attempt}: it was made for another one, or by somebody else."
        ) from error


def unmask(
    masked: Mapping[str, Words], offers: Sequence[Offer], encoding: Encoding
) -> npt.NDArray[np.float64]:
    """The sum over all clients of an attempt.

    Raises:
        QuorumError: one of them is missing, so the masks do not cancel.
        InvalidMessage: shapes differ.
    """
    missing = sorted({offer.name for offer in offers} ^ masked.keys())
    if missing:
        raise QuorumError(
            f"masked statistics of {', '.join(missing)} are missing: the others' masks do not cancel. Repeat with "
            "those who are left, under fresh masks."
        )
    shapes = {words.shape for words in masked.values()}
    if len(shapes) != 1:
        raise InvalidMessage(f"masked statistics have the shapes {sorted(shapes)}; expected one.")
    total = np.zeros(next(iter(shapes)), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for words in masked.values():
            total = total + words
    return encoding.decode(total)


Begin = Callable[[Attempt, Sequence[str]], Sequence[Offer]]
"""`begin(attempt, names)`: the keys that these clients offer; of those alone that answer."""
Send = Callable[[Attempt, Sequence[Offer]], Mapping[str, Words]]
"""`send(attempt, offers)`: masked statistics by client; of those alone that answer."""


def masked_sum(
    run: str, round_number: int, names: Sequence[str], begin: Begin, send: Send, encoding: Encoding
) -> tuple[npt.NDArray[np.float64], tuple[str, ...], int]:
    """Sum statistics under masks; who drops out is left out and the rest begin anew under fresh masks.

    Returns:
        The sum, whose it is, and how many attempts it took.

    Raises:
        QuorumError: fewer than three are left.
    """
    left = sorted(names)
    for attempt_number in range(len(left) + 1):
        attempt = Attempt(run, round_number, attempt_number)
        offers = sorted(begin(attempt, left), key=lambda offer: offer.name)
        left = [offer.name for offer in offers]
        if len(left) < MIN_CLIENTS:
            break
        masked = send(attempt, offers)
        if len(masked) == len(left):
            return unmask(masked, offers, encoding), tuple(left), attempt_number + 1
        left = sorted(masked)
    missing = sorted(set(names) - set(left))
    raise QuorumError(
        f"round {round_number}: {len(left)} clients are left for a masked sum ({', '.join(left) or 'nobody'}); it "
        f"needs at least {MIN_CLIENTS}. Missing: {', '.join(missing) or 'nobody'}. Ask more clients, or send plain "
        "counts (without --masked)."
    )
