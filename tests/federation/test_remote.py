"""What a site may put into the server's record: its own lines, of a kind that parties write."""

import pytest

from fedtandem.federation.remote import is_told

COST = {
    "event": "privacy", "round": 1, "party": "a", "epsilon": 1.5, "epsilon_phase": 1, "delta": 1e-5,
    "noise_multiplier": 1.0, "max_grad_norm": 1.0, "sample_rate": 0.1, "steps": 3, "planned": 3, "target_epsilon": None,
    "per_sample": "hooks",
}  # fmt: skip
SCORE = {
    "event": "metric", "round": 1, "party": "a", "split": "s", "metric": "m", "value": 0.5, "n": 3,
    "higher_is_better": True,
}  # fmt: skip


def test_a_sites_own_lines_are_told() -> None:
    for line in (COST, {**COST, "target_epsilon": 8.0}, SCORE, {"event": "phase", "round": 1, "party": "a"}):
        assert is_told(line, "a")
        assert not is_told(line, "b")


@pytest.mark.parametrize(
    "line",
    [
        {**COST, "epsilon": float("nan")},
        {**COST, "epsilon": "1.5"},
        {**COST, "target_epsilon": float("inf")},
        {**COST, "steps": 2.5},
        {key: value for key, value in COST.items() if key != "delta"},
        {**SCORE, "value": float("inf")},
        {**SCORE, "n": True},
        {**SCORE, "method": "fedmkt"},
        {**SCORE, "round": "1"},
        {**SCORE, "event": "round_committed"},
        {**SCORE, "event": ["metric"]},
        "metric",
    ],
)
def test_what_would_break_or_fake_the_record_is_dropped(line: object) -> None:
    assert not is_told(line, "a")
