from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.knowledge.sparse_logits import SparseLogits, ragged_indices, sparsify, splits_of

V = 11


def random_rows(seed: int, samples: list[int], top_k: int = 4) -> SparseLogits:
    """Rows of random logits; `samples` says how many each sample has."""
    draw = torch.Generator().manual_seed(seed)
    n = sum(samples)
    ids, log_probs, counts, tail = sparsify(torch.randn(n, V, generator=draw) * 3, top_k, 0.9)
    return SparseLogits(
        token_ids=ids,
        log_probs=log_probs,
        row_splits=splits_of(counts),
        tail_log_prob=tail,
        end_byte=np.arange(n, dtype=np.int32),
        segment=np.ones(n, np.uint8),
        sample_splits=splits_of(np.array(samples, np.int64)),
    )


shapes = st.lists(st.integers(0, 4), max_size=5)
seeds = st.integers(0, 1000)


@given(seeds, shapes)
def test_what_sparsify_makes_is_valid(seed: int, shape: list[int]) -> None:
    random_rows(seed, shape).validate(V)


@given(seeds, shapes, st.data())
def test_taking_samples_equals_joining_them_one_by_one(
    seed: int, shape: list[int], data: st.DataObject
) -> None:
    rows = random_rows(seed, shape)
    chosen = data.draw(st.lists(st.integers(0, len(shape) - 1), max_size=6)) if shape else []
    one_by_one = SparseLogits.concat([rows.take_samples(np.array([i])) for i in chosen])
    assert rows.take_samples(np.array(chosen, np.int64)).same_as(one_by_one)


@given(seeds, shapes)
def test_taking_everything_is_the_identity(seed: int, shape: list[int]) -> None:
    rows = random_rows(seed, shape)
    assert rows.take_samples(np.arange(len(shape))).same_as(rows)
    assert rows.take_rows(np.arange(rows.n_rows), rows.sample_splits).same_as(rows)
    assert SparseLogits.concat([rows]).same_as(rows)
    assert SparseLogits.concat([SparseLogits.empty(), rows, SparseLogits.empty()]).same_as(rows)


def test_rows_in_another_order_and_twice() -> None:
    rows = random_rows(0, [2, 1])
    taken = rows.take_rows(np.array([2, 0, 2]))
    assert taken.end_byte.tolist() == [2, 0, 2]
    assert taken.sample_splits.tolist() == [0, 3]
    first, last = rows.row_splits[2:4]
    assert taken.token_ids[: last - first].tolist() == rows.token_ids[first:last].tolist()
    taken.validate(V)


def test_samples_without_rows_stay_samples() -> None:
    empty = SparseLogits.empty(3)
    empty.validate(V)
    assert (empty.n_samples, empty.n_rows, empty.n_entries) == (3, 0, 0)
    assert empty.take_samples(np.array([1, 1])).n_samples == 2


def test_a_row_that_says_nothing_is_valid() -> None:
    # What alignment leaves where there is no partner: no entries, all the mass in the tail.
    replace(
        SparseLogits.empty(1),
        row_splits=np.zeros(2, np.int64),
        tail_log_prob=np.zeros(1, np.float32),
        end_byte=np.zeros(1, np.int32),
        segment=np.ones(1, np.uint8),
        sample_splits=np.array([0, 1], np.int64),
    ).validate(V)


def test_ragged_indices_by_hand() -> None:
    assert ragged_indices(np.array([5, 0, 9]), np.array([2, 0, 3])).tolist() == [5, 6, 9, 10, 11]


def spoiled(field: str, at: int, value: float) -> SparseLogits:
    rows = random_rows(0, [2, 1])
    array = getattr(rows, field).copy()
    array[at] = value
    return replace(rows, **{field: array})


@pytest.mark.parametrize(
    ("field", "at", "value", "told"),
    [
        ("token_ids", 0, -1, "token_ids holds -1 at entry 0"),
        ("token_ids", -1, V, f"token_ids holds {V} at entry"),
        ("token_ids", 1, 0, "must ascend"),
        ("log_probs", 1, np.nan, "log_probs holds nan at entry 1"),
        ("log_probs", 1, -np.inf, "log_probs holds -inf"),
        ("log_probs", 1, 0.5, "log_probs holds 0.5"),
        ("log_probs", 0, -30.0, "hold a mass of"),
        ("tail_log_prob", 2, np.nan, "tail_log_prob holds nan at row 2"),
        ("tail_log_prob", 2, np.inf, "tail_log_prob holds inf"),
        ("tail_log_prob", 1, 0.0, "row 1: .* a mass of"),
        ("row_splits", 0, 1, "row_splits runs from"),
        ("row_splits", -1, 99, "row_splits runs from"),
        ("row_splits", 1, np.iinfo(np.int64).min, "row_splits falls"),
        ("sample_splits", 1, 5, "sample_splits falls from 5 to 3"),
        ("end_byte", 0, -2, "end_byte holds -2"),
        ("segment", 0, 2, "segment holds 2"),
    ],
)
def test_what_no_model_can_have_made_is_refused(field: str, at: int, value: float, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        spoiled(field, at, value).validate(V)


@pytest.mark.parametrize(
    "field", ["token_ids", "log_probs", "tail_log_prob", "end_byte", "segment", "sample_splits"]
)
def test_another_dtype_or_length_is_refused(field: str) -> None:
    rows = random_rows(0, [2, 1])
    array = getattr(rows, field)
    with pytest.raises(ValueError, match=field):
        replace(rows, **{field: array.astype(np.float64)}).validate(V)
    with pytest.raises(ValueError, match="expected"):
        replace(rows, **{field: array[:-1]}).validate(V)
