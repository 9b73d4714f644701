"""Sparse logits and texts as compact arrays.

Numbers are written as byte planes (all low bytes, then all next bytes ...), which zstandard packs better than
whole numbers; ids as the distance to the one before, minus one; values in half precision or in steps of 1/16 nat.
Each content has exactly one coding, and another is refused.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fedtandem.knowledge.sparse_logits import MASS_TOLERANCE, SparseLogits, splits_of

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

Values = Literal["fp16", "u8"]
VALUES: tuple[Values, ...] = ("fp16", "u8")

STEPS_PER_NAT = 16
LOWEST_FP16 = -65504.0
MAX_ROWS_BYTES = 1 << 28
"""Largest packed rows that are unpacked; unpacking takes about ten times as much for a moment."""
_U8_TOLERANCE = 0.035
"""Half a step of 1/16 nat moves each probability by at most 3.2 %, and so the mass of a row."""
_U8_SATURATED = float(np.exp(-255 / STEPS_PER_NAT))
"""An entry further below its row's maximum is raised to this share of it."""

ROW_ARRAYS = ("counts", "end", "ids", "samples", "segment", "tail", "values")


def pack_sparse(rows: SparseLogits, *, values: Values = "fp16") -> dict[str, Array]:
    """Code sparse logits; `unpack_sparse` is the way back, exact where the values are half precision already.

    Args:
        rows: checked before (`SparseLogits.validate`).
        values: "fp16", or "u8": row maximum in half precision and steps of 1/16 nat below it, at most 255.

    Returns:
        `ids` (W, ΣK), `counts` (W, P), `end` (W, P), `samples` (W, N), `tail` (2, P) as uint8 planes; `segment`
        (P,) uint8; `values` (2, ΣK) planes and nothing else for fp16, (ΣK,) steps and `peak` (2, P') for u8,
        P' being the rows that hold entries.
    """
    counts = np.diff(rows.row_splits)
    packed: dict[str, Array] = {
        "ids": to_planes(_gaps(rows.token_ids, rows.row_splits)),
        "counts": to_planes(counts),
        **pack_ends(rows.end_byte, rows.segment, rows.sample_splits),
        "tail": _half_planes(rows.tail_log_prob),
    }
    if values == "fp16":
        packed["values"] = _half_planes(rows.log_probs)
        return packed
    filled = counts > 0
    starts = rows.row_splits[:-1][filled]
    highest = np.maximum.reduceat(rows.log_probs, starts) if len(starts) else np.zeros(0, np.float32)
    peak = _half(highest)
    below = np.repeat(peak.astype(np.float32), counts[filled]) - rows.log_probs
    steps = np.clip(np.rint(below * STEPS_PER_NAT), 0, 255).astype(np.uint8)
    if len(starts):
        # Where half precision is coarser than a step, the maximum itself may land below the peak.
        steps -= np.repeat(np.minimum.reduceat(steps, starts), counts[filled])
    packed["values"] = steps
    packed["peak"] = _planes_of_halves(peak)
    return packed


