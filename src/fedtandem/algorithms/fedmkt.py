"""FedMKT: one LLM and many SLMs teach each other through what they predict on a shared public set.

One round, in the order of the paper's algorithm box:

 1. each client tunes its adapter on its private data;
 2. it passes over the public set: per-sample loss and sparse logits,
 3. which it sends to the server;
 4. the server carries each client's logits into the LLM's tokenisation,
 5. picks per sample the one client worth learning from (DualMinCE),
 6. trains the LLM's adapter on labels and the chosen logits,
 7. passes over the public set with the improved LLM,
 8. and sends its logits down;
 9.-11. each client carries them over, picks the samples where the LLM is better, and trains;
12. equal clients may average their weights.

As messages, steps 9-11 of a round travel with steps 1-3 of the next: T rounds are T + 1 messages a client.

Source: FedMKT, arXiv:2406.02224v4, appendix A; specification of FedMKT, section 2.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, Protocol, TypeVar

import numpy as np

from fedtandem.algorithms.learner import Emit
from fedtandem.algorithms.server import Server
from fedtandem.errors import InvalidMessage
from fedtandem.exchange.card import Card
from fedtandem.exchange.carrier import Envelope
from fedtandem.exchange.knowledge import Knowledge
from fedtandem.exchange.messages import FetchReply, FetchRequest, WorkReply, WorkRequest
from fedtandem.exchange.reading import Expected

Reply = TypeVar("Reply")


class Clients(Protocol):
    """Asking the clients, under a round policy; `federation.strategy.Strategy` is one."""

    def names(self) -> list[str]: ...
    def here(self) -> list[str]: ...
    def chosen(self, round_number: int) -> list[str]: ...
    def ask(
        self,
        requests: Mapping[str, Envelope],
        decode: Callable[[str, Envelope], Reply],
        *,
        round_number: int,
        need: Literal["quorum", "willing", "none"] = "quorum",
    ) -> dict[str, Reply] | None: ...


def run_fedmkt(server: Server, clients: Clients, emit: Emit) -> None:
    """Run all rounds, from the first or from the newest committed one, to the last client's last lesson.

    Args:
        server: the LLM's side.
        clients: how clients are asked.
        emit: the run's record.

    Raises:
        QuorumError: too few clients answered.
    """
    flow, rounds = server.flow, server.rounds
    if flow.asks_clients:
        _exchange_cards(server, clients, clients.names(), 0)
    done = server.restore()
    if done < 0:
        server.begin()
        server.commit(0)
        done = 0
    for round_number in range(done + 1, rounds.num_rounds + 1):
        emit("round_started", round=round_number)
        late = [name for name in clients.here() if name not in server.cards] if flow.asks_clients else []
        if late:
            _exchange_cards(server, clients, late, round_number)
        replies = _work(server, clients, round_number) if flow.asks_clients else {}
        if replies is not None:
            server.note_requests(replies)
            told = {name: reply.knowledge for name, reply in replies.items() if reply.knowledge is not None}
            server.learn(round_number, told, partial(_fetch, server, clients, round_number))
            server.finish_round(round_number)
        else:
            server.commit(round_number)
        emit("round_committed", round=round_number, skipped=replies is None)
    if flow.asks_clients:
        _work(server, clients, rounds.num_rounds + 1)


def _exchange_cards(server: Server, clients: Clients, names: list[str], round_number: int) -> None:
    """Vocabularies and where rows lie; another public set is refused before round 1. Who comes later is met later.

    Raises:
        QuorumError: before round 1, a client refuses or sends no valid card.
    """
    card = server.own_card().to_envelope()

    def decode(name: str, envelope: Envelope) -> Card:
        return Card.from_envelope(envelope, expected=Expected(party=name, public_hash=server.public_hash))

    need: Literal["willing", "none"] = "willing" if round_number == 0 else "none"
    cards = clients.ask(dict.fromkeys(names, card), decode, round_number=0, need=need)
    for _, theirs in sorted((cards or {}).items()):
        server.welcome(theirs)


def _work(server: Server, clients: Clients, round_number: int) -> dict[str, WorkReply] | None:
    """One work message to each client of the round; two where the clients' weights are averaged in between."""
    flow, last = server.flow, server.rounds.num_rounds
    chosen = clients.names() if round_number > last else clients.chosen(round_number)
    names = [name for name in chosen if name in server.cards]
    distil = flow.clients_learn and round_number > 1
    averages = (
        flow.aggregate_every > 0 and round_number > 1 and (round_number - 1) % flow.aggregate_every == 0
    )
    knowledge = {
        name: server.downlink.knowledge_for(name, round_number - 1, names) if distil else None
        for name in names
    }
    adapter: dict[str, np.ndarray] | None = None
    if averages:
        parts = _ask(
            server, clients, round_number, names, distil, knowledge, None, tune=False, give_back=True
        )
        if parts is None:
            return None
        adapter = average(parts)
        names, distil, knowledge = list(parts), False, dict.fromkeys(parts)
    tune = flow.private and server.rounds.tunes(round_number)
    return _ask(server, clients, round_number, names, distil, knowledge, adapter, tune=tune)


