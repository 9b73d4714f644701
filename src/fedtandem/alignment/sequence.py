"""Two tokenisations of one text: which positions of the one stand where positions of the other do."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fedtandem.alignment.edit_distance import distance_matrix

NO_ROW = -1
"""In a row index: this position has no partner."""


class Positions(Protocol):
    """What the end table needs of an encoded sample; see `fedtandem.models.encoded.Encoded`."""

    @property
    def end_byte(self) -> npt.NDArray[np.int32]: ...
    @property
    def segment(self) -> npt.NDArray[np.uint8]: ...


@dataclass(frozen=True)
class EndTable:
    """Where the predictor positions of a whole public set stand. ΣP positions, N samples.

    Attributes:
        end_byte: byte offset inside the segment at which the position predicts, -1 if unknown; (ΣP,) int32.
        segment: 1 answer, 0 prompt; (ΣP,) uint8.
        sample_splits: positions of sample n are rows [splits[n], splits[n+1]); (N+1,) int64.
    """

    end_byte: npt.NDArray[np.int32]
    segment: npt.NDArray[np.uint8]
    sample_splits: npt.NDArray[np.int64]

    @property
    def n_rows(self) -> int:
        """ΣP, the number of positions."""
        return int(self.end_byte.size)

    @property
    def n_samples(self) -> int:
        """N, the number of samples."""
        return int(self.sample_splits.size) - 1

    def take_samples(self, index: npt.NDArray[np.int64]) -> "EndTable":
        """The table of some samples, in the given order."""
        rows, splits = rows_of_samples(self.sample_splits, index)
        return EndTable(self.end_byte[rows], self.segment[rows], splits)


def end_table(samples: Iterable[Positions]) -> EndTable:
    """Lay the positions of encoded samples one after another."""
    parts = [(sample.end_byte, sample.segment) for sample in samples]
    counts = np.array([0, *(ends.size for ends, _ in parts)], dtype=np.int64)
    return EndTable(
        end_byte=np.concatenate([np.empty(0, np.int32), *(ends for ends, _ in parts)]).astype(np.int32),
        segment=np.concatenate([np.empty(0, np.uint8), *(segment for _, segment in parts)]).astype(np.uint8),
        sample_splits=np.cumsum(counts),
    )


def rows_of_samples(
    sample_splits: npt.NDArray[np.int64], index: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Row numbers of some samples, in order, and the new splits."""
    starts, counts = sample_splits[index], np.diff(sample_splits)[index]
    splits = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    rows = np.arange(int(splits[-1]), dtype=np.int64) + np.repeat(starts - splits[:-1], counts)
    return rows, splits


def align_bytes(base: EndTable, teacher: EndTable) -> npt.NDArray[np.int64]:
    """Pair positions that stand at the same byte of the same segment of the same sample.

    The text before both is then identical, so the teacher's distribution holds for the base position without
    approximation.

    Args:
        base: positions of the receiving party.
        teacher: positions of the sending party, on the same N samples.

    Returns:
        For each base position the teacher's row, or -1 (`NO_ROW`); (ΣP_base,) int64.

    Raises:
        ValueError: the two tables do not cover the same number of samples.

    Source: departure from FedMKT, arXiv:2406.02224v4 (mode `bytes`); a sorted intersection, O(n + m).
    """
    if base.n_samples != teacher.n_samples:
        raise ValueError(
            f"the base covers {base.n_samples} samples and the teacher {teacher.n_samples}; "
            "give both tables for the same samples in the same order."
        )
    row_of = np.full(base.n_rows, NO_ROW, dtype=np.int64)
    if not base.n_rows or not teacher.n_rows:
        return row_of
    stride = 1 + max(int(base.end_byte.max()), int(teacher.end_byte.max()), 0)
    base_keys, base_rows = _place_keys(base, stride)
    teacher_keys, teacher_rows = _place_keys(teacher, stride)
    if not teacher_keys.size:
        return row_of
    # side="right" minus one: of several rows at one place the last is the boundary.
    found = np.searchsorted(teacher_keys, base_keys, side="right") - 1
    hit = (found >= 0) & (teacher_keys[found] == base_keys)
    row_of[base_rows[hit]] = teacher_rows[found[hit]]
    return row_of


