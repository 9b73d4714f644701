"""LaDa's filter: rewards, networks, cold start, keeping."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.selection.bandits import ClusterUCB, LinUCB
from fedtandem.selection.items import Feedback, ScoreRows
from fedtandem.selection.learnability import (
    Buffer,
    ExploitExplore,
    cold_selection,
    contexts,
    k_means,
    keep_budget,
    keep_threshold,
    n_clusters,
    progress_reward,
    round_sum,
    squash,
)


def told(gain: list[float], batch: list[int], probe: list[int], probe_gain: list[float]) -> Feedback:
    n, nothing = len(gain), np.zeros(len(gain))
    return Feedback(
        np.arange(n), np.array(batch), nothing, nothing, nothing, np.array(gain), np.array(probe, np.int64),
        np.zeros(len(probe)), np.array(probe_gain),
    )  # fmt: skip


def test_the_reward_by_head() -> None:
    # Items 0, 1 in batch 0 and item 2 in batch 1; items 0, 1 in cluster 0 with three probe items, item 2 in cluster 1
    # with one, which is too few: the whole probe (mean .25) stands in.
    clusters = np.array([0, 0, 1, 0, 0, 0, 1])
    raw = progress_reward(told([0.2, 0.0, -0.4], [0, 0, 1], [3, 4, 5, 6], [0.1, 0.1, 0.1, 0.7]), clusters)
    assert np.allclose(
        raw,
        [0.5 * 0.1 + 0.25 * 0.1 + 0.25 * 0.2, 0.5 * 0.1 + 0.25 * 0.1, 0.5 * 0.25 - 0.25 * 0.4 - 0.25 * 0.4],
    )


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30), st.floats(0.01, 100), st.floats(-5, 5))
def test_rewards_lie_between_0_and_1_and_keep_the_order(raw: list[float], scale: float, shift: float) -> None:
    values = np.array(raw)
    reward = squash(values)
    assert np.isfinite(reward).all()
    assert ((reward > 0) & (reward < 1)).all()
    assert (np.diff(reward[np.argsort(values)]) >= 0).all()


def test_equal_gains_give_one_half_and_no_nan() -> None:
    assert (squash(np.full(7, 0.3)) == 0.5).all()
    assert (squash(np.array([0.0, 0, 0, 9.0])) == 0.5).all()  # MAD 0 though not constant
    assert len(squash(np.zeros(0))) == 0


def test_the_round_sum_grows_with_the_number_of_items_at_constant_quality() -> None:
    """The artefact for which it is kept for ablation only: e is 0.5 throughout, n more items move R by n / 2."""
    before = np.full(10, np.log(2))
    rewards = [round_sum(np.full(n, np.log(2)), before) for n in (10, 14, 30)]
    assert rewards == pytest.approx([0.0, 2.0, 10.0])


def test_contexts_are_standardised_and_unknown_values_stand_at_the_median() -> None:
    table = ScoreRows.of(
        range(4), n_bytes=[10, 10, 10, 0], receiver_pos=[-10.0, -20, -60, np.nan],
        producer_pos=[-5.0, np.nan, -5, np.nan],
        embedding=np.random.default_rng(0).standard_normal((4, 16)),
    )  # fmt: skip
    c = contexts(table, np.zeros(4), 0.2)
    assert c.shape == (4, 25)
    assert np.isfinite(c).all()
    assert np.allclose(c.mean(0), 0)
    assert c[3, 16] == c[1, 16]  # the receiver's loss: the median of 1, 2 and 6 is item 1's
    assert c[3, 24] < 0 < c[0, 24]  # it holds no path, and that is a feature of its own
    assert (c[:, 23] == 0).all()  # t / T is the same for all


def linear_world(n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    chance = np.random.default_rng(seed)
    c = chance.standard_normal((n, 25))
    return c, 1 / (1 + np.exp(-c @ chance.standard_normal(25) / 3))


def test_the_networks_learn_a_linear_value_and_the_second_lowers_what_the_first_misses() -> None:
    c, value = linear_world()
    model = ExploitExplore(25, seed=1)
    assert not model.trained
    buffer = Buffer.empty(25)
    losses = []
    for t in range(1, 11):
        buffer.add(c[:300], value[:300], t, np.zeros(300, np.int64))
        losses.append(model.train(buffer, np.random.default_rng(t)))
    assert model.trained
    assert losses[-1]["f1_loss"] < 0.2 * losses[0]["f1_loss"]
    u = model.score(c[300:], np.zeros(100, np.int64))
    assert np.corrcoef(u, value[300:])[0, 1] > 0.9
    alone = ExploitExplore(25, seed=1, explore_weight=0.0)
    alone.load_state_dict(model.state_dict())
    assert not np.allclose(alone.score(c, np.zeros(400, np.int64)), model.score(c, np.zeros(400, np.int64)))


def test_a_loaded_network_scores_and_learns_as_the_saved_one() -> None:
    c, value = linear_world(60)
    buffer = Buffer.empty(25)
    buffer.add(c, value, 1, np.zeros(60, np.int64))
    first, second = ExploitExplore(25, seed=1), ExploitExplore(25, seed=2)
    first.train(buffer, np.random.default_rng(0))
    second.load_state_dict(first.state_dict())
    for model in (first, second):
        model.train(buffer, np.random.default_rng(1))
    nothing = np.zeros(60, np.int64)
    assert np.array_equal(first.score(c, nothing), second.score(c, nothing))


def test_older_rounds_weigh_less() -> None:
    buffer = Buffer.empty(1)
    for t in (1, 2, 4):
        buffer.add(np.zeros((1, 1)), np.zeros(1), t, np.zeros(1, np.int64))
    assert buffer.weights() == pytest.approx([0.8**3, 0.8**2, 1.0])


def test_linucb_and_cluster_ucb_by_head() -> None:
    buffer = Buffer.empty(1)
    buffer.add(np.array([[1.0], [-1.0]] * 20), np.array([1.0, 0.0] * 20), 1, np.array([0, 1] * 20))
    line, groups = LinUCB(0.0), ClusterUCB()
    line.train(buffer, np.random.default_rng(0))
    groups.train(buffer, np.random.default_rng(0))
    low, high = line.score(np.array([[-1.0], [1.0]]), np.array([1, 0]))
    assert (low, high) == pytest.approx((0.0, 1.0), abs=0.05)
    good, bad, untried = groups.score(np.zeros((3, 1)), np.array([0, 1, 2]))
    assert good - bad == pytest.approx(1.0)
    assert untried == 1e9


@given(n=st.integers(1, 60), k=st.integers(0, 70), c=st.integers(1, 8), seed=st.integers(0, 3))
def test_the_cold_start_is_exact_and_covers_every_cluster(n: int, k: int, c: int, seed: int) -> None:
    chance = np.random.default_rng(seed)
    points = chance.standard_normal((n, 3))
    centroids, clusters = k_means(points, c, chance)
    chosen = cold_selection(np.arange(n) * 2, points, clusters, centroids, k, chance)
    assert len(chosen.ids) == min(k, n)
    assert (np.diff(chosen.ids) > 0).all()
    assert ((chosen.propensity > 0) & (chosen.propensity <= 1)).all()
    if k >= len(np.unique(clusters)):
        assert set(clusters[chosen.ids // 2]) == set(clusters)


def test_as_many_clusters_as_the_specification_says() -> None:
    assert [n_clusters(n) for n in (10, 160, 900, 1000, 10**6)] == [4, 4, 9, 10, 16]


@given(n=st.integers(0, 60), k=st.integers(0, 70), floor=st.floats(0, 0.9))
def test_the_budget_is_exact_and_its_floor_comes_from_the_rest(n: int, k: int, floor: float) -> None:
    u = np.random.default_rng(n).random(n)
    chosen = keep_budget(np.arange(n), u, k, floor, np.random.default_rng(0))
    assert len(chosen.ids) == min(k, n)
    assert (np.diff(chosen.ids) > 0).all()
    n_floor = chosen.reasons.count("random_floor")
    assert n_floor == (min(round(floor * k), n - k) if n > k else 0)
    top = [i for i, reason in zip(chosen.ids, chosen.reasons, strict=True) if reason == "exploit_explore"]
    assert set(top) == set(np.argsort(-u)[: len(top)])


def test_the_threshold_has_a_floor_and_a_cap() -> None:
    ids, chance = np.arange(100), np.random.default_rng(0)
    nothing, share = keep_threshold(ids, np.zeros(100), 50, 100, chance)
    assert (len(nothing.ids), share) == (5, 0.0)
    everything, share = keep_threshold(ids, np.ones(100), 50, 100, chance)
    assert (len(everything.ids), share) == (50, 1.0)
    some, _ = keep_threshold(ids, np.where(ids < 20, 0.9, 0.1), 50, 100, chance)
    assert some.ids.tolist() == list(range(20))
