"""`fedtandem generate`: answer prompts with two models and say what the large one was spared."""

import json
from dataclasses import dataclass
from pathlib import Path

from fedtandem.atomic import write_text
from fedtandem.data.files import read_file
from fedtandem.errors import ConfigError, DataError
from fedtandem.inference.bounds import Bounds
from fedtandem.inference.drafting import Uncertainty
from fedtandem.inference.generate import Bridge, Generation, OnText, generate
from fedtandem.inference.record import summary
from fedtandem.inference.settings import DecodeSettings
from fedtandem.inference.uncertainty import MEASURES, expected_of_best, top_logits
from fedtandem.models.language_model import LanguageModel
from fedtandem.models.load import ModelSpec, load_model


@dataclass(frozen=True)
class GenerateRequest:
    """What `fedtandem generate` was asked."""

    draft: str | None
    target: str | None
    prompt: tuple[str, ...] | None
    prompts: Path | None
    bounds: Path | None
    uncertainty: str
    bridge: Bridge
    chat_template: bool
    batch_size: int
    output: Path | None
    settings: DecodeSettings


@dataclass(frozen=True)
class Answers:
    """What came out: one JSON-ready row per prompt in order, and the sums over all."""

    rows: list[dict[str, object]]
    totals: dict[str, float]


def generate_command(request: GenerateRequest, on_text: OnText | None = None) -> Answers:
    """Load what the mode needs, answer every prompt, write the answers if a file was named.

    Raises:
        ConfigError: no prompt, two sources of prompts, or a model or the bounds missing.
        DataError: prompts or bounds that cannot be read.
    """
    mode = request.settings.mode
    if (request.prompt is None) == (request.prompts is None):
        raise ConfigError(
            "give prompts on the command line (--prompt TEXT) or a file of them (--prompts F), one of both."
        )
    if request.draft is None and mode != "cloud":
        raise ConfigError(f"mode {mode} needs the small model: --draft MODEL.")
    if request.target is None and mode != "local":
        raise ConfigError(f"mode {mode} needs the large model: --target MODEL.")
    if mode == "bounded" and request.bounds is None:
        raise ConfigError("mode bounded needs upper bounds of beta by uncertainty: --bounds FILE.")
    beta_upper = None if request.bounds is None else read_bounds(request.bounds)
    prompts = list(request.prompt) if request.prompt is not None else read_prompts(request.prompts)
    answers = generate(
        None if mode == "cloud" else _load(request.draft),
        None if mode == "local" else _load(request.target),
        prompts,
        request.settings,
        uncertainty=measure(request.uncertainty),
        beta_upper=beta_upper,
        bridge=request.bridge,
        chat_template=request.chat_template,
        batch_size=request.batch_size,
        on_text=on_text,
    )
    rows = [_row(answer, mode) for answer in answers]
    if request.output is not None:
        write_text(request.output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return Answers(rows, summary([answer.record for answer in answers]))


def in_words(totals: dict[str, float]) -> str:
    """The sums as one line."""
    said = (
        f"{totals['prompts']:.0f} prompt{'' if totals['prompts'] == 1 else 's'}, {totals['tokens']:.0f} tokens: "
        f"LLM passes saved {totals['llm_passes_saved']:.1%} "
        f"({totals['llm_passes']:.0f} instead of {totals['tokens']:.0f}), "
        f"drafts accepted {totals['accepted_share']:.1%}, verified {totals['verified_share']:.1%}, "
        f"{totals['uplink_bytes']:.0f} B up, {totals['downlink_bytes']:.0f} B down"
    ).replace("%", " %")
    if totals["audited"]:
        said += f"; measured error {totals['audited_error'] / totals['audited']:.4f} per kept token"
    return said


def measure(name: str) -> Uncertainty:
    """An uncertainty by name; `expected` looks at the largest logits alone, which is all it needs.

    Raises:
        ConfigError: unknown.
    """
    if name not in MEASURES:
        raise ConfigError(f"uncertainty {name!r} is unknown; use {', '.join(MEASURES)}.")
    if name == "expected":
        return lambda logits: expected_of_best(top_logits(logits)[0])
    return MEASURES[name]


def read_prompts(file: Path | None) -> list[str]:
    """The column `prompt` of a JSON Lines or Parquet file.

    Raises:
        DataError: no file, no row, or a row without the column.
    """
    if file is None or not file.is_file():
        raise DataError(f'there is no file {file}; give JSON lines with a column "prompt".')
    prompts = []
    for row in read_file(file, where="prompts"):
        prompt = row.values.get("prompt")
        if not isinstance(prompt, str):
            raise DataError(
                f'{row.place} has no text under "prompt"; its columns are {", ".join(row.values)}.'
            )
        prompts.append(prompt)
    if not prompts:
        raise DataError(f'{file} holds no prompt; every line must be like {{"prompt": "..."}}.')
    return prompts


def read_bounds(file: Path) -> Bounds:
    """Upper bounds of beta as steps: `{"u": [0.1, 1.0], "beta_upper": [0.01, 0.4]}`.

    Each bound holds for uncertainties up to and including its `u`; beyond the last one the bound is 1.

    Raises:
        DataError: not such a file.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return Bounds(*(tuple(float(value) for value in content[key]) for key in ("u", "beta_upper")))
    except (OSError, ValueError, KeyError, TypeError, DataError) as error:
        raise DataError(f"{file}: no bounds could be read ({error}); write {_LIKE}.") from error


_LIKE = '{"u": [0.1, 1.0], "beta_upper": [0.01, 0.4]}'


def _load(name: str | None) -> LanguageModel | None:
    return None if name is None else load_model(ModelSpec(model=name, tuning_method="none"))


def _row(answer: Generation, mode: str) -> dict[str, object]:
    return {
        "prompt": answer.prompt,
        "text": answer.text,
        "ids": answer.ids,
        "mode": mode,
        "bridge": answer.bridge,
        "record": answer.record.as_dict(),
    }
