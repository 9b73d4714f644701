"""What a learner is taught in a round: who teaches which sample, and with which rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from fedtandem.algorithms.crossing import Crossing
from fedtandem.algorithms.learner import Learner, Lesson
from fedtandem.algorithms.settings import Unlabelled
from fedtandem.errors import InvalidMessage
from fedtandem.exchange.knowledge import Knowledge
from fedtandem.knowledge.sparse_logits import SparseLogits
from fedtandem.models.encoded import Encoded
from fedtandem.selection.dual_min_ce import NO_TEACHER
from fedtandem.selection.selectors import Selector


@dataclass(frozen=True)
class Choice:
    """Who teaches which public sample this round.

    Attributes:
        teacher_of: index into `names`, or -1; (N,) int64.
        names: the teachers, sorted.
        kept: the samples to train on, ascending; all N of a labelled set, a part of an unlabelled one.
    """

    teacher_of: np.ndarray
    names: tuple[str, ...]
    kept: np.ndarray

    def won_by(self, name: str) -> np.ndarray:
        """The kept samples this teacher won; ascending."""
        if name not in self.names:
            return np.zeros(0, dtype=np.int64)
        mine: np.ndarray = self.teacher_of[self.kept] == self.names.index(name)
        return np.asarray(self.kept[mine])


def choose(
    own_scores: np.ndarray, peers: Mapping[str, Knowledge], selector: Selector, generator: torch.Generator
) -> Choice:
    """DualMinCE (or another selector) on a labelled set: every sample is trained on, some have a teacher.

    Source: FedMKT, arXiv:2406.02224v4, algorithm DualMinCE.
    """
    names = tuple(sorted(peers))
    everyone = np.arange(len(own_scores), dtype=np.int64)
    if not names:
        return Choice(np.full(len(own_scores), NO_TEACHER, dtype=np.int64), names, everyone)
    losses = torch.from_numpy(np.stack([peers[name].scores for name in names]))
    teacher_of = selector(torch.from_numpy(np.ascontiguousarray(own_scores)), losses, generator)
    return Choice(teacher_of.numpy().astype(np.int64), names, everyone)


def choose_paths(writers: Mapping[str, Knowledge], n_samples: int, keep: float) -> Choice:
    """On an unlabelled set: per prompt the surest writer, and of those the surest share `keep`.

    Ties go to the first writer by name, then to the lower sample. A prompt nobody answered is left out.
    """
    names = tuple(sorted(writers))
    if not names:
        return Choice(np.full(n_samples, NO_TEACHER, dtype=np.int64), names, np.zeros(0, dtype=np.int64))
    losses = np.stack([writers[name].scores for name in names])
    best = losses.min(axis=0)
    teacher_of = np.where(np.isfinite(best), losses.argmin(axis=0), NO_TEACHER)
    order = np.argsort(best, kind="stable")
    order = order[np.isfinite(best[order])]
    kept = np.sort(order[: int(np.ceil(keep * len(order)))])
    return Choice(teacher_of, names, kept)


Piece = tuple[SparseLogits, np.ndarray]
"""One sample's rows in the learner's tokenisation, and which of them teach."""


@dataclass
class Classroom:
    """Turns choices and rows into a learner's lesson; holds one crossing per teacher, made once.

    Args:
        learner: who is taught.
        crossings: teacher name -> the way into the learner's tokenisation.
        remembers: keep what was carried over for as long as a teacher's knowledge stays the same object.
    """

    learner: Learner
    crossings: dict[str, Crossing] = field(default_factory=dict)
    remembers: bool = False
    _carried: dict[str, tuple[Knowledge, dict[int, Piece]]] = field(default_factory=dict)

    def lesson(
        self,
        choice: Choice,
        rows_from: Mapping[str, Knowledge],
        own_rows: Callable[[np.ndarray], SparseLogits] | None,
    ) -> Lesson:
        """The texts, targets and masks of one public phase.

        Args:
            choice: who teaches what.
            rows_from: teacher -> its knowledge holding (at least) the rows of the samples it won, and its texts
                where the set is unlabelled.
            own_rows: the learner's own stale rows of given samples, for `on_self = "self"`; None to skip.
        """
        labelled = self.learner.unlabelled is None
        if labelled:
            texts = [self.learner.public_texts[i] for i in choice.kept]
        else:
            answers = [_text(rows_from[choice.names[choice.teacher_of[i]]], int(i)) for i in choice.kept]
            texts = self.learner.answered(choice.kept, answers)
        text_of = {int(sample): text for sample, text in zip(choice.kept, texts, strict=True)}
        pieces: dict[int, Piece] = {}
        for name in choice.names:
            knowledge = rows_from.get(name)
            won = choice.won_by(name)
            if knowledge is not None and knowledge.rows is not None and len(won):
                pieces |= self._carry(name, knowledge, won, text_of)
        if own_rows is not None:
            alone = choice.kept[choice.teacher_of[choice.kept] == NO_TEACHER]
            own = own_rows(alone)
            pieces |= cut((own, np.ones(own.n_rows, dtype=bool)), alone, text_of)
        taught = [pieces.get(int(sample), (None, None)) for sample in choice.kept]
        return Lesson(texts, [rows for rows, _ in taught], [mask for _, mask in taught])

    def _carry(
        self, name: str, knowledge: Knowledge, won: np.ndarray, text_of: Mapping[int, Encoded]
    ) -> dict[int, Piece]:
        """The won samples' rows in the learner's tokenisation; only those not yet carried are carried now."""
        known, pieces = self._carried.pop(name, (None, {}))
        if known is not knowledge:
            pieces = {}
        new = np.asarray([i for i in won if int(i) not in pieces and text_of[int(i)].scored], dtype=np.int64)
        if len(new):
            carried = self.crossings[name].carry(rows_of(knowledge, new), new, [text_of[int(i)] for i in new])
            pieces |= cut(carried, new, text_of)
        if self.remembers:
            self._carried[name] = (knowledge, pieces)
        return {int(i): pieces[int(i)] for i in won if int(i) in pieces}


def cut(
    carried: tuple[SparseLogits, np.ndarray], samples: np.ndarray, text_of: Mapping[int, Encoded]
) -> dict[int, Piece]:
    """Cut carried rows into samples (those of an unscored sample are not among them)."""
    carried_rows, mask = carried
    pieces, start = {}, 0
    for sample in samples:
        text = text_of[int(sample)]
        if not text.scored:
            continue
        stop = start + len(text.positions)
        pieces[int(sample)] = (carried_rows.take_rows(np.arange(start, stop)), mask[start:stop])
        start = stop
    return pieces


def rows_of(knowledge: Knowledge, samples: np.ndarray) -> SparseLogits:
    """The rows of some samples; (M,) ascending indexes into the public set.

    Raises:
        InvalidMessage: the party sent no rows for one of them.
    """
    if knowledge.rows is None:
        raise InvalidMessage(
            f"{knowledge.party}, round {knowledge.round}: no rows came, but {len(samples)} are needed."
        )
    held = knowledge.sample_index
    at = np.minimum(np.searchsorted(held, samples), max(0, len(held) - 1))
    if len(samples) and (len(held) == 0 or not np.array_equal(held[at], samples)):
        absent = np.setdiff1d(samples, held)
        raise InvalidMessage(
            f"{knowledge.party}, round {knowledge.round}: rows of {len(absent)} of {len(samples)} samples are missing, "
            f"the first is sample {int(absent[0])}; it holds rows for {len(held)}."
        )
    return knowledge.rows.take_samples(at)


def _text(knowledge: Knowledge, sample: int) -> str:
    if knowledge.texts is None:
        raise RuntimeError(f"{knowledge.party} sent no texts")
    return knowledge.texts[sample]


def score_drafts(
    learner: Learner, round_number: int, items: np.ndarray | None, drafts: Sequence[str] | None
) -> np.ndarray | None:
    """The learner's score of another party's own paths; (N,) float32, inf where there is none.

    Args:
        items: public samples, (M,); with `drafts`, M texts. None: nobody asked.
    """
    if items is None or drafts is None:
        return None
    found = np.full(len(learner.public), np.inf, np.float32)
    at = [i for i, text in zip(items.tolist(), drafts, strict=True) if text]
    if at:
        texts = learner.answered(at, [text for text in drafts if text])
        found[at] = learner.pass_over(texts, round_number, want_rows=False)[0]
    return found


def write_knowledge(
    learner: Learner,
    unlabelled: Unlabelled,
    round_number: int,
    refuse: Callable[[str], bool],
    given: Mapping[int, str] | None = None,
    wanted: np.ndarray | None = None,
    vouched: Callable[[Sequence[str]], list[str]] | None = None,
) -> tuple[list[str], np.ndarray, SparseLogits, int]:
    """Write one path per public prompt and score it.

    Args:
        learner: the producer.
        unlabelled: how paths are made.
        round_number: for the record.
        refuse: true for a path that must not be sent (it repeats private text).
        given: sample -> the path to send for it in place of one of its own.
        wanted: write for these prompts only; ascending.
        vouched: of the texts, one per prompt, those to send; "" in place of the others.

    Returns:
        Texts ("" where refused, empty or not wanted), scores (N,) float32 in nats per byte (`inf` there), rows of
        the texts, and how many were refused.
    """
    prompts = range(len(learner.public)) if wanted is None else wanted.tolist()
    given = {i: (given or {})[i] for i in prompts if i in (given or {})}
    asked = [i for i in prompts if i not in given]
    written = learner.write(round_number, unlabelled.max_new_tokens, unlabelled.temperature, index=asked)
    by_prompt = {**given, **dict(zip(asked, written, strict=True))}
    texts = [by_prompt.get(i, "") for i in range(len(learner.public))]
    refused = [bool(text) and refuse(text) for text in texts]
    texts = ["" if bad else text for bad, text in zip(refused, texts, strict=True)]
    texts = texts if vouched is None else vouched(texts)
    index = np.flatnonzero([bool(text) for text in texts])
    encoded = learner.answered(index, [texts[i] for i in index])
    some_scores, some_rows = learner.pass_over(encoded, round_number, want_rows=unlabelled.send_rows)
    scores = np.full(len(texts), np.inf, dtype=np.float32)
    scores[index] = some_scores
    positions = np.full(len(texts), -1, dtype=np.int64)
    positions[index] = np.arange(len(index))
    splits = np.zeros(len(texts) + 1, dtype=np.int64)
    splits[1:][index] = np.diff(some_rows.sample_splits)
    spread = SparseLogits(
        some_rows.token_ids, some_rows.log_probs, some_rows.row_splits, some_rows.tail_log_prob,
        some_rows.end_byte, some_rows.segment, np.cumsum(splits),
    )  # fmt: skip
    return texts, scores, spread, sum(refused)


def skip_rate(choice: Choice) -> float:
    """Share of the kept samples without a teacher."""
    return float((choice.teacher_of[choice.kept] == NO_TEACHER).mean()) if len(choice.kept) else 1.0


def generator_of(seed: int) -> torch.Generator:
    """A seeded generator on the CPU."""
    return torch.Generator().manual_seed(seed)
