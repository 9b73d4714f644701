"""What an edge and its clients say to each other for a masked sum: keys first, then vectors under masks."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedtandem.exchange.calibration import MAX_CLIENTS, CalibrationRequest
from fedtandem.exchange.carrier import Envelope
from fedtandem.exchange.reading import ANY, MAX_TEXT, Expected, Reader
from fedtandem.exchange.sealing import seal, take_party, unseal

KEY_BYTES = 32
"""Of an X25519 public key."""
MAX_ATTEMPTS = MAX_CLIENTS


@dataclass(frozen=True)
class Offer:
    """A client's public key for one attempt, signed by its registered key.

    Attributes:
        name: of the client.
        public_key: X25519, 32 bytes.
        signature: ECDSA with SHA-384 over run, round, attempt, name and public key.
    """

    name: str
    public_key: bytes
    signature: bytes


@dataclass(frozen=True, eq=False)
class MaskingRequest:
    """The edge to a client: offer a key; or, with everybody's keys, do a job and answer under masks.

    Attributes:
        round, run, attempt: name the attempt that the keys are for.
        offers: of all that take part; () asks for a key.
        job: what to do; None asks for a key.
    """

    round: int
    run: str
    attempt: int
    offers: tuple[Offer, ...] = ()
    job: CalibrationRequest | None = None

    def to_envelope(self) -> Envelope:
        """Encode."""
        job = b"" if self.job is None else self.job.to_envelope().to_bytes()
        header: dict[str, Any] = {
            "run": self.run,
            "attempt": self.attempt,
            "offers": [[offer.name, offer.public_key.hex(), offer.signature.hex()] for offer in self.offers],
        }
        arrays = {"job": np.frombuffer(job, np.uint8)}
        return seal("calibrate", "masking_request", self.round, header, arrays)

    @classmethod
    def from_envelope(cls, envelope: Envelope, *, expected: Expected = ANY) -> "MaskingRequest":
        """Decode and check; signatures are the masker's to check.

        Raises:
            InvalidMessage: a field is not what a request may hold.
        """
        read = unseal(envelope, ("calibrate",), "masking_request", expected)
        run, attempt = read.text("run"), read.integer("attempt", 0, MAX_ATTEMPTS)
        told = read.take("offers")
        if not isinstance(told, list) or len(told) > MAX_CLIENTS:
            raise read.refuse("offers", told, "a list of offers")
        offers = tuple(_offer(read, one) for one in told)
        data = read.array("job", np.uint8).tobytes()
        read.finish()
        job = CalibrationRequest.from_envelope(Envelope.from_bytes(data)) if data else None
        if (job is None) != (not offers) or (job is not None and job.round != envelope.round):
            raise read.refuse(
                "job", "without keys, or of another round", "keys and a job of this round, or neither"
            )
        return cls(envelope.round, run, attempt, offers, job)


@dataclass(frozen=True)
class OfferReply:
    """A client's key for one attempt.

    Attributes:
        models: fingerprints of its SLM and of the LLM; not secret.
    """

    round: int
    attempt: int
    offer: Offer
    models: tuple[str, str]

    def to_envelope(self) -> Envelope:
        """Encode."""
        offer = self.offer
        header: dict[str, Any] = {
            "party": offer.name, "attempt": self.attempt, "models": list(self.models),
            "offer": [offer.name, offer.public_key.hex(), offer.signature.hex()],
        }  # fmt: skip
        return seal("calibrate", "offer_reply", self.round, header, {})

    @classmethod
    def from_envelope(cls, envelope: Envelope, *, expected: Expected = ANY) -> "OfferReply":
        """Decode and check.

        Raises:
            InvalidMessage: a field is not what a reply may hold, or the key is another client's.
        """
        read = unseal(envelope, ("calibrate",), "offer_reply", expected)
        party, attempt = take_party(read, expected), read.integer("attempt", 0, MAX_ATTEMPTS)
        offer, models = _offer(read, read.take("offer")), read.take("models")
        if offer.name != party:
            raise read.refuse("offer", offer.name, repr(party))
        if not (isinstance(models, list) and len(models) == 2 and all(_is_text(text) for text in models)):
            raise read.refuse("models", models, "two fingerprints")
        read.finish()
        return cls(envelope.round, attempt, offer, (models[0], models[1]))


@dataclass(frozen=True, eq=False)
class MaskedReply:
    """A client's statistics under the masks of one attempt; alone they say nothing.

    Attributes:
        words: modulo 2^64; (W,) uint64.
    """

    round: int
    party: str
    attempt: int
    words: npt.NDArray[np.uint64]

    def to_envelope(self) -> Envelope:
        """Encode."""
        header: dict[str, Any] = {"party": self.party, "attempt": self.attempt}
        return seal("calibrate", "masked_reply", self.round, header, {"words": self.words})

    @classmethod
    def from_envelope(
        cls, envelope: Envelope, size: int | None = None, *, expected: Expected = ANY
    ) -> "MaskedReply":
        """Decode and check.

        Args:
            size: W, how many words are asked for; None leaves it to the message.

        Raises:
            InvalidMessage: a field is not what a reply may hold.
        """
        read = unseal(envelope, ("calibrate",), "masked_reply", expected)
        reply = cls(
            envelope.round, take_party(read, expected), read.integer("attempt", 0, MAX_ATTEMPTS),
            read.array("words", np.uint64, size),
        )  # fmt: skip
        read.finish()
        return reply


def _offer(read: Reader, told: Any) -> Offer:
    if isinstance(told, Sequence) and len(told) == 3 and all(_is_text(text) for text in told):
        with suppress(ValueError):
            offer = Offer(told[0], bytes.fromhex(told[1]), bytes.fromhex(told[2]))
            if len(offer.public_key) == KEY_BYTES:
                return offer
    raise read.refuse(
        "offers", told, f"name, {KEY_BYTES} bytes of a key and its signature, as hexadecimal texts"
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_TEXT
