"""Which items of the shared pool one party should learn from another: the contract between selectors and hosts.

A *host* (FedMKT, step-by-step distillation) owns models, optimisers and messages. A *selector* owns none of them: it
is given what is known of each item, names at most `budget` of them, and may be told afterwards what they were worth.

Source: LaDa, arXiv:2602.18749v1, sections on the plug-in; specification of LaDa, sections 1 and 5.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
Direction = Literal["down", "up"]
Reason = Literal["score", "cold", "cold_cluster", "exploit_explore", "random_floor"]
"""Why an item was kept: its score; nothing was known yet, so at random; LaDa's three."""
Need = Literal["embedding", "alone", "holdout", "gold", "verdict", "feedback"]
"""What a selector asks its host for beside the losses of receiver and producer."""
EMBEDDING = 16
"""Numbers that stay of a hidden state."""


@dataclass(frozen=True)
class Pair:
    """One client and the server. `down`: the LLM teaches the SLM; `up`: the SLM teaches the LLM."""

    client: str
    direction: Direction


@dataclass(frozen=True, eq=False)
class Pool:
    """The N public items.

    Attributes:
        prompts: N texts.
        gold: the right path of each, None where it is not known.
        probe: items that are measured and never selected or trained on; (P,) int64, ascending.
        num_rounds: rounds of the run.
        seed: of every draw.
    """

    prompts: Sequence[str]
    gold: Sequence[str | None]
    probe: Ids
    num_rounds: int
    seed: int

    @property
    def n_items(self) -> int:
        """N."""
        return len(self.prompts)


@dataclass(frozen=True)
class Path:
    """A reasoning path as its author wrote it.

    Attributes:
        text: steps and answer as one string.
        seq_log_prob: its log-probability under its author, in nats; NaN where the author gives none.
        n_bytes: UTF-8 bytes of the text.
        author, author_version: who wrote it, in which round.
    """

    text: str
    seq_log_prob: float
    n_bytes: int
    author: str
    author_version: int


UNKNOWN, WRONG, RIGHT = -1, 0, 1
"""Values of `ScoreRows.verdict`."""


@dataclass(frozen=True, eq=False)
class ScoreRows:
    """What is known of n items, one row each; NaN is unknown. y+ is the producer's path, y- the receiver's own.

    Attributes:
        ids: (n,) int64, ascending.
        prompts, paths: n texts; a path is "" where none is held.
        gold: the right path of each, None where it is not known.
        receiver_pos, producer_pos: log p(y+ | x) in nats, summed over the path's tokens; (n,) float64.
        receiver_neg, producer_neg: log p(y- | x); (n,) float64.
        alone: log p(y+) under the receiver without its prompt; (n,) float64.
        holdout: log p(y+ | x) under the receiver's architecture trained on held-out items only; (n,) float64.
        n_bytes, neg_bytes: UTF-8 bytes of y+ and y-; 0 = no path; (n,) int64.
        n_tokens: the receiver's tokens of y+; (n,) int64.
        agrees: 1 where both paths end in the same answer, 0 where not; (n,) float64.
        verdict: RIGHT, WRONG or UNKNOWN, by the checker; (n,) int8.
        embedding: the receiver's mean last hidden state, projected; (n, 16) float32.
    """

    ids: Ids
    prompts: Sequence[str]
    paths: Sequence[str]
    gold: Sequence[str | None]
    receiver_pos: Floats
    producer_pos: Floats
    receiver_neg: Floats
    producer_neg: Floats
    alone: Floats
    holdout: Floats
    n_bytes: Ids
    neg_bytes: Ids
    n_tokens: Ids
    agrees: Floats
    verdict: npt.NDArray[np.int8]
    embedding: npt.NDArray[np.float32]

    @classmethod
    def of(cls, ids: npt.ArrayLike, **known: Any) -> "ScoreRows":
        """Rows of these items with the columns that are known; the others say unknown.

        Raises:
            ValueError: a column has another length, or the ids do not ascend.
        """
        items = np.asarray(ids, np.int64)
        n = len(items)
        columns: dict[str, Any] = {
            "prompts": [""] * n, "paths": [""] * n, "gold": [None] * n,
            **{name: np.full(n, np.nan) for name in _LOG_PROBS},
            "n_bytes": np.zeros(n, np.int64), "neg_bytes": np.zeros(n, np.int64), "n_tokens": np.zeros(n, np.int64),
            "verdict": np.full(n, UNKNOWN, np.int8), "embedding": np.zeros((n, EMBEDDING), np.float32),
        }  # fmt: skip
        for name, value in known.items():
            given = columns[name]
            columns[name] = np.asarray(value, given.dtype) if isinstance(given, np.ndarray) else list(value)
        wrong = [name for name, column in columns.items() if len(column) != n]
        if wrong or (np.diff(items) <= 0).any():
            raise ValueError(
                f"{n} rows need ascending ids and columns of that length; of another are {wrong or 'none'}."
            )
        return cls(ids=items, **columns)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def has_path(self) -> npt.NDArray[np.bool_]:
        """Whether a y+ is held; (n,)."""
        return self.n_bytes > 0

    @property
    def receiver_loss(self) -> Floats:
        """The receiver's loss on y+, nats per byte; (n,)."""
        return -self.receiver_pos / np.maximum(self.n_bytes, 1)

    @property
    def producer_loss(self) -> Floats:
        """The producer's loss on its own path y+, nats per byte; (n,). Low is confident, not right."""
        return -self.producer_pos / np.maximum(self.n_bytes, 1)

    @property
    def gap(self) -> Floats:
        """(log p_producer(y+) - log p_receiver(y+)) / bytes(y+); (n,). Ours, no formula of the paper."""
        return self.receiver_loss - self.producer_loss

    def take(self, mask: npt.NDArray[np.bool_]) -> "ScoreRows":
        """The rows where `mask` (n,) holds."""
        at = np.flatnonzero(mask)
        columns: dict[str, Any] = {
            name: column[at] if isinstance(column, np.ndarray) else [column[i] for i in at]
            for name, column in vars(self).items()
        }
        return ScoreRows(**columns)