def keeps_pace(base: EndTable, teacher: EndTable, row_of: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Whether a teacher's next token reaches at least as far as the base's.

    Two positions at one byte have read the same text, but they predict pieces of their own size. Where the
    teacher's next token ends before the base's does (a teacher of single characters, a base of words), all its
    probability lies on beginnings that the base never writes alone: it would pull against the label at every such
    position. There the teacher says nothing the base can use. A teacher's longer token is no trouble: it becomes
    the base's own first piece of it.

    Args:
        base, teacher: the tables `align_bytes` was given.
        row_of: its result; (ΣP_base,) int64.

    Returns:
        (ΣP_base,) bool; False where there is no partner.

    Source: ours; neither in the paper nor in the specification.
    """
    reach = _next_ends(teacher)
    aligned = row_of != NO_ROW
    paced = np.zeros(row_of.size, np.bool_)
    paced[aligned] = reach[row_of[aligned]] >= _next_ends(base)[aligned]
    return paced


def _next_ends(table: EndTable) -> npt.NDArray[np.int64]:
    """Where each row's next token ends: the next known place of its sample and segment; far away for the last."""
    far = np.iinfo(np.int64).max
    ends = np.full(table.n_rows, far, np.int64)
    known = np.flatnonzero(table.end_byte >= 0)
    if known.size < 2:
        return ends
    sample = np.repeat(np.arange(table.n_samples, dtype=np.int64), np.diff(table.sample_splits))
    group = (sample * 2 + table.segment)[known]
    together = group[1:] == group[:-1]
    ends[known[:-1][together]] = table.end_byte[known[1:][together]]
    return ends


def _place_keys(table: EndTable, stride: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """One ascending number per known place (sample, segment, byte), and the rows they belong to."""
    sample = np.repeat(np.arange(table.n_samples, dtype=np.int64), np.diff(table.sample_splits))
    rows = np.flatnonzero(table.end_byte >= 0)
    keys = (sample[rows] * 2 + table.segment[rows]) * stride + table.end_byte[rows]
    if keys.size and (keys[1:] < keys[:-1]).any():
        order = np.argsort(keys, kind="stable")
        keys, rows = keys[order], rows[order]
    # Two rows of one party at one place: only the last of them stands behind all zero-width tokens.
    last = np.append(keys[1:] != keys[:-1], True) if keys.size else np.empty(0, bool)
    return keys[last], rows[last]


def align_min_ed(
    base_tokens: Sequence[str], teacher_tokens: Sequence[str], base_marker: str = "", teacher_marker: str = ""
) -> tuple[list[list[int]], int]:
    """Warp two token sequences onto each other by dynamic time warping over edit distances.

    Args:
        base_tokens: token strings; (n,).
        teacher_tokens: the same text in the teacher's tokens; (m,).
        base_marker: space marker taken out of the base tokens before they are compared; "" for none.
        teacher_marker: the same for the teacher's.

    Returns:
        For each base position its ascending, never empty list of teacher positions (empty only when m = 0), and
        the total cost of the path.

    Source: FedMKT, arXiv:2406.02224v4, token alignment (MinED); order of preference on equal totals as in
    the reference: diagonal, then stay on the base token, then stay on the teacher token.
    """
    n, m = len(base_tokens), len(teacher_tokens)
    if not n or not m:
        return [[] for _ in range(n)], 0
    plain_base = [token.replace(base_marker, "") for token in base_tokens] if base_marker else base_tokens
    plain_teacher = (
        [token.replace(teacher_marker, "") for token in teacher_tokens] if teacher_marker else teacher_tokens
    )
    total = _accumulated(distance_matrix(plain_base, plain_teacher))
    pairs: list[list[int]] = [[] for _ in range(n)]
    i, j = n - 1, m - 1
    pairs[i].append(j)
    rows = total.tolist()
    while i or j:
        diagonal = rows[i - 1][j - 1] if i and j else _FAR
        stay_base = rows[i][j - 1] if j else _FAR
        stay_teacher = rows[i - 1][j] if i else _FAR
        if diagonal <= stay_base and diagonal <= stay_teacher:
            i, j = i - 1, j - 1
        elif stay_base <= stay_teacher:
            j -= 1
        else:
            i -= 1
        pairs[i].append(j)
    return [places[::-1] for places in pairs], int(total[-1, -1])


_FAR = 2**40


def _accumulated(cost: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Cheapest total cost of a path from (0, 0) to each cell; (n, m). One vector step per anti-diagonal."""
    n, m = cost.shape
    # Sheared: sheared[d, i] is cell (i, d - i), so a whole anti-diagonal is one row.
    sheared = np.full((n + m - 1, n), _FAR, dtype=np.int64)
    i, j = np.indices((n, m), sparse=True)
    sheared[i + j, i] = cost
    total = np.full((n + m + 1, n + 1), _FAR, dtype=np.int64)  # two rows and one column of padding
    total[2, 1] = sheared[0, 0]
    for d in range(1, n + m - 1):
        best = np.minimum(total[d + 1, 1:], total[d + 1, :-1])  # (i, j-1), (i-1, j)
        best = np.minimum(best, total[d, :-1])  # (i-1, j-1)
        total[d + 2, 1:] = np.minimum(best + sheared[d], _FAR)
    accumulated: npt.NDArray[np.int64] = total[i + j + 2, i + 1]
    return accumulated