def _ask(
    server: Server,
    clients: Clients,
    round_number: int,
    names: list[str],
    distil: bool,
    knowledge: Mapping[str, Knowledge | None],
    adapter: Mapping[str, np.ndarray] | None,
    *,
    tune: bool,
    give_back: bool = False,
) -> dict[str, WorkReply] | None:
    last = round_number > server.rounds.num_rounds
    # Who is sent the same gets the same bytes, packed once.
    written: dict[tuple[int, bool, bytes, tuple[str, ...] | None], Envelope] = {}
    requests = {}
    for name in names:
        told, stands = knowledge[name], server.downlink.has_told(name, knowledge[name])
        wanted = None if give_back or last else server.wanted_from(name)
        drafts = None if wanted is None else server.drafts_for(name)
        content = (id(told), stands, b"" if wanted is None else wanted.tobytes(), drafts)
        if content not in written:
            written[content] = WorkRequest(
                round=round_number, knowledge=None if stands else told, adapter=adapter, distil=distil, tune=tune,
                want_rows=not server.learner.knowledge.two_phase, return_adapter=give_back,
                stands=told.round if stands and told is not None else None, wanted=wanted, drafts=drafts,
            ).to_envelope(kind="finish" if last else "work")  # fmt: skip
        requests[name] = written[content]

    def decode(name: str, envelope: Envelope) -> WorkReply:
        return WorkReply.from_envelope(envelope, expected=server.expected(name, round_number))

    replies = clients.ask(requests, decode, round_number=round_number)
    server.downlink.note_told(knowledge, replies or {})
    return replies


def _fetch(
    server: Server, clients: Clients, round_number: int, wanted: Mapping[str, np.ndarray]
) -> Mapping[str, FetchReply]:
    """Phase 2 of the two-phase exchange; a client that does not answer leaves its samples to the labels."""

    def decode(name: str, envelope: Envelope) -> FetchReply:
        reply = FetchReply.from_envelope(envelope, expected=server.expected(name, round_number))
        asked = np.asarray(wanted[name])
        if not np.array_equal(reply.knowledge.sample_index, asked):
            raise InvalidMessage(
                f"{name}, round {round_number}: rows of {len(reply.knowledge.sample_index)} samples came, not of the "
                f"{len(asked)} that were asked for"
            )
        return reply

    requests = {
        name: FetchRequest(round_number, np.asarray(index, dtype=np.int32)).to_envelope()
        for name, index in wanted.items()
    }
    return clients.ask(requests, decode, round_number=round_number) or {}


def average(replies: Mapping[str, WorkReply]) -> dict[str, np.ndarray]:
    """FedAvg: the mean of the clients' trainable weights, weighted by the sizes of their private sets.

    Raises:
        InvalidMessage: a client sent no weights, or others by name or shape than the first.

    Source: FedMKT, arXiv:2406.02224v4, step 12; weights are private sizes, not the public set's.
    """
    names = sorted(replies)
    first = replies[names[0]].adapter
    total = sum(replies[name].n_private for name in names)
    mean: dict[str, np.ndarray] = {}
    for name in names:
        adapter = replies[name].adapter
        if (
            adapter is None
            or first is None
            or {k: v.shape for k, v in adapter.items()} != {k: v.shape for k, v in first.items()}
        ):
            raise InvalidMessage(f"{name}: its weights differ in name or shape from those of {names[0]}; only equal "
                                 "models can be averaged")  # fmt: skip
        weight = replies[name].n_private / total
        for key, value in adapter.items():
            mean[key] = mean.get(key, np.zeros(value.shape, dtype=np.float64)) + weight * value.astype(
                np.float64
            )
    return {key: value.astype(np.float32) for key, value in mean.items()}
