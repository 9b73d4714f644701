"""Uncertainties: between 0 and 1, blind to shifts and order, certain of the certain; the closed form is a mean."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.inference.scorer import fit_scorer, scorer_features
from fedtandem.inference.uncertainty import MEASURES, expected, margin, max_prob, perturbation, top_logits

rows = st.lists(st.floats(-60, 60, width=32), min_size=1, max_size=9)


@pytest.mark.parametrize("name", MEASURES)
@given(row=rows, shift=st.floats(-20, 20), seed=st.integers(0, 99))
def test_a_measure_is_in_the_unit_interval_and_blind_to_shift_and_order(name, row, shift, seed):
    z = torch.tensor(row)
    u = MEASURES[name](z)
    assert u.shape == ()
    assert 0 <= u <= 1
    shuffled = z[torch.randperm(len(row), generator=torch.Generator().manual_seed(seed))]
    torch.testing.assert_close(MEASURES[name](shuffled + shift), u, atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", MEASURES)
def test_certain_is_zero_flat_is_the_most_and_masked_tokens_count_for_nothing(name):
    certain, flat = torch.tensor([40.0, 0, 0, 0]), torch.zeros(4)
    assert MEASURES[name](certain) < 1e-6
    wanted = {"expected": 0.75, "entropy": 1.0, "margin": 1.0, "max_prob": 0.75}
    torch.testing.assert_close(MEASURES[name](flat), torch.tensor(wanted[name]))
    assert MEASURES[name](torch.tensor([3.0])) == 0
    masked = torch.tensor([1.0, 0.5, -torch.inf])
    assert torch.isfinite(MEASURES[name](masked))


@given(rows, st.data())
def test_the_draft_free_form_is_the_mean_over_drafts(row, data):
    z = torch.tensor(row)
    drafts = torch.arange(len(row))
    of_each = expected(z.expand(len(row), -1), drafts)
    torch.testing.assert_close((z.softmax(-1) * of_each).sum(), expected(z), atol=1e-5, rtol=0)


@given(rows, st.data())
def test_expected_of_a_draft_by_its_definition(row, data):
    z = torch.tensor(row, dtype=torch.float64)
    d = data.draw(st.integers(0, len(row) - 1))
    by_hand = 1 - sum(float((z / (2 * (m + 0.5) / 16)).softmax(-1)[d]) for m in range(16)) / 16
    assert float(expected(z, torch.tensor(d))) == pytest.approx(by_hand, abs=1e-5)


def test_expected_is_the_mean_of_perturbation():
    z = torch.tensor([[2.0, 1.0, 0.3, -1.0], [0.1, 0.0, 0.0, -0.1], [6.0, 1.0, 0.0, 0.0]])
    temperatures = 2 * (torch.arange(16) + 0.5) / 16
    noise = torch.Generator().manual_seed(0)
    drawn = perturbation(z.repeat_interleave(4000, 0), noise, temperatures=temperatures).reshape(3, 4000)
    # 64,000 draws: a standard error below 0.002.
    torch.testing.assert_close(drawn.mean(1), expected(z, z.argmax(-1)), atol=0.008, rtol=0)
    # And sixteen midpoints stand for the whole of U(0, 2].
    published = perturbation(z.repeat_interleave(4000, 0), noise).reshape(3, 4000)
    torch.testing.assert_close(published.mean(1), expected(z, z.argmax(-1)), atol=0.02, rtol=0)
    assert published[0].std() > 0.08  # the noise that the closed form is rid of


def test_sixty_four_logits_keep_the_order_of_a_vocabulary():
    # Not the value: at temperatures near 2 a long tail has weight. A threshold is calibrated on what it cuts.
    noise = torch.Generator().manual_seed(1)
    z = torch.randn(200, 20_000, generator=noise) * 2
    z[:, :3] += 20 * torch.rand(200, 3, generator=noise)
    top, ids = top_logits(z)
    assert torch.equal(ids[:, 0], z.argmax(-1))
    few = expected(top, torch.zeros(200, dtype=torch.int64))
    whole = expected(z, z.argmax(-1))
    ranks = torch.stack([few.argsort().argsort().double(), whole.argsort().argsort().double()])
    assert torch.corrcoef(ranks)[0, 1] > 0.95
    assert bool((few <= whole + 1e-5).all())


def test_margin_and_max_prob_by_hand():
    z = torch.tensor([0.5, 0.3, 0.2]).log()
    assert float(margin(z)) == pytest.approx(0.8)
    assert float(max_prob(z)) == pytest.approx(0.5)


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_row_is_refused_by_its_number(name, bad):
    z = torch.zeros(3, 4)
    z[1, 2] = bad
    with pytest.raises(ValueError, match="row 1 of the logits"):
        MEASURES[name](z)
    with pytest.raises(ValueError, match="row 0 of the logits"):
        MEASURES[name](torch.full((1, 3), -torch.inf))


def test_a_learned_scorer_learns_what_no_single_measure_says():
    # Rejection depends on the position alone: only the scorer can see it.
    noise = torch.Generator().manual_seed(3)
    z = torch.randn(3000, 6, generator=noise)
    position = torch.randint(0, 50, (3000,), generator=noise)
    beta = (position > 20).float()
    scorer = fit_scorer(z[:2000], position[:2000], beta[:2000], noise)
    u = scorer(z[2000:], position[2000:])
    assert ((u > 0.5).float() == beta[2000:]).float().mean() > 0.95
    assert bool(((u >= 0) & (u <= 1)).all())
    assert scorer_features(torch.zeros(2, 3), torch.zeros(2)).shape == (2, 8)
    with pytest.raises(ValueError, match="all in"):
        fit_scorer(z[:2], position[:2], torch.tensor([0.0, 1.5]), noise)
