"""The learning rate over a run of several phases."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.tuning.schedule import Schedule, learning_rate_factor

schedules = st.sampled_from(["cosine", "linear", "constant"])


@given(schedule=schedules, steps=st.integers(1, 40), rounds=st.integers(1, 6), warmup=st.floats(0, 1))
def test_phases_laid_end_to_end_are_one_schedule(
    schedule: Schedule, steps: int, rounds: int, warmup: float
) -> None:
    whole = [
        learning_rate_factor(i, steps * rounds, schedule=schedule, warmup_ratio=warmup)
        for i in range(steps * rounds)
    ]
    in_phases = [
        learning_rate_factor(i, steps, (r / rounds, (r + 1) / rounds), schedule=schedule, warmup_ratio=warmup)
        for r in range(rounds)
        for i in range(steps)
    ]
    assert in_phases == pytest.approx(whole, abs=1e-9)


@given(schedule=schedules, steps=st.integers(1, 40), warmup=st.floats(0, 1))
def test_the_factor_is_never_zero_and_never_above_one(schedule: Schedule, steps: int, warmup: float) -> None:
    factors = [learning_rate_factor(i, steps, schedule=schedule, warmup_ratio=warmup) for i in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)


def test_a_cosine_of_four_steps_without_warmup() -> None:
    factors = [learning_rate_factor(i, 4) for i in range(4)]
    assert factors == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-6)


def test_linear_rises_over_half_of_four_steps_then_falls() -> None:
    factors = [learning_rate_factor(i, 4, schedule="linear", warmup_ratio=0.5) for i in range(4)]
    assert factors == pytest.approx([0.5, 1, 1, 0.5])
