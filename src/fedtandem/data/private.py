"""What must not leave a client: does a text share a long run of bytes with the private set?

Every run of R bytes holds a whole block of w = (R + 1) // 2 bytes that starts at a multiple of w, wherever
the run begins. So the index keeps one hash per block of the private text instead of one per byte: at R = 50
about half a byte per private byte, beside the text itself. Every w-byte window of a text is looked up, and a
hit is verified by extending it over the bytes themselves: no false alarm, nothing missed.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedtandem.data.public import Sample

MIN_RUN_BYTES: Final = 50
"""From so many bytes on, a generated text counts as a copy of private text."""

_BASE = np.uint64(0x9E3779B97F4A7C15)
"""Odd, so multiplication by its powers loses nothing modulo 2^64."""


def shares_run(text: str, corpus: Iterable[str], min_bytes: int = MIN_RUN_BYTES) -> bool:
    """Whether `text` and one string of `corpus` have `min_bytes` consecutive UTF-8 bytes in common."""
    return PrivateText(corpus, min_bytes).repeats(text)


class PrivateText:
    """An index of private texts that answers `repeats(text)`.

    Args:
        texts: the private documents; a run never reaches from one into the next.
        min_bytes: the shortest run that counts, >= 1.

    Raises:
        ValueError: `min_bytes` is below 1.
    """

    def __init__(self, texts: Iterable[str], min_bytes: int = MIN_RUN_BYTES) -> None:
        if min_bytes < 1:
            raise ValueError(f"min_bytes is {min_bytes}; a shared run has at least 1 byte.")
        self.min_bytes = min_bytes
        self._block = (min_bytes + 1) // 2
        documents = [text.encode() for text in texts]
        self._data = b"".join(documents)
        self._ends = np.cumsum([len(document) for document in documents], dtype=np.int64)
        data = np.frombuffer(self._data, dtype=np.uint8)
        starts = _without_repeats(
            data, _block_starts(documents, self._block), self._ends, self._block, min_bytes
        )
        keys = hashes_at(data, starts, self._block)
        order = np.argsort(keys, kind="stable")
        self._keys, self._starts = keys[order], starts[order].astype(_smallest(len(data)))

    @classmethod
    def from_samples(cls, samples: Sequence[Sample], min_bytes: int = MIN_RUN_BYTES) -> "PrivateText":
        """Index prompts with their answers; neighbouring windows of a document are one text again."""
        return cls(joined(samples), min_bytes)

    def repeats(self, text: str) -> bool:
        """Whether `text` holds `min_bytes` consecutive bytes of one private document."""
        data = text.encode()
        if len(data) < self.min_bytes or not len(self._keys):
            return False
        hashes = window_hashes(np.frombuffer(data, dtype=np.uint8), self._block)
        first = np.searchsorted(self._keys, hashes, side="left")
        last = np.searchsorted(self._keys, hashes, side="right")
        for at in np.flatnonzero(last > first):
            for start in self._starts[first[at] : last[at]]:
                if self._run_through(data, int(at), int(start)) >= self.min_bytes:
                    return True
        return False

    def _run_through(self, data: bytes, at: int, start: int) -> int:
        """Length of the common run through data[at] and private[start], at most about `min_bytes`."""
        block, enough = self._block, self.min_bytes
        if data[at : at + block] != self._data[start : start + block]:
            return 0
        document = int(np.searchsorted(self._ends, start, side="right"))
        floor, ceiling = int(self._ends[document - 1]) if document else 0, int(self._ends[document])
        before = after = 0
        while (
            before + block < enough
            and at > before
            and start - before > floor
            and data[at - before - 1] == self._data[start - before - 1]
        ):
            before += 1
        while (
            before + block + after < enough
            and at + block + after < len(data)
            and start + block + after < ceiling
            and data[at + block + after] == self._data[start + block + after]
        ):
            after += 1
        return before + block + after


def window_hashes(data: NDArray[np.uint8], width: int) -> NDArray[np.uint64]:
    """Polynomial hash modulo 2^64 of every window of `width` bytes; (len(data) - width + 1,) uint64.

    Built by doubling, h(2n)[i] = h(n)[i] * B^n + h(n)[i + n], so it costs log2(width) passes.
    """
    n_windows = len(data) - width + 1
    if n_windows <= 0:
        return np.zeros(0, dtype=np.uint64)
    total = np.zeros(n_windows, dtype=np.uint64)
    power, length = data.astype(np.uint64) + np.uint64(1), 1  # + 1: a zero byte must count
    factor, done = _BASE, 0
    with np.errstate(over="ignore"):
        while True:
            if width & length:
                total = total * factor + power[done : done + n_windows]
                done += length
            if done == width:
                return total
            power = power[: len(power) - length] * factor + power[length:]
            factor, length = factor * factor, length * 2


def _block_starts(documents: Sequence[bytes], block: int) -> NDArray[np.int64]:
    """Starts of the whole blocks of every document, in the joined bytes; ascending."""
    starts, offset = [np.zeros(0, dtype=np.int64)], 0
    for document in documents:
        starts.append(np.arange(offset, offset + len(document) - block + 1, block, dtype=np.int64))
        offset += len(document)
    return np.concatenate(starts)


def _without_repeats(
    data: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64], block: int, run: int
) -> NDArray[np.int64]:
    """Leave out blocks whose whole neighbourhood stands elsewhere too: boilerplate must not slow the search.

    A run through a block lies within `run - block` bytes before it and after it, so of blocks that agree on
    all of these one says everything. Blocks near the ends of a document are kept.
    """
    reach = run - block
    document = np.searchsorted(ends, starts, side="right")
    floor = np.concatenate([[0], ends])[document]
    inside = (starts - reach >= floor) & (starts + run <= ends[document])
    left, width = starts[inside] - reach, run + reach
    _, first, group = np.unique(hashes_at(data, left, width), return_index=True, return_inverse=True)
    twin = left[first][group]
    repeated = twin != left
    for rows in _chunks(np.flatnonzero(repeated)):  # equal hashes are no proof
        repeated[rows] = (_rows(data, left[rows], width) == _rows(data, twin[rows], width)).all(axis=1)
    keep = np.ones(len(starts), dtype=np.bool_)
    keep[np.flatnonzero(inside)[repeated]] = False
    return starts[keep]


def hashes_at(data: NDArray[np.uint8], starts: NDArray[np.int64], width: int) -> NDArray[np.uint64]:
    """`window_hashes` at some starts only, in little memory; (len(starts),) uint64."""
    hashes = np.zeros(len(starts), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for rows in _chunks(np.arange(len(starts))):
            for column in _rows(data, starts[rows], width).T:
                hashes[rows] = hashes[rows] * _BASE + column + np.uint64(1)
    return hashes


def _rows(data: NDArray[np.uint8], starts: NDArray[np.int64], width: int) -> NDArray[np.uint8]:
    rows: NDArray[np.uint8] = data[starts[:, None] + np.arange(width)]
    return rows


def _chunks(indices: NDArray[np.int64], size: int = 2**15) -> list[NDArray[np.int64]]:
    return [indices[i : i + size] for i in range(0, len(indices), size)]


def _smallest(n: int) -> type[np.uint32] | type[np.int64]:
    return np.uint32 if n < 2**32 else np.int64


def joined(samples: Sequence[Sample]) -> list[str]:
    """Prompt + answer of each sample; windows that follow each other in one run of text are put together."""
    texts, windows = [], []
    for sample in samples:
        offset = sample.fields.get("offset")
        if isinstance(offset, int) and not sample.eos:
            windows.append((str(sample.fields.get("run")), offset, sample.prompt + (sample.answer or "")))
        else:
            texts.append(sample.prompt + (sample.answer or ""))
    windows.sort(key=lambda window: window[:2])
    expected: tuple[str, int] | None = None
    for run, offset, text in windows:
        if expected == (run, offset):
            texts[-1] += text
        else:
            texts.append(text)
        expected = (run, offset + len(text.encode()))
    return texts
