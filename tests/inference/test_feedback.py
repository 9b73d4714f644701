"""Feedback: β against enumeration, the mean of β is the total variation, and equation (7)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.inference.feedback import (
    disagreement,
    greedy_rejection_probability,
    rejection_probability,
    total_variation,
)

weights = st.lists(st.integers(0, 6), min_size=4, max_size=4).filter(any)


def law(w):
    return torch.tensor(w, dtype=torch.float64) / sum(w)


@given(weights, weights)
def test_the_mean_of_beta_is_the_total_variation(q, p):
    q, p = law(q), law(p)
    mean = (q * rejection_probability(q, p)).sum()
    torch.testing.assert_close(mean, total_variation(q, p), atol=1e-12, rtol=0)
    torch.testing.assert_close(total_variation(q, p), (q - p).abs().sum() / 2, atol=1e-12, rtol=0)


@given(weights, weights, st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_skipped_mass_is_the_error_of_the_output_law(q, p, skip):
    """Equation (7), for a gate that looks at the draft: it skips draft d with probability skip[d]."""
    q, p, kept = law(q), law(p), torch.tensor(skip, dtype=torch.float64)
    shown = q * kept
    sent = q * (1 - kept)
    # A sent draft is accepted with min(1, p/q); rejected mass is drawn again from the residual.
    beta = rejection_probability(q, p)
    residual = (p - q).clamp_min(0)
    residual = residual / residual.sum() if residual.sum() > 0 else residual
    output = shown + sent * (1 - beta) + (sent * beta).sum() * residual
    # The distance is what was skipped though p holds less of it.
    torch.testing.assert_close(total_variation(output, p), (shown * beta).sum(), atol=1e-12, rtol=0)


@given(weights, weights)
def test_a_greedy_draft_is_judged_as_the_one_hot_law_it_comes_from(q, p):
    q, p = law(q), law(p)
    d = int(q.argmax())
    one_hot = torch.zeros(4, dtype=torch.float64)
    one_hot[d] = 1
    torch.testing.assert_close(greedy_rejection_probability(p[d]), total_variation(one_hot, p))


def test_black_box_feedback_and_edges():
    assert disagreement(torch.tensor([1, 2]), torch.tensor([1, 3])).tolist() == [0, 1]
    zero = torch.zeros(1)
    assert rejection_probability(zero, zero).item() == 0
    assert rejection_probability(torch.ones(1), zero).item() == 1
    with pytest.raises(ValueError, match="same"):
        rejection_probability(torch.ones(2), torch.ones(3))
