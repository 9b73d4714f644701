"""After co-tuning, answer together: how many passes of the LLM each SLM spares it, at equal output.

Every answer is the co-tuned LLM's own greedy text (mode `exact`), whoever drafts; only how often it is asked differs.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedtandem.atomic import write_text
from fedtandem.config import RunConfig
from fedtandem.data.load import load_samples
from fedtandem.errors import ConfigError
from fedtandem.federation.build import SERVER, model_spec
from fedtandem.federation.export import trained_parties
from fedtandem.federation.generate import measure
from fedtandem.inference.generate import Generation, generate
from fedtandem.inference.record import summary
from fedtandem.inference.settings import DecodeSettings
from fedtandem.models.language_model import LanguageModel
from fedtandem.models.load import ModelSpec, load_model

PROMPTS = 80
BLOCK = 16
"""A short answer fits into one block: then the LLM is asked once, and once more per token it would not write."""
ALWAYS_A_WHOLE_BLOCK = 1.0
"""As tau: with it an SLM's doubt, which co-tuning changes as well, plays no part."""


@dataclass(frozen=True)
class Saved:
    """What one SLM spared the LLM.

    Attributes:
        client: whose SLM; "" for the LLM alone.
        slm: "untouched", "co-tuned", or "none".
        answers: how many.
        llm_passes: per answer.
        saved: share of the passes that the LLM alone takes.
        accepted: share of the SLM's drafts that stood.
        equal: answers with the same ids as the LLM alone.
        tied: answers that differ from it, and only after a place that rounding may decide.
    """

    client: str
    slm: str
    answers: int
    llm_passes: float
    saved: float
    accepted: float
    equal: int
    tied: int


def joint_command(run: Path, *, prompts: int = PROMPTS) -> list[Saved]:
    """Answer the run's test prompts with its LLM, drafted by each client's SLM before and after co-tuning.

    Args:
        run: a finished run folder.
        prompts: of all test sets together, an equal number of each.

    Returns:
        The LLM alone, then two rows per client; also written to `joint.json` in the folder.

    Raises:
        ConfigError: no finished run, or none of its SLMs was trained by its method.
        DataError: no test set has prompts.
    """
    config, kept = _read(run)
    method = next(iter(kept))
    folder = run / "adapters" / method
    server = (
        _trained(folder / SERVER)
        if SERVER in kept[method]
        else load_model(model_spec(config, config.server, SERVER, _quiet))
    )
    asked = _prompts(config, prompts)
    alone = _answers(None, server, asked, config)
    rows = [_row("", "none", alone, alone)]
    for client in config.clients:
        if client.name not in kept[method]:
            continue
        untouched = load_model(model_spec(config, client, client.name, _quiet))
        rows.append(_row(client.name, "untouched", _answers(untouched, server, asked, config), alone))
        answers = _answers(_trained(folder / client.name), server, asked, config)
        rows.append(_row(client.name, "co-tuned", answers, alone))
    write_text(run / "joint.json", json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return rows


def _read(run: Path) -> tuple[RunConfig, dict[str, list[str]]]:
    """The run's config, and the parties that its method trained."""
    file = run / "run.json"
    if not file.is_file():
        raise ConfigError(
            f"{run} is no run folder: it has no run.json. Name the folder `fedtandem run` wrote."
        )
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if record["status"] != "finished":
        raise ConfigError(f"the run in {run} is {record['status']}; finish it with `fedtandem run --resume`.")
    config = RunConfig.model_validate(record["config"])
    method = record["methods"][0]
    parties = trained_parties(run).get(method, [])
    if not any(client.name in parties for client in config.clients):
        raise ConfigError(
            f"method {method} of the run in {run} trained no client's model: there is nothing to compare. Run a "
            "method that teaches clients, e.g. fedmkt."
        )
    return config, {method: parties}


def _trained(folder: Path) -> LanguageModel:
    return load_model(ModelSpec(str(folder), tuning_method="none"))


def _prompts(config: RunConfig, n: int) -> list[str]:
    """The first prompts of every test set that has some, each once."""
    sets = []
    for test in config.evaluation.sets:
        samples = load_samples(test.data.to_source(), where=f"test set {test.name}")
        sets.append(list(dict.fromkeys(sample.prompt for sample in samples if sample.prompt)))
    sets = [found for found in sets if found]
    if not sets:
        raise ConfigError("no test set of the run has prompts: there is nothing to answer.")
    each = max(1, n // len(sets))
    return list(dict.fromkeys(prompt for found in sets for prompt in found[:each]))


def _answers(
    slm: LanguageModel | None, llm: LanguageModel, prompts: Sequence[str], config: RunConfig
) -> list[Generation]:
    settings = DecodeSettings(
        mode="cloud" if slm is None else "exact",
        uplink="greedy",
        block=BLOCK,
        tau=ALWAYS_A_WHOLE_BLOCK,
        max_new_tokens=config.public.max_new_tokens,
    )
    return generate(slm, llm, prompts, settings, uncertainty=measure("max_prob"), batch_size=128)


def _row(client: str, slm: str, answers: Sequence[Generation], alone: Sequence[Generation]) -> Saved:
    totals = summary([answer.record for answer in answers])
    pairs = list(zip(answers, alone, strict=True))
    equal = sum(one.ids == other.ids for one, other in pairs)
    return Saved(
        client,
        slm,
        len(answers),
        totals["llm_passes"] / len(answers),
        totals["llm_passes_saved"],
        totals["accepted_share"],
        equal,
        sum(one.ids != other.ids and one.agrees_with(other) for one, other in pairs),
    )


def _quiet(what: str, done: int, of: int) -> None:
    return None
