"""The card beside an exported model: what it is, what it was trained on, how, and how well it does."""

import json
from pathlib import Path
from typing import Any

from fedtandem.errors import ConfigError
from fedtandem.reports.contrasts import Contrast, run_contrasts
from fedtandem.reports.record import SERVER, RunRecord, Score, read_run
from fedtandem.reports.run_page import config_text
from fedtandem.reports.wording import difference, figure, method_name, metric_name, payload


def model_card(run: Path, method: str, party: str, *, merged: bool = False) -> str:
    """The text of README.md for one party's final model.

    Args:
        run: the run folder it comes from.
        method: which method's state.
        party: whose.
        merged: the adapter was folded into the base model.

    Raises:
        ConfigError: the run has no such party.
    """
    record = read_run(run)
    models = record.about.get("models", {})
    if party not in models:
        raise ConfigError(f"the run has no party {party!r}; its parties are {', '.join(models)}.")
    return "\n".join(
        [
            *_front_matter(record, models[party], merged),
            f"# {record.name}: {party}, trained by {method_name(method)}",
            "",
            *_story(record, method, party, models[party], merged),
            "## Data",
            "",
            *_data(record, method, party),
            "## Evaluation",
            "",
            *_evaluation(record, method, party),
            "## Config",
            "",
            "```toml",
            config_text(_without_folders(dict(record.about.get("config", {})))),
            "```",
            "",
        ]
    )


def _without_folders(value: Any) -> Any:
    """The config without this machine's folders: a card is published, where private files lie is not."""
    if isinstance(value, dict):
        return {key: _without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_folders(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~")) else value


def _front_matter(record: RunRecord, model: dict[str, Any], merged: bool) -> list[str]:
    base = str(model.get("name", ""))
    is_adapter = not merged and model.get("trainable") != model.get("parameters")
    # A folder or a model made on the spot is no id on any hub.
    on_hub = base and not base.startswith(("embedded:", "scratch:", "/", "."))
    lines = ["---", f"library_name: {'peft' if is_adapter else 'transformers'}"]
    if on_hub:
        lines.append(f"base_model: {json.dumps(base)}")
    return [*lines, "tags:", "- fedtandem", "- federated-learning", "- knowledge-distillation", "---", ""]


def _story(record: RunRecord, method: str, party: str, model: dict[str, Any], merged: bool) -> list[str]:
    config = record.about.get("config", {})
    selector = config.get("selection", {}).get("selector", "dual_min_ce")
    sites = sum(1 for name in record.about.get("models", {}) if name != SERVER)
    traffic = [t for t in record.traffic if t.method == method]
    up, down = sum(t.up for t in traffic), sum(t.down for t in traffic)
    form = "merged into the base model" if merged else "as the run saved it"
    facts = {
        "Base model": f"`{model.get('name', '')}` ({model.get('architecture', 'unknown architecture')}), {form}",
        "Trained weights": f"{model.get('trainable', 0):,} of {model.get('parameters', 0):,}",
        "Vocabulary": f"`{model.get('vocab_hash', '')}`",
        "Method": f"{method_name(method)}: {record.says.get(method, 'no description')}",
        "Sites": f"{sites} clients and a server",
        "Rounds": str(record.num_rounds),
        "Selection rule": f"`{selector}`",
        "Bytes exchanged, all clients": f"{payload(up)} up, {payload(down)} down",
        "Seed": str(record.about.get("seed", "unknown")),
        "Differential privacy": "none",
    }
    return [*(f"- **{name}:** {value}" for name, value in facts.items()), ""]


def _data(record: RunRecord, method: str, party: str) -> list[str]:
    config = record.about.get("config", {})
    own = record.about.get("models", {}).get(party, {}).get("own_samples")
    public = config.get("public", {})
    labelled = "with answers" if public.get("labelled", True) else "without answers; the parties wrote them"
    lines = [f"- public set: `{record.about.get('public_hash')}` ({labelled})"]
    if own:
        lines.append(f"- own samples of {party}: {own:,} (they never left it)")
    return [*lines, ""]


def _evaluation(record: RunRecord, method: str, party: str) -> list[str]:
    """The party's figures on held-out text; beside the control where this is the run's own method."""
    contrasts = [c for c in run_contrasts(record) if c.party == party] if method == record.main else []
    lines = [
        "| test set | metric | before | this model | control | difference |",
        "|---|---|---|---|---|---|",
    ]
    if contrasts:
        controls = sorted({method_name(c.control) for c in contrasts if c.control})
        note = (
            f"Control: {', '.join(controls)}. One seed: figures, no claim."
            if controls
            else "No control was run."
        )
        return [*lines, *map(_contrast_line, contrasts), "", note, ""]
    scores = [s for s in record.scores if (s.method, s.party) == (method, party)]
    if not scores:
        return ["The run measured nothing for this model.", ""]
    return [*lines, *map(_score_line, scores), ""]


def _contrast_line(c: Contrast) -> str:
    figures = [figure(value, c.metric) for value in (c.before, c.value, c.control_value)]
    gap = difference(c.difference, c.metric)
    return f"| {c.split} (n = {c.n}) | {metric_name(c.metric)} | {' | '.join(figures)} | {gap} |"


def _score_line(s: Score) -> str:
    return f"| {s.split} (n = {s.n}) | {metric_name(s.metric)} | – | {figure(s.value, s.metric)} | – | – |"
