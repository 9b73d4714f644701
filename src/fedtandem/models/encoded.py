"""One sample as token ids, with the rows that predict its answer and the bytes they predict at."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

PROMPT, ANSWER = 0, 1
"""Values of `Encoded.segment`."""


@dataclass(frozen=True)
class Encoded:
    """A sample in one party's tokenisation. P predictor positions, T tokens.

    Attributes:
        input_ids: BOS, template, prompt, answer and EOS; (T,) int32.
        positions: indexes i whose logits predict a token i+1 that counts; ascending; (P,) int32.
        end_byte: byte offset inside the row's segment at which it predicts: 0 before the first byte. -1 where
            no boundary is known or a later row stands at the same byte; (P,) int32.
        segment: `ANSWER` or `PROMPT`, the segment of the predicted token; (P,) uint8.
        n_answer_bytes: UTF-8 bytes of the whole answer, cut off or not.
        scored: False when a part of the answer was cut off: never compared, never distilled.
        is_eos: the row predicts the EOS that closes the answer; (P,) bool.
    """

    input_ids: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int32]
    end_byte: npt.NDArray[np.int32]
    segment: npt.NDArray[np.uint8]
    n_answer_bytes: int
    scored: bool
    is_eos: npt.NDArray[np.bool_]

    @property
    def targets(self) -> npt.NDArray[np.int32]:
        """The token each row has to predict; (P,) int32."""
        return self.input_ids[self.positions + 1]

    @property
    def context_ids(self) -> npt.NDArray[np.int32]:
        """The token each row has just read; (P,) int32. Edit-distance alignment compares these."""
        return self.input_ids[self.positions]


@dataclass(frozen=True)
class Piece:
    """One segment's tokens.

    Attributes:
        ids: (T,) int32.
        ends: bytes of the segment spelled by ids[0..i]; -1 unknown; never falls where known; (T,) int32.
        n_bytes: UTF-8 bytes of the whole segment.
    """

    ids: npt.NDArray[np.int32]
    ends: npt.NDArray[np.int32]
    n_bytes: int

    @staticmethod
    def empty() -> "Piece":
        """A segment without text."""
        return Piece(np.empty(0, np.int32), np.empty(0, np.int32), 0)

    def cut_at(self, byte: int) -> "tuple[Piece, Piece] | None":
        """The tokens before and after a byte; None when no token is known to end there."""
        there = np.flatnonzero(self.ends == byte)
        if byte == 0 and not there.size:
            cut = 0
        elif not there.size:
            return None
        else:
            cut = int(there[-1]) + 1  # behind all zero-width tokens
        rest = self.ends[cut:]
        return (
            Piece(self.ids[:cut], self.ends[:cut], byte),
            Piece(self.ids[cut:], np.where(rest >= 0, rest - byte, -1).astype(np.int32), self.n_bytes - byte),
        )


def lay_out(
    before: npt.NDArray[np.int32],
    prompt: Piece,
    between: npt.NDArray[np.int32],
    answer: Piece,
    eos_id: int | None,
    max_length: int,
    all_positions: bool,
) -> Encoded:
    """Put the parts of a sample in a row and say which rows predict what, and where.

    Args:
        before: BOS or the template's beginning; no segment.
        prompt: the prompt's tokens.
        between: the template's end; no segment. Its last token, if any, predicts the answer's first.
        answer: the answer's tokens.
        eos_id: closes the answer; None for running text.
        max_length: tokens at most; the rest is cut off.
        all_positions: also rows that predict prompt tokens.
    """
    closing = np.array([] if eos_id is None else [eos_id], np.int32)
    whole = np.concatenate([before, prompt.ids, between, answer.ids, closing]).astype(np.int32)
    parts = []
    if all_positions:
        parts.append(_rows(len(before), prompt, PROMPT, closes=False))
    first_answer = len(before) + len(prompt.ids) + len(between)
    parts.append(_rows(first_answer, answer, ANSWER, closes=eos_id is not None))
    positions, ends, segment = (np.concatenate(column) for column in zip(*parts, strict=True))
    kept = (positions >= 0) & (positions + 1 < max_length)
    is_eos = np.zeros(positions.size, np.bool_)
    is_eos[-1:] = eos_id is not None
    return Encoded(
        input_ids=whole[:max_length],
        positions=positions[kept].astype(np.int32),
        end_byte=ends[kept].astype(np.int32),
        segment=segment[kept].astype(np.uint8),
        n_answer_bytes=answer.n_bytes,
        scored=len(whole) <= max_length,
        is_eos=is_eos[kept],
    )


def _rows(start: int, piece: Piece, segment: int, *, closes: bool) -> tuple[npt.NDArray[np.int64], ...]:
    """(positions, end bytes, segments) of the rows that predict a segment's tokens and, if `closes`, its EOS.

    Row i stands behind token start + i - 1; the first stands before the segment's first byte.
    """
    count = piece.ids.size + closes
    ends = np.concatenate([[0], piece.ends])[:count].astype(np.int64)
    if closes:
        # EOS meets EOS by role: behind the last token lies the whole segment, however it was spelled.
        ends[-1] = piece.n_bytes
    known = np.flatnonzero(ends >= 0)
    # Of several rows at one byte only the last stands behind all zero-width tokens.
    ends[known[:-1][ends[known][:-1] == ends[known][1:]]] = -1
    return start - 1 + np.arange(count), ends, np.full(count, segment)
