"""Bridge to EleutherAI's lm-evaluation-harness (extra `eval`): its tasks on a saved model folder."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fedtandem.errors import ConfigError, ModelError


@dataclass(frozen=True)
class HarnessScores:
    """What the harness found, with everything that changes its figures."""

    scores: Mapping[str, Mapping[str, float]]
    """Task -> metric (with its filter, as the harness names it, e.g. "acc,none") -> value."""
    num_fewshot: int
    chat_template: bool
    limit: int | None
    version: str
    """Of lm-eval."""


def evaluate_with_lm_eval(
    folder: Path,
    tasks: Sequence[str],
    *,
    num_fewshot: int = 0,
    chat_template: bool = False,
    limit: int | None = None,
    batch_size: int = 8,
    device: str | None = None,
) -> HarnessScores:
    """Run tasks of the harness on a folder that `LanguageModel.save` or `fedtandem export` wrote.

    Args:
        folder: a `transformers` folder, or a PEFT folder (its base model is loaded as it names it).
        tasks: the harness's names, e.g. "rte", "arc_easy".
        num_fewshot: solved examples before every question.
        chat_template: wrap prompts in the tokenizer's own template; changes scores (lm-eval issue 1841).
        limit: items per task at most; for trials only.

    Raises:
        ConfigError: lm-eval is not installed, or no task is named.
        ModelError: the folder holds no model.
    """
    if not tasks:
        raise ConfigError("lm-eval needs at least one task, e.g. rte or arc_easy.")
    model_args = harness_model_args(folder)
    try:
        from lm_eval import simple_evaluate
    except ImportError as error:
        raise ConfigError(
            "tasks of the harness need lm-eval, which is not installed: pip install 'fedtandem[eval]'."
        ) from error
    results = simple_evaluate(
        model="hf",
        model_args=model_args,
        tasks=list(tasks),
        num_fewshot=num_fewshot,
        apply_chat_template=chat_template,
        limit=limit,
        batch_size=batch_size,
        device=device,
    )
    scores = {
        task: {name: float(value) for name, value in found.items() if isinstance(value, int | float)}
        for task, found in (results or {"results": {}})["results"].items()  # None: another rank reports
    }
    return HarnessScores(scores, num_fewshot, chat_template, limit, _installed())


def harness_model_args(folder: Path) -> dict[str, str]:
    """The harness's `model_args` for a saved folder.

    Raises:
        ModelError: no config of a model or an adapter is in it.
    """
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
        if not base:
            raise ModelError(f"{adapter} names no base model; merge it first: fedtandem export --merge.")
        return {"pretrained": str(base), "peft": str(folder), "tokenizer": str(folder)}
    if (folder / "config.json").is_file():
        return {"pretrained": str(folder)}
    raise ModelError(
        f"{folder} holds neither config.json nor adapter_config.json; give a folder saved by fedtandem or "
        "transformers."
    )


def _installed() -> str:
    try:
        return version("lm-eval")
    except PackageNotFoundError:
        return "unknown"
