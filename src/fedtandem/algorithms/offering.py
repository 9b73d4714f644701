"""The sending side of selection: of all a party knows, what a receiver asked for and nothing else."""

import json
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from fedtandem.exchange.knowledge import Knowledge
from fedtandem.selection.items import Ids, ItemSelector, Pair, Pool, ScoreRows, count_of

NOTHING = np.zeros(0, np.int64)


@dataclass
class Offering:
    """What each client is sent of the server's knowledge.

    Attributes:
        selector: the clients' own; None where they ask ahead.
        budget, pool: as the clients have them.
        can_repeat: the selector looks at nothing but what the server knows as well.
        asked: client -> the items it asked for; a client that has not asked is taught nothing yet.
        drafts: client -> its own paths of these items, where it wants them scored.
        of_drafts: client -> what the server makes of them; (N,) float32.
    """

    selector: ItemSelector | None
    budget: int | float
    pool: Pool
    can_repeat: bool = False
    asked: dict[str, Ids] = field(default_factory=dict)
    drafts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    of_drafts: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.selector is not None:
            self.selector.setup(self.pool)

    def note(self, client: str, wanted: Ids | None, drafts: tuple[str, ...] | None) -> None:
        """A client's newest request."""
        if wanted is not None:
            self.asked[client] = wanted
        if wanted is not None and drafts is not None:
            self.drafts[client] = drafts

    def state(self) -> bytes:
        """What a resumed run needs to send the same."""
        whole = {
            "asked": {name: np.asarray(ids, "<i4").tobytes().hex() for name, ids in self.asked.items()},
            "of_drafts": {
                name: values.astype("<f4").tobytes().hex() for name, values in self.of_drafts.items()
            },
        }
        return json.dumps(whole).encode()

    def load_state(self, state: bytes) -> None:
        """Go back to what `state()` gave."""
        whole = json.loads(state)
        self.asked = {
            name: np.frombuffer(bytes.fromhex(ids), "<i4").astype(np.int64)
            for name, ids in whole["asked"].items()
        }
        self.of_drafts = {
            name: np.frombuffer(bytes.fromhex(values), "<f4").copy()
            for name, values in whole["of_drafts"].items()
        }

    def items(
        self, client: str, round_number: int, knowledge: Knowledge, receiver_scores: np.ndarray | None,
        n_tokens: np.ndarray | None,
    ) -> Ids | None:  # fmt: skip
        """The items this client will learn from; None where that cannot be known here.

        Where it does not ask ahead, a labelled set lets the server repeat its choice: both know all losses.

        Args:
            receiver_scores: what the client told of itself; None where it told nothing.
            n_tokens: its tokens of every answer, from its card.
        """
        if self.selector is None:
            return self.asked.get(client, NOTHING)
        if knowledge.texts is not None or receiver_scores is None or n_tokens is None or not self.can_repeat:
            return None
        rows = answer_rows(self.pool, knowledge.scores, receiver_scores, n_tokens)
        budget = count_of(self.budget, self.pool.n_items)
        return self.selector.select(round_number, Pair(client, "down"), rows, budget).ids


def answer_rows(
    pool: Pool, producer_scores: np.ndarray, receiver_scores: np.ndarray, n_tokens: np.ndarray
) -> ScoreRows:
    """A labelled pool as both parties of a pair see it: items the producer scored, with both losses on the answer."""
    ids = np.setdiff1d(np.flatnonzero(np.isfinite(producer_scores)), pool.probe)
    paths = [pool.gold[i] or "" for i in ids]
    n_bytes = np.array([len(path.encode()) for path in paths], np.int64)
    receiver = -receiver_scores[ids].astype(np.float64) * n_bytes
    return ScoreRows.of(
        ids, prompts=[pool.prompts[i] for i in ids], paths=paths, gold=paths,
        receiver_pos=np.where(np.isfinite(receiver), receiver, np.nan),
        producer_pos=-producer_scores[ids].astype(np.float64) * n_bytes, n_bytes=n_bytes, n_tokens=n_tokens[ids],
    )  # fmt: skip


def only_items(knowledge: Knowledge, items: Ids) -> Knowledge:
    """Texts and their scores of these items alone; the scores of a labelled set stay, they are 4 bytes each."""
    if knowledge.texts is None:
        return knowledge
    keep = np.zeros(len(knowledge.scores), bool)
    keep[items] = True
    texts = tuple(text if kept else "" for text, kept in zip(knowledge.texts, keep, strict=True))
    return replace(knowledge, texts=texts, scores=np.where(keep, knowledge.scores, np.inf).astype(np.float32))