_LOG_PROBS = (
    "receiver_pos", "producer_pos", "receiver_neg", "producer_neg", "alone", "holdout", "agrees",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Selection:
    """The chosen items.

    Attributes:
        ids: sorted, each once, a subset of the rows'; (k,) int64.
        scores: what each was kept for, higher is better; (k,) float64.
        propensity: the probability with which each was drawn, 1 where no chance was involved; (k,) float64.
        reasons: k of `Reason`.
        updates_of: make as many updates as so many items would take; None: as many as these take.
    """

    ids: Ids
    scores: Floats
    propensity: Floats
    reasons: tuple[Reason, ...]
    updates_of: int | None = None


@dataclass(frozen=True, eq=False)
class Feedback:
    """What training on a pair's items did, measured on the same items before and after.

    Attributes:
        ids: the items trained on; (m,) int64, ascending.
        batch: the mini-batch each was first seen in; (m,) int64.
        loss_before, loss_after: the contrastive loss, or the mean loss per token where there is none; (m,) float64.
        q_before, q_after: exp(log p(y*) / tokens), y* = gold where known, else y+; (m,) float64.
        probe: the probe items measured; (P,) int64.
        probe_before, probe_after: their q; (P,) float64.
    """

    ids: Ids
    batch: Ids
    loss_before: Floats
    loss_after: Floats
    q_before: Floats
    q_after: Floats
    probe: Ids
    probe_before: Floats
    probe_after: Floats


class LossTerm(Protocol):
    """A loss beside the host's own, on the items of one pair."""

    @property
    def weight(self) -> float: ...

    @property
    def reference(self) -> Literal["self", "peer", "none"]: ...

    @property
    def prefer(self) -> Literal["role", "verified"]: ...

    @property
    def negative(self) -> Literal["whole", "first_wrong_step"]:
        """What of the worse path counts."""

    def __call__(
        self,
        logp_pos: Tensor,
        logp_neg: Tensor,
        ref_pos: Tensor,
        ref_neg: Tensor,
        n_pos: Tensor,
        n_neg: Tensor,
        /,
    ) -> Tensor:
        """Loss of each item, (n,); differentiable in the first two. All are (n,); n_pos and n_neg count tokens."""


class ItemSelector(Protocol):
    """A selector as a host sees it; the calls come in the order in which they stand here.

    A selector without memory (`Heuristic`) does nothing in `setup`, `feedback` and `load_state_dict`.
    """

    @property
    def name(self) -> str: ...

    @property
    def needs(self) -> frozenset[Need]: ...

    def setup(self, pool: Pool) -> None:
        """Once, before anything else."""

    def select(self, round: int, pair: Pair, rows: ScoreRows, budget: int) -> Selection:
        """At most `budget` of the rows' items; the probe is never among them."""

    def loss_term(self, round: int, pair: Pair) -> LossTerm | None:
        """The loss to add while training on the selection; None for none."""

    def feedback(self, round: int, pair: Pair, feedback: Feedback) -> None:
        """What the selection was worth; telling it twice changes nothing."""

    def state_dict(self) -> dict[str, Tensor]:
        """All that later calls depend on."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from `state_dict()`."""

    def report(self, pair: Pair) -> Mapping[str, Any]:
        """Figures of the pair's newest round, as JSON values; `signatures` lists (name, sentence)."""


def count_of(budget: int | float, n_items: int) -> int:
    """A budget in items: a count as it is, a share (a float up to 1) of N rounded, at least 1."""
    return budget if isinstance(budget, int) else max(1, round(budget * n_items))


def draw(seed: int, pair: Pair, round_number: int, what: str) -> np.random.Generator:
    """A generator of its own for each pair, round and purpose: the order of the clients changes nothing."""
    text = f"{seed}/{pair.client}/{pair.direction}/{round_number}/{what}".encode()
    return np.random.default_rng(np.frombuffer(hashlib.sha256(text).digest(), np.uint32))


def best(scores: Floats, k: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Places of the k highest scores, ascending; ties are drawn.

    -inf is never taken, so there may be fewer; NaN (unknown) is taken after all known scores. O(n), no sort.
    """
    ranked = np.where(np.isnan(scores), np.finfo(np.float64).min, scores)
    allowed = np.flatnonzero(ranked > -np.inf)
    if k >= len(allowed):
        return allowed
    if k <= 0:
        return allowed[:0]
    ranked = ranked[allowed]
    last = np.partition(ranked, len(ranked) - k)[len(ranked) - k]
    above, at = np.flatnonzero(ranked > last), np.flatnonzero(ranked == last)
    if len(at) > k - len(above):
        at = generator.choice(at, k - len(above), replace=False)
    return np.sort(allowed[np.concatenate([above, at])])
