"""The `flower` carrier: a `Grid` of Flower as a `Carrier`.

flwr is imported here, in `flower_messages`, in `flower_names` and in the two apps, and nowhere else.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from fedtandem.errors import InvalidMessage, QuorumError
from fedtandem.exchange.carrier import Absence, Answers, Envelope, Party
from fedtandem.federation.flower_messages import pack_request, unpack_answer
from fedtandem.federation.flower_names import POLL_S, Names
from fedtandem.federation.remote import Count, Emit
from fedtandem.federation.site import Order

LOOK_S = 1.0
"""How often the list of connected nodes is read again while somebody is missing."""
MIN_TTL_S = 60.0
"""Least time a message may travel: a SuperLink on a busy machine refuses one that has expired before it is stored. Who
answers after the deadline is late all the same."""
COMES_BACK = frozenset({3, 4, 5, 8})
"""Codes of Flower's `Error` for a message lost on the way, a node that died, a client's process that was killed."""
MAX_FAILURES = 3
"""So often such a client is asked again before a deadline."""


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
        self._here: list[str] | None = None

    def parties(self) -> Sequence[Party]:
        """The run's clients that are connected now, sorted by name."""
        return [Party(name) for name in self._online()]

    def _online(self) -> dict[str, int]:
        here = self._names.online(self._grid)
        found = {name: here[name] for name in self._members if name in here}
        if list(found) != self._here:
            self._here = list(found)
            self._emit("connected", parties=self._here)
        return found

    def gather(self, quorum: int, deadline_s: float, again: str = "go on with --resume") -> None:
        """Wait until all clients are connected, or the deadline.

        Args:
            again: how the user takes it up after a fault.

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
                f"needed. Missing: {', '.join(missing)}. Start their SuperNodes (with the registered keys) and "
                f"{again}."
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
            if look_at <= now < end and any(one.message_id is None for one in waiting.values()):
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
                Message(
                    content, online[name], _message_type(envelope), ttl=max(left_s, MIN_TTL_S), group_id=group
                )
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
                return Absence("spent" if answer.spent else "refused", answer.refusal)
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
