"""The bridge hands a saved folder to the harness and records what changes its scores."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from fedtandem.errors import ConfigError, ModelError
from fedtandem.evaluation.lm_eval import evaluate_with_lm_eval, harness_model_args


def test_a_model_folder_and_an_adapter_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds neither config\.json nor adapter_config\.json"):
        harness_model_args(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert harness_model_args(tmp_path) == {"pretrained": str(tmp_path)}
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "facebook/opt-1.3b"})
    )
    assert harness_model_args(tmp_path) == {
        "pretrained": "facebook/opt-1.3b", "peft": str(tmp_path), "tokenizer": str(tmp_path),
    }  # fmt: skip
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="names no base model"):
        harness_model_args(tmp_path)


def test_scores_come_back_with_shots_template_and_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}

    def simple_evaluate(**arguments: object) -> dict[str, object]:
        asked.update(arguments)
        return {"results": {"rte": {"alias": "rte", "acc,none": 0.5, "acc_stderr,none": "N/A"}}}

    # A harness that notes what it was asked: the bridge is nothing but that question and its answer.
    harness = ModuleType("lm_eval")
    harness.simple_evaluate = simple_evaluate  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lm_eval", harness)
    (tmp_path / "config.json").write_text("{}")
    found = evaluate_with_lm_eval(tmp_path, ["rte"], num_fewshot=5, chat_template=True, limit=10)
    assert found.scores == {"rte": {"acc,none": 0.5}}
    assert (found.num_fewshot, found.chat_template, found.limit) == (5, True, 10)
    assert (asked["model"], asked["tasks"], asked["num_fewshot"]) == ("hf", ["rte"], 5)
    assert (asked["apply_chat_template"], asked["limit"]) == (True, 10)


def test_without_the_library_or_a_task_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"fedtandem\[eval\]"):
        evaluate_with_lm_eval(tmp_path, ["rte"])
    with pytest.raises(ConfigError, match="at least one task"):
        evaluate_with_lm_eval(tmp_path, [])
