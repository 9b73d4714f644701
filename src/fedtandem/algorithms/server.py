"""The FedMKT server: carries the clients' knowledge over, chooses who teaches what, learns, and answers."""

import json
from collections.abc import Callable, Container, Mapping
from dataclasses import replace

import numpy as np

from fedtandem.algorithms.checked_paths import accepted_only
from fedtandem.algorithms.client import Store
from fedtandem.algorithms.defence import Defence, capped
from fedtandem.algorithms.learner import Learner, phase_seed
from fedtandem.algorithms.lessons import (
    Choice,
    Classroom,
    choose,
    choose_paths,
    generator_of,
    score_drafts,
    write_knowledge,
)
from fedtandem.algorithms.meeting import (
    MakeMap,
    as_kept,
    check_knowledge,
    make_card,
    meet,
    only_samples,
    report_choice,
    without_own_rows,
    without_rows,
)
from fedtandem.algorithms.offering import Offering, only_items
from fedtandem.algorithms.selecting import Selecting
from fedtandem.algorithms.settings import Flow, Rounds
from fedtandem.algorithms.states import pack_state, unpack_state
from fedtandem.data.public import public_hash
from fedtandem.errors import PublicSetMismatch
from fedtandem.evaluation.scorer import Evaluation
from fedtandem.exchange.card import Card
from fedtandem.exchange.carrier import Envelope
from fedtandem.exchange.knowledge import Knowledge
from fedtandem.exchange.messages import FetchReply, WorkReply
from fedtandem.exchange.reading import Expected
from fedtandem.knowledge.sparse_logits import SparseLogits
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
        knowledge: S_0 of the last round: scores, rows and, on an unlabelled set, paths.
        client_scores: each client's last known scores; what it sends down depends on them.

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
        self.selector = selector
        self.make_map = make_map
        self.store = store
        self.report = report
        self.selecting = selecting
        self.offering = offering
        self.classroom = Classroom(learner)
        self.public_hash = public_hash(learner.public)
        self.cards: dict[str, Card] = {}
        self.knowledge: Knowledge | None = None
        self.client_scores: dict[str, np.ndarray] = {}
        self._told: dict[str, Knowledge] = {}
        self._file: bytes = b""
        self._portion: tuple[bytes, Knowledge] | None = None

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
        if self.offering is not None:
            for name, reply in replies.items():
                self.offering.note(name, reply.wanted, reply.drafts)

    # -- one round -------------------------------------------------------------------------------------------------

    def _ask_ahead(self, round_number: int) -> None:
        """The items of the next round's lesson from each client."""
        if (
            self.selecting is not None
            and self.selecting.asks_ahead
            and round_number <= self.rounds.num_rounds
        ):
            self.selecting.choose(round_number, sorted(self.cards), self.knowledge)

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
            self.client_scores[name] = knowledge.scores
        if self.flow.server_private:
            learner.tune(round_number)
        if not self.flow.server_learns:
            return
        choice, sources = self._believed(round_number, replies, fetch)
        own_rows = None
        if learner.knowledge.on_self == "self" and learner.unlabelled is None and self.flow.up:
            own_rows = self._own_rows
        with learner.timed("transport", round_number):
            lesson = self.classroom.lesson(choice, sources, own_rows)
        if self.flow.up:
            is_part = self.selecting is not None or (
                learner.unlabelled is not None and learner.unlabelled.offers_checked
            )
            report_choice(learner, round_number, choice, sources, self.classroom, is_part=is_part)
        if self.selecting is None:
            learner.learn(round_number, lesson)
        else:
            self.selecting.learn(round_number, lesson, choice, {name: name for name in sources})

    def _believed(
        self, round_number: int, replies: Mapping[str, Knowledge], fetch: "Fetch"
    ) -> tuple[Choice, dict[str, Knowledge]]:
        """Who teaches what, with the rows; chosen again without those the defence catches."""
        learner, defence = self.learner, self.defence
        sends_rows = self.flow.up and (learner.unlabelled is None or learner.unlabelled.send_rows)
        while True:
            heard = replies if defence is None else defence.heard(replies)
            choice, sources = self._choose(round_number, heard)
            if sends_rows:
                sources = self._with_rows(choice, sources, fetch)
            if defence is None or not self.flow.up:
                return choice, sources
            if not defence.liars(round_number, choice, sources, self.cards):
                draw = np.random.default_rng(phase_seed(learner.seed, learner.name, round_number, "cap"))
                return capped(choice, defence.settings.influence_cap, draw), sources

    def _choose(
        self, round_number: int, replies: Mapping[str, Knowledge]
    ) -> tuple[Choice, dict[str, Knowledge]]:
        learner = self.learner
        if learner.unlabelled is not None:
            return self._choose_paths(round_number, replies, learner.unlabelled.confidence_keep)
        if self.selecting is not None:
            replies = self._only_selected(self.selecting, round_number, replies)
        with learner.timed("select", round_number):
            sources = dict(replies) if self.flow.up else {}
            own = (
                self.knowledge.scores
                if self.knowledge is not None
                else np.full(len(learner.public), np.inf, "f4")
            )
            generator = generator_of(phase_seed(learner.seed, learner.name, round_number, "select"))
            choice = choose(own, sources, self.selector, generator)
            if self.selecting is not None:
                kept = [self.selecting.ids(name) for name in sources]
                choice = replace(choice, kept=np.unique(np.concatenate(kept)) if kept else choice.kept[:0])
            return choice, sources

    def _choose_paths(
        self, round_number: int, replies: Mapping[str, Knowledge], keep: float
    ) -> tuple[Choice, dict[str, Knowledge]]:
        """On an unlabelled set: check, then select, then per prompt the surest writer."""
        sources = dict(replies)
        if not self.flow.up and self.knowledge is not None:
            sources = {self.learner.name: without_own_rows(self.knowledge, self.learner.name)}
        heard, _ = accepted_only(self.learner, round_number, sources)
        if self.selecting is not None:
            heard, keep = self._only_selected(self.selecting, round_number, heard), 1.0
        with self.learner.timed("select", round_number):
            return choose_paths(heard, len(self.learner.public), keep), sources

    def _only_selected(
        self, selecting: Selecting, round_number: int, replies: Mapping[str, Knowledge]
    ) -> dict[str, Knowledge]:
        """Each client's knowledge of the items its pair kept; several may keep one, then the usual rule decides."""
        for name, knowledge in replies.items():
            selecting.hold(name, knowledge)
        if not selecting.asks_ahead:
            selecting.choose(round_number, sorted(replies), self.knowledge)
        return {name: selecting.only_chosen(name, knowledge) for name, knowledge in replies.items()}

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

    def _own_rows(self, samples: np.ndarray) -> SparseLogits:
        if self.knowledge is None or self.knowledge.rows is None:
            return SparseLogits.empty(len(samples))
        return self.knowledge.rows.take_samples(samples)

    def finish_round(self, round_number: int) -> None:
        """Steps 7-8 and the round's end: pass over the public set, measure, commit."""
        last = round_number == self.rounds.num_rounds
        changed = self.flow.server_learns or self.flow.server_private
        if (
            (changed or self._union_of_requests() is not None)
            and (self.flow.down or not last)
            and (self.flow.up or self.flow.down or self._studies_alone())
        ):
            self._pass(round_number)
        self._score_drafts(round_number)
        if self.rounds.evaluates(round_number) and (changed or last):
            self.report(round_number, self.learner.evaluate(round_number))
        self._ask_ahead(round_number + 1)
        self.commit(round_number)

    def _score_drafts(self, round_number: int) -> None:
        """What the clients' own paths are worth to the server, which they measure a contrast against."""
        if self.offering is None or not self.flow.down:
            return
        for name, drafts in self.offering.drafts.items():
            found = score_drafts(self.learner, round_number, self.offering.asked[name], drafts)
            if found is not None:
                self.offering.of_drafts[name] = found
        self.offering.drafts.clear()

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
            wanted = self._union_of_requests()
            # Where clients are shown all paths before they choose, rows of most would travel for nothing.
            want = want and learner.unlabelled.send_rows and (self.offering is None or wanted is not None)
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
        self._file, self.knowledge = as_kept(made)
        self._portion = None

    def _union_of_requests(self) -> np.ndarray | None:
        """The prompts of an unlabelled set that any client asked to be taught; None: all."""
        offering = self.offering
        if offering is None or offering.selector is not None or self.learner.unlabelled is None:
            return None
        asked = list(offering.asked.values())
        return np.unique(np.concatenate(asked)) if asked else np.zeros(0, np.int64)

    def knowledge_for(self, name: str, round_number: int, everyone: list[str]) -> Knowledge | None:
        """Step 8: what one client is sent: only rows of samples on which the server may teach it.

        The server knows the client's scores and repeats its choice, so no second message is needed.

        Args:
            name: the client.
            round_number: the round whose knowledge it is.
            everyone: all clients asked; their union is sent where the downlink is shared.
        """
        if not self.flow.down or self.knowledge is None:
            return None
        learner, knowledge = self.learner, self.knowledge
        if learner.unlabelled is not None and self.offering is not None:
            return self._asked_paths(self.offering, name, round_number, knowledge)
        if learner.unlabelled is not None:
            if knowledge.rows is None or learner.check.name != "none":
                return knowledge  # which paths pass is the receiver's to say
            keep = learner.unlabelled.confidence_keep
            return self._only(choose_paths({learner.name: knowledge}, len(learner.public), keep).kept)
        if knowledge.rows is None:
            return without_rows(knowledge)
        names = everyone if learner.knowledge.shared_downlink else [name]
        wanted = [self._won_from(client, round_number) for client in names]
        return self._only(np.unique(np.concatenate(wanted)))

    def has_told(self, name: str, knowledge: Knowledge | None) -> bool:
        """Whether a client is known to hold exactly this knowledge: then a word replaces it."""
        return self.flow.server_stands and knowledge is not None and self._told.get(name) is knowledge

    def note_told(self, knowledge: Mapping[str, Knowledge | None], heard_from: Container[str]) -> None:
        """After a message: who answered holds what it was sent; who did not is told anew next time."""
        for name, told in knowledge.items():
            if told is not None and name in heard_from:
                self._told[name] = told
            elif told is not None:
                self._told.pop(name, None)

    def _asked_paths(
        self, offering: Offering, name: str, round_number: int, knowledge: Knowledge
    ) -> Knowledge:
        """The paths a client asked for with their rows, or all paths where it chooses among them."""
        items = offering.items(name, round_number, knowledge, None, None)
        if items is None:
            return knowledge if knowledge.rows is None else without_rows(knowledge)
        told = replace(only_items(knowledge, items), of_drafts=offering.of_drafts.get(name))
        if knowledge.rows is None:
            return told
        written = np.flatnonzero(np.isfinite(told.scores))
        return only_samples(told, np.setdiff1d(written, offering.pool.probe))

    def _only(self, samples: np.ndarray) -> Knowledge:
        """The knowledge with the rows of these samples; the same object for clients who get the same."""
        if self.knowledge is None:
            raise RuntimeError("no knowledge has been made yet")
        if self._portion is None or self._portion[0] != samples.tobytes():
            self._portion = (samples.tobytes(), only_samples(self.knowledge, samples))
        return self._portion[1]

    def _won_from(self, client: str, round_number: int) -> np.ndarray:
        """The samples on which this client will choose the server; all of them where its scores are unknown."""
        if self.knowledge is None:
            raise RuntimeError("no knowledge has been made yet")
        scores = self.client_scores.get(client)
        if scores is None:
            return np.arange(len(self.learner.public), dtype=np.int64)
        generator = generator_of(phase_seed(self.learner.seed, client, round_number, "select"))
        choice = choose(scores, {self.learner.name: self.knowledge}, self.selector, generator)
        won = choice.won_by(self.learner.name)
        if self.offering is None:
            return won
        ends = self.cards[client].ends
        n_tokens = None if ends is None else np.diff(ends.sample_splits)
        items = self.offering.items(client, round_number, self.knowledge, scores, n_tokens)
        return won if items is None else np.intersect1d(won, items)

    # -- state -----------------------------------------------------------------------------------------------------

    def commit(self, round_number: int) -> None:
        """Put the round on disk, wholly or not at all."""
        files = {"state": pack_state(self.learner.state())}
        if self.knowledge is not None:
            files["knowledge"] = self._file
        if self.selecting is not None:
            files["selection"] = pack_state(self.selecting.state())
        if self.defence is not None:
            files["quarantine.json"] = self.defence.to_bytes()
        if self.offering is not None:
            files["asked.json"] = self.offering.state()
        files["scores.json"] = json.dumps(
            {
                name: np.asarray(scores, dtype="<f4").tobytes().hex()
                for name, scores in self.client_scores.items()
            }
        ).encode()
        self.store.save(f"{round_number:04d}", files)

    def restore(self) -> int:
        """Go to the newest committed round; its number, or -1 where there is none."""
        keys = self.store.committed()
        if not keys:
            return -1
        files = self.store.load(keys[-1])
        self.learner.load_state(unpack_state(files["state"]))
        if "knowledge" in files:
            self._file = files["knowledge"]
            self.knowledge = FetchReply.from_envelope(Envelope.from_bytes(self._file)).knowledge
            self._portion = None
        self.client_scores = {
            name: np.frombuffer(bytes.fromhex(scores), dtype="<f4").copy()
            for name, scores in json.loads(files["scores.json"]).items()
        }
        if self.selecting is not None:
            self.selecting.load_state(unpack_state(files["selection"]))
        if self.defence is not None:
            self.defence.restore(files["quarantine.json"])
        if self.offering is not None:
            self.offering.load_state(files["asked.json"])
        if self.learner.replay_fraction > 0 and not self.learner.own:
            self._answers_of_the_untouched_model()
        return int(keys[-1])


Fetch = Callable[[Mapping[str, np.ndarray]], Mapping[str, FetchReply]]
"""Asks clients for rows: name -> sample indexes, (M,) int64 ascending; returns what came back."""
