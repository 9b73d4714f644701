"""The `local` carrier: a federation as a loop over plain objects, with every message encoded, counted and decoded."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from fedtandem.errors import InvalidMessage
from fedtandem.exchange.carrier import Absence, Answers, Envelope, Party


class Handles(Protocol):
    """A party as every carrier sees it."""

    def handle(self, envelope: Envelope) -> Envelope:
        """Do what the envelope asks and answer."""


@dataclass(frozen=True)
class Fault:
    """What the network does to one message of one party (tests and studies of resilience)."""

    kind: Literal["late", "lost", "duplicate", "corrupt"]


FaultPlan = Callable[[str, Envelope], Fault | None]


class LocalCarrier:
    """Carries envelopes inside one process.

    No object passes by reference: a request and its reply are each packed to bytes, counted and unpacked, so the
    counted bytes are those a wire would carry, before the transport's own framing.

    Args:
        parties: client name -> the object that handles its envelopes.
        count: called with (party, round, bytes up, bytes down) for each exchange.
        faults: what goes wrong, for tests; None for a perfect network.

    Source: specification of the federation, section 1.
    """

    def __init__(
        self,
        parties: Mapping[str, Handles],
        *,
        count: Callable[[str, int, int, int], None] = lambda *_: None,
        faults: FaultPlan | None = None,
    ) -> None:
        self._parties = dict(sorted(parties.items()))
        self._count = count
        self._faults = faults

    def parties(self) -> Sequence[Party]:
        """All clients, sorted by name."""
        return [Party(name) for name in self._parties]

    def ask(self, requests: Mapping[str, Envelope], *, deadline_s: float) -> Answers:
        """Hand each named party its envelope, one after the other.

        A party that takes longer than `deadline_s` is `late` and its reply is dropped; being in the same
        process it cannot be cut off before it returns.
        """
        replies: dict[str, Envelope] = {}
        absences: dict[str, Absence] = {}
        packed: tuple[Envelope | None, bytes] = (
            None,
            b"",
        )  # who is asked the same gets the same bytes, packed once
        for name, request in sorted(requests.items()):
            if packed[0] is not request:
                packed = (request, request.to_bytes())
            outcome = self._deliver(name, request, packed[1], deadline_s)
            if isinstance(outcome, Absence):
                absences[name] = outcome
            else:
                replies[name] = outcome
        return Answers(replies, absences)

    def _deliver(self, name: str, request: Envelope, down: bytes, deadline_s: float) -> Envelope | Absence:
        if name not in self._parties:
            return Absence("lost", f"no client is called {name!r}")
        fault = self._faults(name, request) if self._faults else None
        if fault is not None and fault.kind == "lost":
            self._count(name, request.round, 0, len(down))
            return Absence("lost", "the message was lost (injected fault)")
        started = time.monotonic()
        try:
            party = self._parties[name]
            reply = party.handle(Envelope.from_bytes(down))
            if fault is not None and fault.kind == "duplicate":
                reply = party.handle(Envelope.from_bytes(down))
            up = reply.to_bytes()
        except InvalidMessage as error:
            self._count(name, request.round, 0, len(down))
            return Absence("refused", str(error))
        took = time.monotonic() - started
        self._count(name, request.round, len(up), len(down))
        if took > deadline_s or (fault is not None and fault.kind == "late"):
            return Absence(
                "late",
                f"answered after {took:.0f} s, the deadline is {deadline_s:.0f} s; raise federation.deadline_s if "
                "loading the model alone takes this long",
            )
        if fault is not None and fault.kind == "corrupt":
            up = up[: len(up) // 2] + bytes([up[len(up) // 2] ^ 0xFF]) + up[len(up) // 2 + 1 :]
        try:
            return Envelope.from_bytes(up)
        except InvalidMessage as error:
            return Absence("invalid", str(error))
