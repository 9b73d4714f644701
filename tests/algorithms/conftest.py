"""The playground's shipped client as a learner of unlabelled chains."""

from collections.abc import Callable
from typing import Any

import pytest

from fedtandem.algorithms.learner import Learner
from fedtandem.algorithms.settings import KnowledgeSettings, Unlabelled
from fedtandem.data.chains import ChainsSource
from fedtandem.models.language_model import LanguageModel
from fedtandem.models.load import ModelSpec, load_model
from fedtandem.tuning.phase import PhaseSettings


def embedded(name: str) -> LanguageModel:
    return load_model(ModelSpec(model=f"embedded:chains-{name}", tuning_method="full", device="cpu"))


@pytest.fixture(scope="module")
def client_lm() -> LanguageModel:
    return embedded("client-a")


@pytest.fixture(scope="module")
def server_lm() -> LanguageModel:
    return embedded("server")


@pytest.fixture
def student(client_lm: LanguageModel) -> Callable[..., Learner]:
    """`student(n)`: in the shipped state, with n prompts of 1 to 3 steps, a few updates a round, the events kept."""
    untouched = client_lm.state()

    def make(n: int = 40, **settings: Any) -> Learner:
        client_lm.load_state(untouched)
        events: list[dict[str, Any]] = []
        learner = Learner(
            name="clinic-a", lm=client_lm, public=ChainsSource(n=n, steps=(1, 2, 3), labelled=False).samples(),
            own=[], tests=[], private_settings=PhaseSettings(),
            public_settings=PhaseSettings(**{"learning_rate": 1e-3, "max_steps": 6, "batch_size": 4, **settings}),
            knowledge=KnowledgeSettings(), unlabelled=Unlabelled(max_new_tokens=24), replay_fraction=0.0, num_rounds=2,
            seed=0, emit=lambda event, **fields: events.append({"event": event, **fields}),
        )  # fmt: skip
        learner.events = events  # type: ignore[attr-defined]
        return learner

    yield make
    client_lm.load_state(untouched)
