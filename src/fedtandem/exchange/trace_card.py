"""What a site says before a calibration: its edge, and what its recorded decisions can be asked about. No numbers."""

from dataclasses import dataclass
from typing import Any

from fedtandem.exchange.carrier import Envelope
from fedtandem.exchange.reading import ANY, MAX_TEXT, Expected, Reader
from fedtandem.exchange.sealing import seal, take_party, unseal

MAX_NAMES = 16


@dataclass(frozen=True)
class TraceCardRequest:
    """The server to a site: what can be learnt from you? What for stands in the plan beside it."""

    def to_envelope(self) -> Envelope:
        """Encode."""
        return seal("card", "trace_card_request", 0, {}, {})

    @classmethod
    def from_envelope(cls, envelope: Envelope, *, expected: Expected = ANY) -> "TraceCardRequest":
        """Decode and check.

        Raises:
            InvalidMessage: it holds anything.
        """
        unseal(envelope, ("card",), "trace_card_request", expected).finish()
        return cls()


@dataclass(frozen=True)
class TraceCard:
    """A site's answer.

    Attributes:
        party: who answers.
        edge: the edge it belongs to; empty: with all others.
        measures: names of uncertainties that its trace has or can be worked out from.
        feedbacks: what its trace can say of a draft: agreement, and perhaps probabilities, quality.
        masked: it answers under masks alone.
    """

    party: str
    edge: str
    measures: tuple[str, ...]
    feedbacks: tuple[str, ...]
    masked: bool

    def to_envelope(self) -> Envelope:
        """Encode."""
        header: dict[str, Any] = {
            "party": self.party, "edge": self.edge, "measures": list(self.measures),
            "feedbacks": list(self.feedbacks), "masked": self.masked,
        }  # fmt: skip
        return seal("card", "trace_card", 0, header, {})

    @classmethod
    def from_envelope(cls, envelope: Envelope, *, expected: Expected = ANY) -> "TraceCard":
        """Decode and check.

        Raises:
            InvalidMessage: a field is not what a card may hold.
        """
        read = unseal(envelope, ("card",), "trace_card", expected)
        party, edge = take_party(read, expected), read.text("edge", empty=True)
        if not edge.isprintable():
            raise read.refuse("edge", edge, "printable text")
        card = cls(party, edge, _names(read, "measures"), _names(read, "feedbacks"), read.flag("masked"))
        read.finish()
        return card


def _names(read: Reader, field: str) -> tuple[str, ...]:
    told = read.take(field)
    good = isinstance(told, list) and len(told) <= MAX_NAMES
    if not good or not all(isinstance(name, str) and 0 < len(name) <= MAX_TEXT for name in told):
        raise read.refuse(field, told, f"at most {MAX_NAMES} names")
    return tuple(told)
