"""Aggregation: fair to the honest, deaf to the loud; clusters that are balanced and found."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.inference.aggregation import (
    AGGREGATORS,
    capped,
    clipped,
    limited,
    weighted_mean,
    weighted_median,
)
from fedtandem.inference.clusters import balanced_clusters, random_clusters

reports = st.lists(st.tuples(st.floats(0, 1), st.floats(0.1, 10)), min_size=1, max_size=12)


@pytest.mark.parametrize("name", AGGREGATORS)
@given(reports, st.randoms())
def test_an_aggregate_is_inside_the_range_and_blind_to_order(name, pairs, random):
    values, weights = (np.array(c) for c in zip(*pairs, strict=True))
    got = AGGREGATORS[name](values, weights)
    assert values.min() - 1e-12 <= got <= values.max() + 1e-12
    random.shuffle(pairs)
    values, weights = (np.array(c) for c in zip(*pairs, strict=True))
    assert AGGREGATORS[name](values, weights) == pytest.approx(got, abs=1e-9)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_equal_weights_make_fedavg_the_mean(values):
    assert weighted_mean(np.array(values), np.full(len(values), 7.0)) == pytest.approx(np.mean(values))
    assert weighted_median(np.array(values), np.full(len(values), 7.0)) == pytest.approx(np.median(values))


@given(st.lists(st.floats(0.3, 0.6), min_size=3, max_size=11), st.floats(0, 1), st.data())
def test_the_median_stays_within_the_honest_range_below_one_half_of_liars(honest, lie, data):
    liars = data.draw(st.integers(0, len(honest) - 1))
    values = np.array([*honest, *[lie] * liars])
    assert min(honest) <= weighted_median(values, np.ones(len(values))) <= max(honest)


def test_the_table_of_liars():
    """Section 7: shift of the aggregate when liars send 1 and the honest sit at 0.45 ± 0.04."""

    def shift(name, n, liars):
        shifts = []
        for seed in range(200):
            honest = np.random.default_rng(seed).normal(0.45, 0.04, n)
            values = honest.copy()
            values[:liars] = 1.0
            ones = np.ones(n)
            shifts.append(abs(AGGREGATORS[name](values, ones) - AGGREGATORS[name](honest, ones)))
        return float(np.mean(shifts))

    for n, liars in ((5, 1), (5, 2), (20, 4), (20, 6)):
        assert shift("mean", n, liars) == pytest.approx(0.55 * liars / n, abs=0.01)
        assert shift("median", n, liars) < 0.06
    assert shift("trimmed_mean", 20, 4) < 0.04  # all liars are in the trimmed fifth
    assert shift("trimmed_mean", 5, 2) > 3 * shift("median", 5, 2)
    assert shift("trimmed_mean", 20, 6) > 2 * shift("median", 20, 6)


def test_clips_caps_and_steps():
    assert clipped([-1, 0.5, 2]).tolist() == [0.02, 0.5, 0.98]
    assert capped([1, 2, 3, 100]).tolist() == [1, 2, 3, 5]
    assert limited([0.9, 0.4], [0.5, 0.45]).tolist() == pytest.approx([0.6, 0.4])
    with pytest.raises(ValueError, match="not finite"):
        weighted_median(np.array([np.nan]), np.ones(1))


def test_clusters_are_balanced_found_and_named_by_first_member():
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(4), 5)
    centres = rng.normal(size=(4, 8)) * 5
    order = rng.permutation(20)
    points = (centres[truth] + rng.normal(size=(20, 8)))[order]
    found = balanced_clusters(points, 4, rng)
    assert np.bincount(found).tolist() == [5] * 4
    assert all(len(set(truth[order][found == c])) == 1 for c in range(4))
    assert found[0] == 0
    lots = random_clusters(20, 4, rng)
    assert np.bincount(lots).tolist() == [5] * 4
    assert np.bincount(balanced_clusters(rng.normal(size=(22, 3)), 4, rng)).tolist().count(5) == 2
    same = balanced_clusters(np.zeros((6, 2)), 3, rng)
    assert np.bincount(same).tolist() == [2] * 3
    with pytest.raises(ValueError, match="in 7 clusters"):
        balanced_clusters(np.zeros((6, 2)), 7, rng)
