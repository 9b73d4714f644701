"""The FedMKT server: carries the clients' knowledge over, chooses who teaches what, learns, and answers."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from fedtandem.algorithms.client import Store
from fedtandem.algorithms.defence import Defence, capped
from fedtandem.algorithms.downlink import Downlink
from fedtandem.algorithms.learner import Learner, phase_seed
from fedtandem.algorithms.lessons import (
    Choice,
    Classroom,
    write_knowledge,
)
from fedtandem.algorithms.meeting import (
    MakeMap,
    check_knowledge,
    make_card,
    meet,
    without_own_rows,
)
from fedtandem.algorithms.offering import Offering
from fedtandem.algorithms.receiver import Receiver, rows_of_samples
from fedtandem.algorithms.selecting import Selecting
from fedtandem.algorithms.settings import Flow, Rounds
from fedtandem.algorithms.states import pack_state, unpack_state
from fedtandem.data.public import public_hash
from fedtandem.errors import PublicSetMismatch
from fedtandem.evaluation.scorer import Evaluation
from fedtandem.exchange.card import Card
from fedtandem.exchange.knowledge import Knowledge
from fedtandem.exchange.messages import FetchReply, WorkReply
from fedtandem.exchange.reading import Expected
from fedtandem.selection.selectors import Selector
from fedtandem.tuning.phase import Example


class Server:
    """The server's side of every round.

    Args:
        learner: the LLM and its data.
        flow, rounds, selector, make_map, store, report: as for `Client`.
        selecting: names the items it learns from each client; None: all.
        offering: what each client asked to be taught; None: all.
        defence: whom it believes; None: everybody.

    Attributes:
        downlink: what it tells the clients.

    Source: FedMKT, arXiv:2406.02224v4, appendix A, the server's steps 4-8.
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
        report: Callable[[int, Mapping[str, Evaluation]], None] = lambda *_: None,
        selecting: Selecting | None = None,
        offering: Offering | None = None,
        defence: Defence | None = None,
    ) -> None:
        self.defence = defence
        self.learner = learner
        self.flow = flow
        self.rounds = rounds
        self.make_map = make_map
        self.store = store
        self.report = report
        self.selecting = selecting
        self.classroom = Classroom(learner)
        offers = learner.unlabelled is not None and learner.unlabelled.offers_checked
        self.receiver = Receiver(
            learner,
            self.classroom,
            selector,
            selecting,
            flow.up,
            client_of=lambda name: name,
            of_offers=offers,
        )
        self.public_hash = public_hash(learner.public)
        self.cards: dict[str, Card] = {}
        self.downlink = Downlink(learner, flow, selector, self.cards, offering)

    # -- before the first round ----------------------------------------------------------------------------------

    def own_card(self) -> Card:
        """What every client is told once."""
        return make_card(self.learner, self.public_hash)

    def welcome(self, card: Card) -> None:
        """Check a client's card and prepare the way into the LLM's tokenisation.

        Raises:
            PublicSetMismatch: the client holds another public set.
        """
        if card.public_hash != self.public_hash:
            raise PublicSetMismatch(
                f"client {card.party} holds public set {card.public_hash[:16]} with {card.n_public} samples, "
                f"the server {self.public_hash[:16]} with {len(self.learner.public)}. Give all the same file, in order."
            )
        self.cards[card.party] = card
        if self.flow.up:
            self.classroom.crossings[card.party] = meet(self.learner, card, self.make_map)

    def expected(self, party: str, round_number: int) -> Expected:
        """What a reply of this client must be about."""
        card = self.cards[party]
        return Expected(
            party=party, round=round_number, vocab_hash=card.vocabulary.hash, vocab_size=len(card.vocabulary),
            public_hash=self.public_hash, n_public=len(self.learner.public),
        )  # fmt: skip

    def begin(self) -> None:
        """Round 0: measure the untouched LLM, keep its answers for replay, take its first scores."""
        if self.rounds.evaluates(0):
            self.report(0, self.learner.evaluate(0))
        if self.learner.replay_fraction > 0 and not self.learner.own:
            self._answers_of_the_untouched_model()
        if self.flow.server_learns or self.flow.up or self.flow.down:
            self._pass(0)
        self._ask_ahead(1)

    def _answers_of_the_untouched_model(self) -> None:
        """What the server replays when it has no data of its own; written once, kept for every round."""
        stored = self.store.get("replay")
        if stored is None:
            stored = json.dumps(self.learner.write(0, self._answer_tokens())).encode()
            self.store.put("replay", stored)
        self.learner.emit(
            "replay", round=0, party=self.learner.name, source="greedy answers of the untouched model"
        )
        answers: list[str] = json.loads(stored)
        index = [i for i, text in enumerate(answers) if text]
        self.learner.replay = [
            Example(text) for text in self.learner.answered(index, [answers[i] for i in index])
        ]

    def _answer_tokens(self) -> int:
        unlabelled = self.learner.unlabelled
        return 64 if unlabelled is None else unlabelled.max_new_tokens

    def note_requests(self, replies: Mapping[str, WorkReply]) -> None:
        """Remember what each client asked to be taught."""
        offering = self.downlink.offering
        if offering is not None:
            for name, reply in replies.items():
                offering.note(name, reply.wanted, reply.drafts)

    # -- one round -------------------------------------------------------------------------------------------------

    def _ask_ahead(self, round_number: int) -> None:
        """The items of the next round's lesson from each client."""
        if (
            self.selecting is not None
            and self.selecting.asks_ahead
            and round_number <= self.rounds.num_rounds
        ):
            self.selecting.choose(round_number, sorted(self.cards), self.downlink.knowledge)

    def wanted_from(self, name: str) -> np.ndarray | None:
        """What a client is asked for in the next message; None: everything."""
        if self.selecting is None or not self.selecting.asks_ahead:
            return None
        return self.selecting.wanted(name)

    def drafts_for(self, name: str) -> tuple[str, ...] | None:
        """The server's own paths of what it asks a client for, where the client is to score them."""
        return None if self.selecting is None else self.selecting.drafts_of_wanted(name)

    def learn(self, round_number: int, replies: Mapping[str, Knowledge], fetch: "Fetch") -> None:
        """Steps 4-6: choose who teaches which sample, bring the rows over, train.

        Args:
            round_number: from 1.
            replies: client name -> what its work reply told; an absent client is not there (it scores +inf).
            fetch: asks the named clients for the rows they won.
        """
        learner = self.learner
        for name, knowledge in replies.items():
            check_knowledge(knowledge, self.public_hash, len(learner.public))
            self.downlink.client_scores[name] = knowledge.scores
        if self.flow.server_private:
            learner.tune(round_number)
        if not self.flow.server_learns:
            return
        choice, sources = self._believed(round_number, replies, fetch)
        own_rows = rows_of_samples(self.downlink.knowledge) if self.flow.up else None
        self.receiver.learn(round_number, choice, sources, own_rows)

    def _believed(
        self, round_number: int, replies: Mapping[str, Knowledge], fetch: "Fetch"
    ) -> tuple[Choice, dict[str, Knowledge]]:
        """Who teaches what, with the rows; chosen again without those the defence catches."""
        learner, defence = self.learner, self.defence
        sends_rows = self.flow.up and (learner.unlabelled is None or learner.unlabelled.send_rows)
        while True:
            heard = replies if defence is None else defence.heard(replies)
            told = heard if self.flow.up else self._own_paths()
            choice, sources = self.receiver.choose(round_number, self.downlink.knowledge, told)
            if sends_rows:
                sources = self._with_rows(choice, sources, fetch)
            if defence is None or not self.flow.up:
                return choice, sources
            if not defence.liars(round_number, choice, sources, self.cards):
                draw = np.random.default_rng(phase_seed(learner.seed, learner.name, round_number, "cap"))
                return capped(choice, defence.settings.influence_cap, draw), sources

    def _own_paths(self) -> dict[str, Knowledge]:
        """What a server that nobody teaches studies: its own paths of an unlabelled set."""
        if self.learner.unlabelled is None or self.downlink.knowledge is None:
            return {}
        return {self.learner.name: without_own_rows(self.downlink.knowledge, self.learner.name)}

    @staticmethod
    def _with_rows(choice: Choice, sources: Mapping[str, Knowledge], fetch: "Fetch") -> dict[str, Knowledge]:
        """Phase 2: the rows of what each client won, where they did not come with the scores."""
        wanted = {
            name: choice.won_by(name)
            for name, knowledge in sources.items()
            if knowledge.rows is None and len(choice.won_by(name))
        }
        fetched = fetch(wanted) if wanted else {}
        whole = dict(sources)
        for name, reply in fetched.items():
            rows = reply.knowledge
            whole[name] = replace(sources[name], sample_index=rows.sample_index, rows=rows.rows)
        return whole

    def finish_round(self, round_number: int) -> None:
        """Steps 7-8 and the round's end: pass over the public set, measure, commit."""
        last = round_number == self.rounds.num_rounds
        changed = self.flow.server_learns or self.flow.server_private
        if (
            (changed or self.downlink.union_of_requests() is not None)
            and (self.flow.down or not last)
            and (self.flow.up or self.flow.down or self._studies_alone())
        ):
            self._pass(round_number)
        self.downlink.score_drafts(round_number)
        if self.rounds.evaluates(round_number) and (changed or last):
            self.report(round_number, self.learner.evaluate(round_number))
        self._ask_ahead(round_number + 1)
        self.commit(round_number)

    def _studies_alone(self) -> bool:
        return self.learner.unlabelled is not None

    def _pass(self, round_number: int) -> None:
        learner = self.learner
        texts = None
        want = self.flow.down or learner.knowledge.on_self == "self"
        if learner.unlabelled is None:
            if not (self.flow.up or self.flow.down):
                return
            scores, rows = learner.pass_over(learner.public_texts, round_number, want_rows=want)
        else:
            if round_number == 0 and self.flow.up:
                return  # nobody compares with, or is sent, paths of the untouched model
            wanted = self.downlink.union_of_requests()
            want = want and learner.unlabelled.send_rows and self.downlink.sends_rows_of_all
            texts, scores, rows, _ = write_knowledge(
                learner, learner.unlabelled, round_number, lambda _text: False, wanted=wanted
            )
        made = Knowledge(
            party=learner.name, round=round_number, vocab_hash=learner.lm.tokenizer.card.hash,
            public_hash=self.public_hash, scores=scores,
            sample_index=np.arange(len(scores) if want else 0, dtype=np.int32),
            rows=rows if want else None, texts=tuple(texts) if texts is not None else None,
            values=learner.knowledge.values,
        )  # fmt: skip
        self.downlink.keep(made)

    # -- state -----------------------------------------------------------------------------------------------------

    def commit(self, round_number: int) -> None:
        """Put the round on disk, wholly or not at all."""
        files = {"state": pack_state(self.learner.state()), **self.downlink.files()}
        if self.selecting is not None:
            files["selection"] = pack_state(self.selecting.state())
        if self.defence is not None:
            files["quarantine.json"] = self.defence.to_bytes()
        self.store.save(f"{round_number:04d}", files)

    def restore(self) -> int:
        """Go to the newest committed round; its number, or -1 where there is none."""
        keys = self.store.committed()
        if not keys:
            return -1
        files = self.store.load(keys[-1])
        self.learner.load_state(unpack_state(files["state"]))
        self.downlink.restore(files)
        if self.selecting is not None:
            self.selecting.load_state(unpack_state(files["selection"]))
        if self.defence is not None:
            self.defence.restore(files["quarantine.json"])
        if self.learner.replay_fraction > 0 and not self.learner.own:
            self._answers_of_the_untouched_model()
        return int(keys[-1])


Fetch = Callable[[Mapping[str, np.ndarray]], Mapping[str, FetchReply]]
"""Asks clients for rows: name -> sample indexes, (M,) int64 ascending; returns what came back."""
