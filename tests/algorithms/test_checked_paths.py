"""The check between writing and learning, with the shipped models: what they know, they notice."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from fedtandem.algorithms.checked_paths import accepted_only, known_answers, own_facts
from fedtandem.algorithms.learner import Learner
from fedtandem.algorithms.settings import KnowledgeSettings, Unlabelled
from fedtandem.checking.checkers import CheckSettings
from fedtandem.data.chains import ChainsSource
from fedtandem.data.public import Sample
from fedtandem.errors import DataError
from fedtandem.exchange.knowledge import Knowledge
from fedtandem.models.language_model import LanguageModel
from fedtandem.models.load import ModelSpec, load_model
from fedtandem.tuning.phase import PhaseSettings

PATHS = {
    "Q 3 + 5 A": " 3 + 5 = 8 ; # 8",
    "Q 2 * 4 A": " 2 * 4 = 7 ; # 7",  # wrong, and it knows
    "Q 3 @ 5 A": " 3 @ 5 = 1 ; # 1",  # nobody here can tell
    "Q 3 - 5 A": " 5 - 3 = 2 ; # 2",  # of another form
    "Q 1 + 1 A": "",
}


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """The shipped client: sure of + - * m, unsure of @ and &."""
    return load_model(ModelSpec(model="embedded:chains-client-a", tuning_method="full"))


def learner(lm: LanguageModel, check: CheckSettings, events: list[dict[str, Any]], **more: Any) -> Learner:
    phase = PhaseSettings(learning_rate=1e-3)
    return Learner(
        name="clinic-a",
        lm=lm,
        public=[Sample(f"p-{i}", prompt, None) for i, prompt in enumerate(PATHS)],
        own=ChainsSource(n=40, steps=(1,), seed=5).samples(),
        tests=[],
        private_settings=phase,
        public_settings=phase,
        knowledge=KnowledgeSettings(),
        unlabelled=Unlabelled(),
        replay_fraction=0.0,
        num_rounds=1,
        seed=0,
        check=check,
        emit=lambda event, **fields: events.append({"event": event, **fields}),
        **more,
    )


def told(texts: Sequence[str]) -> Knowledge:
    return Knowledge(
        party="server", round=1, vocab_hash="v", public_hash="p",
        scores=np.where([bool(text) for text in texts], 0.5, np.inf).astype(np.float32),
        sample_index=np.zeros(0, dtype=np.int32), rows=None, texts=tuple(texts),
    )  # fmt: skip


def test_a_model_asks_itself_and_knows_how_sure_it_is(model: LanguageModel) -> None:
    plus, at = own_facts(learner(model, CheckSettings("path"), []), ["Q 3 + 5 A", "Q 3 @ 5 A"], 1)
    assert plus.answer == " 3 + 5 = 8 ; # 8"
    assert plus.sureness > 0.9 > at.sureness


def test_form_and_own_facts_decide_and_are_counted(model: LanguageModel) -> None:
    events: list[dict[str, Any]] = []
    receiver = learner(model, CheckSettings("path"), events)
    heard, vouched = accepted_only(receiver, 1, {"server": told(list(PATHS.values()))})
    assert np.isfinite(heard["server"].scores).tolist() == [True, False, True, False, False]
    assert vouched == {0: PATHS["Q 3 + 5 A"]}  # of @ it knows nothing, so it vouches for nothing
    (event,) = [event for event in events if event["event"] == "check"]
    assert {key: event[key] for key in ("teacher", "written", "accepted", "refused", "used")} == {
        "teacher": "server", "written": 4, "accepted": 2, "refused": 2, "used": 2,
    }  # fmt: skip
    assert [example["id"] for example in event["examples"]] == ["p-1", "p-3"]
    assert "contradicts" in event["examples"][0]["reason"]


def test_without_a_check_nothing_is_touched_or_told(model: LanguageModel) -> None:
    events: list[dict[str, Any]] = []
    knowledge = told(list(PATHS.values()))
    heard, vouched = accepted_only(learner(model, CheckSettings(), events), 1, {"server": knowledge})
    assert heard["server"] is knowledge
    assert (vouched, events) == ({}, [])


def test_a_check_that_refuses_all_is_said(model: LanguageModel) -> None:
    events: list[dict[str, Any]] = []
    receiver = learner(model, CheckSettings("arithmetic"), events)
    heard, _ = accepted_only(receiver, 1, {"server": told([" 1 + 1 = 3"] * len(PATHS))})
    assert np.isinf(heard["server"].scores).all()
    (warning,) = [event for event in events if event["event"] == "warning"]
    assert warning["signature"] == "the check refuses everything"
    assert "prompt p-0: 1 + 1 = 3 is wrong: the left side is 2" in warning["text"]


def test_known_answers_come_from_a_column_and_a_missing_one_is_named() -> None:
    rows = [Sample("a", "q1", None, fields={"gold": 4}), Sample("b", "q2", None, fields={"other": 1})]
    assert known_answers(rows, None) == ({}, {})
    assert known_answers(rows[:1], "gold") == ({"q1": "4"}, {})
    with pytest.raises(DataError, match=r"sample 'b' has no column 'gold'"):
        known_answers(rows, "gold")