def unpack_sparse(
    packed: Mapping[str, Array], *, values: Values = "fp16", vocab_size: int | None = None
) -> SparseLogits:
    """Read packed sparse logits back and check them.

    Args:
        packed: the arrays of `pack_sparse`, believed in nothing.
        values: how log-probabilities were coded.
        vocab_size: the producer's vocabulary, for the range of ids; None where it is not known.

    Raises:
        ValueError: naming the array, the value and what was expected.
    """
    names = (*ROW_ARRAYS, "peak") if values == "u8" else ROW_ARRAYS
    if sorted(packed) != sorted(names):
        raise ValueError(f"rows consist of {', '.join(sorted(packed))}; expected {', '.join(sorted(names))}")
    total = sum(array.nbytes for array in packed.values())
    if total > MAX_ROWS_BYTES:
        raise ValueError(
            f"rows take {total:,} bytes; at most {MAX_ROWS_BYTES:,} are unpacked. Lower knowledge.top_k"
        )
    counts = from_planes("counts", packed["counts"])
    n_entries, n_rows = _sum("counts", counts), len(counts)
    end_byte, segment, sample_splits = unpack_ends(
        {name: packed[name] for name in ("end", "samples", "segment")}
    )
    if len(end_byte) != n_rows:
        raise ValueError(f"samples adds up to {len(end_byte)} rows; expected {n_rows}, as many as counts")
    gaps = from_planes("ids", packed["ids"], n_entries)
    tail = _from_half_planes("tail", packed["tail"], n_rows)
    row_splits = splits_of(counts)
    ids = _from_gaps(gaps, row_splits)
    if n_entries and int(ids.max()) >= (vocab_size if vocab_size is not None else 1 << 31):
        last = "2147483647" if vocab_size is None else str(vocab_size - 1)
        raise ValueError(
            f"token_ids holds {ids.max()} at entry {ids.argmax()}, but the vocabulary ends at {last}"
        )
    log_probs = (
        _from_half_planes("values", packed["values"], n_entries)
        if values == "fp16"
        else _steps(packed, counts)
    )
    rows = SparseLogits(
        token_ids=ids.astype(np.int32),
        log_probs=log_probs,
        row_splits=row_splits,
        tail_log_prob=tail,
        end_byte=end_byte,
        segment=segment,
        sample_splits=sample_splits,
    )
    rows.validate(
        vocab_size if vocab_size is not None else 1 << 31, mass_tolerance=mass_tolerance(counts, values)
    )
    return rows


def mass_tolerance(counts: Ints, values: Values) -> npt.NDArray[np.float64]:
    """How far the mass of rows with so many entries may be from 1 once their values were coded; (P,)."""
    if values == "u8":
        return (_U8_TOLERANCE + _U8_SATURATED * counts).astype(np.float64)
    return np.full(len(counts), MASS_TOLERANCE)


def _steps(packed: Mapping[str, Array], counts: Ints) -> npt.NDArray[np.float32]:
    steps, filled = packed["values"], counts > 0
    if steps.dtype != np.uint8 or steps.shape != (int(counts.sum()),):
        raise ValueError(f"values is {steps.dtype}{steps.shape}; expected uint8({int(counts.sum())},)")
    peak = _from_half_planes("peak", packed["peak"], int(filled.sum()))
    starts = splits_of(counts)[:-1][filled]
    if len(starts) and int(np.minimum.reduceat(steps, starts).max()) > 0:
        raise ValueError("values has a row without a step 0; the row's maximum is its peak")
    return np.repeat(peak, counts[filled]) - steps.astype(np.float32) / np.float32(STEPS_PER_NAT)


# -- positions and samples ----------------------------------------------------------------------------------------


def pack_ends(end_byte: npt.NDArray[np.int32], segment: Bytes, sample_splits: Ints) -> dict[str, Array]:
    """Where positions stand: `end` (W, P) planes of steps from one to the next, `segment` (P,), `samples` (W, N)."""
    steps = end_byte.astype(np.int64)
    steps[1:] -= end_byte[:-1]
    return {
        "end": to_planes(_zigzag(steps)),
        "segment": segment,
        "samples": to_planes(np.diff(sample_splits)),
    }


