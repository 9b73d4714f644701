"""Selectors by name: the built-in ones, and a user's own."""

import sys
import types

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedtandem.errors import ConfigError
from fedtandem.selection.dual_min_ce import NO_TEACHER, choose_teacher
from fedtandem.selection.selectors import SELECTORS, load_selector

losses = st.lists(st.one_of(st.floats(0, 20, width=32), st.just(float("inf"))), min_size=4, max_size=4)


def chance() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@given(own=losses, peers=st.lists(losses, min_size=1, max_size=4))
def test_all_takes_the_best_peer_however_good_the_learner_is(
    own: list[float], peers: list[list[float]]
) -> None:
    peer_losses = torch.tensor(peers)
    chosen = load_selector("all")(torch.tensor(own), peer_losses, chance())
    is_scored = ~peer_losses.isinf().all(dim=0)
    assert torch.equal(chosen != NO_TEACHER, is_scored)
    best = peer_losses.gather(0, chosen.clamp_min(0)[None])[0]
    assert torch.equal(best[is_scored], peer_losses.amin(dim=0)[is_scored])


@given(own=losses, peers=st.lists(losses, min_size=1, max_size=4))
def test_none_picks_nobody_and_dual_min_ce_is_the_papers_rule(
    own: list[float], peers: list[list[float]]
) -> None:
    own_loss, peer_losses = torch.tensor(own), torch.tensor(peers)
    assert (load_selector("none")(own_loss, peer_losses, chance()) == NO_TEACHER).all()
    expected = choose_teacher(own_loss, peer_losses)
    assert torch.equal(load_selector("dual_min_ce")(own_loss, peer_losses, chance()), expected)


def test_a_margin_reaches_dual_min_ce_and_nobody_else() -> None:
    select = load_selector("dual_min_ce", margin=0.5)
    assert select(torch.tensor([1.0, 1.0]), torch.tensor([[0.6, 0.4]]), chance()).tolist() == [NO_TEACHER, 0]
    with pytest.raises(ConfigError, match="'all' has no margin"):
        load_selector("all", margin=0.5)


@pytest.fixture
def own_rules(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A user's module with one good rule and several broken ones."""
    module = types.ModuleType("my_rules")

    def last(own_loss: Tensor, peer_losses: Tensor, generator: torch.Generator) -> Tensor:
        return torch.full(own_loss.shape, peer_losses.shape[0] - 1)

    vars(module).update(
        last=last,
        as_floats=lambda own, peers, generator: own,
        too_far=lambda own, peers, generator: torch.full(own.shape, 2),
        as_list=lambda own, peers, generator: [0],
        a_number=7,
    )
    monkeypatch.setitem(sys.modules, "my_rules", module)
    return module


@pytest.mark.usefixtures("own_rules")
def test_a_rule_of_ones_own_is_used() -> None:
    select = load_selector("my_rules:last")
    assert select(torch.ones(3), torch.ones(2, 3), chance()).tolist() == [1, 1, 1]


@pytest.mark.usefixtures("own_rules")
@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("my_rules:as_floats", r"float32 tensor of shape \(3,\); expected an int64"),
        ("my_rules:too_far", "chose peer 2, but there are 2 peers"),
        ("my_rules:as_list", "returned a list"),
    ],
)
def test_a_wrong_answer_is_refused_by_name(reference: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_selector(reference)(torch.ones(3), torch.ones(2, 3), chance())


@pytest.mark.usefixtures("own_rules")
def test_choosing_a_peer_that_did_not_score_the_sample_is_refused() -> None:
    with pytest.raises(ConfigError, match="sample 1, which that peer did not score"):
        load_selector("my_rules:last")(torch.ones(2), torch.tensor([[1.0, torch.inf]]), chance())


@pytest.mark.usefixtures("own_rules")
@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("dual_mince", 'did you mean "dual_min_ce"'),
        ("no_such_module_at_all:f", "cannot be imported"),
        ("my_rules:missing", "has no such name"),
        ("my_rules:a_number", "holds a int"),
        (":f", "cannot be imported"),
        ("my_rules:", "has no such name"),
    ],
)
def test_a_rule_that_is_not_there_says_what_to_write(reference: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_selector(reference)


def test_the_built_in_names_are_those_of_the_config() -> None:
    assert set(SELECTORS) == {"dual_min_ce", "all", "none"}
