"""Curves: by hand, by brute force, and the identities that chance and the oracle must satisfy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.evaluation.curves import (
    apgr,
    at_share,
    bootstrap_means,
    calls_for,
    calls_for_pgr,
    middle,
    oracle_curve,
    pgr,
    quality_curve,
    random_curve,
    worst_decile,
)
from fedtandem.selection.rank_correlation import spearman

bits = st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.booleans()), min_size=1, max_size=20)


def arrays(rows):
    rank, slm, llm = (np.array(c, dtype=float) for c in zip(*rows, strict=True))
    return rank, slm, llm


def test_four_decisions_by_hand():
    # Ranked: the first call mends an error, the second changes nothing, the third breaks one, the last mends one.
    rank, slm, llm = np.array([4.0, 3, 2, 1]), np.array([0.0, 1, 1, 0]), np.array([1.0, 1, 0, 1])
    curve = quality_curve(rank, slm, llm)
    np.testing.assert_allclose(curve, [0.5, 0.75, 0.75, 0.5, 0.75])
    assert pgr(0.75, 0.5, 0.75) == 1
    assert apgr(curve) == pytest.approx((0.5 + 1 + 0.5 + 0.5) / 4)
    assert calls_for_pgr(curve, 0.5) == 0.25
    assert calls_for(curve, 0.8) != calls_for(curve, 0.8)  # NaN: never reached
    np.testing.assert_allclose(oracle_curve(slm, llm), [0.5, 0.75, 1, 1, 0.75])
    assert at_share(curve, 0.125) == pytest.approx(0.625)


@given(bits)
def test_ends_oracle_and_chance(rows):
    rank, slm, llm = arrays(rows)
    curve, best, lots = quality_curve(rank, slm, llm), oracle_curve(slm, llm), random_curve(slm, llm)
    for each in (curve, best, lots):
        assert each[0] == pytest.approx(slm.mean())
        assert each[-1] == pytest.approx(llm.mean())
    assert (best >= curve - 1e-9).all()
    assert (best >= lots - 1e-9).all()
    flat = quality_curve(np.zeros(len(rank)), slm, llm)
    np.testing.assert_allclose(flat, lots, atol=1e-12)  # a rank that says nothing is chance
    if slm.sum() != llm.sum():
        assert apgr(flat) == pytest.approx(0.5)
    else:
        assert np.isnan(apgr(flat))


@given(bits, st.randoms())
def test_equal_ranks_have_no_order(rows, random):
    one = quality_curve(*arrays(rows))
    random.shuffle(rows)
    np.testing.assert_allclose(quality_curve(*arrays(rows)), one, atol=1e-12)


def test_without_a_gap_nothing_is_recovered():
    same = np.array([1.0, 0, 1])
    assert np.isnan(apgr(quality_curve(np.arange(3.0), same, same)))
    assert np.isnan(calls_for_pgr(quality_curve(np.arange(3.0), same, same), 0.5))
    assert np.isnan(pgr(0.5, 0.5, 0.5))


def test_the_worst_tenth_and_rank_correlation():
    groups = np.repeat(np.arange(20), 5)
    score = np.where(groups < 2, 0.0, 1.0)
    assert worst_decile(score, groups) == 0
    assert worst_decile(score, np.zeros(100, dtype=int)) == pytest.approx(score.mean())
    a = np.array([1.0, 2, 3, 4])
    assert spearman(a, a**3) == pytest.approx(1)
    assert spearman(a, -a) == pytest.approx(-1)
    assert spearman(np.array([1.0, 1, 2]), np.array([1.0, 2, 3])) == pytest.approx(3**0.5 / 2)
    assert np.isnan(spearman(a, np.ones(4)))


def test_the_bootstrap_covers_and_redraws_clients():
    rng = np.random.default_rng(0)
    hits, alone = 0, np.zeros(100, dtype=int)
    for _ in range(40):
        x = rng.normal(1.0, 1.0, 100)
        low, high = middle(bootstrap_means(x[:, None], alone, rng, draws=300)[:, 0])
        hits += low <= 1.0 <= high
    assert 33 <= hits <= 40
    groups = np.repeat(np.arange(10), 50)
    y = rng.normal(size=10)[groups] + 0.01 * rng.normal(size=500)
    both = np.stack([y, np.ones(500)], axis=1)
    one_bag, clients = (bootstrap_means(both, g, rng) for g in (np.zeros(500, dtype=int), groups))
    assert np.ptp(middle(clients[:, 0])) > 3 * np.ptp(middle(one_bag[:, 0]))
    np.testing.assert_allclose(clients[:, 1], 1.0)
    assert clients[:, 0].mean() == pytest.approx(y.mean(), abs=0.1)
