"""How messages reach parties: the `Carrier` protocol, and the envelope it carries."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

from isal import isal_zlib

from fedtandem.errors import InvalidMessage

SCHEMA = 1
"""Version of everything in `exchange`; another version is refused."""

Kind = Literal["card", "work", "fetch", "calibrate", "finish"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""What a message is for: vocabulary cards; a co-tuning round; rows from a file; counts; the last knowledge."""

_MAGIC = b"FTEN"
_HEAD = struct.Struct("<4sHHIQI")  # magic, schema, kind, round, body bytes, CRC-32 of all that and the body


@dataclass(frozen=True)
class Envelope:
    """One message, ready to travel. `body` is a frame (`exchange/frame.py`); of what was received, a view of it.

    Source: specification of the federation, section 1.
    """

    kind: Kind
    round: int
    schema: int
    body: bytes | memoryview

    @property
    def n_bytes(self) -> int:
        """Bytes this envelope takes on the wire, its own head included."""
        return _HEAD.size + len(self.body)

    def to_bytes(self) -> bytes:
        """Head (24 bytes) and body."""
        head = (_MAGIC, self.schema, KINDS.index(self.kind), self.round, len(self.body))
        checksum = isal_zlib.crc32(self.body, isal_zlib.crc32(_HEAD.pack(*head, 0)))
        return b"".join([_HEAD.pack(*head, checksum), self.body])

    @classmethod
    def from_bytes(cls, data: bytes, *, party: str = "") -> "Envelope":
        """Read an envelope back.

        Args:
            data: exactly one envelope.
            party: who sent it, for the error.

        Raises:
            InvalidMessage: cut short, too long, changed on the way, of another schema or an unknown kind.
        """
        sender = party or "an envelope"
        if len(data) < _HEAD.size:
            raise InvalidMessage(
                f"{sender}: {len(data)} bytes are too few for an envelope (its head alone has {_HEAD.size}). "
                "The message was cut short; ask for it again."
            )
        magic, schema, kind, round_number, n_body, checksum = _HEAD.unpack_from(data)
        if magic != _MAGIC:
            raise InvalidMessage(
                f"{sender}: starts with {magic!r} instead of {_MAGIC!r}, so this is no fedtandem envelope. "
                "Check that both ends run fedtandem."
            )
        if schema != SCHEMA:
            raise InvalidMessage(
                f"{sender}, round {round_number}: schema = {schema}, but this version reads {SCHEMA}. "
                "Install the same fedtandem version on all parties."
            )
        if n_body != len(data) - _HEAD.size:
            raise InvalidMessage(
                f"{sender}, round {round_number}: body = {len(data) - _HEAD.size} bytes, but its head says {n_body}. "
                "The message was cut short or glued to another; ask for it again."
            )
        body = memoryview(data)[_HEAD.size :]  # no copy: bodies can be large, and each is read once or twice
        expected = isal_zlib.crc32(
            body, isal_zlib.crc32(_HEAD.pack(magic, schema, kind, round_number, n_body, 0))
        )
        if checksum != expected:
            raise InvalidMessage(
                f"{sender}, round {round_number}: checksum = {checksum:08x}, but the content gives {expected:08x}. "
                "The message was changed on the way; ask for it again."
            )
        if kind >= len(KINDS):
            raise InvalidMessage(
                f"{sender}, round {round_number}: kind = {kind}, but kinds end at {len(KINDS) - 1}. "
                "Install the same fedtandem version on all parties."
            )
        return cls(KINDS[kind], round_number, schema, body)


AbsenceReason = Literal["late", "lost", "refused", "invalid", "spent"]
"""`spent`: it refused because its privacy budget is spent, so asking again is of no use."""


@dataclass(frozen=True)
class Absence:
    """Why a party that was asked has no reply."""

    reason: AbsenceReason
    text: str


@dataclass(frozen=True)
class Answers:
    """What came back from one `Carrier.ask`, by client name."""

    replies: Mapping[str, Envelope]
    absences: Mapping[str, Absence]


@dataclass(frozen=True)
class Party:
    """A client that can be asked: its stable name, the edge it belongs to, what it can do."""

    name: str
    edge: str = ""
    capabilities: frozenset[str] = field(default_factory=frozenset)


class Carrier(Protocol):
    """Carries envelopes to parties; algorithms see nothing else of the engine.

    Source: specification of the federation, section 1.
    """

    def parties(self) -> Sequence[Party]:
        """Who can be asked now; sorted by name."""
        ...

    def ask(self, requests: Mapping[str, Envelope], *, deadline_s: float) -> Answers:
        """Send each named party its envelope; return replies, and a reason for each absence, at the deadline."""
        ...
