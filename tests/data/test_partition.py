"""Parts cover a set exactly, whatever the kind, and the same seed draws the same parts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.data.partition import Partition, alike_parts, dirichlet_parts, partition_indices, take_part
from fedtandem.data.public import Sample
from fedtandem.errors import DataError

AUTHORS = ["Eliot_Adam", "Eliot_Mill", "Hardy_Tess", "James_Ambassadors"]
sets = st.lists(st.tuples(st.integers(0, 3), st.sampled_from(AUTHORS)), min_size=6, max_size=60).map(
    lambda rows: [
        Sample(str(i), "p", " a", label=label, fields={"source": s}) for i, (label, s) in enumerate(rows)
    ]
)
kinds = st.sampled_from(["iid", "dirichlet"])


@given(sets, kinds, st.integers(1, 6), st.sampled_from([0.05, 0.5, 100.0]), st.integers(0, 3))
def test_parts_are_disjoint_cover_everything_and_none_is_empty(
    samples: list[Sample], kind: str, parts: int, alpha: float, seed: int
) -> None:
    partition = Partition(kind, parts, 0, alpha=alpha, seed=seed)  # type: ignore[arg-type]
    cover = partition_indices(samples, partition, where="x")
    assert sorted(np.concatenate(cover).tolist()) == list(range(len(samples)))
    assert len(cover) == parts
    assert all(len(part) for part in cover)
    again = partition_indices(samples, partition, where="x")
    assert all(np.array_equal(a, b) for a, b in zip(cover, again, strict=True))


@given(sets, st.integers(1, 4))
def test_a_group_is_never_split(samples: list[Sample], parts: int) -> None:
    authors = {str(sample.fields["source"]) for sample in samples}
    partition = Partition("field", parts, 0, field="source")
    if len(authors) < parts:
        with pytest.raises(DataError, match="too few"):
            take_part(samples, partition, where="x")
        return
    cover = [
        {samples[i].fields["source"] for i in part}
        for part in partition_indices(samples, partition, where="x")
    ]
    assert sum(len(group) for group in cover) == len(set.union(*map(set, cover))) == len(authors)


def test_iid_sizes_differ_by_at_most_one_and_dirichlet_skews_with_small_alpha() -> None:
    labels = [str(i % 4) for i in range(400)]
    rng = np.random.default_rng(0)

    def largest_share(alpha: float) -> float:
        parts = dirichlet_parts(labels, 4, alpha, rng)
        return float(np.mean([max(np.bincount(part % 4, minlength=4)) / len(part) for part in parts]))

    assert largest_share(0.05) > 0.6 > largest_share(1000.0)
    sizes = [len(p) for p in partition_indices([Sample(str(i), "p", "a") for i in range(11)], Partition("iid", 4, 0),
                                               where="x")]  # fmt: skip
    assert sorted(sizes) == [2, 3, 3, 3]


def test_authors_of_several_books_go_by_the_name_before_the_mark() -> None:
    samples = [Sample(str(i), "", " a", fields={"source": source}) for i, source in enumerate(AUTHORS)]
    mine = take_part(samples, Partition("field", 3, 0, field="source", until="_"), where="x")
    assert [sample.fields["source"] for sample in mine] == ["Eliot_Adam", "Eliot_Mill"]


def test_impossible_parts_are_refused() -> None:
    samples = [Sample("a", "p", None), Sample("b", "p", None)]
    for partition, words in [
        (Partition("iid", 2, 2), "index is 2.*use 0 to 1"),
        (Partition("iid", 3, 0), "2 samples cannot be split into 3"),
        (Partition("field", 2, 0), "needs partition.field"),
        (Partition("field", 2, 0, field="author"), "no column 'author' to split by; its columns are none"),
        (Partition("dirichlet", 2, 0), "'a' has no label to split by"),
    ]:
        with pytest.raises(DataError, match=words):
            take_part(samples, partition, where="client 3")


def test_sets_that_are_split_alike_have_the_same_shares_in_every_part() -> None:
    train, test = ["a"] * 4000 + ["b"] * 2000, ["b"] * 1000 + ["a"] * 1000
    parts = alike_parts([train, test], 5, 0.3, np.random.default_rng(3))
    for labels, cut in zip((train, test), parts, strict=True):
        assert sorted(np.concatenate(cut).tolist()) == list(range(len(labels)))
    for label in "ab":
        shares = [
            [sum(labels[i] == label for i in part) / labels.count(label) for part in cut]
            for labels, cut in zip((train, test), parts, strict=True)
        ]
        np.testing.assert_allclose(*shares, atol=0.002)
    alone = dirichlet_parts(train, 5, 0.3, np.random.default_rng(3))
    again = alike_parts([train], 5, 0.3, np.random.default_rng(3))[0]
    assert all(np.array_equal(a, b) for a, b in zip(alone, again, strict=True))
