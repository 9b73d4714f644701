"""The server's sending side: what each client is told of the server's knowledge."""

import json
from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from fedtandem.algorithms.learner import Learner, phase_seed
from fedtandem.algorithms.lessons import choose, choose_paths, generator_of, score_drafts
from fedtandem.algorithms.meeting import as_kept, only_samples, without_rows
from fedtandem.algorithms.offering import Offering, only_items
from fedtandem.algorithms.settings import Flow
from fedtandem.exchange.card import Card
from fedtandem.exchange.carrier import Envelope
from fedtandem.exchange.knowledge import Knowledge
from fedtandem.exchange.messages import FetchReply
from fedtandem.selection.selectors import Selector


@dataclass
class Downlink:
    """What the server tells, and whom it has told.

    Attributes:
        learner, flow, selector: the server's; the selector is the clients' too.
        cards: client -> its card, as the server fills it.
        offering: what each client asked to be taught; None: all.
        knowledge: S_0 of the last round: scores, rows and, on an unlabelled set, paths.
        client_scores: each client's last known scores, (N,) float32; what it is sent depends on them.
    """

    learner: Learner
    flow: Flow
    selector: Selector
    cards: Mapping[str, Card]
    offering: Offering | None
    knowledge: Knowledge | None = None
    client_scores: dict[str, np.ndarray] = field(default_factory=dict)
    _told: dict[str, Knowledge] = field(default_factory=dict)
    _file: bytes = b""
    _portion: tuple[bytes, Knowledge] | None = None

    def keep(self, made: Knowledge) -> None:
        """From now on this is told, as it will be read back from disk."""
        self._file, self.knowledge = as_kept(made)
        self._portion = None

    @property
    def sends_rows_of_all(self) -> bool:
        """Where clients are shown all paths before they choose, rows of most would travel for nothing."""
        return self.offering is None or self.union_of_requests() is not None

    def union_of_requests(self) -> np.ndarray | None:
        """The prompts of an unlabelled set that any client asked to be taught; None: all."""
        offering = self.offering
        if offering is None or offering.selector is not None or self.learner.unlabelled is None:
            return None
        asked = list(offering.asked.values())
        return np.unique(np.concatenate(asked)) if asked else np.zeros(0, np.int64)

    def score_drafts(self, round_number: int) -> None:
        """What the clients' own paths are worth to the server, which they measure a contrast against."""
        if self.offering is None or not self.flow.down:
            return
        for name, drafts in self.offering.drafts.items():
            found = score_drafts(self.learner, round_number, self.offering.asked[name], drafts)
            if found is not None:
                self.offering.of_drafts[name] = found
        self.offering.drafts.clear()

    # -- one client's message --------------------------------------------------------------------------------------

    def knowledge_for(self, name: str, round_number: int, everyone: list[str]) -> Knowledge | None:
        """FedMKT's step 8: what one client is sent: only rows of samples on which the server may teach it.

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
            kept = choose_paths({learner.name: knowledge}, len(learner.public), keep).kept
            return self._only(knowledge, kept)
        if knowledge.rows is None:
            return without_rows(knowledge)
        names = everyone if learner.knowledge.shared_downlink else [name]
        wanted = [self._won_from(client, round_number, knowledge) for client in names]
        return self._only(knowledge, np.unique(np.concatenate(wanted)))

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

    def _only(self, knowledge: Knowledge, samples: np.ndarray) -> Knowledge:
        """The knowledge with the rows of these samples; the same object for clients who get the same."""
        if self._portion is None or self._portion[0] != samples.tobytes():
            self._portion = (samples.tobytes(), only_samples(knowledge, samples))
        return self._portion[1]

    def _won_from(self, client: str, round_number: int, knowledge: Knowledge) -> np.ndarray:
        """The samples on which this client will choose the server; all of them where its scores are unknown."""
        scores = self.client_scores.get(client)
        if scores is None:
            return np.arange(len(self.learner.public), dtype=np.int64)
        generator = generator_of(phase_seed(self.learner.seed, client, round_number, "select"))
        choice = choose(scores, {self.learner.name: knowledge}, self.selector, generator)
        won = choice.won_by(self.learner.name)
        if self.offering is None:
            return won
        ends = self.cards[client].ends
        n_tokens = None if ends is None else np.diff(ends.sample_splits)
        items = self.offering.items(client, round_number, knowledge, scores, n_tokens)
        return won if items is None else np.intersect1d(won, items)

    # -- who has been told -----------------------------------------------------------------------------------------

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

    # -- state -----------------------------------------------------------------------------------------------------

    def files(self) -> dict[str, bytes]:
        """What a resumed run needs to send the same."""
        scores = {
            name: np.asarray(of, dtype="<f4").tobytes().hex() for name, of in self.client_scores.items()
        }
        files = {"scores.json": json.dumps(scores).encode()}
        if self.knowledge is not None:
            files["knowledge"] = self._file
        if self.offering is not None:
            files["asked.json"] = self.offering.state()
        return files

    def restore(self, files: Mapping[str, bytes]) -> None:
        """Go back to what `files()` gave."""
        if "knowledge" in files:
            self._file = files["knowledge"]
            self.knowledge = FetchReply.from_envelope(Envelope.from_bytes(self._file)).knowledge
            self._portion = None
        self.client_scores = {
            name: np.frombuffer(bytes.fromhex(scores), dtype="<f4").copy()
            for name, scores in json.loads(files["scores.json"]).items()
        }
        if self.offering is not None:
            self.offering.load_state(files["asked.json"])
