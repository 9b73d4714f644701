"""From a data source to samples: read, filter, convert, cut, share out, shuffle, limit."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np

from fedtandem.data.files import Row, read_rows
from fedtandem.data.formats import Decision, EmptyAnswer, convert, decide, renamed
from fedtandem.data.partition import take_part
from fedtandem.data.presets import with_preset
from fedtandem.data.public import Sample, check_samples
from fedtandem.data.source import DataSource
from fedtandem.data.template import as_text
from fedtandem.data.windows import part_of_rows, text_samples
from fedtandem.errors import ConfigError, DataError

CHAINS = "embedded:chains"
"""The path that means the built-in playground."""


@dataclass(frozen=True)
class Loaded:
    """Samples, and how their rows were understood."""

    samples: list[Sample]
    decision: Decision


def load_samples(source: DataSource, *, where: str) -> list[Sample]:
    """Load a party's samples.

    Args:
        where: names the party and the set in messages, e.g. "client clinic-a, private data".

    Raises:
        DataError: a missing file, a wrong column, an empty answer, nothing left; names file, line, column.
    """
    return load(source, where=where).samples


def load(source: DataSource, *, where: str) -> Loaded:
    """The same, together with the decision on the rows' format."""
    try:
        source = with_preset(source)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    if source.path == CHAINS:
        samples, decision = _chains(source, where)
        if source.part is not None:
            samples = [samples[i] for i in part_of_rows(len(samples), source.part)]
    else:
        samples, decision = _from_rows(source, where)
    if source.partition is not None:
        samples = take_part(samples, source.partition, where=where)
    if source.shuffle:
        samples = [samples[i] for i in np.random.default_rng(source.seed).permutation(len(samples))]
    samples = limited(samples, source.limit, source.limit_bytes)
    if not samples:
        raise DataError(f"{where}: no samples are left of {source.title}. Loosen filter, part or limit.")
    check_samples(samples, labelled=source.labelled, where=where)
    return Loaded(samples, decision)


def _from_rows(source: DataSource, where: str) -> tuple[list[Sample], Decision]:
    rows = read_rows(source, where=where)
    if not rows:
        raise DataError(f"{where}: {source.title} holds no rows.")
    decision = decide(source, rows, where=where)
    rows = filtered([renamed(row, source, where=where) for row in rows], source, where=where)
    if decision.format == "text":
        return text_samples(rows, source, where=where), decision
    if source.part is not None:
        rows = [rows[i] for i in part_of_rows(len(rows), source.part)]
    samples = []
    for row in rows:
        try:
            samples.append(convert(row, source, decision.format, where=where))
        except EmptyAnswer:
            if source.on_empty == "error":
                raise
    return samples, replace(decision, dropped=len(rows) - len(samples))


def filtered(rows: Sequence[Row], source: DataSource, *, where: str) -> list[Row]:
    """Rows whose every filtered column matches one of its globs (case counts).

    Raises:
        DataError: a row lacks a filtered column, or no row matches; names some values there are.
    """
    kept = list(rows)
    for column, wanted in source.filter.items():
        globs = (wanted,) if isinstance(wanted, str) else tuple(wanted)
        for row in kept:
            if column not in row.values:
                raise DataError(
                    f"{where}: {row.place} has no column {column!r} to filter by; its columns are "
                    f"{', '.join(row.values)}."
                )
        values = {as_text(row.values[column]) for row in kept}
        match = {value for value in values if any(fnmatchcase(value, glob) for glob in globs)}
        if not match:
            some = ", ".join(sorted(values)[:8])
            raise DataError(f"{where}: no row has a {column} like {' or '.join(globs)}; there are {some}.")
        kept = [row for row in kept if as_text(row.values[column]) in match]
    return kept


def limited(samples: list[Sample], limit: int | None, limit_bytes: int | None) -> list[Sample]:
    """The first samples within both limits; one is kept whatever its bytes."""
    samples = samples if limit is None else samples[:limit]
    if limit_bytes is None or not samples:
        return samples
    total = np.cumsum([sample.n_bytes for sample in samples])
    return samples[: max(1, int(np.searchsorted(total, limit_bytes, side="right")))]


def _chains(source: DataSource, where: str) -> tuple[list[Sample], Decision]:
    if source.chains is None:
        raise DataError(f'{where}: path = "{CHAINS}" needs a `chains` section: how many, operators, steps.')
    samples = source.chains.samples()
    if not source.labelled:
        samples = [replace(sample, answer=None) for sample in samples]
    decision = Decision("prompt_completion", f'path = "{CHAINS}"', ("id", "prompt", "answer"))
    return samples, decision
