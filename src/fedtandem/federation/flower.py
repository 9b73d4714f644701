"""The `flower` carrier: a `Grid` of Flower as a `Carrier`. Only this file and the two apps import flwr.

Names: a client is who its registered key says (`Keys`), or, without keys, who it says it is (`SelfNamed`: simulation
and loopback only).
"""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedtandem.errors import ConfigError, InvalidMessage, QuorumError
from fedtandem.exchange.carrier import Absence, Answers, Envelope, Party
from fedtandem.federation.remote import Count, Emit, is_told
from fedtandem.federation.site import Answer, Order

POLL_S = 0.1
LOOK_S = 1.0
"""How often the list of connected nodes is read again while somebody is missing."""
COMES_BACK = frozenset({3, 4, 5, 8})
"""Codes of Flower's `Error` for a message lost on the way, a node that died, a client's process that was killed."""
MAX_FAILURES = 3
"""So often such a client is asked again before a deadline."""
NAME_TTL_S = 60.0
ASK_NAME = "query.name"
MAX_RECORD_BYTES = 1 << 20
"""Longest text of a site's lines for the record."""


# -- what travels ------------------------------------------------------------------------------------------------


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
    refusal, events = fields.get("refusal"), fields.get("events")
    if not isinstance(refusal, str) or not isinstance(events, str) or len(events) > MAX_RECORD_BYTES:
        raise InvalidMessage(f"{order.party}: the reply lacks a part or its record is too long. Ask again.")
    try:
        lines = json.loads(events)
    except (ValueError, RecursionError) as error:
        raise InvalidMessage(f"{order.party}: the lines for the record are not JSON ({error}).") from error
    own = tuple(line for line in lines if is_told(line, order.party)) if isinstance(lines, list) else ()
    return Answer(_bytes(content), own, refusal)


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


# -- who is who --------------------------------------------------------------------------------------------------


class Names(Protocol):
    """Which node is which client, now."""

    def online(self, grid: Grid) -> dict[str, int]: ...


class Keys:
    """Clients by their registered keys.

    Args:
        folder: NAME.pub for each client, as registered with the SuperLink.

    Raises:
        ConfigError: a file is no public key, or two names have one key.
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self._name_of: dict[bytes, str] = {}
        for name in sorted(names):
            key = read_public_key(folder / f"{name}.pub")
            if key in self._name_of:
                raise ConfigError(
                    f"{folder}: {name}.pub and {self._name_of[key]}.pub are the same key. Give each its own."
                )
            self._name_of[key] = name

    def online(self, grid: Grid) -> dict[str, int]:
        """Name -> node id of every connected client whose key is known."""
        found = {self._name_of.get(_canonical(node.public_key)): node.node_id for node in grid.get_nodes()}
        return {name: node for name, node in found.items() if name is not None}


class SelfNamed:
    """Clients by what they say; nobody is kept from claiming another's name."""

    def __init__(self) -> None:
        self._known: dict[int, str] = {}

    def online(self, grid: Grid) -> dict[str, int]:
        """Name -> node id; new nodes are asked.

        Raises:
            ConfigError: two nodes give one name.
        """
        here = sorted(grid.get_node_ids())
        new = [node for node in here if node not in self._known]
        asked = [Message(RecordDict(), node, ASK_NAME, ttl=NAME_TTL_S) for node in new]
        ids = set(grid.push_messages(asked)) if asked else set()
        end = time.monotonic() + NAME_TTL_S
        while ids and time.monotonic() < end:
            for reply in grid.pull_messages(ids):
                ids.discard(reply.metadata.reply_to_message_id)
                if not reply.has_error():
                    name = dict(reply.content.config_records.get("name", {})).get("name")
                    self._known[reply.metadata.src_node_id] = str(name)
            time.sleep(POLL_S)
        found: dict[str, int] = {}
        for node in here:
            name = self._known.get(node)
            if name is not None and name in found:
                raise ConfigError(
                    f"two nodes call themselves {name!r}. Give each site its own name, and register keys "
                    "(fedtandem deploy), so that names are bound to them."
                )
            if name is not None:
                found[name] = node
        return found


def read_public_key(path: Path) -> bytes:
    """A public key as ssh-keygen writes it, in one form.

    Raises:
        ConfigError: there is none, or it cannot be read.
    """
    try:
        key = serialization.load_ssh_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"the public key {path} cannot be used: {error}. Put each client's NAME.pub there; `fedtandem deploy` "
            "writes them."
        ) from error
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _canonical(key: bytes) -> bytes:
    """A key as a SuperLink tells it (PEM), in the form of `read_public_key`; any other stays as it is."""
    try:
        loaded = serialization.load_pem_public_key(key)
    except (ValueError, UnsupportedAlgorithm):
        return key
    return loaded.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


# -- the carrier -------------------------------------------------------------------------------------------------


@dataclass
class _Waiting:
    """One client that was asked: its message, or None while it is not connected."""

    envelope: Envelope
    message_id: str | None = None
    trouble: str = "it is not connected"
    failures: int = 0


