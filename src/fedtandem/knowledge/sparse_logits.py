"""Top-K logits per token: what one model tells another about its next-token distributions."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from fedtandem.knowledge.top_k import sparsify

__all__ = ["FIELD_DTYPES", "MASS_TOLERANCE", "SparseLogits", "ragged_indices", "sparsify", "splits_of"]

ROUNDING_NATS = 1e-4
"""A log-probability may exceed 0 by this much: sums in float32 do not end exactly at 1."""

MASS_TOLERANCE = 0.01
"""Kept mass + tail may miss 1 by this much. Half precision moves a log-probability by at most 2⁻¹¹ of itself,
so the mass by at most entropy · 2⁻¹¹ <= ln(152,000) · 2⁻¹¹ = 0.006."""


@dataclass(frozen=True, eq=False)
class SparseLogits:
    """Next-token distributions kept at their most probable tokens; ragged, numpy.

    Row i holds the kept tokens of one predictor position: entries `row_splits[i]` up to `row_splits[i + 1]`.
    Sample n holds rows `sample_splits[n]` up to `sample_splits[n + 1]`. A row without entries and with
    `tail_log_prob` 0 says nothing.

    Source: FedMKT, arXiv:2406.02224v4, section 3 (the knowledge S_m); ragged top-K with a tail is our choice.
    """

    token_ids: npt.NDArray[np.int32]
    """(ΣK,) ids in the producer's vocabulary, ascending inside a row."""
    log_probs: npt.NDArray[np.float32]
    """(ΣK,) nats; log softmax over the full vocabulary at temperature 1, not renormalised."""
    row_splits: npt.NDArray[np.int64]
    """(P + 1,)"""
    tail_log_prob: npt.NDArray[np.float32]
    """(P,) nats; log of the mass that was not kept; -inf when nothing was left out."""
    end_byte: npt.NDArray[np.int32]
    """(P,) byte offset inside the segment at which the row predicts; 0 = before its first byte, -1 = unknown."""
    segment: npt.NDArray[np.uint8]
    """(P,) 1 answer, 0 prompt."""
    sample_splits: npt.NDArray[np.int64]
    """(N + 1,)"""

    @property
    def n_rows(self) -> int:
        """Predictor positions, over all samples."""
        return len(self.tail_log_prob)

    @property
    def n_samples(self) -> int:
        """Samples, those without rows included."""
        return len(self.sample_splits) - 1

    @property
    def n_entries(self) -> int:
        """Kept tokens, over all rows."""
        return len(self.token_ids)

    @classmethod
    def empty(cls, n_samples: int = 0) -> "SparseLogits":
        """`n_samples` samples without rows."""
        return cls(
            token_ids=np.zeros(0, np.int32),
            log_probs=np.zeros(0, np.float32),
            row_splits=np.zeros(1, np.int64),
            tail_log_prob=np.zeros(0, np.float32),
            end_byte=np.zeros(0, np.int32),
            segment=np.zeros(0, np.uint8),
            sample_splits=np.zeros(n_samples + 1, np.int64),
        )

    @classmethod
    def concat(cls, parts: "Sequence[SparseLogits]") -> "SparseLogits":
        """The samples of all parts, one part after the other."""
        if not parts:
            return cls.empty()
        return cls(
            token_ids=np.concatenate([part.token_ids for part in parts]),
            log_probs=np.concatenate([part.log_probs for part in parts]),
            row_splits=splits_of(np.concatenate([np.diff(part.row_splits) for part in parts])),
            tail_log_prob=np.concatenate([part.tail_log_prob for part in parts]),
            end_byte=np.concatenate([part.end_byte for part in parts]),
            segment=np.concatenate([part.segment for part in parts]),
            sample_splits=splits_of(np.concatenate([np.diff(part.sample_splits) for part in parts])),
        )

    def take_rows(
        self, rows: npt.NDArray[np.integer], sample_splits: npt.NDArray[np.int64] | None = None
    ) -> "SparseLogits":
        """The named rows in the named order; a row may be named twice.

        Args:
            rows: row numbers; (P',) integers in [0, P).
            sample_splits: how the new rows fall into samples; None: all are one sample.
        """
        rows = np.asarray(rows, np.int64)
        counts = np.diff(self.row_splits)[rows]
        entries = ragged_indices(self.row_splits[:-1][rows], counts)
        if sample_splits is None:
            sample_splits = np.array([0, len(rows)], np.int64)
        return SparseLogits(
            token_ids=self.token_ids[entries],
            log_probs=self.log_probs[entries],
            row_splits=splits_of(counts),
            tail_log_prob=self.tail_log_prob[rows],
            end_byte=self.end_byte[rows],
            segment=self.segment[rows],
            sample_splits=np.asarray(sample_splits, np.int64),
        )

    def take_samples(self, samples: npt.NDArray[np.integer]) -> "SparseLogits":
        """The named samples in the named order; (N',) integers in [0, N)."""
        samples = np.asarray(samples, np.int64)
        counts = np.diff(self.sample_splits)[samples]
        rows = ragged_indices(self.sample_splits[:-1][samples], counts)
        return self.take_rows(rows, splits_of(counts))

    def kept_mass(self) -> npt.NDArray[np.float64]:
        """Σ p over the kept tokens of each row; (P,)."""
        mass = np.zeros(self.n_rows)
        filled = np.flatnonzero(np.diff(self.row_splits))
        if len(filled):
            # Single precision is 2⁻²⁴ off per entry, far below what half precision on the wire already lost.
            starts = self.row_splits[:-1][filled]
            mass[filled] = np.add.reduceat(np.exp(self.log_probs), starts, dtype=np.float64)
        return mass

    def same_as(self, other: "SparseLogits") -> bool:
        """Every field equal, bit for bit in value."""
        return all(np.array_equal(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))

    def validate(
        self, vocab_size: int, *, mass_tolerance: float | npt.NDArray[np.float64] = MASS_TOLERANCE
    ) -> None:
        """Refuse what no model can have produced.

        Args:
            vocab_size: ids must lie in [0, vocab_size).
            mass_tolerance: how far kept mass + tail may be from 1, for all rows or for each.

        Raises:
            ValueError: naming the field, the offending value and its place.
        """
        self._check_shapes()
        _check_ids(self, vocab_size)
        _check_values(self, mass_tolerance)

    def _check_shapes(self) -> None:
        for field, dtype in FIELD_DTYPES.items():
            array = getattr(self, field)
            if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype != dtype:
                got = f"{array.dtype}{array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
                raise ValueError(f"{field} is {got}; expected one dimension of {np.dtype(dtype).name}")
        _check_splits("row_splits", self.row_splits, len(self.token_ids), "token_ids")
        _check_splits("sample_splits", self.sample_splits, self.n_rows, "tail_log_prob")
        expected = {"log_probs": self.n_entries, "row_splits": self.n_rows + 1}
        expected |= {"end_byte": self.n_rows, "segment": self.n_rows}
        for field, length in expected.items():
            if len(getattr(self, field)) != length:
                raise ValueError(f"{field} has {len(getattr(self, field))} entries; expected {length}")


