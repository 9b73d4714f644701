"""Edges that are no machines of their own: the server asks all sites at once and puts the answers together per edge.

It reproduces the arithmetic of a tree, not its topology; what an edge would say to the cloud is encoded and counted
as if it travelled.

Source: specification of the federation, section 4 (edge -> cloud, logical).
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fedtandem.algorithms.threshold_parties import reply_of, requests_of, together
from fedtandem.errors import QuorumError
from fedtandem.exchange.calibration import CalibrationReply, CalibrationRequest
from fedtandem.exchange.carrier import Answers, Carrier, Envelope, Party
from fedtandem.federation.remote import Count
from fedtandem.federation.strategy import Strategy

if TYPE_CHECKING:
    from fedtandem.federation.masked_edges import MaskedEdge


class LogicalEdges:
    """Carries to edges that live in this process, their clients behind one strategy.

    Args:
        members: edge -> its clients.
        strategy: asks all clients of all edges at once; its quorum is about all of them together.
        count: called with (edge, round, bytes up, bytes down) of what edge and cloud would say to each other.
    """

    def __init__(self, members: Mapping[str, Sequence[str]], strategy: Strategy, count: Count) -> None:
        self._members, self._strategy, self._count = dict(sorted(members.items())), strategy, count

    def parties(self) -> Sequence[Party]:
        """All edges, sorted by name."""
        return [Party(name) for name in self._members]

    def ask(self, requests: Mapping[str, Envelope], *, deadline_s: float) -> Answers:
        """Pass the edges' requests on to their clients, all at once; the deadline is the strategy's.

        Raises:
            QuorumError: too few clients answer; names the missing. What is only told (`publish`) needs no quorum.
        """
        down = {edge: envelope.to_bytes() for edge, envelope in requests.items()}
        told = {
            edge: CalibrationRequest.from_envelope(Envelope.from_bytes(data)) for edge, data in down.items()
        }
        asked: dict[str, Envelope] = {}
        for edge, request in told.items():
            asked |= requests_of(request, self._members[edge])
        first = next(iter(told.values()))
        replies = self._strategy.ask(
            asked, lambda name, envelope: reply_of(name, first.round, envelope), round_number=first.round,
            need="none" if first.job == "publish" else "quorum",
        )  # fmt: skip
        if replies is None:
            raise QuorumError(
                f"calibration round {first.round}: too few sites answered, and there is no earlier state to go on with "
                '(federation.on_short = "skip").'
            )
        return Answers({edge: self._answer(edge, first.round, replies, down[edge]) for edge in told}, {})

    def _answer(
        self, edge: str, round_number: int, replies: Mapping[str, CalibrationReply], down: bytes
    ) -> Envelope:
        own = [replies[name] for name in sorted(self._members[edge]) if name in replies]
        up = together(edge, round_number, own).to_envelope().to_bytes()
        self._count(edge, round_number, len(up), len(down))
        return Envelope.from_bytes(up)


class Quorate:
    """A carrier to masked edges that refuses a round in which too few sites were summed in all.

    Args:
        inner: carries to the edges.
        edges: their other side, which knows who was summed.
        min_clients: sites in all sums together.
    """

    def __init__(self, inner: Carrier, edges: Sequence["MaskedEdge"], min_clients: int) -> None:
        self._inner, self._edges, self._min_clients = inner, tuple(edges), min_clients
        self.parties = inner.parties

    def summed(self) -> dict[str, tuple[str, ...]]:
        """Whose numbers the last sums held, by edge."""
        return {edge.name: edge.summed for edge in self._edges}

    def ask(self, requests: Mapping[str, Envelope], *, deadline_s: float) -> Answers:
        """As the inner carrier.

        Raises:
            QuorumError: fewer than `min_clients` were summed; names those that were.
        """
        # Each site has the deadline for each of its answers; an edge asks twice, and again after a dropout.
        answers = self._inner.ask(requests, deadline_s=math.inf)
        summed = sorted(name for names in self.summed().values() for name in names)
        if len(summed) < self._min_clients:
            raise QuorumError(
                f"{len(summed)} sites were summed ({', '.join(summed)}), but {self._min_clients} are needed. Bring the "
                "others back and start again, or lower federation.min_clients."
            )
        return answers
