"""Which examples form which update, and what they become."""

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.distillation.kd import IGNORE_INDEX, LossCounts, count_terms
from fedtandem.tuning.batches import (
    Example,
    plan_updates,
    replayed_per_batch,
    to_part,
    updates_per_epoch,
)

CPU = torch.device("cpu")


def plan(
    n: int,
    n_replay: int,
    batch_size: int,
    fraction: float,
    epochs: float = 1,
    max_steps: int = -1,
    seed: int = 0,
):  # type: ignore[no-untyped-def]
    return plan_updates(
        n,
        n_replay,
        batch_size=batch_size,
        replay_fraction=fraction,
        num_epochs=epochs,
        max_steps=max_steps,
        generator=torch.Generator().manual_seed(seed),
    )


@given(
    n=st.integers(1, 50),
    n_replay=st.integers(0, 20),
    batch_size=st.integers(1, 12),
    fraction=st.floats(0, 0.9),
    epochs=st.integers(1, 3),
)
def test_every_epoch_shows_every_example_once(
    n: int, n_replay: int, batch_size: int, fraction: float, epochs: int
) -> None:
    updates = plan(n, n_replay, batch_size, fraction, epochs)
    n_replayed = replayed_per_batch(batch_size, fraction) if n_replay else 0
    assert len(updates) == epochs * updates_per_epoch(n, batch_size, n_replayed)
    assert Counter(i for update in updates for i in update.own) == dict.fromkeys(range(n), epochs)
    full = [update for update in updates if len(update.own) == batch_size - n_replayed]
    assert all(len(update.replayed) == n_replayed for update in full)
    replayed = Counter(i for update in updates for i in update.replayed)
    if replayed:
        counts = [replayed[i] for i in range(n_replay)]
        assert max(counts) - min(counts) <= 1  # cycled: nobody twice before everybody once


def test_twelve_of_thirty_two() -> None:
    updates = plan(45, 100, 32, 0.375)
    assert [(len(u.own), len(u.replayed)) for u in updates] == [(20, 12), (20, 12), (5, 3)]
    assert updates_per_epoch(45, 32, 12) == math.ceil(45 / 20) == 3


def test_a_batch_always_holds_an_example_of_its_own() -> None:
    assert replayed_per_batch(2, 0.9) == 1
    assert replayed_per_batch(1, 0.9) == 0


def test_max_steps_cuts_or_prolongs() -> None:
    assert len(plan(10, 0, 4, 0.0, max_steps=2)) == 2
    assert len(plan(10, 0, 4, 0.0, max_steps=11)) == 11
    assert len(plan(10, 0, 4, 0.0, epochs=0.5)) == 2
    assert plan(0, 5, 4, 0.5) == []


def test_the_seed_alone_decides_the_order() -> None:
    assert plan(30, 9, 4, 0.5, 2, seed=1) == plan(30, 9, 4, 0.5, 2, seed=1)
    assert plan(30, 9, 4, 0.5, 2, seed=1) != plan(30, 9, 4, 0.5, 2, seed=2)


def test_rows_of_a_part_stand_beside_their_positions(make_example: Callable[..., Example]) -> None:
    examples = [
        make_example(0, taught=True),
        make_example(1),
        make_example(2, taught=True, labelled=False),
        make_example(3, taught=True, scored=False),
    ]
    part = to_part(examples, pad_id=0, device=CPU, distils=True)
    assert part.targets is not None
    n = [len(example.encoded.positions) for example in examples]
    starts = np.cumsum([0, *n])
    assert part.targets.taught.tolist() == [True] * n[0] + [False] * n[1] + [True] * n[2] + [False] * n[3]
    third = slice(int(starts[2]), int(starts[3]))
    assert part.targets.token_ids[third].flatten().tolist() == examples[2].targets.token_ids.tolist()  # type: ignore[union-attr]
    assert (part.labels[third] == IGNORE_INDEX).all()
    assert part.labels[: n[0]].tolist() == examples[0].encoded.targets.tolist()
    assert count_terms(part.labels, part.targets) == sum((e.counts for e in examples), LossCounts(0, 0, 0))


def test_without_distillation_there_are_no_targets(make_example: Callable[..., Example]) -> None:
    assert to_part([make_example(0)], pad_id=0, device=CPU, distils=False).targets is None


def test_taught_is_a_choice_among_the_rows_that_exist(make_example: Callable[..., Example]) -> None:
    whole = make_example(0, taught=True)
    n = len(whole.encoded.positions)
    mask = np.arange(n) == 0
    assert Example(whole.encoded, whole.targets, mask).is_taught.tolist() == mask.tolist()


def test_rows_or_masks_of_another_length_are_refused(make_example: Callable[..., Example]) -> None:
    whole = make_example(0, taught=True)
    assert whole.targets is not None
    with pytest.raises(ValueError, match="expected one each"):
        Example(whole.encoded, whole.targets.take_rows(np.array([0])))
    with pytest.raises(ValueError, match=r"taught has shape \(99,\)"):
        Example(whole.encoded, whole.targets, np.ones(99, np.bool_))
