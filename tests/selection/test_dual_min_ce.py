"""DualMinCE: who teaches whom."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.selection.dual_min_ce import NO_TEACHER, choose_teacher

loss = st.one_of(st.floats(0, 20, width=32), st.just(float("inf")))
N = 3
losses = st.lists(loss, min_size=N, max_size=N)
few_peers = st.lists(losses, min_size=1, max_size=5)


def brute_force(own: list[float], peers: list[list[float]], margin: float) -> list[int]:
    """The rule as one would say it aloud."""
    chosen = []
    for sample, own_loss in enumerate(own):
        teacher, best = NO_TEACHER, float("inf")
        for peer, peer_losses in enumerate(peers):
            if peer_losses[sample] < best:
                teacher, best = peer, peer_losses[sample]
        chosen.append(teacher if best < own_loss - margin else NO_TEACHER)
    return chosen


@given(own=losses, peers=few_peers)
def test_a_teacher_is_chosen_exactly_when_some_peer_does_better(
    own: list[float], peers: list[list[float]]
) -> None:
    own_loss, peer_losses = torch.tensor(own), torch.tensor(peers)
    assert torch.equal(
        choose_teacher(own_loss, peer_losses) == NO_TEACHER, (peer_losses >= own_loss).all(dim=0)
    )


@given(own=losses, peers=few_peers, margin=st.sampled_from([0.0, 0.5, 2.0]))
def test_it_equals_a_brute_force_reading(own: list[float], peers: list[list[float]], margin: float) -> None:
    own32, peers32 = torch.tensor(own), torch.tensor(peers)
    # Compared in the tensors' own precision: own - margin is rounded to float32 there.
    shifted = (own32 - margin).tolist()
    expected = brute_force(shifted, peers32.tolist(), 0.0)
    assert choose_teacher(own32, peers32, margin).tolist() == expected


@given(own=losses, peers=few_peers, data=st.data())
def test_permuting_clients_changes_nothing_when_they_are_handed_over_by_name(
    own: list[float], peers: list[list[float]], data: st.DataObject
) -> None:
    by_name = {f"client-{i}": peer for i, peer in enumerate(peers)}
    shuffled = dict(data.draw(st.permutations(list(by_name.items()))))

    def teachers(party_losses: dict[str, list[float]]) -> list[str | None]:
        names = sorted(party_losses)
        chosen = choose_teacher(torch.tensor(own), torch.tensor([party_losses[name] for name in names]))
        return [None if i == NO_TEACHER else names[i] for i in chosen.tolist()]

    assert teachers(by_name) == teachers(shuffled)


@given(own=losses)
def test_two_equal_models_teach_each_other_nothing(own: list[float]) -> None:
    own_loss = torch.tensor(own)
    assert (choose_teacher(own_loss, own_loss[None]) == NO_TEACHER).all()


@given(own=losses, peers=few_peers, low=st.floats(0, 3), high=st.floats(0, 3))
def test_a_higher_margin_never_lets_more_peers_teach(
    own: list[float], peers: list[list[float]], low: float, high: float
) -> None:
    own_loss, peer_losses = torch.tensor(own), torch.tensor(peers)
    low, high = sorted([low, high])
    strict = choose_teacher(own_loss, peer_losses, high) != NO_TEACHER
    loose = choose_teacher(own_loss, peer_losses, low) != NO_TEACHER
    assert bool((loose | ~strict).all())


def test_three_clients_one_can_do_in_the_head() -> None:
    own = torch.tensor([1.0, 2.0, 3.0, torch.inf])
    peers = torch.tensor(
        [
            [0.5, 2.0, 9.0, torch.inf],  # better on the first
            [0.5, 2.5, 1.0, 7.0],  # as good on the first: the first peer stays; best on the third and fourth
            [0.9, 2.0, 1.5, 8.0],
        ]
    )
    assert choose_teacher(own, peers).tolist() == [0, NO_TEACHER, 1, 1]


def test_an_absent_peer_is_never_chosen() -> None:
    absent = torch.full((2, 3), torch.inf)
    assert choose_teacher(torch.full((3,), torch.inf), absent).tolist() == [NO_TEACHER] * 3


def test_without_peers_nobody_teaches() -> None:
    assert choose_teacher(torch.ones(3), torch.empty(0, 3)).tolist() == [NO_TEACHER] * 3


def test_other_samples_are_refused_with_both_shapes() -> None:
    with pytest.raises(ValueError, match=r"\(2, 4\).*\(3,\)"):
        choose_teacher(torch.ones(3), torch.ones(2, 4))


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        choose_teacher(torch.ones(1), torch.tensor([[torch.nan]]))


def test_a_negative_margin_is_refused() -> None:
    with pytest.raises(ValueError, match=r"margin is -0\.1"):
        choose_teacher(torch.ones(1), torch.ones(1, 1), -0.1)
