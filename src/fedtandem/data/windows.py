"""Running text as samples: documents in reading order, their parts, and windows of a fixed number of bytes.

A row is a *chunk* of a document when its id is its `source`, a hyphen and a number ("Eliot_Adam_1859-343").
Chunks of one source, sorted by that number, are one document; consecutive numbers are joined by a newline, a
missing number ends a *run*. Every other row is a document of its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fedtandem.data.files import Row
from fedtandem.data.formats import row_id
from fedtandem.data.public import Sample
from fedtandem.data.source import DataSource, Part
from fedtandem.errors import DataError

GAP = 5
"""Chunks between a document's training and validation parts: neighbours share names and phrases."""


@dataclass(frozen=True)
class Run:
    """Text without a hole in it."""

    id: str
    """Of its first row."""
    text: str
    fields: dict[str, object]


def text_samples(rows: Sequence[Row], source: DataSource, *, where: str) -> list[Sample]:
    """Documents as samples: whole rows, or windows of `window_bytes`, whose head may be the prompt.

    The windows depend on the text alone, so they are the same for all parties. A window ends inside its
    document: it has no EOS.

    Raises:
        DataError: a row without text, an unlabelled set without prompts, a window too small for its prompt.
    """
    window = source.window_bytes or 0
    _check_sizes(window, source, where)
    samples = []
    for run in runs(part_of_documents(documents(rows, where=where), source.part), join=window > 0):
        pieces = cut(run.text, window) if window else [(0, run.text)]
        for offset, text in pieces:
            at = boundary(text, source.prompt_bytes)
            prompt, answer = text[:at], text[at:]
            if not answer:
                continue  # nothing beyond the prompt is left to predict
            samples.append(
                Sample(
                    f"{run.id}@{offset}" if window else run.id,
                    prompt,
                    answer if source.labelled else None,
                    eos=not window,
                    fields={**run.fields, "run": run.id, "offset": offset},
                )
            )
    return samples


def _check_sizes(window: int, source: DataSource, where: str) -> None:
    if not source.labelled and source.prompt_bytes == 0:
        raise DataError(
            f"{where}: text rows without answers need prompt_bytes, the part of every window that is the "
            "prompt."
        )
    if window and window < max(4, source.prompt_bytes + 1):
        raise DataError(
            f"{where}: window_bytes = {window} is too small: it must be at least 4 (one character) and "
            "larger than "
            f"prompt_bytes = {source.prompt_bytes}."
        )


def documents(rows: Sequence[Row], *, where: str) -> list[list[tuple[int, Row]]]:
    """Rows grouped into documents, chunks sorted by number; documents in order of first appearance."""
    grouped: dict[str, list[tuple[int, Row]]] = {}
    for position, row in enumerate(rows):
        text = row.values.get("text")
        if not isinstance(text, str) or not text.strip():
            state = "is empty" if isinstance(text, str) else "is missing or no text"
            raise DataError(
                f"{where}: {row.place}: column 'text' {state}; its columns are {', '.join(row.values)}. "
                "Remove the "
                "row or map another column with columns.text."
            )
        name, number = chunk_of(row)
        key = f"row {position}" if number is None else f"source {name}"
        grouped.setdefault(key, []).append((number or 0, row))
    return [sorted(chunks, key=lambda chunk: chunk[0]) for chunks in grouped.values()]


def chunk_of(row: Row) -> tuple[str, int | None]:
    """A chunk's source and number; the row's id and None where it is a document of its own."""
    source, own = row.values.get("source"), row_id(row)
    head, _, number = own.rpartition("-")
    if isinstance(source, str) and head == source and number.isascii() and number.isdigit():
        return source, int(number)
    return own, None


def part_of_documents(books: list[list[tuple[int, Row]]], part: Part | None) -> list[list[tuple[int, Row]]]:
    """The part's chunks of every document; documents of one row are shared out whole."""
    if part is None:
        return books
    whole = [i for i, book in enumerate(books) if len(book) == 1]
    chosen = {whole[i] for i in part_of_rows(len(whole), part)}
    return [
        book if i in chosen else book[part_slice(len(book), part)] if len(book) > 1 else []
        for i, book in enumerate(books)
    ]


def part_slice(n: int, part: Part) -> slice:
    """Rows of a part when n rows are split by order: 80 % train, a gap, the rest of 10 %, 10 % test."""
    first, second = 8 * n // 10, 9 * n // 10
    parts = {"train": slice(0, first), "validation": slice(min(first + GAP, second), second)}
    return parts.get(part, slice(second, n))


def part_of_rows(n: int, part: Part) -> list[int]:
    """Rows of a part when rows have no order: 80, 10 and 10 % of one fixed permutation; ascending, no gap."""
    order = np.random.default_rng(20240602).permutation(n)
    first, second = 8 * n // 10, 9 * n // 10
    chosen = {"train": order[:first], "validation": order[first:second]}.get(part, order[second:])
    return sorted(int(i) for i in chosen)


def runs(books: Sequence[list[tuple[int, Row]]], *, join: bool) -> Iterator[Run]:
    """Stretches of text; without `join` every row is one."""
    for book in books:
        texts: list[str] = []
        for i, (number, row) in enumerate(book):
            if not texts:
                first = row
            texts.append(str(row.values["text"]))
            if join and i + 1 < len(book) and book[i + 1][0] == number + 1:
                continue
            others = {name: value for name, value in first.values.items() if name not in ("id", "text")}
            yield Run(row_id(first), "\n".join(texts), others)
            texts = []


def cut(text: str, window_bytes: int) -> list[tuple[int, str]]:
    """(byte offset, window) of each window: at most `window_bytes` of UTF-8, together the text itself."""
    data = text.encode()
    windows = []
    start = 0
    while start < len(data):
        stop = _back_to_character(data, start + window_bytes)
        windows.append((start, data[start:stop].decode()))
        start = stop
    return windows


def boundary(text: str, n_bytes: int) -> int:
    """The number of leading characters that fit into `n_bytes` of UTF-8."""
    data = text.encode()
    return len(data[: _back_to_character(data, n_bytes)].decode())


def _back_to_character(data: bytes, stop: int) -> int:
    """The last character boundary at or before `stop`."""
    if stop >= len(data):
        return len(data)
    while stop > 0 and data[stop] & 0xC0 == 0x80:
        stop -= 1
    return stop
