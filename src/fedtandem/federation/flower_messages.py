"""An envelope and its order, as Flower carries them; what comes back is believed in nothing."""

import json

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedtandem.errors import InvalidMessage
from fedtandem.exchange.carrier import Envelope
from fedtandem.federation.remote import is_told
from fedtandem.federation.site import Answer, Order

MAX_RECORD_BYTES = 1 << 20
"""Longest text of a site's lines for the record."""


def pack_request(order: Order, envelope: Envelope) -> RecordDict:
    """An envelope and its order, as Flower carries them."""
    told = ConfigRecord(
        {
            "party": order.party,
            "experiment": order.experiment,
            "method": order.method,
            "untouched": order.untouched,
            "plan": order.plan,
        }
    )
    return RecordDict({"order": told, "envelope": _body(envelope.to_bytes())})


def unpack_request(content: RecordDict) -> tuple[Order, bytes]:
    """The inverse of `pack_request`.

    Raises:
        InvalidMessage: it is no message of this program.
    """
    told = content.config_records.get("order")
    fields = dict(told) if told is not None else {}
    kinds = {"party": str, "experiment": str, "method": str, "untouched": bool, "plan": str}
    if {key: type(value) for key, value in fields.items()} != kinds:
        raise InvalidMessage(
            "a message came that fedtandem did not write. Check that both ends run fedtandem."
        )
    return Order(**fields), _bytes(content)  # type: ignore[arg-type]


def pack_answer(order: Order, answer: Answer) -> RecordDict:
    """A site's answer; the order is repeated so that a reply to another one is noticed."""
    told = ConfigRecord(
        {
            "party": order.party,
            "experiment": order.experiment,
            "method": order.method,
            "refusal": answer.refusal,
            "spent": answer.spent,
            "events": json.dumps(answer.events, default=float),
        }
    )
    return RecordDict({"answer": told, "envelope": _body(answer.envelope)})


def unpack_answer(content: RecordDict, order: Order) -> Answer:
    """The inverse of `pack_answer`, believing nothing.

    Raises:
        InvalidMessage: another client's, another run's, or not readable.
    """
    told = content.config_records.get("answer")
    fields = dict(told) if told is not None else {}
    for key, expected in (("party", order.party), ("experiment", order.experiment), ("method", order.method)):
        if fields.get(key) != expected:
            raise InvalidMessage(
                f"{order.party}: the reply's {key} is {str(fields.get(key))[:80]!r}; expected {expected!r}. Another "
                "reply came in its place; ask again."
            )
    refusal, events, spent = fields.get("refusal"), fields.get("events"), fields.get("spent", False)
    if not isinstance(refusal, str) or not isinstance(events, str) or len(events) > MAX_RECORD_BYTES:
        raise InvalidMessage(f"{order.party}: the reply lacks a part or its record is too long. Ask again.")
    if not isinstance(spent, bool) or (spent and not refusal):
        raise InvalidMessage(
            f"{order.party}: the reply says spent = {str(spent)[:80]!r} and {'why' if refusal else 'not why'}; "
            "expected true with the refusal's text, or false. Ask again."
        )
    try:
        lines = json.loads(events)
    except (ValueError, RecursionError) as error:
        raise InvalidMessage(f"{order.party}: the lines for the record are not JSON ({error}).") from error
    own = tuple(line for line in lines if is_told(line, order.party)) if isinstance(lines, list) else ()
    return Answer(_bytes(content), own, refusal, spent)


def _body(data: bytes) -> ArrayRecord:
    return ArrayRecord({"body": Array(np.frombuffer(data, np.uint8))})


def _bytes(content: RecordDict) -> bytes:
    record = content.array_records.get("envelope")
    array = record.get("body") if record is not None else None
    if array is None or array.dtype != "uint8" or len(array.shape) != 1:
        raise InvalidMessage(
            "the message holds no envelope. Check that both ends run the same fedtandem version."
        )
    try:
        return array.numpy().tobytes()
    except ValueError as error:
        raise InvalidMessage(f"the message's body cannot be read: {error}. Ask for it again.") from error
