"""Upper bounds of beta from audits: above the truth, in steps that rise, and 1 where nothing is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtandem.errors import DataError
from fedtandem.inference.bounds import Bounds, bounds_from_audits


def audits(seed: int, answers: int = 80, tokens: int = 20) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    u = rng.random((answers, tokens)) / 2
    wrong = rng.random((answers, tokens)) < u * rng.uniform(0.5, 1.5, (answers, 1))
    return u.ravel(), wrong.ravel().astype(float), np.repeat(np.arange(answers), tokens)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_bounds_rise_and_end_at_one(seed: int) -> None:
    bounds = bounds_from_audits(*audits(seed), np.random.default_rng(0))
    steps = [bounds(u) for u in np.linspace(0, 1, 50)]
    assert steps == sorted(steps)
    assert bounds(0.51) == 1
    assert all(0 < bound < 1 for bound in bounds.beta_upper)


def test_all_bounds_hold_at_once_nineteen_times_in_twenty() -> None:
    held = 0
    for seed in range(100):
        u, error, answer = audits(seed)
        bounds = bounds_from_audits(u, error, answer, np.random.default_rng(seed))
        middles = (np.array([0.0, *bounds.u[:-1]]) + bounds.u) / 2
        held += bool(np.all(middles <= np.array(bounds.beta_upper)))  # E[beta | u] = u
    assert held >= 90


def test_no_error_seen_is_not_no_error() -> None:
    u, error, answer = audits(0, answers=10, tokens=10)
    bounds = bounds_from_audits(u, 0 * error, answer, np.random.default_rng(0))
    assert min(bounds.beta_upper) == pytest.approx(3 / 50)


@pytest.mark.parametrize(
    ("u", "error"), [([0.1] * 10, [0.0] * 10), ([1.5] * 60, [0.0] * 60), ([0.5] * 60, [-1.0] * 60)]
)
def test_what_says_nothing_is_refused(u: list[float], error: list[float]) -> None:
    with pytest.raises(DataError, match="audited tokens"):
        bounds_from_audits(u, error, range(len(u)), np.random.default_rng(0))


def test_steps_that_are_none_are_refused() -> None:
    with pytest.raises(DataError, match="ascending"):
        Bounds((0.5, 0.1), (0.1, 0.2))