def unpack_ends(packed: Mapping[str, Array]) -> tuple[npt.NDArray[np.int32], Bytes, Ints]:
    """The inverse of `pack_ends`: end_byte (P,) int32, segment (P,) uint8, sample_splits (N + 1,) int64.

    Raises:
        ValueError: naming the array, the value and what was expected.
    """
    if sorted(packed) != ["end", "samples", "segment"]:
        raise ValueError(f"positions consist of {', '.join(sorted(packed))}; expected end, samples, segment")
    counts = from_planes("samples", packed["samples"])
    n_rows = _sum("samples", counts)
    ends = np.cumsum(_unzigzag(from_planes("end", packed["end"], n_rows)))
    if n_rows and not -1 <= int(ends.min()) <= int(ends.max()) < 1 << 31:
        raise ValueError(f"end reaches from {ends.min()} to {ends.max()}; expected -1 to {(1 << 31) - 1}")
    segment = packed["segment"]
    if segment.dtype != np.uint8 or segment.shape != (n_rows,):
        raise ValueError(f"segment is {segment.dtype}{segment.shape}; expected uint8({n_rows},)")
    if n_rows and int(segment.max()) > 1:
        raise ValueError(
            f"segment holds {segment.max()} at row {segment.argmax()}; expected 0 (prompt) or 1 (answer)"
        )
    return ends.astype(np.int32), segment, splits_of(counts)


def pack_ascending(numbers: Ints) -> Bytes:
    """Ascending non-negative numbers, each once, as planes of the gaps between them."""
    return to_planes(_gaps(numbers, np.array([0, len(numbers)], np.int64)))


def unpack_ascending(planes: Array) -> Ints:
    """The inverse of `pack_ascending`; (n,) int64.

    Raises:
        ValueError: not planes, or a number of 2³¹ and more.
    """
    numbers = np.cumsum(from_planes("numbers", planes) + 1) - 1
    if len(numbers) and int(numbers[-1]) >= 1 << 31:
        raise ValueError(f"numbers reach {numbers[-1]}; expected at most {(1 << 31) - 1}")
    return numbers


# -- whole numbers ------------------------------------------------------------------------------------------------


