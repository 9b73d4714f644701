"""A FedMKT client: it answers envelopes, keeps its private data, and repeats a stored reply rather than its work."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

import numpy as np
import torch

from fedtandem.algorithms.checked_paths import only_vouched
from fedtandem.algorithms.learner import Learner
from fedtandem.algorithms.lessons import Classroom, score_drafts, write_knowledge
from fedtandem.algorithms.meeting import (
    MakeMap,
    as_kept,
    check_knowledge,
    make_card,
    meet,
    only_samples,
    without_own_rows,
    without_rows,
)
from fedtandem.algorithms.receiver import Receiver, rows_of_samples
from fedtandem.algorithms.selecting import Selecting
from fedtandem.algorithms.settings import Flow, Rounds
from fedtandem.algorithms.states import pack_state, unpack_state
from fedtandem.data.public import public_hash
from fedtandem.errors import InvalidMessage, PublicSetMismatch
from fedtandem.evaluation.scorer import Evaluation
from fedtandem.exchange.card import Card
from fedtandem.exchange.carrier import Envelope
from fedtandem.exchange.knowledge import Knowledge
from fedtandem.exchange.messages import FetchReply, FetchRequest, WorkReply, WorkRequest
from fedtandem.exchange.reading import ANY, Expected
from fedtandem.selection.selectors import Selector


class Store(Protocol):
    """Where a party commits its states; `federation.store.RoundStore` is one."""

    def committed(self) -> list[str]: ...
    def save(self, key: str, files: Mapping[str, bytes]) -> None: ...
    def load(self, key: str) -> dict[str, bytes]: ...
    def put(self, name: str, data: bytes) -> None: ...
    def get(self, name: str) -> bytes | None: ...


class Client:
    """One client of the federation; the same object serves every carrier.

    Args:
        learner: its model and data.
        flow: which arrows of the algorithm are kept.
        rounds: the clock.
        selector: who teaches which sample.
        make_map: vocabulary map from a teacher's card.
        store: where its states and encoded replies are committed.
        repeats_private: true for a text that shares a long run of bytes with the private set.
        keep_in_memory: false drops the in-memory state between messages, as a deployment does.
        report: told the evaluations of a round; (round, split -> evaluation).
        selecting: names the items it learns from the server; None: all.
        noised: what its knowledge becomes before it leaves.

    Source: FedMKT, arXiv:2406.02224v4, appendix A, the client's steps 1-3 and 9-11; specification of the
    federation, sections 4 and 6.
    """

    def __init__(
        self,
        learner: Learner,
        flow: Flow,
        rounds: Rounds,
        selector: Selector,
        make_map: MakeMap,
        store: Store,
        *,
        repeats_private: Callable[[str], bool],
        keep_in_memory: bool = True,
        report: Callable[[int, Mapping[str, Evaluation]], None] = lambda *_: None,
        selecting: Selecting | None = None,
        noised: Callable[[Knowledge], Knowledge] = lambda knowledge: knowledge,
    ) -> None:
        self.noised = noised
        self.learner = learner
        self.flow = flow
        self.rounds = rounds
        self.make_map = make_map
        self.store = store
        self.repeats_private = repeats_private
        self.keep_in_memory = keep_in_memory
        self.report = report
        self.selecting = selecting
        self.classroom = Classroom(learner, remembers=flow.server_stands and keep_in_memory)
        self.receiver = Receiver(
            learner, self.classroom, selector, selecting, is_told=flow.down, client_of=lambda _: learner.name
        )
        self.vocabulary_hash = learner.lm.tokenizer.card.hash
        self.public_hash = public_hash(learner.public)
        self._card_of_server: Card | None = None
        self._at: str | None = None
        self._knowledge: Knowledge | None = None
        self._told: Knowledge | None = None
        self._vouched: dict[int, str] = {}

    def handle(self, envelope: Envelope) -> Envelope:
        """Answer one envelope: `card`, `work`, `fetch` or `finish`.

        Raises:
            InvalidMessage: the envelope is not what this client can accept; names party, round, field and value.
            PublicSetMismatch: the server holds another public set.
        """
        if envelope.kind == "card":
            return self._card(Card.from_envelope(envelope))
        if envelope.kind == "fetch":
            return fetch_rows(self.store, self.learner.name, FetchRequest.from_envelope(envelope))
        if envelope.kind in ("work", "finish"):
            request = WorkRequest.from_envelope(envelope, expected=self._expected())
            stored = stored_reply(self.store, self.learner.name, request)
            if stored is not None:
                return stored
            if request.knowledge is not None and self.flow.server_stands:
                self.store.put("told", envelope.to_bytes())
                self._remember(request.knowledge)
            return self._work(
                request, work_key(request), passes=envelope.kind == "work" and not request.return_adapter
            )
        raise InvalidMessage(
            f"{self.learner.name}, round {envelope.round}: kind is {envelope.kind!r}; this client answers card, work, "
            "fetch and finish."
        )

    def _expected(self) -> Expected:
        """What knowledge from the server must be about."""
        card = self._server_card()
        if card is None:
            return ANY
        return Expected(
            vocab_hash=card.vocabulary.hash, vocab_size=len(card.vocabulary), public_hash=self.public_hash,
            n_public=len(self.learner.public),
        )  # fmt: skip

    def _server_card(self) -> Card | None:
        if self._card_of_server is None:
            stored = self.store.get("server-card")
            if stored is not None:
                self._card_of_server = Card.from_envelope(Envelope.from_bytes(stored))
        return self._card_of_server

    # -- card --------------------------------------------------------------------------------------------------

    def own_card(self) -> Card:
        """What this client tells once: vocabulary, hashes, where its rows lie in the public set."""
        return make_card(self.learner, self.public_hash)

    def _card(self, server: Card) -> Envelope:
        if server.public_hash != self.public_hash:
            raise PublicSetMismatch(
                f"{self.learner.name}: the server's public set has hash {server.public_hash[:16]} with "
                f"{server.n_public} samples, this client's has {self.public_hash[:16]} with "
                f"{len(self.learner.public)}. Give all parties the same file, in the same order."
            )
        self._card_of_server = server
        self._meet(server)
        self.store.put("server-card", server.to_envelope().to_bytes())
        return self.own_card().to_envelope()

    def _meet(self, server: Card) -> None:
        if self.flow.down:
            self.classroom.crossings[server.party] = meet(self.learner, server, self.make_map)

    # -- work --------------------------------------------------------------------------------------------------

    def _work(self, request: WorkRequest, key: str, *, passes: bool) -> Envelope:
        self.wake()
        learner = self.learner
        done = request.round - 1
        self._vouched = {}
        if request.distil:
            self._learn(done, self._what_the_server_tells(request))
        if request.adapter is not None:
            learner.lm.load_state(
                {name: torch.from_numpy(np.array(value)) for name, value in request.adapter.items()}
            )
        if (request.adapter is not None or not request.return_adapter) and self.rounds.evaluates(done):
            self.report(done, learner.evaluate(done))
        if request.tune:
            learner.tune(request.round)
        knowledge = None
        if passes and self._needs_scores():
            knowledge = self._make_knowledge(request)
        wanted, drafts = self._ask_ahead(request.round, knowledge) if passes else (None, None)
        sent = None
        if knowledge is not None and self.flow.up:
            sent = knowledge if request.want_rows else without_rows(knowledge)
        adapter = None
        if request.return_adapter:
            adapter = {name: value.float().numpy() for name, value in learner.lm.state().items()}
        reply = WorkReply(
            round=request.round, party=learner.name, knowledge=sent, adapter=adapter, metrics=[],
            n_private=len(learner.own), wanted=wanted, drafts=drafts,
        ).to_envelope()  # fmt: skip
        selection = {} if self.selecting is None else self.selecting.state()
        files = {"reply": reply.to_bytes(), "state": pack_state({**learner.state(), **selection})}
        if knowledge is not None:
            files["knowledge"], knowledge = as_kept(knowledge)
        self.store.save(key, files)
        self._knowledge = knowledge
        self._at = key
        if not self.keep_in_memory:
            self._at = None
        return reply

    def wake(self) -> None:
        """Be in the newest committed state; from disk where memory does not hold it."""
        keys = self.store.committed()
        newest = keys[-1] if keys else None
        if newest is not None and newest != self._at:
            files = self.store.load(newest)
            state = unpack_state(files["state"])
            self.learner.load_state(state)
            if self.selecting is not None:
                self.selecting.load_state(state)
            if "knowledge" in files:
                self._knowledge = FetchReply.from_envelope(Envelope.from_bytes(files["knowledge"])).knowledge
            self._at = newest
        if self.flow.down and not self.classroom.crossings:
            card = self._server_card()
            if card is None:
                raise InvalidMessage(
                    f"{self.learner.name}: work arrived before the server's card; send `card` first."
                )
            self._meet(card)

    def _needs_scores(self) -> bool:
        """Whether own scores are needed: to send them, to compare the server's with them, or to study its own paths."""
        if self.flow.up:
            return True
        # Without answers a client writes its own only where it studies alone; with them it compares scores.
        alone = not self.flow.down
        return self.flow.clients_learn and (alone if self.learner.unlabelled is not None else not alone)

    def _ask_ahead(
        self, round_number: int, own: Knowledge | None
    ) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
        """The items of the next lesson, named by the very model that will be trained on them; and its own paths."""
        selecting, name = self.selecting, self.learner.name
        if selecting is None or not selecting.asks_ahead:
            return None, None
        selecting.choose(round_number, [name], own, self.repeats_private)
        return selecting.wanted(name), selecting.drafts_of_wanted(name)

    def _make_knowledge(self, request: WorkRequest) -> Knowledge:
        learner, round_number, wanted = self.learner, request.round, request.wanted
        texts = None
        want = self.flow.up or learner.knowledge.on_self == "self"
        if learner.unlabelled is None:
            scores, rows = learner.pass_over(learner.public_texts, round_number, want_rows=want)
        else:
            want = want and learner.unlabelled.send_rows
            offered = partial(only_vouched, learner, round_number)
            texts, scores, rows, refused = write_knowledge(
                learner, learner.unlabelled, round_number, self.repeats_private, self._vouched, wanted,
                offered if learner.unlabelled.offers_checked else None,
            )  # fmt: skip
            learner.emit(
                "paths",
                round=round_number,
                party=learner.name,
                written=sum(map(bool, texts)),
                refused=refused,
                returned=len(self._vouched),
            )
        # It compares by the noised scores too: the server repeats that choice.
        return self.noised(Knowledge(
            party=learner.name, round=round_number, vocab_hash=self.vocabulary_hash, public_hash=self.public_hash,
            scores=scores, sample_index=np.arange(len(scores) if want else 0, dtype=np.int32),
            rows=rows if want else None,
            texts=tuple(texts) if texts is not None else None, values=learner.knowledge.values,
            of_drafts=score_drafts(learner, round_number, wanted, request.drafts),
        ))  # fmt: skip

    def _what_the_server_tells(self, request: WorkRequest) -> Knowledge | None:
        """The knowledge that came with this message, or that came with an earlier one and still holds."""
        if request.stands is None:
            return request.knowledge
        told = self._told
        if told is None:
            stored = self.store.get("told")
            if stored is not None:
                envelope = Envelope.from_bytes(stored)
                told = WorkRequest.from_envelope(envelope, expected=self._expected()).knowledge
        if told is None or told.round != request.stands:
            raise InvalidMessage(
                f"{self.learner.name}, round {request.round}: the server's knowledge of round {request.stands} is said "
                f"to stand, but this client holds {'none' if told is None else f'that of round {told.round}'}. Its "
                "folder was lost or swapped; restart the server with --resume and everything is sent anew."
            )
        self._remember(told)
        return told

    def _remember(self, told: Knowledge) -> None:
        self._told = told if self.keep_in_memory else None

    # -- learning ----------------------------------------------------------------------------------------------

    def _learn(self, round_number: int, knowledge: Knowledge | None) -> None:
        """Steps 9-11 of the round that ended: align, choose, train on the public set."""
        learner = self.learner
        if knowledge is not None:
            check_knowledge(knowledge, self.public_hash, len(learner.public))
        told = knowledge
        if knowledge is None and learner.unlabelled is not None and self.selecting is None:
            told = self._knowledge  # without a server's paths it studies its own: equal prompts and updates
        sources = {} if told is None else {told.party: without_own_rows(told, learner.name)}
        choice, sources = self.receiver.choose(round_number, self._knowledge, sources)
        if knowledge is not None and learner.unlabelled is not None and learner.unlabelled.returns_checked:
            self._vouched = self.receiver.vouched
        self.receiver.learn(round_number, choice, sources, rows_of_samples(self._knowledge))


