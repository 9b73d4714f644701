"""Two tokenizers side by side: their tokens aligned on texts, and the map between their vocabularies."""

import gzip
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from fedtandem.alignment.sequence import NO_ROW, EndTable, align_bytes, align_min_ed
from fedtandem.alignment.vocabulary import IdMap, byte_map, min_ed_map
from fedtandem.atomic import write_text
from fedtandem.errors import ConfigError, DataError, ModelError
from fedtandem.models.spelling import Spelling, read_spelling
from fedtandem.models.token_ends import Ends, encodable, token_ends
from fedtandem.models.tokenizer import TextTokenizer

MODES = ("bytes", "mined")
Alignment = dict[str, object]
"""One aligned text: "text", "base_ids", "teacher_ids" and "pairs"."""


def align(
    base_dir: str | Path, teacher_dir: str | Path, texts: Iterable[str], mode: str = "bytes"
) -> list[Alignment]:
    """Align two tokenisations of each text.

    The texts are encoded whole, as the tokenizer files do it: without special tokens of their own, a literal
    special string as its token.

    Args:
        base_dir: folder with the receiving tokenizer's tokenizer.json.
        teacher_dir: the same for the sending one.
        texts: any Unicode strings.
        mode: "bytes": the teacher position that ends at the same known byte; "mined": dynamic time warping.

    Returns:
        Per text `{"text", "base_ids", "teacher_ids", "pairs"}`; pairs holds, for each base position, the list of
        its teacher positions: at most one in `bytes`; one or more in `mined`.

    Raises:
        ConfigError: an unknown mode.
        ModelError: a folder without a readable tokenizer.json.
    """
    _check_mode(mode)
    base, teacher = (_spelling(Path(folder)) for folder in (base_dir, teacher_dir))
    return [align_text(base, teacher, text, mode) for text in texts]


def align_text(base: Spelling, teacher: Spelling, text: str, mode: str = "bytes") -> Alignment:
    """`align` for one text and tokenizers at hand."""
    _check_mode(mode)
    pairs_of = _pairs_by_bytes if mode == "bytes" else _pairs_by_edits
    return pairs_of(base, teacher, text)


def vocabulary_map(
    base_dir: str | Path,
    teacher_dir: str | Path,
    mode: str = "bytes",
    progress: Callable[[int, int], None] | None = None,
) -> IdMap:
    """Base id, or -1, for each id of the teacher's vocabulary.

    Args:
        base_dir: folder (or name) of the receiving tokenizer.
        teacher_dir: the same for the sending one.
        mode: "bytes": equal bytes or a byte prefix; "mined": nearest string by edit distance.
        progress: called with (tokens done, of how many) while `mined` searches.

    Returns:
        (V_teacher,) int32.

    Raises:
        ConfigError: an unknown mode.
        ModelError: a tokenizer cannot be loaded.
    """
    _check_mode(mode)
    base, teacher = (TextTokenizer.from_pretrained(folder) for folder in (base_dir, teacher_dir))
    if mode == "mined":
        return min_ed_map(base.card, teacher.card, progress)
    return byte_map(base.card, teacher.card, base.first_pieces)


def align_command(*, base: Path, teacher: Path, mode: str, input: Path, output: Path) -> Path:
    """`fedtandem align`: texts of a JSONL file to a JSONL file, one line per line, in order."""
    lines = align(base, teacher, _texts_of(input), mode)
    write_text(output, "".join(json.dumps(line) + "\n" for line in lines))
    return output


def vocabulary_command(*, base: Path, teacher: Path, mode: str, output: Path) -> Path:
    """`fedtandem vocabulary`: the map as one JSON object, teacher id -> base id or -1."""
    with _progress_bar("comparing vocabularies") as progress:
        id_map = vocabulary_map(base, teacher, mode, progress)
    write_text(output, json.dumps({str(i): base_id for i, base_id in enumerate(id_map.tolist())}) + "\n")
    return output


def _check_mode(mode: str) -> None:
    if mode not in MODES:
        raise ConfigError(f"mode is {mode!r}; expected 'bytes' or 'mined'.")


def _spelling(folder: Path) -> Spelling:
    """The tokenizer file of a folder, read as it is."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"no tokenizer.json in {folder}; name the folder of a fast tokenizer.")
    try:
        return read_spelling(Tokenizer.from_file(str(path)))
    except Exception as error:  # the library raises a bare Exception for an unreadable file
        raise ModelError(
            f"{path} cannot be read as a tokenizer: {error}. Save it again with transformers."
        ) from error


def _pairs_by_bytes(base: Spelling, teacher: Spelling, text: str) -> Alignment:
    """One text in mode `bytes`."""
    base_ids, base_ends = _ids_and_ends(base, text)
    teacher_ids, teacher_ends = _ids_and_ends(teacher, text)
    row_of = align_bytes(_as_table(base_ends), _as_table(teacher_ends))
    pairs = [[] if row == NO_ROW else [row] for row in row_of.tolist()]
    return {"text": text, "base_ids": base_ids, "teacher_ids": teacher_ids, "pairs": pairs}


def _pairs_by_edits(base: Spelling, teacher: Spelling, text: str) -> Alignment:
    """One text in mode `mined`."""
    ids = [_encode(spelling, text) for spelling in (base, teacher)]
    tokens = [[spelling.tokens[i] for i in own] for spelling, own in zip((base, teacher), ids, strict=True)]
    pairs, _ = align_min_ed(tokens[0], tokens[1], base.marker, teacher.marker)
    return {"text": text, "base_ids": ids[0], "teacher_ids": ids[1], "pairs": pairs}


def _encode(spelling: Spelling, text: str) -> list[int]:
    return list(spelling.encode([encodable(text)], marks_are_text=False)[0].ids)


def _ids_and_ends(spelling: Spelling, text: str) -> tuple[list[int], Ends]:
    """Token ids of a text and the byte each ends at."""
    ids = _encode(spelling, text)
    return ids, token_ends(spelling, text, np.array(ids, np.int32), [spelling.encode_with_marks])


def _as_table(ends: Ends) -> EndTable:
    """The ends of one text as a table of one sample."""
    return EndTable(ends, np.ones(ends.size, np.uint8), np.array([0, ends.size], np.int64))


def _texts_of(path: Path) -> Sequence[str]:
    """The `text` of each line of a JSONL file (`.gz` as well)."""
    try:
        data = path.read_bytes()
        lines = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}. Name a JSONL file in UTF-8.") from error
    return list(_checked_texts(path, lines))


def _checked_texts(path: Path, lines: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}, line {number}: not JSON ({error}); expected one object a line."
            ) from error
        text = row.get("text") if isinstance(row, dict) else None
        if not isinstance(text, str):
            raise DataError(f'{path}, line {number}: "text" is {text!r}; expected {{"text": "..."}}.')
        yield text


@contextmanager
def _progress_bar(title: str) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on the terminal; nothing where the errors go to a file."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)
