"""Selectors that are one formula: exact budgets, drawn ties, and what each of them wants."""

import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.errors import ConfigError
from fedtandem.selection.heuristics import heuristic, own_heuristic
from fedtandem.selection.items import RIGHT, WRONG, Pair, Pool, ScoreRows, best, count_of, draw
from fedtandem.selection.names import HEURISTICS

PAIR = Pair("clinic-a", "down")


def pool(n: int, probe: tuple[int, ...] = (), seed: int = 0) -> Pool:
    return Pool([f"p{i}" for i in range(n)], [f"g{i}" for i in range(n)], np.array(probe, np.int64), 5, seed)


def rows(n: int, seed: int = 0, **known: object) -> ScoreRows:
    """n items of 10 bytes and 5 tokens with random losses; every third path is right."""
    chance = np.random.default_rng(seed)
    columns: dict[str, object] = {
        "prompts": [f"p{i}" for i in range(n)], "gold": [f"g{i}" for i in range(n)],
        "paths": [f"g{i}" if i % 3 == 0 else "wrong" for i in range(n)],
        "receiver_pos": -10 * chance.random(n), "producer_pos": -5 * chance.random(n),
        "alone": -20 * chance.random(n) - 1, "holdout": -8 * chance.random(n),
        "n_bytes": np.full(n, 10), "n_tokens": np.full(n, 5), "verdict": [RIGHT] * n,
    }  # fmt: skip
    return ScoreRows.of(np.arange(n), **(columns | known))


@pytest.mark.parametrize("name", HEURISTICS)
@given(n=st.integers(0, 40), budget=st.integers(1, 60), seed=st.integers(0, 5))
def test_ids_are_sorted_unique_repeatable_and_never_of_the_probe(
    name: str, n: int, budget: int, seed: int
) -> None:
    probe = tuple(range(0, n, 7))
    chosen = []
    for _ in range(2):
        selector = heuristic(name)
        selector.setup(pool(n, probe, seed))
        chosen.append(selector.select(1, PAIR, rows(n), budget))
    ids = chosen[0].ids
    assert np.array_equal(ids, chosen[1].ids)
    assert (np.diff(ids) > 0).all()
    assert not np.isin(ids, probe).any()
    free = n - len(probe)
    assert len(chosen[0].reasons) == len(chosen[0].scores) == len(chosen[0].propensity) == len(ids)
    if name.startswith("all"):
        assert len(ids) == free
    elif name in ("random", "gap", "gap_band", "highest_loss", "lowest_loss", "rho_holdout"):
        assert len(ids) == min(budget, free)
    else:
        assert len(ids) <= min(budget, free)  # some items are excluded by the formula itself


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, np.nan, -np.inf]), max_size=30), st.integers(0, 35))
def test_the_best_equal_a_sort(values: list[float], k: int) -> None:
    scores = np.array(values, np.float64)
    places = best(scores, k, np.random.default_rng(0))
    allowed = scores[~np.isneginf(scores)]
    expected = np.sort(np.where(np.isnan(allowed), -1e300, allowed))[::-1][:k]
    got = np.sort(np.where(np.isnan(scores[places]), -1e300, scores[places]))[::-1]
    assert np.array_equal(got, expected)
    assert (np.diff(places) > 0).all()


def test_ties_are_drawn_evenly_and_not_by_position() -> None:
    counts = np.zeros(6)
    for seed in range(600):
        counts[best(np.array([1.0, 1, 1, 1, 1, 1]), 2, np.random.default_rng(seed))] += 1
    assert (np.abs(counts - 200) < 60).all()


def test_the_order_of_the_clients_and_the_rounds_of_others_change_no_draw() -> None:
    first = draw(3, PAIR, 2, "score").random(4)
    draw(3, Pair("clinic-b", "down"), 2, "score").random(9)
    assert np.array_equal(draw(3, PAIR, 2, "score").random(4), first)
    assert not np.array_equal(draw(3, Pair("clinic-a", "up"), 2, "score").random(4), first)


