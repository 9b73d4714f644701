"""Read rows from JSON Lines (also .gz), Parquet, or a `datasets` name or folder."""

import glob
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedtandem.data.source import DataSource
from fedtandem.errors import DataError

SUFFIXES = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz", ".parquet")


@dataclass(frozen=True)
class Row:
    """One row and where it was found."""

    values: Mapping[str, object]
    place: str
    """For messages: "train.jsonl.gz, line 12"."""
    default_id: str
    """The row's id where it has no `id` column: file stem (or split) and number."""


def read_rows(source: DataSource, *, where: str) -> list[Row]:
    """All rows of a source, in file order.

    Raises:
        DataError: nothing to read, a missing or unreadable file, a line that is no JSON object.
    """
    if (source.path is None) == (source.name is None):
        both = "both path and name are" if source.path is not None else "neither path nor name is"
        raise DataError(
            f"{where}: {both} given. Set `path` (files) or `name` (a `datasets` name or folder), one of "
            "the two."
        )
    if source.name is not None:
        return read_datasets(source.name, source.subset, source.split, where=where)
    patterns = (source.path,) if isinstance(source.path, str) else source.path or ()
    return [
        row
        for pattern in patterns
        for file in find_files(pattern, source.split, where=where)
        for row in _rows_of(file, where)
    ]


KEPT_FILES, KEPT_BYTES = 4, 16 * 2**20
_KEPT: dict[tuple[Path, int, int], list[Row]] = {}


def _rows_of(file: Path, where: str) -> list[Row]:
    """The rows of one file; a small one is parsed once, since the parties of a run often share it."""
    state = file.stat()
    key = (file.resolve(), state.st_mtime_ns, state.st_size)
    if key not in _KEPT:
        rows = list(read_file(file, where=where))
        if state.st_size > KEPT_BYTES:
            return rows
        while len(_KEPT) >= KEPT_FILES:
            del _KEPT[next(iter(_KEPT))]
        _KEPT[key] = rows
    return _KEPT[key]


def find_files(pattern: str, split: str | None, *, where: str) -> list[Path]:
    """The files a path means: itself, the matches of a glob, or the split's file in a folder."""
    path = Path(pattern).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        return [_file_in_folder(path, split, where)]
    matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
    if matches:
        return matches
    folder = path.parent
    if folder.is_dir():
        near = sorted(entry.name for entry in folder.iterdir() if stem_of(entry) is not None)
        remedy = f"{folder} holds {', '.join(near[:8])}" if near else f"{folder} holds no data files"
    else:
        remedy = f"the folder {folder} does not exist either"
    raise DataError(
        f"{where}: there is no file {pattern}; {remedy}. Relative paths start at the config file."
    )


def stem_of(file: Path) -> str | None:
    """The file's name without a suffix that can be read; None for any other file."""
    for suffix in SUFFIXES:
        if file.name.endswith(suffix):
            return file.name.removesuffix(suffix)
    return None


def _file_in_folder(folder: Path, split: str | None, where: str) -> Path:
    found = {stem: file for file in sorted(folder.iterdir()) if (stem := stem_of(file)) is not None}
    if split is not None and split in found:
        return found[split]
    if split is None and len(found) == 1:
        return next(iter(found.values()))
    wish = "no split is named" if split is None else f"there is no split {split!r}"
    raise DataError(
        f"{where}: {wish} in folder {folder}, which holds {', '.join(found) or 'no data files'}. Set "
        "`split` to "
        "one of them. (A folder saved by `datasets` goes into `name`, not `path`.)"
    )


def read_file(file: Path, *, where: str) -> Iterator[Row]:
    """The rows of one file, in order.

    Raises:
        DataError: names file and line.
    """
    stem = stem_of(file)
    if stem is None:
        raise DataError(
            f"{where}: {file} has a suffix that cannot be read; use {', '.join(SUFFIXES)}, or `name` for "
            "whatever `datasets` can load."
        )
    if file.suffix == ".parquet":
        yield from _read_parquet(file, stem, where)
    else:
        yield from _read_json_lines(file, stem, where)


def _read_json_lines(file: Path, stem: str, where: str) -> Iterator[Row]:
    number = 0
    try:
        with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    place = f"{file}, line {number}"
                    yield Row(_parse(line, place, where), place, f"{stem}-{number - 1}")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{where}: {file} cannot be read after line {number}: {error}") from error


def _parse(line: bytes, place: str, where: str) -> Mapping[str, object]:
    try:
        row = json.loads(line.decode("utf-8-sig").rstrip())
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: {place} is not UTF-8 ({error.reason}). Save the file as UTF-8.") from error
    except json.JSONDecodeError as error:
        text = line.decode(errors="replace").strip()
        raise DataError(
            f"{where}: {place}, column {error.colno} is not JSON ({error.msg}): {text[:80]!r}. Every line "
            "must hold "
            "one JSON object."
        ) from error
    if not isinstance(row, dict):
        raise DataError(
            f"{where}: {place} holds {type(row).__name__}, not an object. Every line must hold one JSON "
            "object."
        )
    return row


def _read_parquet(file: Path, stem: str, where: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches():
                for values in batch.to_pylist():
                    number += 1
                    yield Row(values, f"{file}, row {number}", f"{stem}-{number - 1}")
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{where}: {file} cannot be read as Parquet after row {number}: {error}") from error


def read_datasets(name: str, subset: str | None, split: str | None, *, where: str) -> list[Row]:
    """The rows of a hub name, of a folder `datasets` can load, or of one it saved to disk."""
    import datasets

    folder = Path(name).expanduser()
    saved = (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file()
    try:
        if saved:
            loaded = datasets.load_from_disk(str(folder))
            if isinstance(loaded, datasets.DatasetDict):
                loaded = loaded[_chosen_split(list(loaded), split, name, where)]
        else:
            loaded = datasets.load_dataset(name, subset)
            loaded = loaded[_chosen_split(list(loaded), split, name, where)]
    except DataError:
        raise
    except Exception as error:  # `datasets` passes on whatever its loaders and the network raise
        raise DataError(
            f"{where}: `datasets` cannot load {name!r}{f' ({subset})' if subset else ''}: {error}. Check "
            "the name, "
            "`subset` and the network (HF_HUB_OFFLINE, HF_TOKEN)."
        ) from error
    label = split or name.rsplit("/", 1)[-1]
    return [Row(dict(row), f"{name}, row {i + 1}", f"{label}-{i}") for i, row in enumerate(loaded)]


def _chosen_split(splits: list[str], split: str | None, name: str, where: str) -> str:
    if split is None and len(splits) == 1:
        return splits[0]
    if split not in splits:
        wish = "no split is named" if split is None else f"there is no split {split!r}"
        raise DataError(
            f"{where}: {wish} for {name!r}, which has {', '.join(splits)}. Set `split` to one of them."
        )
    return split