def to_planes(numbers: Ints | npt.NDArray[np.integer[Any]]) -> Bytes:
    """Non-negative integers below 2³² as byte planes, lowest first; (W, n) uint8, W as small as it can be."""
    highest = int(numbers.max()) if len(numbers) else 0
    if highest >= 1 << 32 or (len(numbers) and int(numbers.min()) < 0):
        raise ValueError(f"{int(numbers.min())} to {highest} cannot be written in at most four byte planes")
    width = max(1, (highest.bit_length() + 7) // 8)
    whole = np.ascontiguousarray(numbers, dtype="<u4").view(np.uint8).reshape(-1, 4)
    return np.ascontiguousarray(whole[:, :width].T)


def from_planes(name: str, planes: Array, length: int | None = None) -> Ints:
    """Byte planes as integers; (n,) int64.

    Raises:
        ValueError: not planes, of another length, or wider than needed.
    """
    wrong_length = planes.ndim == 2 and length is not None and planes.shape[1] != length
    if planes.dtype != np.uint8 or planes.ndim != 2 or not 1 <= planes.shape[0] <= 4 or wrong_length:
        count = "n" if length is None else length
        raise ValueError(f"{name} is {planes.dtype}{planes.shape}; expected uint8 planes (1 to 4, {count})")
    if planes.shape[0] > 1 and not planes[-1].any():
        raise ValueError(
            f"{name} has {planes.shape[0]} byte planes, the highest of them empty; expected fewer"
        )
    numbers: Ints = planes[0].astype(np.int64)
    for place in range(1, planes.shape[0]):
        numbers |= planes[place].astype(np.int64) << (8 * place)
    return numbers


def _gaps(token_ids: npt.NDArray[np.integer[Any]], row_splits: Ints) -> npt.NDArray[np.integer[Any]]:
    """The first id of a row, then how many ids were left out before each next one."""
    gaps = np.empty_like(token_ids)
    gaps[:1] = 0
    np.subtract(token_ids[1:], token_ids[:-1], out=gaps[1:])  # below 2³¹ either way, whatever the dtype
    gaps -= 1
    firsts = row_splits[:-1][np.diff(row_splits) > 0]
    gaps[firsts] = token_ids[firsts]
    return gaps


def _from_gaps(gaps: Ints, row_splits: Ints) -> Ints:
    """The inverse of `_gaps`: one running sum, in which every row's first step also takes back the row before."""
    firsts = row_splits[:-1][np.diff(row_splits) > 0]
    if not len(firsts):
        return gaps
    steps = gaps + 1
    steps[firsts] -= 1
    lasts = np.add.reduceat(steps, firsts)  # < 2⁶³: fewer than 2²⁸ entries below 2³² each
    steps[firsts[1:]] -= lasts[:-1]
    return np.cumsum(steps, out=steps)


def _zigzag(numbers: Ints) -> Ints:
    return np.where(numbers < 0, -2 * numbers - 1, 2 * numbers)


def _unzigzag(numbers: Ints) -> Ints:
    return np.where(numbers & 1, -(numbers >> 1) - 1, numbers >> 1)


def _sum(name: str, counts: Ints) -> int:
    total = int(counts.sum())
    if total > MAX_ROWS_BYTES:
        raise ValueError(f"{name} adds up to {total:,}; at most {MAX_ROWS_BYTES:,}")
    return total


# -- half precision -----------------------------------------------------------------------------------------------


def _half(numbers: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """Half precision; finite values below its range become its lowest, never -inf. 0 has no sign."""
    finite = np.where(np.isneginf(numbers), numbers, np.maximum(numbers, np.float32(LOWEST_FP16)))
    return (finite.astype("<f2") + np.float16(0)).astype("<f2")


def _planes_of_halves(halves: npt.NDArray[np.float16]) -> Bytes:
    return np.ascontiguousarray(halves.view(np.uint8).reshape(-1, 2).T)


def _half_planes(numbers: npt.NDArray[np.float32]) -> Bytes:
    return _planes_of_halves(_half(numbers))


def _from_half_planes(name: str, planes: Array, length: int) -> npt.NDArray[np.float32]:
    if planes.dtype != np.uint8 or planes.shape != (2, length):
        raise ValueError(f"{name} is {planes.dtype}{planes.shape}; expected uint8 planes (2, {length})")
    halves = np.ascontiguousarray(planes.T).view("<f2")[:, 0]
    with np.errstate(invalid="ignore"):
        minus_zero = (halves == 0) & np.signbit(halves)
        if minus_zero.any():
            raise ValueError(f"{name} holds -0.0 at {int(minus_zero.argmax())}; expected 0.0")
        return halves.astype(np.float32)


# -- texts --------------------------------------------------------------------------------------------------------


def pack_texts(texts: Sequence[str]) -> dict[str, Array]:
    """Texts as one run of UTF-8 bytes, `bytes` (n,) uint8, and their lengths, `lengths` (W, N) planes.

    Raises:
        ValueError: a text cannot be written as UTF-8.
    """
    encoded = [text.encode("utf-8") for text in texts]
    return {
        "bytes": np.frombuffer(b"".join(encoded), np.uint8),
        "lengths": to_planes(np.array([len(text) for text in encoded], np.int64)),
    }


def unpack_texts(packed: Mapping[str, Array]) -> tuple[str, ...]:
    """The inverse of `pack_texts`.

    Raises:
        ValueError: the lengths do not add up, or a text is not UTF-8.
    """
    if sorted(packed) != ["bytes", "lengths"]:
        raise ValueError(f"texts consist of {', '.join(sorted(packed))}; expected bytes, lengths")
    joined = packed["bytes"]
    lengths = from_planes("lengths", packed["lengths"])
    if joined.dtype != np.uint8 or joined.shape != (int(lengths.sum()),):
        raise ValueError(f"bytes is {joined.dtype}{joined.shape}; expected uint8({int(lengths.sum())},)")
    whole, stops = joined.tobytes(), np.cumsum(lengths).tolist()
    return tuple(whole[start:stop].decode("utf-8") for start, stop in zip([0, *stops], stops, strict=False))
