"""A teacher's next-token distributions in the base's vocabulary and at the base's positions."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from fedtandem.alignment.sequence import NO_ROW, EndTable
from fedtandem.alignment.vocabulary import NO_TOKEN, IdMap, VocabularyCard, with_marker_of
from fedtandem.errors import UnknownTokenId
from fedtandem.knowledge.sparse_logits import SparseLogits, ragged_indices, splits_of

ENTRIES_AT_A_TIME = 1 << 17
"""Entries worked on together: few enough to stay in the processor's cache."""

NO_TARGET = -1
"""Among base targets: this position has nothing to predict."""


def transport_bytes(
    rows: SparseLogits, row_of: npt.NDArray[np.int64], id_map: IdMap, base: EndTable | None = None
) -> SparseLogits:
    """Carry a teacher's rows to aligned base positions and into the base's vocabulary.

    Probabilities of ids that fall on one base id are added; the mass of ids without one joins the tail, so kept
    mass plus tail stay what they were.

    Args:
        rows: the teacher's distributions; P_B rows.
        row_of: for each base position the teacher's row or -1, as `align_bytes` gives it; (P,) int64.
        id_map: teacher id -> base id or -1, as `byte_map` gives it; (V_B,) int32.
        base: where the base positions stand, copied into the result; None: as the teacher's rows say, all in
            one sample.

    Returns:
        One row per base position: empty (no entries, tail_log_prob 0) where there is no partner; ids ascending.

    Raises:
        UnknownTokenId: a row holds an id outside `id_map`.
        ValueError: `row_of` names a row that is not there, or does not fit `base`.

    Source: departure from FedMKT, arXiv:2406.02224v4 (mode `bytes`).
    """
    _check(rows, row_of, id_map, base)
    aligned = np.flatnonzero(row_of != NO_ROW)
    source = row_of[aligned]
    counts = np.diff(rows.row_splits)[source]
    tail = np.zeros(row_of.size, np.float32)
    tail[aligned] = rows.tail_log_prob[source]
    kept = np.zeros(row_of.size, np.int64)
    if np.array_equal(id_map, np.arange(id_map.size)):
        entries = ragged_indices(rows.row_splits[:-1][source], counts)
        token_ids, log_probs, kept[aligned] = rows.token_ids[entries], rows.log_probs[entries], counts
    else:
        n_base = int(id_map.max(initial=0)) + 1
        id_parts, value_parts = [], []
        for first, last in _chunks(counts):
            ids, values, sizes, tails = _carry(rows, source[first:last], counts[first:last], id_map, n_base)
            id_parts.append(ids)
            value_parts.append(values)
            kept[aligned[first:last]] = sizes
            tail[aligned[first:last]] = tails
        token_ids = np.concatenate([np.empty(0, np.int32), *id_parts])
        log_probs = np.concatenate([np.empty(0, np.float32), *value_parts])
    end_byte, segment, splits = _places(rows, row_of, base)
    return SparseLogits(
        token_ids=token_ids,
        log_probs=log_probs,
        row_splits=splits_of(kept),
        tail_log_prob=tail,
        end_byte=end_byte,
        segment=segment,
        sample_splits=splits,
    )


