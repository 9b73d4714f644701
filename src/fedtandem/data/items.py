"""What a trace is recorded on: a user's rows, each with the client it belongs to and that client's edge."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fedtandem.data.files import Row, read_file
from fedtandem.data.formats import row_id
from fedtandem.data.load import load_samples
from fedtandem.data.partition import dirichlet_parts, iid_parts
from fedtandem.data.public import references_of
from fedtandem.data.source import DataSource
from fedtandem.data.template import as_text
from fedtandem.errors import ConfigError, DataError

TEXT_COLUMNS = ("text", "prompt", "question", "sentence")
"""Where a text is looked for when no column is named."""
CLIENT, CLUSTER = "client", "cluster"


@dataclass(frozen=True)
class Item:
    """One row to decide on.

    Attributes:
        id: unique in the data.
        text: a document, or a prompt.
        client, cluster: whose it is, and behind which edge.
        label: index of its class; -1 where it is unknown.
        references: accepted answers; () where none is known.
    """

    id: str
    text: str
    client: str = ""
    cluster: str = ""
    label: int = -1
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class Columns:
    """Where a row says what; None takes the usual name if it is there."""

    text: str | None = None
    label: str | None = None
    client: str | None = None
    cluster: str | None = None


@dataclass(frozen=True)
class Assignment:
    """Clients for rows that name none.

    Attributes:
        clients, clusters: how many; client i is behind edge i mod clusters.
        alpha: Dirichlet concentration of the labels; None shares rows out evenly.
        seed: of the draw.
    """

    clients: int
    clusters: int
    alpha: float | None = None
    seed: int = 0


def read_documents(path: Path, columns: Columns, labels: Sequence[str], limit: int | None) -> list[Item]:
    """Texts to be classified.

    Args:
        path: JSON Lines (also .gz) or Parquet.
        labels: names of the classes; a row's label is one of them, or its index.
        limit: at most so many rows.

    Raises:
        DataError: no file, no row, no text, or a label that is no class.
    """
    items = []
    for row in _rows(path, limit):
        text = _text(row, columns.text)
        label = _label(row, columns.label, labels)
        items.append(Item(row_id(row), text, *_party(row.values, row.place, columns), label=label))
    return _checked(items, path)


def read_prompts(
    path: Path, columns: Columns, *, preset: str | None, answered: bool, limit: int | None
) -> list[Item]:
    """Prompts to be continued, with their accepted answers where `answered`.

    Raises:
        DataError: no file, no prompt, or no answer where one is needed.
        ConfigError: no such preset.
    """
    _need_file(path)
    renamed = {} if columns.text is None else {"prompt": columns.text}
    if columns.label is not None:
        renamed["answer"] = columns.label
    source = DataSource(path=str(path), preset=preset, columns=renamed, labelled=answered, limit=limit)
    items = []
    for sample in load_samples(source, where="data"):
        references = references_of(sample) if answered else ()
        party = _party(sample.fields, f"row {sample.id!r}", columns)
        items.append(Item(sample.id, sample.prompt, *party, references=references))
    return _checked(items, path)


def assigned(items: Sequence[Item], how: Assignment) -> list[Item]:
    """The items with drawn clients.

    Raises:
        ConfigError: more clients than items, more edges than clients, or labels wanted that are unknown.
    """
    if not 1 <= how.clusters <= how.clients <= len(items):
        raise ConfigError(
            f"--clients {how.clients} and --clusters {how.clusters} for {len(items)} rows; give at most as many "
            "edges as clients, and at most as many clients as rows."
        )
    rng = np.random.default_rng(how.seed)
    if how.alpha is None:
        parts = iid_parts(len(items), how.clients, rng)
    else:
        if not how.alpha > 0:
            raise ConfigError(f"--alpha {how.alpha:g}; expected a concentration above 0, e.g. 0.5.")
        if any(item.label < 0 for item in items):
            raise ConfigError("--alpha skews labels, but the rows have none: name their column with --label.")
        parts = dirichlet_parts([str(item.label) for item in items], how.clients, how.alpha, rng)
    owner = np.empty(len(items), dtype=np.int64)
    for i, part in enumerate(parts):
        owner[part] = i
    width = len(str(how.clients - 1))
    return [
        replace(item, client=f"client-{i:0{width}d}", cluster=f"edge-{i % how.clusters}")
        for item, i in zip(items, owner.tolist(), strict=True)
    ]


def _rows(path: Path, limit: int | None) -> list[Row]:
    _need_file(path)
    return list(read_file(path, where="data"))[:limit]


def _need_file(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"there is no file {path}; give JSON lines (also .gz) or Parquet.")


def _text(row: Row, column: str | None) -> str:
    names = TEXT_COLUMNS if column is None else (column,)
    for name in names:
        value = row.values.get(name)
        if isinstance(value, str) and value.strip():
            return value
    raise DataError(
        f"{row.place} has no text under {' or '.join(map(repr, names))}; its columns are {', '.join(row.values)}. "
        "Name one with --text."
    )


def _label(row: Row, column: str | None, labels: Sequence[str]) -> int:
    value = row.values.get(column or "label")
    if value is None:
        if column is None:
            return -1
        raise DataError(f"{row.place} has no column {column!r}; its columns are {', '.join(row.values)}.")
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(labels):
        return value
    named = as_text(value)
    if named in labels:
        return list(labels).index(named)
    raise DataError(
        f"{row.place}: label {value!r} is no class of the models; they are {', '.join(labels)} (0 to "
        f"{len(labels) - 1})."
    )


def _party(values: Mapping[str, object], place: str, columns: Columns) -> tuple[str, str]:
    found = []
    for wanted, usual in ((columns.client, CLIENT), (columns.cluster, CLUSTER)):
        value = values.get(wanted or usual)
        if value is None and wanted is not None:
            raise DataError(f"{place} has no column {wanted!r}; its columns are {', '.join(values)}.")
        found.append("" if value is None else as_text(value))
    return found[0] or "client-0", found[1] or "edge-0"


def _checked(items: list[Item], path: Path) -> list[Item]:
    if not items:
        raise DataError(f"{path} holds no rows.")
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise DataError(
                f"{path}: the id {item.id!r} stands twice; ids name decisions, so give each its own."
            )
        seen.add(item.id)
    return items
