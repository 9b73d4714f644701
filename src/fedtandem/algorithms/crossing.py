"""A teacher's rows carried into a learner's own tokenisation: maps and alignment, made once, then used every round."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fedtandem.algorithms.settings import KnowledgeSettings
from fedtandem.alignment.sequence import (
    EndTable,
    align_bytes,
    align_min_ed,
    end_table,
    keeps_pace,
    rows_of_samples,
)
from fedtandem.alignment.transport import transport_bytes, transport_min_ed
from fedtandem.errors import InvalidMessage
from fedtandem.exchange.card import Card
from fedtandem.knowledge.sparse_logits import SparseLogits
from fedtandem.models.encoded import Encoded
from fedtandem.models.tokenizer import TextTokenizer


@dataclass(frozen=True)
class NoPositions:
    """A sample that is not scored takes no part in alignment."""

    end_byte: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    segment: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.uint8))


def public_ends(texts: Sequence[Encoded]) -> EndTable:
    """The predictor positions of a set in one tokenisation; a sample that is not scored has none."""
    return end_table(text if text.scored else NoPositions() for text in texts)


class Crossing:
    """From one teacher to one learner.

    Args:
        tokenizer: the learner's.
        teacher: the teacher's card: its vocabulary and where its rows lie in the public set.
        id_map: teacher id -> learner id or -1; (V_teacher,) int32.
        settings: the alignment mode.
        public: the learner's tokenisation of the shared public set; None where each round brings new texts.

    Attributes:
        aligned_share: share of the learner's answer positions that have a partner, from the last alignment.
        taught_share: share of them whose partner's next token reaches as far as the learner's (`keeps_pace`).
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        teacher: Card,
        id_map: np.ndarray,
        settings: KnowledgeSettings,
        public: Sequence[Encoded] | None,
    ) -> None:
        self.tokenizer = tokenizer
        self.teacher = teacher
        self.id_map = id_map
        self.mode = settings.mode
        self.aligned_share = float("nan")
        self.taught_share = float("nan")
        self._row_of: np.ndarray | None = None
        self._paced = np.zeros(0, dtype=bool)
        self._matches: list[list[list[int]]] = []
        self._own: EndTable | None = None
        if public is not None and teacher.ends is not None:
            self._own = public_ends(public)
            if self.mode == "bytes":
                self._row_of, self._paced = self._align(self._own, teacher.ends)
            else:
                self._matches = self._align_min_ed(public)

    def carry(
        self, rows: SparseLogits, sample_index: np.ndarray, texts: Sequence[Encoded]
    ) -> tuple[SparseLogits, np.ndarray]:
        """Bring a teacher's rows into the learner's vocabulary and positions.

        Args:
            rows: the teacher's, for M samples.
            sample_index: which samples of the public set those are; (M,) ascending.
            texts: the learner's tokenisation of the same M samples.

        Returns:
            One row per predictor position of the M samples (those of an unscored sample are left out), and
            whether each is taught; (ΣP,) bool.
        """
        if self.mode == "mined":
            return self._carry_min_ed(rows, sample_index, texts)
        if self._row_of is None:
            row_of, taught = self._align(
                public_ends(texts), EndTable(rows.end_byte, rows.segment, rows.sample_splits)
            )
        else:
            row_of, taught = self._rows_of_chosen(rows, sample_index)
        return transport_bytes(rows, row_of, self.id_map), taught

    def _align(self, own: EndTable, theirs: EndTable) -> tuple[np.ndarray, np.ndarray]:
        row_of = align_bytes(own, theirs)
        paced = keeps_pace(own, theirs, row_of)
        answer = own.segment == 1
        self.aligned_share = float((row_of[answer] >= 0).mean()) if answer.any() else float("nan")
        self.taught_share = float(paced[answer].mean()) if answer.any() else float("nan")
        return row_of, paced

    def _rows_of_chosen(self, rows: SparseLogits, sample_index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The run's alignment, cut to the samples at hand: no alignment work after round 1."""
        if self._row_of is None or self._own is None or self.teacher.ends is None:
            raise RuntimeError("no alignment of the public set was made")
        theirs = self.teacher.ends
        check_rows_lie_where_the_card_says(rows, sample_index, self.teacher)
        flat, splits = rows_of_samples(self._own.sample_splits, sample_index)
        row_of = self._row_of[flat]
        lengths = np.diff(splits)
        shift = np.repeat(rows.sample_splits[:-1] - theirs.sample_splits[sample_index], lengths)
        return np.where(row_of >= 0, row_of + shift, -1), self._paced[flat]

    def _align_min_ed(self, public: Sequence[Encoded]) -> list[list[list[int]]]:
        """Per public sample, for each of the learner's rows the teacher's rows its last token is warped onto."""
        theirs = self.teacher
        if theirs.ends is None or theirs.token_ids is None:
            raise InvalidMessage(
                f"{theirs.party}: its card holds no token ids of the public set; alignment.mode = 'mined' needs them."
            )
        mine, my_marker = self.tokenizer.card.tokens, self.tokenizer.card.marker
        names, marker = theirs.vocabulary.tokens, theirs.vocabulary.marker
        splits = theirs.ends.sample_splits
        matches = []
        for i, text in enumerate(public):
            rows = slice(int(splits[i]), int(splits[i + 1]))
            teacher_ids, teacher_segment = theirs.token_ids[rows], theirs.ends.segment[rows]
            found: list[list[int]] = [[] for _ in text.positions]
            for segment in (0, 1):
                own_at = (
                    np.flatnonzero(text.segment == segment) if text.scored else np.zeros(0, dtype=np.int64)
                )
                their_at = np.flatnonzero(teacher_segment == segment)
                if len(own_at) == 0 or len(their_at) == 0:
                    continue
                pairs, _ = align_min_ed(
                    [_bare(mine[token], my_marker) for token in text.context_ids[own_at]],
                    [_bare(names[token], marker) for token in teacher_ids[their_at]],
                )
                for at, places in zip(own_at, pairs, strict=True):
                    found[at] = [int(their_at[place]) for place in places]
            matches.append(found)
        total = sum(len(found) for found in matches)
        self.aligned_share = (
            sum(len(p) == 1 for found in matches for p in found) / total if total else float("nan")
        )
        return matches

    def _carry_min_ed(
        self, rows: SparseLogits, sample_index: np.ndarray, texts: Sequence[Encoded]
    ) -> tuple[SparseLogits, np.ndarray]:
        theirs = self.teacher
        if theirs.ends is None or theirs.token_ids is None:
            raise RuntimeError("a mined crossing was made without the teacher's tokens")
        check_rows_lie_where_the_card_says(rows, sample_index, theirs)
        carried, taught = [], []
        for m, (i, text) in enumerate(zip(sample_index, texts, strict=True)):
            if not text.scored:
                continue
            first, last = theirs.ends.sample_splits[i], theirs.ends.sample_splits[i + 1]
            piece, mask = transport_min_ed(
                rows.take_samples(np.asarray([m])),
                self._matches[i],
                base_ids=text.context_ids,
                base_targets=text.targets,
                teacher_ids=theirs.token_ids[first:last],
                base=self.tokenizer.card,
                teacher=theirs.vocabulary,
                id_map=self.id_map,
                first=self._opens_text(text),
            )
            carried.append(piece)
            taught.append(mask)
        if not carried:
            return SparseLogits.empty(0), np.zeros(0, dtype=bool)
        return SparseLogits.concat(carried), np.concatenate(taught)

    def _opens_text(self, text: Encoded) -> tuple[int, ...]:
        """The rows that have just read the first token of the text (only among prompt rows)."""
        prompt_rows = np.flatnonzero(text.segment == 0)
        if len(prompt_rows) == 0:
            return ()
        begins = int(prompt_rows[0])
        return (begins + 1,) if int(text.context_ids[begins]) in self.tokenizer.card.special else (begins,)


def _bare(token: str, marker: str) -> str:
    return token.replace(marker, "") if marker else token


def check_rows_lie_where_the_card_says(rows: SparseLogits, sample_index: np.ndarray, teacher: Card) -> None:
    """Refuse rows that were not made on the tokenisation the party declared (stale, swapped or another set's).

    Raises:
        InvalidMessage: a sample has another number of rows, or rows at other bytes, than the card says.
    """
    if teacher.ends is None:
        return
    ends = teacher.ends
    if len(sample_index) and int(sample_index[-1]) >= len(ends.sample_splits) - 1:
        raise InvalidMessage(
            f"{teacher.party}: rows for sample {int(sample_index[-1])}, but its card knows "
            f"{len(ends.sample_splits) - 1} samples."
        )
    expected = np.diff(ends.sample_splits)[sample_index]
    got = np.diff(rows.sample_splits)
    if not np.array_equal(expected, got):
        worst = int(np.flatnonzero(expected != got)[0])
        raise InvalidMessage(
            f"{teacher.party}: sample {int(sample_index[worst])} has {int(got[worst])} rows, its card says "
            f"{int(expected[worst])}. The rows were made on another tokenisation or another public set."
        )
    flat, _ = rows_of_samples(ends.sample_splits, sample_index)
    if not np.array_equal(ends.end_byte[flat], rows.end_byte):
        raise InvalidMessage(
            f"{teacher.party}: its rows end at other bytes than its card says; they were made on another "
            "tokenisation or another public set."
        )