def _carry(
    rows: SparseLogits,
    source: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    id_map: IdMap,
    n_base: int,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """(ids, log-probs, entries per row, tails) of some rows in the base's vocabulary."""
    n, width = source.size, int(counts.max(initial=0))
    starts = rows.row_splits[:-1][source]
    contiguous = n and int(starts[-1] + counts[-1] - starts[0]) == int(counts.sum())
    entries = (
        slice(int(starts[0]), int(starts[-1] + counts[-1])) if contiguous else ragged_indices(starts, counts)
    )
    log_probs = rows.log_probs[entries]
    mapped = id_map[rows.token_ids[entries]]
    tails = rows.tail_log_prob[source]
    # Sorted by (row, base id); unmapped ids last in their row. The entry's place rides along in the low bits.
    bits = max(1, int(max(width - 1, 1)).bit_length())
    span = (n_base + 1) << bits
    if bool((counts == width).all()):
        place = np.broadcast_to(np.arange(width, dtype=np.int64), (n, width))
        keys = np.where(mapped == NO_TOKEN, n_base, mapped).reshape(n, width).astype(np.int64) << bits | place
        keys = keys.astype(np.int32) if span < 2**31 else keys
        keys.sort(axis=1)
        from_row = np.arange(n, dtype=np.int64)[:, None] * width
        order = ((keys & ((1 << bits) - 1)) + from_row).reshape(-1)
        target = (keys >> bits).reshape(-1)
        row = np.repeat(np.arange(n, dtype=np.int64), width)
    else:
        row = np.repeat(np.arange(n, dtype=np.int64), counts)
        place = np.arange(row.size, dtype=np.int64) - np.repeat(splits_of(counts)[:-1], counts)
        keys = row * span + (np.where(mapped == NO_TOKEN, n_base, mapped).astype(np.int64) << bits | place)
        keys.sort()
        keys -= row * span  # sorting keeps each row's entries where the row's entries are
        order = (keys & ((1 << bits) - 1)) + np.repeat(splits_of(counts)[:-1], counts)
        target = keys >> bits
    values = log_probs[order]
    lost = target == n_base
    if lost.any():
        touched, mass = _sums(row[lost], values[lost], n)
        with np.errstate(divide="ignore"):
            whole = np.log(np.exp(tails[touched].astype(np.float64)) + mass[touched])
        tails = tails.copy()
        tails[touched] = np.minimum(whole, 0)
        target, values, row = target[~lost], values[~lost], row[~lost]
    same = np.zeros(target.size, np.bool_)
    same[1:] = (target[1:] == target[:-1]) & (row[1:] == row[:-1])
    if same.any():
        values = _merged(values, same)
        target, row = target[~same], row[~same]
    return target.astype(np.int32), values, np.bincount(row, minlength=n).astype(np.int64), tails


def _merged(values: npt.NDArray[np.float32], same: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Add the probabilities of runs: `same` marks entries that join the one before. Others keep their bits."""
    begins = np.flatnonzero(~same)
    sizes = np.diff(np.append(begins, same.size))
    merged = values[begins]
    several = np.flatnonzero(sizes > 1)
    inside = ragged_indices(begins[several], sizes[several])
    sums = np.add.reduceat(np.exp(values[inside].astype(np.float64)), splits_of(sizes[several])[:-1])
    merged[several] = np.minimum(np.log(sums), 0)
    return merged


def _sums(
    row: npt.NDArray[np.int64], values: npt.NDArray[np.float32], n: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Rows that occur, and the probability mass of each row; (n,)."""
    mass = np.bincount(row, weights=np.exp(values.astype(np.float64)), minlength=n)
    return np.unique(row), mass.astype(np.float64, copy=False)


def _chunks(counts: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Ranges of rows that hold about `ENTRIES_AT_A_TIME` entries each."""
    if not counts.size:
        return []
    block = splits_of(counts)[1:] // ENTRIES_AT_A_TIME
    cuts = np.flatnonzero(np.diff(block)) + 1
    bounds = [0, *cuts.tolist(), counts.size]
    return list(pairwise(bounds))


def _check(rows: SparseLogits, row_of: npt.NDArray[np.int64], id_map: IdMap, base: EndTable | None) -> None:
    if row_of.size and not (int(row_of.min()) >= NO_ROW and int(row_of.max()) < rows.n_rows):
        raise ValueError(
            f"row_of runs from {int(row_of.min())} to {int(row_of.max())}, but the teacher has {rows.n_rows} rows; "
            "expected -1 or a row. Align with the end table of exactly these rows."
        )
    if base is not None and base.n_rows != row_of.size:
        raise ValueError(
            f"row_of has {row_of.size} positions and the base's end table {base.n_rows}; expected equal."
        )
    if rows.token_ids.size and not (
        int(rows.token_ids.min()) >= 0 and int(rows.token_ids.max()) < id_map.size
    ):
        worst = max(int(rows.token_ids.max()), -int(rows.token_ids.min()), key=abs)
        raise UnknownTokenId(
            f"sparse logits hold token id {worst}, but the teacher's vocabulary ends at {id_map.size - 1}: they were "
            "made with another tokenizer. Make the map from the card of the party that sent them."
        )


def _places(
    rows: SparseLogits, row_of: npt.NDArray[np.int64], base: EndTable | None
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """(end_byte, segment, sample_splits) of the carried rows."""
    if base is not None:
        return base.end_byte, base.segment, base.sample_splits
    aligned = row_of != NO_ROW
    end_byte = np.full(row_of.size, -1, np.int32)
    segment = np.ones(row_of.size, np.uint8)
    end_byte[aligned] = rows.end_byte[row_of[aligned]]
    segment[aligned] = rows.segment[row_of[aligned]]
    return end_byte, segment, np.array([0, row_of.size], np.int64)


def transport_min_ed(
    rows: SparseLogits,
    matches: Sequence[Sequence[int]],
    *,
    base_ids: Sequence[int] | npt.NDArray[np.integer],
    base_targets: Sequence[int] | npt.NDArray[np.integer],
    teacher_ids: Sequence[int] | npt.NDArray[np.integer],
    base: VocabularyCard,
    teacher: VocabularyCard,
    id_map: IdMap,
    first: Sequence[int] = (0,),
) -> tuple[SparseLogits, npt.NDArray[np.bool_]]:
    """Carry a teacher's rows along a warped alignment, as the paper does it.

    A base position takes the teacher's row when it is matched with exactly one teacher position and both tokens
    are equal, as strings with their markers or through the map. Its ids go through the map in the order of
    falling log-probability (ties: lower id); of several that fall on one base id the first stays, the others
    are lost. Any other position gets all mass on the token it has to predict: the *next* one.

    Args:
        rows: the teacher's distributions at its P_B positions.
        matches: for each base position its teacher positions, as `align_min_ed` gives them; P lists.
        base_ids: the token each base position has just read; (P,).
        base_targets: the token each base position has to predict, -1 where there is none; (P,).
        teacher_ids: the token each teacher position has just read; (P_B,).
        base: the base's vocabulary.
        teacher: the teacher's vocabulary.
        id_map: teacher id -> base id or -1, as `min_ed_map` gives it; (V_B,).
        first: base positions that open a text: there a marker that only the base's token carries is put before
            the teacher's as well.

    Returns:
        One row per base position (in one sample; end bytes unknown, segments of the teacher where taken), and
        whether it has a target; (P,) bool.

    Source: FedMKT, arXiv:2406.02224v4, token alignment; the one-hot is read as the token to predict, where the
    reference code puts the current one.
    """
    ids: list[int] = []
    values: list[float] = []
    counts = np.zeros(len(matches), np.int64)
    tail = np.zeros(len(matches), np.float32)
    has_target = np.zeros(len(matches), np.bool_)
    taken = np.full(len(matches), NO_ROW, np.int64)
    opens = set(first)
    for i, places in enumerate(matches):
        j = places[0] if len(places) == 1 else NO_ROW
        if j != NO_ROW and _same_token(
            int(base_ids[i]), int(teacher_ids[j]), base, teacher, id_map, i in opens
        ):
            row_ids, row_values = _mapped_row(rows, j, id_map)
            tail[i] = _tail_of(row_values, rows, j)
            taken[i] = j
        elif base_targets[i] != NO_TARGET:
            row_ids, row_values, tail[i] = [int(base_targets[i])], [0.0], -np.inf
        else:
            continue
        ids.extend(row_ids)
        values.extend(row_values)
        counts[i] = len(row_ids)
        has_target[i] = len(row_ids) > 0
    segment = np.ones(len(matches), np.uint8)
    segment[taken != NO_ROW] = rows.segment[taken[taken != NO_ROW]]
    carried = SparseLogits(
        token_ids=np.array(ids, np.int32),
        log_probs=np.array(values, np.float32),
        row_splits=splits_of(counts),
        tail_log_prob=tail,
        end_byte=np.full(len(matches), -1, np.int32),
        segment=segment,
        sample_splits=np.array([0, len(matches)], np.int64),
    )
    return carried, has_target


def _same_token(
    base_id: int,
    teacher_id: int,
    base: VocabularyCard,
    teacher: VocabularyCard,
    id_map: IdMap,
    opens_text: bool,
) -> bool:
    """Whether two matched tokens count as one: equal strings in one marker, or equal through the map."""
    own, theirs = base.tokens[base_id], teacher.tokens[teacher_id]
    lacks_marker = teacher.marker and not theirs.startswith(teacher.marker)
    if opens_text and lacks_marker and base.marker and own.startswith(base.marker):
        theirs = teacher.marker + theirs
        teacher_id = teacher.ids.get(theirs, NO_TOKEN)
    if with_marker_of(base, teacher, theirs) == own:
        return True
    return teacher_id != NO_TOKEN and int(id_map[teacher_id]) == base_id


def _tail_of(values: list[float], rows: SparseLogits, j: int) -> float:
    """Log of the mass the carried row no longer holds; the teacher's own tail when nothing was lost."""
    if len(values) == rows.row_splits[j + 1] - rows.row_splits[j]:
        return float(rows.tail_log_prob[j])
    left = 1.0 - float(np.exp(np.array(values, np.float64)).sum())
    return float(np.log(left)) if left > 0 else float("-inf")


def _mapped_row(rows: SparseLogits, j: int, id_map: IdMap) -> tuple[list[int], list[float]]:
    """Row j through the map, first arrival kept; ids ascending."""
    entries = slice(int(rows.row_splits[j]), int(rows.row_splits[j + 1]))
    ids, values = rows.token_ids[entries], rows.log_probs[entries]
    arrived: dict[int, float] = {}
    for entry in np.lexsort((ids, -values)).tolist():
        target = int(id_map[ids[entry]])
        if target != NO_TOKEN:
            arrived.setdefault(target, float(values[entry]))
    return sorted(arrived), [arrived[token_id] for token_id in sorted(arrived)]
