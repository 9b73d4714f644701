"""LaDa as a plug-in: the order of its calls, what it learns, and that a resumed run selects the same."""

from collections.abc import Mapping

import numpy as np
import pytest
from torch import Tensor

from fedtandem.algorithms.lada import Lada, lada_named
from fedtandem.distillation.contrastive_reasoning import ContrastiveTerm
from fedtandem.selection.items import Feedback, Pair, Pool, ScoreRows
from fedtandem.selection.names import LEARNING
from fedtandem.selection.rank_correlation import spearman

A, B, UP = Pair("clinic-a", "down"), Pair("clinic-b", "down"), Pair("clinic-a", "up")
N = 120


def make_pool(n: int = N, seed: int = 0) -> Pool:
    probe = np.sort(np.random.default_rng(seed + 1).permutation(n)[: n // 10])
    return Pool([f"p{i}" for i in range(n)], [None] * n, probe, 5, seed)


class World:
    """Items whose worth is linear in what can be seen of them; training on one raises its q by its worth.

    `credit` items share a batch and, with `only_batches`, one gain: nothing tells them apart but the others they
    were trained with.
    """

    def __init__(self, n: int = N, *, credit: int = 16, seed: int = 0) -> None:
        chance = np.random.default_rng([seed, 7])
        self.pool = make_pool(n, seed)
        self.embedding = chance.standard_normal((n, 16))
        self.value = self.embedding @ chance.standard_normal(16) / 4
        self.credit = credit

    def rows(self) -> ScoreRows:
        n = self.pool.n_items
        return ScoreRows.of(
            range(n), embedding=self.embedding, n_bytes=np.full(n, 10), receiver_pos=np.full(n, -5.0),
            producer_pos=np.full(n, -2.0),
        )  # fmt: skip

    def told(self, ids: np.ndarray, t: int) -> Feedback:
        """Every item of a batch shows the batch's mean gain."""
        batch = np.random.default_rng(t).permutation(len(ids)) // self.credit
        means = np.bincount(batch, self.value[ids]) / np.bincount(batch)
        nothing, probe = np.zeros(len(ids)), self.pool.probe
        return Feedback(
            ids, batch, nothing + 0.5, nothing + 0.4, nothing, means[batch], probe, np.zeros(len(probe)),
            np.zeros(len(probe)),
        )  # fmt: skip


def play(selector: Lada, world: World, rounds: int, budget: int, pair: Pair = A) -> list[np.ndarray]:
    """Whole rounds; what was selected in each."""
    chosen = []
    for t in range(1, rounds + 1):
        ids = selector.select(t, pair, world.rows(), budget).ids
        selector.loss_term(t, pair)
        selector.feedback(t, pair, world.told(ids, t))
        chosen.append(ids)
    return chosen


def ready(name: str = "lada", world: World | None = None, **knobs: object) -> Lada:
    selector = lada_named(name, **knobs)  # type: ignore[arg-type]
    selector.setup((world or World()).pool)
    return selector


@pytest.mark.parametrize("name", LEARNING)
def test_same_seed_same_ids_exact_budget_and_never_the_probe(name: str) -> None:
    world = World()
    first, second = (play(ready(name, world), world, 3, 30) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one, other)
        assert len(one) == 30
        assert (np.diff(one) > 0).all()
        assert not np.isin(one, world.pool.probe).any()
    assert not np.array_equal(first[0], first[1])


def test_clients_change_nothing_of_each_other_in_whatever_order_they_come() -> None:
    world = World()
    alone = play(ready(world=world), world, 2, 20, A)
    both = ready(world=world)
    play(both, world, 2, 20, B)
    play(both, world, 2, 20, UP)
    assert all(np.array_equal(a, b) for a, b in zip(play(both, world, 2, 20, A), alone, strict=True))
    assert not np.array_equal(play(ready(world=world), world, 1, 20, B)[0], alone[0])


def test_a_budget_above_the_pool_an_empty_pool_and_no_path_at_all() -> None:
    world = World()
    everything = ready(world=world).select(1, A, world.rows(), 10**6)
    assert np.array_equal(everything.ids, np.setdiff1d(np.arange(N), world.pool.probe))
    assert len(ready(world=world).select(1, A, ScoreRows.of([]), 5).ids) == 0
    blind = ready(world=world)
    assert len(blind.select(1, A, ScoreRows.of(range(N)), 5).ids) == 5


def test_calls_out_of_order_are_refused() -> None:
    world = World()
    early = lada_named("lada")
    with pytest.raises(RuntimeError, match="before setup"):
        early.select(1, A, world.rows(), 5)
    selector = ready(world=world)
    with pytest.raises(RuntimeError, match="setup was called twice"):
        selector.setup(world.pool)
    with pytest.raises(RuntimeError, match="loss_term for round 1 is out of order"):
        selector.loss_term(1, A)
    ids = selector.select(1, A, world.rows(), 5).ids
    with pytest.raises(RuntimeError, match="select for round 1 is out of order"):
        selector.select(1, A, world.rows(), 5)
    with pytest.raises(RuntimeError, match="feedback for round 1 is out of order: call it after loss_term"):
        selector.feedback(1, A, world.told(ids, 1))
    selector.loss_term(1, A)
    foreign = np.setdiff1d(np.arange(N), ids)[:3]
    with pytest.raises(ValueError, match=f"item {foreign[0]}, which was not selected"):
        selector.feedback(1, A, world.told(foreign, 1))
    selector.feedback(1, A, world.told(ids, 1))
    with pytest.raises(RuntimeError, match="loss_term for round 1 is out of order"):
        selector.loss_term(1, A)


def test_a_client_that_was_absent_goes_on_with_a_later_round() -> None:
    world = World()
    selector = ready(world=world)
    selector.select(1, A, world.rows(), 10)  # its reply never came
    again = selector.select(3, A, world.rows(), 10)
    assert set(again.reasons) == {"cold_cluster"}
    selector.loss_term(3, A)
    selector.feedback(3, A, world.told(again.ids, 3))
    assert "exploit_explore" in selector.select(4, A, world.rows(), 10).reasons


def test_feedback_twice_equals_once() -> None:
    world = World()
    once, twice = ready(world=world), ready(world=world)
    for selector in (once, twice):
        ids = selector.select(1, A, world.rows(), 20).ids
        selector.loss_term(1, A)
        selector.feedback(1, A, world.told(ids, 1))
    twice.feedback(1, A, world.told(ids, 1))
    assert np.array_equal(once.select(2, A, world.rows(), 20).ids, twice.select(2, A, world.rows(), 20).ids)


@pytest.mark.parametrize("name", LEARNING)
def test_saved_in_the_middle_of_a_run_it_selects_the_same(name: str) -> None:
    world = World()
    whole, first = ready(name, world), ready(name, world)
    expected = play(whole, world, 4, 20)
    play(first, world, 2, 20)
    ids = first.select(3, A, world.rows(), 20).ids  # killed between selecting and learning
    saved: Mapping[str, Tensor] = {key: value.clone() for key, value in first.state_dict().items()}
    resumed = ready(name, world)
    resumed.load_state_dict(saved)
    resumed.loss_term(3, A)
    resumed.feedback(3, A, world.told(ids, 3))
    assert np.array_equal(ids, expected[2])
    fourth = resumed.select(4, A, world.rows(), 20).ids
    assert np.array_equal(fourth, expected[3])
    resumed.loss_term(4, A)
    resumed.feedback(4, A, world.told(fourth, 4))
    assert resumed.report(A).get("f1_loss") == whole.report(A).get("f1_loss")


def agreement(name: str, seed: int) -> float:
    """Spearman of the filter's scores with the true worth of all items, after five rounds of 300."""
    world = World(1000, seed=seed, credit=4)
    selector = ready(name, world)
    play(selector, world, 5, 300)
    from fedtandem.selection.learnability import contexts

    c = contexts(world.rows(), np.zeros(1000), 1.0)
    return spearman(selector.pairs[A].model.score(c, np.zeros(1000, np.int64)), world.value)


@pytest.mark.slow
def test_a_planted_value_is_recovered_from_batch_credit_and_not_from_shuffled_rewards() -> None:
    assert np.mean([agreement("lada", seed) for seed in range(2)]) > 0.8
    assert abs(np.mean([agreement("lada_shuffled", seed) for seed in range(4)])) < 0.2


def test_weight_0_adds_no_term_and_a_weight_adds_it() -> None:
    world = World()
    for term in (None, ContrastiveTerm(0.5)):
        selector = ready(world=world, term=term)
        selector.select(1, A, world.rows(), 5)
        assert selector.loss_term(1, A) is term


def test_refused_paths_are_not_selected() -> None:
    world = World()
    table = ScoreRows.of(range(N), verdict=np.where(np.arange(N) % 2, 0, 1))
    chosen = ready(world=world).select(1, A, table, N)
    assert (chosen.ids % 2 == 0).all()


def signs(world: World, rounds: int = 5, **knobs: object) -> set[str]:
    selector = ready(world=world, **knobs)
    play(selector, world, rounds, 30)
    return {name for name, _ in selector.report(A)["signatures"]}


def test_a_constant_reward_and_a_filter_that_learns_nothing_are_said() -> None:
    world = World()
    world.value[:] = 0.0
    assert {"constant reward", "filter learns nothing"} <= signs(world)


def test_lock_in_is_said_only_while_the_random_floor_is_worth_as_much() -> None:
    past = {"ids": list(range(20)), "floor": 0.6, "chosen": 0.5}
    from fedtandem.algorithms.lada import _is_locked_in

    assert _is_locked_in([past] * 3)
    assert not _is_locked_in([past] * 2)
    assert not _is_locked_in([past | {"floor": 0.4}] * 3)
    assert not _is_locked_in([past, past, past | {"ids": list(range(10, 30))}])


def test_a_threshold_that_keeps_nothing_is_said() -> None:
    world = World()
    selector = ready(world=world, keep="threshold")
    ids = play(selector, world, 1, 30)[0]
    model = selector.pairs[A].model
    model.exploit[2].bias.data.fill_(-50.0)  # type: ignore[attr-defined]
    ids = selector.select(2, A, world.rows(), 30).ids
    assert len(ids) == 6  # 5 % of the pool
    selector.loss_term(2, A)
    selector.feedback(2, A, world.told(ids, 2))
    assert "threshold keeps nothing or all" in {name for name, _ in selector.report(A)["signatures"]}


def test_the_count_artefact_of_the_round_sum_is_said() -> None:
    world = World()
    selector = ready(world=world, reward="round_sum")
    for t, budget in enumerate((10, 20, 40, 80), 1):
        ids = selector.select(t, A, world.rows(), budget).ids
        selector.loss_term(t, A)
        selector.feedback(t, A, world.told(ids, t))
    assert "count artefact" in {name for name, _ in selector.report(A)["signatures"]}
