"""Privacy settings: the stricter of two holds, and what would undo a budget is refused."""

from typing import Any

import pytest

from fedtandem.config import load_resolved
from fedtandem.config.privacy import DPConfig, PrivacyConfig
from fedtandem.errors import ConfigError

CHAINS = {"path": "embedded:chains", "chains": {"n": 20}}


def run(**changes: Any) -> Any:
    plain = {
        "name": "r", "server": {"model": "embedded:chains-server"}, "public": CHAINS,
        "clients": [{"name": "a", "model": "embedded:chains-client-a", "data": CHAINS}],
    }  # fmt: skip
    return load_resolved({**plain, **changes})


def test_the_stricter_of_server_and_site_holds_both_ways() -> None:
    server = PrivacyConfig(
        dp=DPConfig(target_delta=1e-5, target_epsilon=8.0, max_grad_norm=0.5), score_noise=0.1
    )
    site = PrivacyConfig(
        dp=DPConfig(target_delta=1e-6, noise_multiplier=1.3, max_grad_norm=2.0, on_spent="go_on"),
        score_clip=4.0,
    )
    both = site.and_(server)
    assert both == server.and_(site)
    assert both.dp == DPConfig(target_delta=1e-6, target_epsilon=8.0, noise_multiplier=1.3, max_grad_norm=0.5)
    assert (both.score_clip, both.score_noise) == (4.0, 0.1)
    assert PrivacyConfig().and_(site) == site.and_(PrivacyConfig()) == site


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"privacy": {"dp": {"target_delta": 1e-5}}}, "set target_epsilon, noise_multiplier or both"),
        ({"privacy": {"dp": {"target_epsilon": 3.0}}}, "target_delta"),
        ({"privacy": {"dp": {"target_delta": 1e-5, "target_epsilon": 3.0, "noise_multiplier": 0}}}, "without noise"),
        (
            {
                "privacy": {"dp": {"target_delta": 1e-5, "target_epsilon": 3.0}},
                "distillation": {"replay_fraction": 0.3},
            },
            "outside of it",
        ),
        ({"server": {"model": "embedded:chains-server", "privacy": {"score_noise": 1.0}}}, "is for clients"),
    ],
)  # fmt: skip
def test_what_would_undo_a_budget_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        run(**changes)


def test_a_resolved_run_is_read_back() -> None:
    config = run(privacy={"dp": {"target_delta": 1e-5, "target_epsilon": 3.0}}, defence={})
    assert load_resolved(config.resolved()) == config
