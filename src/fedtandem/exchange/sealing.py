"""A message in its envelope: what every message says about itself, written and checked."""

from collections.abc import Mapping
from typing import Any

from fedtandem.errors import InvalidMessage
from fedtandem.exchange.carrier import SCHEMA, Envelope, Kind
from fedtandem.exchange.frame import Array, decode_frame, encode_frame
from fedtandem.exchange.reading import MAX_TEXT, MEND, SERVER, Expected, Reader, refusal


def seal(
    kind: Kind, message: str, round_number: int, header: dict[str, Any], arrays: dict[str, Array]
) -> Envelope:
    whole = {"schema": SCHEMA, "message": message, "kind": kind, "round": int(round_number), **header}
    try:
        return Envelope(kind, int(round_number), SCHEMA, encode_frame(whole, arrays))
    except InvalidMessage as error:
        raise InvalidMessage(f"{header.get('party', SERVER)}, round {round_number}: {error}") from error


def unseal(envelope: Envelope, kinds: tuple[Kind, ...], message: str, expected: Expected) -> Reader:
    """Unpack the frame and check what every message says about itself."""
    sender = expected.party or (SERVER if message.endswith("request") else f"the sender of a {message}")
    if envelope.kind not in kinds:
        raise refusal(sender, envelope.round, "kind", envelope.kind, " or ".join(kinds), MEND)
    if expected.round is not None and envelope.round != expected.round:
        raise refusal(
            sender, envelope.round, "round", envelope.round, str(expected.round), "It came too late or twice."
        )
    try:
        header, arrays = decode_frame(envelope.body, max_bytes=expected.max_bytes)
    except InvalidMessage as error:
        raise InvalidMessage(f"{sender}, round {envelope.round}: {error}") from error
    if not message.endswith("request") and expected.party is None and isinstance(header.get("party"), str):
        sender = str(header["party"])[:MAX_TEXT]
    read = Reader(header, arrays, party=sender, round_number=envelope.round)
    said = {"schema": SCHEMA, "message": message, "kind": envelope.kind, "round": envelope.round}
    for field, value in said.items():
        got = read.take(field)
        if got != value or type(got) is not type(value):
            raise read.refuse(field, got, repr(value))
    return read


def take_party(read: Reader, expected: Expected) -> str:
    party = read.text("party")
    if expected.party is not None and party != expected.party:
        raise read.refuse(
            "party", party, repr(expected.party), "Another client's reply came in its place; ask again."
        )
    return party


def take_hash(read: Reader, field: str, expected: str | None) -> str:
    value = read.text(field)
    if expected is not None and value != expected:
        what = (
            "the same public set, in the same order,"
            if field == "public_hash"
            else "the card of the model it runs"
        )
        raise read.refuse(field, value, expected, f"Give the party {what} and start again.")
    return value


def named(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {f"{prefix}.{name}": array for name, array in arrays.items()}
