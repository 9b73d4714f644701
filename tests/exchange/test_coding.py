from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedtandem.exchange.coding import (
    from_planes,
    pack_ascending,
    pack_sparse,
    pack_texts,
    to_planes,
    unpack_ascending,
    unpack_sparse,
    unpack_texts,
)
from fedtandem.knowledge.sparse_logits import SparseLogits, sparsify, splits_of

MakeRows = Callable[..., SparseLogits]


@st.composite
def sparse_logits(draw: st.DrawFn) -> tuple[SparseLogits, int]:
    """Rows of any vocabulary size, with samples without rows and rows without entries."""
    samples = draw(st.lists(st.integers(0, 3), max_size=4))
    n = sum(samples)
    vocab_size = draw(st.sampled_from([1, 2, 40, 70_000]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    scale = draw(st.sampled_from([0.0, 1.0, 30.0, 3000.0]))
    logits = torch.randn(n, vocab_size, generator=generator) * scale
    ids, log_probs, counts, tail = sparsify(
        logits, draw(st.integers(1, 64)), draw(st.sampled_from([0.5, 0.99, 1.0]))
    )
    rows = SparseLogits(
        token_ids=ids,
        log_probs=log_probs,
        row_splits=splits_of(counts),
        tail_log_prob=tail,
        end_byte=draw(hnp.arrays(np.int32, n, elements=st.integers(-1, 2**30))),
        segment=draw(hnp.arrays(np.uint8, n, elements=st.integers(0, 1))),
        sample_splits=splits_of(np.array(samples, np.int64)),
    )
    silent = SparseLogits(
        token_ids=np.zeros(0, np.int32),
        log_probs=np.zeros(0, np.float32),
        row_splits=np.zeros(2, np.int64),
        tail_log_prob=np.zeros(1, np.float32),
        end_byte=np.zeros(1, np.int32),
        segment=np.zeros(1, np.uint8),
        sample_splits=np.array([0, 1], np.int64),
    )
    return SparseLogits.concat([rows, silent] if draw(st.booleans()) else [rows]), vocab_size


def halved(rows: SparseLogits) -> SparseLogits:
    """The same rows with values half precision can hold."""
    log_probs = np.maximum(rows.log_probs, -65504).astype(np.float16).astype(np.float32)
    tail = rows.tail_log_prob.astype(np.float16).astype(np.float32)
    return replace(rows, log_probs=log_probs + 0.0, tail_log_prob=tail + 0.0)


@given(sparse_logits())
def test_unpacking_undoes_packing_given_half_precision_values(case: tuple[SparseLogits, int]) -> None:
    rows, vocab_size = case
    assert unpack_sparse(pack_sparse(halved(rows)), vocab_size=vocab_size).same_as(halved(rows))


@given(sparse_logits())
def test_half_precision_moves_a_log_probability_by_a_two_thousandth_at_most(
    case: tuple[SparseLogits, int],
) -> None:
    rows, vocab_size = case
    again = unpack_sparse(pack_sparse(rows), vocab_size=vocab_size)
    np.testing.assert_allclose(again.log_probs, rows.log_probs, rtol=2**-11, atol=1e-7)
    np.testing.assert_allclose(again.tail_log_prob, rows.tail_log_prob, rtol=2**-11, atol=1e-7)


@given(sparse_logits())
def test_steps_move_a_log_probability_by_half_a_step_down_to_sixteen_nats(
    case: tuple[SparseLogits, int],
) -> None:
    rows, vocab_size = case
    again = unpack_sparse(pack_sparse(rows, values="u8"), values="u8", vocab_size=vocab_size)
    row_of = np.repeat(np.arange(rows.n_rows), np.diff(rows.row_splits))
    highest = np.full(rows.n_rows, -np.inf)
    np.maximum.at(highest, row_of, rows.log_probs)
    expected = np.maximum(rows.log_probs, (highest[row_of] - 255 / 16))
    slack = 1 / 32 + np.abs(highest[row_of]) * 2**-11 + 1e-5
    assert (np.abs(again.log_probs - expected) <= slack).all()
    assert np.array_equal(again.token_ids, rows.token_ids)


@given(sparse_logits(), st.sampled_from(["fp16", "u8"]))
def test_what_was_unpacked_packs_to_the_same_arrays(case: tuple[SparseLogits, int], values: str) -> None:
    packed = pack_sparse(case[0], values=values)  # type: ignore[arg-type]
    again = pack_sparse(unpack_sparse(packed, values=values), values=values)  # type: ignore[arg-type]
    assert packed.keys() == again.keys()
    assert all(np.array_equal(packed[name], again[name]) for name in packed)


def test_ids_travel_as_gaps_in_as_few_byte_planes_as_they_need(rows: MakeRows) -> None:
    # Ids 3, 4, 9 of one row and 7 of the next: first id, then ids left out in between.
    two = replace(
        SparseLogits.empty(1),
        token_ids=np.array([3, 4, 9, 7], np.int32),
        log_probs=np.log(np.array([0.5, 0.25, 0.25, 1.0], np.float32)),
        row_splits=np.array([0, 3, 4]),
        tail_log_prob=np.full(2, -np.inf, np.float32),
        end_byte=np.array([0, 5], np.int32),
        segment=np.ones(2, np.uint8),
        sample_splits=np.array([0, 2]),
    )
    packed = pack_sparse(two)
    assert packed["ids"].tolist() == [[3, 0, 4, 7]]
    assert packed["counts"].tolist() == [[3, 1]]
    assert len(pack_sparse(replace(two, token_ids=np.array([3, 4, 900, 7], np.int32)))["ids"]) == 2
    assert len(pack_sparse(replace(two, token_ids=np.array([3, 4, 70_000, 7], np.int32)))["ids"]) == 3


def test_an_id_outside_the_producers_vocabulary_is_refused(rows: MakeRows) -> None:
    sent = rows()
    highest = int(sent.token_ids.max())
    unpack_sparse(pack_sparse(sent), vocab_size=highest + 1)
    with pytest.raises(ValueError, match=f"token_ids holds {highest} at entry .* ends at {highest - 1}"):
        unpack_sparse(pack_sparse(sent), vocab_size=highest)


@pytest.mark.parametrize(
    ("name", "array", "told"),
    [
        ("ids", np.zeros((1, 2), np.uint8), "ids is"),
        ("ids", np.zeros((9, 20), np.uint8), "ids is"),
        ("ids", np.full((4, 25), 255, np.uint8), "token_ids holds"),
        ("counts", np.full((4, 5), 255, np.uint8), "counts adds up to"),
        ("counts", np.array([[5, 5, 5, 5, 0], [0] * 5], np.uint8), "highest of them empty"),
        ("samples", np.array([[9]], np.uint8), "end is"),
        ("samples", np.full((4, 3), 255, np.uint8), "samples adds up to"),
        ("end", np.ones((1, 5), np.uint8), "end reaches from"),
        ("end", np.full((4, 5), 255, np.uint8), "end reaches from"),
        ("segment", np.full(5, 2, np.uint8), "segment holds 2"),
        ("segment", np.ones(5, np.int8), "segment is"),
        ("tail", np.full((2, 5), 255, np.uint8), "tail_log_prob holds nan"),
        ("tail", np.zeros((2, 5), np.uint8), "a mass of"),
        ("tail", np.array([[0] * 5, [128] * 5], np.uint8), "holds -0.0"),
        ("values", np.zeros((2, 3), np.uint8), "values is"),
    ],
)
def test_arrays_that_contradict_each_other_are_refused(
    rows: MakeRows, name: str, array: np.ndarray, told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        unpack_sparse(pack_sparse(rows()) | {name: array}, vocab_size=300)


def test_a_row_of_steps_must_reach_its_peak(rows: MakeRows) -> None:
    packed = pack_sparse(rows(), values="u8")
    with pytest.raises(ValueError, match="step 0"):
        unpack_sparse(packed | {"values": packed["values"] + np.uint8(1)}, values="u8")
    with pytest.raises(ValueError, match="rows consist of"):
        unpack_sparse(packed, values="fp16")


@given(st.lists(st.integers(0, 2**32 - 1), max_size=20))
def test_planes_come_back_and_are_no_wider_than_needed(numbers: list[int]) -> None:
    planes = to_planes(np.array(numbers, np.int64))
    assert from_planes("n", planes).tolist() == numbers
    assert len(planes) == max(1, (max(numbers, default=0).bit_length() + 7) // 8)


@pytest.mark.parametrize("number", [-1, 2**32])
def test_numbers_that_do_not_fit_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match="four byte planes"):
        to_planes(np.array([number]))


@given(st.sets(st.integers(0, 2**31 - 1), max_size=20))
def test_ascending_numbers_come_back(numbers: set[int]) -> None:
    assert unpack_ascending(pack_ascending(np.array(sorted(numbers), np.int64))).tolist() == sorted(numbers)


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=6), max_size=6))
def test_texts_come_back_letter_for_letter(texts: list[str]) -> None:
    assert unpack_texts(pack_texts(texts)) == tuple(texts)


def test_texts_cut_inside_a_letter_are_refused() -> None:
    packed = pack_texts(["é"])
    with pytest.raises(ValueError, match="utf-8"):
        unpack_texts({"bytes": packed["bytes"], "lengths": to_planes(np.array([1, 1]))})
    with pytest.raises(ValueError, match="bytes is"):
        unpack_texts({"bytes": packed["bytes"], "lengths": to_planes(np.array([9]))})