def test_five_items_by_head() -> None:
    table = ScoreRows.of(
        range(5), paths=["a"] * 5, n_bytes=[10] * 5, n_tokens=[5] * 5, verdict=[RIGHT, WRONG, RIGHT, -1, RIGHT],
        receiver_pos=[-9.0, -8, -1, -7, -5], producer_pos=[-8.0, -1, -0.5, -2, -1], gold=["a", "a", "b", "a", "a"],
    )  # fmt: skip
    picked = {}
    for name in (
        "gap",
        "confident_gap",
        "verified_gap",
        "highest_loss",
        "lowest_loss",
        "gap_band",
        "oracle_stratum",
    ):
        selector = heuristic(name)
        selector.setup(pool(5))
        picked[name] = selector.select(1, PAIR, table, 2).ids.tolist()
    # Item 1 was refused by the checker: nobody takes it. Gaps of the others: .1, .05, .5, .4.
    assert picked["gap"] == [3, 4]
    # The surest 60 % of the four are items 2, 4 and 3.
    assert picked["confident_gap"] == [3, 4]
    assert picked["verified_gap"] == [0, 4]
    assert picked["highest_loss"] == [0, 3]
    assert picked["lowest_loss"] == [2, 4]
    # The median gap is .25, from which .4 and .1 are nearest.
    assert picked["gap_band"] == [0, 4]
    # Right paths the receiver would not write: 0, 3 and 4 (item 2's is wrong).
    assert set(picked["oracle_stratum"]) < {0, 3, 4}


def test_before_anything_is_known_items_are_drawn_and_it_is_said() -> None:
    selector = heuristic("confident_gap")
    selector.setup(pool(20))
    chosen = selector.select(1, PAIR, ScoreRows.of(range(20)), 5)
    assert len(chosen.ids) == 5
    assert set(chosen.reasons) == {"cold"}
    assert np.allclose(chosen.propensity, 0.25)


def test_known_items_come_before_unknown_ones() -> None:
    selector = heuristic("gap")
    selector.setup(pool(4))
    table = ScoreRows.of(
        range(4),
        n_bytes=[1, 1, 0, 0],
        receiver_pos=[-5.0, -1, np.nan, np.nan],
        producer_pos=[-1.0, -9, np.nan, np.nan],
    )
    assert selector.select(1, PAIR, table, 2).ids.tolist() == [0, 1]
    assert len(selector.select(2, PAIR, table, 3).ids) == 3


def test_all_matched_makes_as_many_updates_as_its_budget() -> None:
    selector = heuristic("all_matched")
    selector.setup(pool(20))
    chosen = selector.select(1, PAIR, rows(20), 5)
    assert len(chosen.ids) == 20
    assert chosen.updates_of == 5


def test_the_oracle_asks_for_right_paths() -> None:
    selector = heuristic("oracle_stratum")
    selector.setup(pool(2))
    with pytest.raises(ConfigError, match="column `gold`"):
        selector.select(1, PAIR, ScoreRows.of(range(2)), 1)


@pytest.mark.parametrize(
    ("answer", "said"),
    [("lambda r, g: 'x'", "no numbers"), ("lambda r, g: [1.0]", r"shape \(1,\); expected \(3,\)")],
)
def test_a_function_of_ones_own_is_checked(monkeypatch: pytest.MonkeyPatch, answer: str, said: str) -> None:
    module = types.ModuleType("my_selectors")
    module.mine = eval(answer)  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "my_selectors", module)
    selector = own_heuristic("my_selectors:mine")
    selector.setup(pool(3))
    with pytest.raises(ConfigError, match=said):
        selector.select(1, PAIR, rows(3), 2)


def test_a_function_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"selection\.selector is 'no_such_module:f'.*PYTHONPATH"):
        own_heuristic("no_such_module:f")
    with pytest.raises(ConfigError, match=r"name a function \(rows, generator\)"):
        own_heuristic("json:nothing")


def test_budgets_are_counts_or_shares() -> None:
    assert count_of(400, 3000) == 400
    assert count_of(0.5, 3001) == 1500
    assert count_of(1.0, 7) == 7
    assert count_of(0.001, 10) == 1


def test_rows_of_the_wrong_length_are_refused() -> None:
    with pytest.raises(ValueError, match="receiver_pos"):
        ScoreRows.of([1, 2], receiver_pos=[0.0])
    with pytest.raises(ValueError, match="ascending"):
        ScoreRows.of([2, 1])
