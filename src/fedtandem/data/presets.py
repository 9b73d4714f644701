"""Ready adapters for well-known sets: the columns, prompt, label words and metric of each.

A preset is nothing but defaults: whatever a data source states itself goes first. Prompts and label words are
ours; they follow the wording the papers' tasks commonly have, and every answer begins with the same space.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Literal

from fedtandem.data.source import DataSource, Format
from fedtandem.errors import ConfigError, did_you_mean

YES_NO = {"true": "yes", "false": "no"}


@dataclass(frozen=True)
class Preset:
    """Defaults for a `DataSource`, and the metric the set is usually scored with."""

    metric: str
    format: Format = "prompt_completion"
    columns: Mapping[str, str] = field(default_factory=dict)
    template: str | None = None
    answer_template: str | None = None
    answers: Mapping[str, str] = field(default_factory=dict)
    window_bytes: int | None = None
    on_empty: Literal["error", "drop"] = "error"


QUESTION = Preset("accuracy", "multiple_choice", template="Question: {question}\nAnswer:")
"""Options are compared as whole answers, by log-likelihood per byte; they do not stand in the prompt."""
WORD_PROBLEM = Preset("exact_match", template="Question: {question}\nAnswer:")
PROSE = Preset("bits_per_byte", "text", window_bytes=512)

PRESETS: Mapping[str, Preset] = {
    "ag_news": Preset(
        "accuracy",
        template="{text}\nTopic:",
        columns={"answer": "label"},
        answers={"0": "World", "1": "Sports", "2": "Business", "3": "Technology"},
    ),
    "rte": Preset(
        "accuracy",
        template="{premise}\nquestion: {hypothesis}\nanswer:",
        columns={"answer": "label"},
        answers={"0": "yes", "1": "no"},
    ),
    "wic": Preset(
        "accuracy",
        template=(
            "Sentence 1: {sentence1}\nSentence 2: {sentence2}\n"
            'question: is "{word}" used in the same sense in both sentences?\nanswer:'
        ),
        columns={"answer": "label"},
        answers=YES_NO,
    ),
    "boolq": Preset("accuracy", template="{passage}\nquestion: {question}?\nanswer:", answers=YES_NO),
    "boolq_closed_book": Preset("accuracy", template="question: {question}?\nanswer:", answers=YES_NO),
    "commonsense_qa": QUESTION,
    "arc_easy": QUESTION,
    "arc_challenge": QUESTION,
    "openbookqa": QUESTION,
    "gsm8k": WORD_PROBLEM,
    "gsm8k_rationale": Preset(
        "bits_per_byte",
        template="Question: {question}\nAnswer:",
        answer_template="{rationale_plain}\n#### {answer}",
    ),
    "svamp": WORD_PROBLEM,
    "multiarith": WORD_PROBLEM,
    "super_ni": Preset(
        "rouge_l",
        template="{definition}\n\nInput: {input}\nOutput:",
        columns={"answer": "outputs"},
        on_empty="drop",  # two training rows have no summary
    ),
    "dialogsum": Preset("rouge_l", template="{dialogue}\nSummary:", columns={"answer": "summaries"}),
    "english_novels": PROSE,
    "wikitext2": PROSE,
    "web_text": PROSE,
}


def find_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    if name in PRESETS:
        return PRESETS[name]
    raise ConfigError(
        f"there is no preset {name!r}; presets: {', '.join(PRESETS)}{did_you_mean(name, PRESETS)}"
    )


def with_preset(source: DataSource) -> DataSource:
    """The source with its preset's defaults where it states nothing itself; unchanged without a preset."""
    if source.preset is None:
        return source
    preset = find_preset(source.preset)
    untouched = DataSource()
    defaults = {
        item.name: getattr(preset, item.name)
        for item in fields(Preset)
        if item.name not in ("metric", "columns")
        and getattr(source, item.name) == getattr(untouched, item.name)
    }
    return replace(source, columns={**preset.columns, **source.columns}, **defaults)


def metric_of(source: DataSource) -> str | None:
    """The metric of the source's preset; None without one."""
    return None if source.preset is None else find_preset(source.preset).metric