def fetch_rows(store: Store, party: str, request: FetchRequest) -> Envelope:
    """Rows of the named samples from a client's file; no model is used.

    Raises:
        InvalidMessage: the rows of that round are not kept (any more).
    """
    kept = store.committed()
    keys = [key for key in kept if key.startswith(f"{request.round:04d}-")]
    files = store.load(keys[-1]) if keys else {}
    if "knowledge" not in files:
        raise InvalidMessage(
            f"{party}: rows of round {request.round} were asked for, but this client keeps those of "
            f"{', '.join(kept) or 'no round'}."
        )
    whole = FetchReply.from_envelope(Envelope.from_bytes(files["knowledge"])).knowledge
    return FetchReply(request.round, party, only_samples(whole, request.sample_index)).to_envelope()


def work_key(request: WorkRequest) -> str:
    """What the state after this request is kept under; in the order of the work."""
    return f"{request.round:04d}-{'b' if request.adapter is not None else 'a'}"


def stored_reply(store: Store, party: str, request: WorkRequest) -> Envelope | None:
    """The reply to a request that was done before, byte for byte; None where it was not.

    Raises:
        InvalidMessage: it lies so far back that its reply is no longer kept.
    """
    key, kept = work_key(request), store.committed()
    if key in kept:
        return Envelope.from_bytes(store.load(key)["reply"])
    if kept and key < kept[-1]:
        raise InvalidMessage(
            f"{party}: work of round {request.round} was asked for, but this client has done {kept[-1]} and keeps the "
            f"replies of {', '.join(kept)} only. The message was replayed, or the server went back: start a new run "
            "in another folder."
        )
    return None
