"""The contrastive loss over whole paths: its values, its pull, and what is preferred to what."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.distillation.contrastive_reasoning import (
    ContrastiveTerm,
    contrastive_loss,
    prefer,
    reference_free_loss,
)

number = st.floats(-50, 0)


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_a_margin_of_0_costs_ln_2_and_beta_m_of_2_what_the_specification_says() -> None:
    start = column(-5.0, -7.0)
    assert contrastive_loss(start, start - 3, start, start - 3).tolist() == pytest.approx([math.log(2)] * 2)
    assert float(
        contrastive_loss(column(-10.0), column(-30.0), column(-10.0), column(-10.0))
    ) == pytest.approx(0.126928, abs=1e-6)
    at = [
        float(torch.exp(-contrastive_loss(column(m), column(0), column(0), column(0)))) for m in (3, 10, 30)
    ]
    assert at == pytest.approx([0.57, 0.73, 0.95], abs=0.006)


@given(number, number, number, number)
def test_its_gradient_raises_the_preferred_path_and_lowers_the_other(
    pos: float, neg: float, ref_pos: float, ref_neg: float
) -> None:
    policy = [column(pos).requires_grad_(), column(neg).requires_grad_()]
    frozen = [column(ref_pos).requires_grad_(), column(ref_neg).requires_grad_()]
    contrastive_loss(*policy, *frozen).sum().backward()
    assert float(policy[0].grad) < 0 < float(policy[1].grad)
    assert all(reference.grad is None for reference in frozen)


@given(number, number, number, number)
def test_swapping_the_roles_turns_the_margin_round(
    pos: float, neg: float, ref_pos: float, ref_neg: float
) -> None:
    one = contrastive_loss(column(pos), column(neg), column(ref_pos), column(ref_neg))
    other = contrastive_loss(column(neg), column(pos), column(ref_neg), column(ref_pos))
    margin = (pos - ref_pos) - (neg - ref_neg)
    assert float(one - other) == pytest.approx(-0.1 * margin, abs=1e-9)


def test_without_a_reference_lengths_count_and_a_margin_is_asked_for() -> None:
    loss = reference_free_loss(column(-4.0), column(-8.0), column(4.0), column(8.0))
    assert float(loss) == pytest.approx(math.log(1 + math.exp(0.5)))
    term = ContrastiveTerm(1.0, reference="none")
    nowhere = column(math.nan)  # the reference is not looked at
    assert float(term(column(-4.0), column(-8.0), nowhere, nowhere, column(4.0), column(8.0))) == float(loss)


def test_the_term_uses_its_own_beta() -> None:
    zero = column(0.0)
    steep = ContrastiveTerm(1.0, beta=1.0)(column(2.0), zero, zero, zero, zero, zero)
    assert float(steep) == pytest.approx(0.126928, abs=1e-6)


RIGHT, WRONG, UNKNOWN = 1, 0, -1


@pytest.mark.parametrize(
    ("producer", "receiver", "by_role", "verified"),
    [
        (RIGHT, WRONG, 1, 1), (RIGHT, RIGHT, 1, 1), (RIGHT, UNKNOWN, 1, 1), (UNKNOWN, UNKNOWN, 1, 1),
        (UNKNOWN, RIGHT, 1, 1), (WRONG, RIGHT, 1, -1), (WRONG, WRONG, 1, 0), (WRONG, UNKNOWN, 1, 1),
    ],
)  # fmt: skip
def test_role_always_prefers_the_producer_and_verified_looks(
    producer: int, receiver: int, by_role: int, verified: int
) -> None:
    assert prefer(producer, receiver, "role") == by_role
    assert prefer(producer, receiver, "verified") == verified