FIELD_DTYPES: dict[str, type[np.generic]] = {
    "token_ids": np.int32,
    "log_probs": np.float32,
    "row_splits": np.int64,
    "tail_log_prob": np.float32,
    "end_byte": np.int32,
    "segment": np.uint8,
    "sample_splits": np.int64,
}
"""The dtype each field of `SparseLogits` must have."""


def splits_of(counts: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Running boundaries of groups of these sizes: [2, 0, 1] -> [0, 2, 2, 3]."""
    splits = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=splits[1:])
    return splits


def ragged_indices(starts: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """starts[0], starts[0]+1, ... counts[0] of them, then the same for starts[1], and so on."""
    before = splits_of(counts)
    return np.repeat(starts - before[:-1], counts) + np.arange(before[-1])


def _check_splits(field: str, splits: npt.NDArray[np.int64], end: int, into: str) -> None:
    if len(splits) == 0 or splits[0] != 0 or splits[-1] != end:
        raise ValueError(
            f"{field} runs from {splits[:1]} to {splits[-1:]}; expected 0 to {end}, the length of {into}"
        )
    # Compared, not subtracted: a difference of tampered int64 could overflow into looking right.
    falls = np.flatnonzero(splits[1:] < splits[:-1])
    if len(falls):
        at = int(falls[0])
        raise ValueError(
            f"{field} falls from {splits[at]} to {splits[at + 1]} at {at + 1}; it must never fall"
        )


def _check_ids(rows: SparseLogits, vocab_size: int) -> None:
    ids = rows.token_ids
    outside = np.flatnonzero((ids < 0) | (ids >= vocab_size))
    if len(outside):
        at = int(outside[0])
        raise ValueError(
            f"token_ids holds {ids[at]} at entry {at}, but the vocabulary ends at {vocab_size - 1}"
        )
    rises = ids[1:] > ids[:-1]
    firsts = rows.row_splits[1:-1]
    rises[firsts[(firsts > 0) & (firsts < len(ids))] - 1] = True  # the first entry of a row may fall
    if not rises.all():
        at = int(np.flatnonzero(~rises)[0]) + 1
        raise ValueError(
            f"token_ids goes from {ids[at - 1]} to {ids[at]} at entry {at}; the ids of a row must ascend, each once"
        )


def _check_values(rows: SparseLogits, mass_tolerance: float | npt.NDArray[np.float64]) -> None:
    bad = np.flatnonzero(~(np.isfinite(rows.log_probs) & (rows.log_probs <= ROUNDING_NATS)))
    if len(bad):
        raise ValueError(
            f"log_probs holds {rows.log_probs[bad[0]]} at entry {bad[0]}; expected finite, at most 0"
        )
    bad = np.flatnonzero(~(rows.tail_log_prob <= ROUNDING_NATS))
    if len(bad):
        raise ValueError(
            f"tail_log_prob holds {rows.tail_log_prob[bad[0]]} at row {bad[0]}; expected at most 0 (-inf: no tail)"
        )
    mass = rows.kept_mass() + np.exp(rows.tail_log_prob, dtype=np.float64)
    bad = np.flatnonzero(np.abs(mass - 1) > mass_tolerance)
    if len(bad):
        raise ValueError(
            f"row {bad[0]}: log_probs and tail_log_prob hold a mass of {mass[bad[0]]:.4f}; expected 1"
        )
    bad = np.flatnonzero(rows.end_byte < -1)
    if len(bad):
        raise ValueError(f"end_byte holds {rows.end_byte[bad[0]]} at row {bad[0]}; expected an offset or -1")
    bad = np.flatnonzero(rows.segment > 1)
    if len(bad):
        raise ValueError(
            f"segment holds {rows.segment[bad[0]]} at row {bad[0]}; expected 0 (prompt) or 1 (answer)"
        )