class FlowerCarrier:
    """Carries envelopes through a Flower grid.

    Args:
        grid: of the running `ServerApp`.
        names: which node is which client.
        members: the clients of the run.
        order: what goes with every envelope; its `party` is filled in.
        count: called with (party, round, bytes up, bytes down) for each exchange, before Flower's own framing.
        emit: the run's record; gets the lines that sites tell, under their own names only.

    Source: specification of the federation, sections 1, 2 and 5.
    """

    def __init__(
        self, grid: Grid, names: Names, members: Sequence[str], order: Order, count: Count, emit: Emit
    ) -> None:
        self._grid, self._names, self._members = grid, names, tuple(sorted(members))
        self._order, self._count, self._emit = order, count, emit
        self._overdue: dict[str, tuple[str, int]] = {}

    def parties(self) -> Sequence[Party]:
        """The run's clients that are connected now, sorted by name."""
        return [Party(name) for name in self._online()]

    def _online(self) -> dict[str, int]:
        here = self._names.online(self._grid)
        return {name: here[name] for name in self._members if name in here}

    def gather(self, quorum: int, deadline_s: float) -> None:
        """Wait until all clients are connected, or the deadline.

        Raises:
            QuorumError: fewer than `quorum` came; names those missing.
        """
        end = time.monotonic() + deadline_s
        while True:
            here = self._online()
            if len(here) == len(self._members):
                return
            if time.monotonic() >= end:
                break
            time.sleep(LOOK_S)
        missing = [name for name in self._members if name not in here]
        if len(here) < quorum:
            raise QuorumError(
                f"{len(here)} of {len(self._members)} clients are connected after {deadline_s:.0f} s but {quorum} are "
                f"needed. Missing: {', '.join(missing)}. Start their SuperNodes (with the registered keys) and go on "
                "with --resume."
            )

    def ask(self, requests: Mapping[str, Envelope], *, deadline_s: float) -> Answers:
        """Send each named client its envelope; one that is not connected, or dies, is asked when it is back.

        A reply after the deadline is dropped and noted in the record.
        """
        end = time.monotonic() + deadline_s
        waiting = {name: _Waiting(envelope) for name, envelope in sorted(requests.items())}
        replies: dict[str, Envelope] = {}
        absences: dict[str, Absence] = {}
        look_at = 0.0
        while waiting:
            now = time.monotonic()
            if now >= look_at and any(one.message_id is None for one in waiting.values()):
                self._push(waiting, end - now)
                look_at = now + LOOK_S
            for name, outcome in self._pull(waiting):
                if isinstance(outcome, Absence):
                    absences[name] = outcome
                else:
                    replies[name] = outcome
                del waiting[name]
            if now >= end:
                break
            if waiting:
                time.sleep(POLL_S)
        for name, one in waiting.items():
            absences[name] = self._late(name, one, deadline_s)
        return Answers(replies, absences)

    def _push(self, waiting: Mapping[str, _Waiting], left_s: float) -> None:
        online = self._online()
        names = [name for name, one in waiting.items() if one.message_id is None and name in online]
        messages = []
        for name in names:
            envelope = waiting[name].envelope
            content = pack_request(replace(self._order, party=name), envelope)
            group = f"{self._order.experiment}/{self._order.method}/{envelope.round}"
            messages.append(
                Message(content, online[name], _message_type(envelope), ttl=max(left_s, 1.0), group_id=group)
            )
        ids = list(self._grid.push_messages(messages)) if messages else []
        if len(ids) != len(names):  # Flower's answer to a body that is too large for its SuperLink
            ids = [""] * len(names)
        for name, message_id in zip(names, ids, strict=True):
            waiting[name].message_id = message_id or None
            waiting[name].trouble = "" if message_id else "the SuperLink took no message for it"

    def _pull(self, waiting: Mapping[str, _Waiting]) -> list[tuple[str, Envelope | Absence]]:
        asked = {one.message_id: name for name, one in waiting.items() if one.message_id is not None}
        ids = {*asked, *self._overdue}
        found: list[tuple[str, Envelope | Absence]] = []
        for reply in self._grid.pull_messages(ids) if ids else ():
            message_id = reply.metadata.reply_to_message_id
            if message_id in self._overdue:
                name, round_number = self._overdue.pop(message_id)
                if not reply.has_error():
                    self._emit(
                        "late_reply",
                        round=round_number,
                        party=name,
                        text="it came after its deadline: dropped",
                    )
                continue
            answering = asked.pop(message_id, None)
            if answering is None:  # a reply that came twice
                continue
            outcome = self._outcome(answering, waiting[answering], reply)
            if outcome is not None:
                found.append((answering, outcome))
        return found

    def _outcome(self, name: str, one: _Waiting, reply: Message) -> Envelope | Absence | None:
        """The reply, or why there is none; None: ask again when the client is back."""
        request = one.envelope
        down = len(request.to_bytes())
        if reply.has_error():
            self._count(name, request.round, 0, down)
            one.message_id, one.trouble = None, f"error {reply.error.code}: {reply.error.reason}"
            one.failures += 1
            again = reply.error.code in COMES_BACK and one.failures < MAX_FAILURES
            return None if again else Absence("lost", one.trouble)
        try:
            answer = unpack_answer(reply.content, replace(self._order, party=name))
            self._count(name, request.round, len(answer.envelope), down)
            if answer.refusal:
                return Absence("refused", answer.refusal)
            envelope = Envelope.from_bytes(answer.envelope, party=name)
        except InvalidMessage as error:
            return Absence("invalid", str(error))
        for line in answer.events:
            self._emit(**line)
        return envelope

    def _late(self, name: str, one: _Waiting, deadline_s: float) -> Absence:
        if one.message_id is None:
            return Absence("lost", f"no reply within {deadline_s:.0f} s: {one.trouble}")
        self._overdue[one.message_id] = (name, one.envelope.round)
        return Absence(
            "late",
            f"no reply within {deadline_s:.0f} s; raise federation.deadline_s if loading the model alone takes this "
            "long",
        )


def _message_type(envelope: Envelope) -> str:
    return MessageType.TRAIN if envelope.kind in ("work", "finish") else f"query.{envelope.kind}"
