"""Padding and softening a teacher's rows."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.distillation.targets import SparseTargets, renormalise, soften, target_entropy
from fedtandem.knowledge.sparse_logits import SparseLogits

CPU = torch.device("cpu")


def two_rows_and_a_silent_one() -> SparseLogits:
    """Row 0 keeps ids 2 and 5 (.5, .25), row 1 nothing, row 2 id 4 (all of its mass)."""
    return SparseLogits(
        token_ids=np.array([2, 5, 4], np.int32),
        log_probs=np.log(np.array([0.5, 0.25, 1.0], np.float32)),
        row_splits=np.array([0, 2, 2, 3]),
        tail_log_prob=np.array([math.log(0.25), 0.0, -np.inf], np.float32),
        end_byte=np.zeros(3, np.int32),
        segment=np.ones(3, np.uint8),
        sample_splits=np.array([0, 3]),
    )


def test_rows_are_padded_to_the_longest_and_silent_rows_teach_nothing() -> None:
    targets = SparseTargets.from_sparse(two_rows_and_a_silent_one(), np.array([True, True, True]), CPU)
    assert targets.token_ids.tolist() == [[2, 5], [0, 0], [4, 0]]
    assert targets.log_probs.exp().tolist() == [[0.5, 0.25], [0.0, 0.0], [1.0, 0.0]]
    assert targets.taught.tolist() == [True, False, True]


def test_only_silent_rows_keep_one_column() -> None:
    rows = two_rows_and_a_silent_one().take_rows(np.array([1, 1]))
    targets = SparseTargets.from_sparse(rows, np.ones(2, np.bool_), CPU)
    assert targets.token_ids.shape == (2, 1)
    assert not targets.taught.any()


def test_a_mask_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2,\) but there are 3 rows"):
        SparseTargets.from_sparse(two_rows_and_a_silent_one(), np.ones(2, np.bool_), CPU)


@given(
    logits=st.lists(st.floats(-8, 8), min_size=2, max_size=8),
    temperature=st.sampled_from([0.5, 1.0, 2.0, 3.0]),
)
def test_softening_everything_kept_is_the_softmax_at_that_temperature(
    logits: list[float], temperature: float
) -> None:
    z = torch.tensor([logits])
    whole = SparseTargets(
        torch.arange(len(logits))[None], z.log_softmax(-1), torch.tensor([-torch.inf]), torch.tensor([True])
    )
    assert torch.allclose(soften(whole, temperature).log_probs, (z / temperature).log_softmax(-1), atol=1e-5)


@given(temperature=st.floats(0.25, 8))
def test_softened_mass_is_one_and_silent_rows_stay_silent(temperature: float) -> None:
    targets = SparseTargets.from_sparse(two_rows_and_a_silent_one(), np.ones(3, np.bool_), CPU)
    softened = soften(targets, temperature)
    mass = softened.log_probs.exp().sum(-1) + softened.tail_log_prob.exp()
    assert torch.allclose(mass, torch.ones(3), atol=1e-6)
    assert softened.log_probs[1].isneginf().all()


def test_renormalising_drops_the_tail() -> None:
    targets = SparseTargets.from_sparse(two_rows_and_a_silent_one(), np.ones(3, np.bool_), CPU)
    plain = renormalise(targets)
    assert torch.allclose(plain.log_probs[0].exp(), torch.tensor([2 / 3, 1 / 3]))
    assert plain.tail_log_prob.isneginf().all()
    assert not plain.log_probs.isnan().any()


def test_entropy_of_a_coin_and_of_certainty() -> None:
    targets = SparseTargets.from_sparse(two_rows_and_a_silent_one(), np.ones(3, np.bool_), CPU)
    assert torch.allclose(target_entropy(targets), torch.tensor([1.5 * math.log(2), 0.0, 0.0]), atol=1e-6)
