"""Levenshtein distances in Unicode code points, many at a time."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

QUERIES_AT_A_TIME = 256
"""Queries compared in one call: the table of distances stays small enough for the processor's cache."""


def distance_matrix(queries: Sequence[str], candidates: Sequence[str]) -> npt.NDArray[np.int64]:
    """Distance of every query to every candidate; (n, m) int64. Each distinct string is compared once."""
    query_rows, query_index = np.unique(np.array(queries, dtype=object), return_inverse=True)
    candidate_rows, candidate_index = np.unique(np.array(candidates, dtype=object), return_inverse=True)
    distances = cdist(
        query_rows.tolist(), candidate_rows.tolist(), scorer=Levenshtein.distance, dtype=np.int32
    )
    return distances[np.ix_(query_index, candidate_index)].astype(np.int64)


def nearest_strings(
    queries: Sequence[str], candidates: Sequence[str], progress: Callable[[int, int], None] | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """For each query the nearest candidate; among equally near ones the first by code points.

    Candidates are compared by length, nearest lengths first: a candidate whose length differs by more than the
    best distance found so far cannot be nearer, nor equally near.

    Args:
        queries: n strings.
        candidates: m > 0 distinct strings.
        progress: called with (queries done, n).

    Returns:
        Index of the nearest candidate and its distance; (n,) int64 each.
    """
    order = sorted(range(len(candidates)), key=candidates.__getitem__)
    by_length: dict[int, list[int]] = {}
    for rank, i in enumerate(order):
        by_length.setdefault(len(candidates[i]), []).append(rank)
    buckets = {
        length: (np.array(ranks, np.int64), [candidates[order[rank]] for rank in ranks])
        for length, ranks in by_length.items()
    }
    best_rank = np.full(len(queries), len(candidates), np.int64)
    best = np.full(len(queries), np.iinfo(np.int64).max, np.int64)
    queries_by_length = np.array(sorted(range(len(queries)), key=lambda i: len(queries[i])), np.int64)
    lengths = np.array([len(queries[i]) for i in queries_by_length], np.int64)
    done = 0
    for length in np.unique(lengths).tolist():
        members = queries_by_length[lengths == length]
        for start in range(0, members.size, QUERIES_AT_A_TIME):
            chunk = members[start : start + QUERIES_AT_A_TIME]
            best_rank[chunk], best[chunk] = _nearest_of_one_length(
                [queries[i] for i in chunk], length, buckets
            )
            done += chunk.size
            if progress is not None:
                progress(done, len(queries))
    return np.array(order, np.int64)[best_rank], best


def _nearest_of_one_length(
    queries: list[str], length: int, buckets: dict[int, tuple[npt.NDArray[np.int64], list[str]]]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(code point rank, distance) of the nearest candidate for queries of one length; (n,) each."""
    far = 1 + max(length, *buckets)  # no two strings are further apart than the longer is long
    dtype = np.uint8 if far < 255 else np.uint16
    rank = np.full(len(queries), np.iinfo(np.int64).max, np.int64)
    best = np.full(len(queries), far, np.int64)
    for gap in range(far + 1):
        active = np.flatnonzero(best >= gap)
        if not active.size:
            break
        for other in sorted({length - gap, length + gap} & buckets.keys()):
            ranks, strings = buckets[other]
            active = np.flatnonzero(best >= gap)
            distances = cdist(
                [queries[i] for i in active],
                strings,
                scorer=Levenshtein.distance,
                score_cutoff=int(best[active].max()),
                dtype=dtype,
                workers=1,
            )
            column = distances.argmin(axis=1)
            found = distances[np.arange(active.size), column].astype(np.int64)
            better = (found < best[active]) | ((found == best[active]) & (ranks[column] < rank[active]))
            rank[active[better]] = ranks[column[better]]
            best[active[better]] = found[better]
    return rank, best
