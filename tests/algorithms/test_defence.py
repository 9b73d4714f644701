"""Scores held against rows: an honest one is never caught, a better claim is; and nobody teaches too much."""

from pathlib import Path

import numpy as np

from fedtandem.algorithms.defence import capped
from fedtandem.algorithms.lessons import Choice
from fedtandem.studies.privacy import byzantine


def test_only_the_liar_is_caught_whatever_the_lie(tmp_path: Path) -> None:
    """The study's own federation, short; four architectures, and an honest run beside."""
    found = byzantine.cell(3, tmp_path)
    for lie in byzantine.ATTACKS:
        assert found[f"{lie}|defence"]["caught"] == ["b in round 1"], lie
    assert found["none|defence"]["caught"] == []
    assert found["confident nonsense|open"]["loss"] > found["confident nonsense|defence"]["loss"] + 0.05


def test_no_client_teaches_more_than_its_share() -> None:
    choice = Choice(np.array([0] * 8 + [1, -1]), ("a", "b"), np.arange(10))
    cut = capped(choice, 0.5, np.random.default_rng(0))
    assert len(cut.won_by("a")) == 5
    assert set(cut.won_by("a")) <= set(range(8))
    assert cut.won_by("b").tolist() == [8]
    assert np.array_equal(capped(choice, 1.0, np.random.default_rng(0)).teacher_of, choice.teacher_of)
