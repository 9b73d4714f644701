"""Split one set among parties: evenly, by skewed labels, or by a field such as the author."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedtandem.data.public import Sample
from fedtandem.errors import DataError


@dataclass(frozen=True)
class Partition:
    """Which share of a set belongs to a party. All parties state the same split and their own `index`."""

    kind: Literal["iid", "dirichlet", "field"]
    parts: int
    index: int
    """This party's part, 0 <= index < parts."""
    alpha: float = 0.5
    """Dirichlet concentration: small is skewed, large is even."""
    field: str | None = None
    """Column to split by (`field`), or whose value is the label (`dirichlet`; None: the sample's label)."""
    until: str | None = None
    """The column's value counts up to this mark: "_" makes "Eliot" of the source "Eliot_Adam_1859"."""
    seed: int = 0


def take_part(samples: Sequence[Sample], partition: Partition, *, where: str) -> list[Sample]:
    """This party's samples, in their original order.

    Raises:
        DataError: the index lies outside the parts, the column is missing, or the part is empty.
    """
    if not 0 <= partition.index < partition.parts:
        raise DataError(
            f"{where}: partition.index is {partition.index}, but there are {partition.parts} parts: "
            f"use 0 to {partition.parts - 1}."
        )
    if len(samples) < partition.parts:
        raise DataError(
            f"{where}: {len(samples)} samples cannot be split into {partition.parts} non-empty parts."
        )
    mine = partition_indices(samples, partition, where=where)[partition.index]
    return [samples[i] for i in mine]


def partition_indices(
    samples: Sequence[Sample], partition: Partition, *, where: str
) -> list[NDArray[np.int64]]:
    """Every part's sample indices: ascending, disjoint, together all of 0..N-1."""
    rng = np.random.default_rng(partition.seed)
    if partition.kind == "iid":
        return iid_parts(len(samples), partition.parts, rng)
    if partition.kind == "dirichlet":
        labels = [_label_of(sample, partition, where) for sample in samples]
        return dirichlet_parts(labels, partition.parts, partition.alpha, rng)
    if partition.field is None:
        raise DataError(f'{where}: partition.kind = "field" needs partition.field, the column to split by.')
    groups = [_field_of(sample, partition, where) for sample in samples]
    return field_parts(groups, partition.parts, where=where)


def iid_parts(n: int, parts: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """A random split into parts whose sizes differ by at most one."""
    return [np.sort(part).astype(np.int64) for part in np.array_split(rng.permutation(n), parts)]


def dirichlet_parts(
    labels: Sequence[str], parts: int, alpha: float, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Skewed labels: each label's samples go to the parts in shares drawn from Dirichlet(alpha).

    A part left empty by the draw receives one sample of the largest part, so every party can train.

    Source: Hsu et al. 2019, arXiv:1909.06335 (shares are drawn per label here, so the cover is exact).
    """
    return alike_parts([labels], parts, alpha, rng)[0]


def alike_parts(
    sets: Sequence[Sequence[str]], parts: int, alpha: float, rng: np.random.Generator
) -> list[list[NDArray[np.int64]]]:
    """`dirichlet_parts` of several sets with the same shares: part i is as skewed in training as in the test."""
    names = [np.asarray(labels) for labels in sets]
    owners = [np.empty(len(labels), dtype=np.int64) for labels in sets]
    for label in sorted({label for labels in sets for label in labels}):
        shares: NDArray[np.float64] | None = None
        for owner, mine in zip(owners, names, strict=True):
            members = rng.permutation(np.flatnonzero(mine == label))
            shares = rng.dirichlet(np.full(parts, alpha)) if shares is None else shares
            cuts = np.rint(np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
            for part, chunk in enumerate(np.split(members, cuts)):
                owner[chunk] = part
    for owner in owners:
        for part in range(parts):
            if not (owner == part).any() and len(owner) >= parts:
                largest = np.bincount(owner, minlength=parts).argmax()
                owner[rng.choice(np.flatnonzero(owner == largest))] = part
    return [[np.flatnonzero(owner == part).astype(np.int64) for part in range(parts)] for owner in owners]


def field_parts(groups: Sequence[str], parts: int, *, where: str) -> list[NDArray[np.int64]]:
    """Whole groups go to parts: one group each where the counts agree, else the largest to the smallest part.

    With as many parts as groups, part i holds the i-th group by name.
    """
    names = np.asarray(groups)
    distinct, counts = np.unique(names, return_counts=True)
    if len(distinct) < parts:
        raise DataError(
            f"{where}: the partition field has {len(distinct)} values ({', '.join(map(str, distinct[:5]))}), "
            f"too few for {parts} parts: a group is never split."
        )
    if len(distinct) == parts:
        return [np.flatnonzero(names == name).astype(np.int64) for name in distinct]
    load = np.zeros(parts, dtype=np.int64)
    members: list[list[str]] = [[] for _ in range(parts)]
    for position in np.argsort(-counts, kind="stable"):
        part = int(load.argmin())
        load[part] += counts[position]
        members[part].append(str(distinct[position]))
    return [np.flatnonzero(np.isin(names, chosen)).astype(np.int64) for chosen in members]


def _label_of(sample: Sample, partition: Partition, where: str) -> str:
    if partition.field is not None:
        return _field_of(sample, partition, where)
    if sample.label is not None:
        return str(sample.label)
    if sample.answer is None:
        raise DataError(
            f"{where}: sample {sample.id!r} has no label to split by; name a column in partition.field."
        )
    return sample.answer


def _field_of(sample: Sample, partition: Partition, where: str) -> str:
    if partition.field is None or partition.field not in sample.fields:
        raise DataError(
            f"{where}: sample {sample.id!r} has no column {partition.field!r} to split by; "
            f"its columns are {', '.join(sorted(sample.fields)) or 'none'}."
        )
    value = str(sample.fields[partition.field])
    return value if partition.until is None else value.split(partition.until, 1)[0]
