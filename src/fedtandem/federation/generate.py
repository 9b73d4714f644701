"""`fedtandem generate`: answer prompts with two models and say what the large one was spared."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedtandem.atomic import write_text
from fedtandem.data.files import read_file
from fedtandem.errors import ConfigError, DataError
from fedtandem.inference.drafting import Uncertainty
from fedtandem.inference.gates import namespace
from fedtandem.inference.generate import Bridge, Generation, OnText, generate
from fedtandem.inference.peer_tokens import PeerBook
from fedtandem.inference.policy import Policy, read_policy
from fedtandem.inference.record import summary
from fedtandem.inference.settings import DecodeSettings
from fedtandem.inference.threshold import BUILT_IN
from fedtandem.inference.uncertainty import MEASURES, expected_of_best, top_logits
from fedtandem.models.fingerprint import fingerprint
from fedtandem.models.language_model import LanguageModel
from fedtandem.models.load import ModelSpec, load_model

TAU = 0.3
"""Where neither a policy nor the user says."""


@dataclass(frozen=True)
class GenerateRequest:
    """What `fedtandem generate` was asked."""

    draft: str | None
    target: str | None
    prompt: tuple[str, ...] | None
    prompts: Path | None
    policy: Path | None
    tau: float | None
    uncertainty: str | None
    bridge: Bridge
    chat_template: bool
    batch_size: int
    output: Path | None
    settings: DecodeSettings
    shares: bool = False
    """Whether answers of the large model to earlier prompts of this call are used, as `settings.peer` says."""


@dataclass(frozen=True)
class Answers:
    """What came out: one JSON-ready row per prompt in order, and the sums over all."""

    rows: list[dict[str, object]]
    totals: dict[str, float]
    note: str = ""
    """What a user has to know of the policy that was used."""


def generate_command(request: GenerateRequest, on_text: OnText | None = None) -> Answers:
    """Load what the mode needs, answer every prompt, write the answers if a file was named.

    Raises:
        ConfigError: no prompt, two sources of prompts, or a model or the policy missing.
        DataError: prompts that cannot be read.
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
    if mode == "bounded" and request.policy is None:
        raise ConfigError(
            "mode bounded needs upper bounds of beta by uncertainty: --policy FILE, from calibrate."
        )
    if request.tau is not None:
        replace(request.settings, tau=request.tau)  # refused before anything is loaded
    policy = None if request.policy is None else read_policy(request.policy)
    prompts = list(request.prompt) if request.prompt is not None else read_prompts(request.prompts)
    small = None if mode == "cloud" else _load(request.draft)
    large = None if mode == "local" else _load(request.target)
    tau, name, note = in_force(request, policy, small, large)
    answers = generate(
        small,
        large,
        prompts,
        replace(request.settings, tau=tau),
        uncertainty=measure(name),
        beta_upper=policy.beta_upper if policy is not None and mode == "bounded" else None,
        bridge=request.bridge,
        chat_template=request.chat_template,
        batch_size=request.batch_size,
        peers=peer_book(small or large, large, request) if request.shares else None,
        on_text=on_text,
    )
    rows = [_row(answer, mode) for answer in answers]
    if request.output is not None:
        write_text(request.output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return Answers(rows, summary([answer.record for answer in answers]), note)


def peer_book(
    reader: LanguageModel | None, large: LanguageModel | None, request: GenerateRequest
) -> PeerBook:
    """Where this call's answers of the large model are kept; prompts are found by the reader's mean hidden state.

    Raises:
        ConfigError: no large model: nothing would ever be resolved; `bounded`: nobody audited these answers.
    """
    if request.settings.mode == "bounded":
        raise ConfigError(
            "--peer answer cannot go with mode bounded here: nobody has audited these answers, so nothing bounds their "
            "error. A served device knows a bound (`fedtandem serve`); or use mode fedhlm."
        )
    if reader is None or large is None:
        raise ConfigError("--peer needs the large model: peers share nothing but its answers.")

    def embed(prompts: Sequence[str]) -> npt.NDArray[np.float32]:
        encode = reader.tokenizer.encode_prompt
        return reader.embed([encode(prompt, chat_template=request.chat_template) for prompt in prompts])

    chosen = request.settings
    decoding = "greedy" if chosen.uplink == "greedy" else f"sampled at {chosen.temperature:g}"
    model, card = fingerprint(large.name, large.model, large.tokenizer.card.hash), large.tokenizer.card.hash
    template = "template" if request.chat_template else ""
    return PeerBook(embed, namespace("", model, card, template, decoding), model=model)


def in_force(
    request: GenerateRequest, policy: Policy | None, small: LanguageModel | None, large: LanguageModel | None
) -> tuple[float, str, str]:
    """τ, the uncertainty, and a note: what was typed goes before the policy, the policy before the defaults.

    Raises:
        ConfigError: the policy is on a measure that generation cannot compute; `bounded` with bounds that were made
            for other models or that the policy does not hold.
    """
    if policy is None:
        return (TAU if request.tau is None else request.tau), request.uncertainty or "expected", ""
    name, where = request.uncertainty or policy.measure, str(request.policy)
    if policy.measure not in MEASURES or name != policy.measure:
        raise ConfigError(
            f"{where}: its thresholds are on {policy.measure}, asked for is {name}; generate computes "
            f"{', '.join(MEASURES)}. Calibrate on one of these."
        )
    tau, note = policy.overall.tau, ""
    if small is not None and large is not None:
        models = tuple(fingerprint(lm.name, lm.model, lm.tokenizer.card.hash) for lm in (small, large))
        if models not in policy.overall.models:
            tau = BUILT_IN
            note = f"{where} was made for other models, so tau is the built-in {BUILT_IN:g}"
            if request.settings.mode == "bounded":
                raise ConfigError(
                    f"{where}: its bounds were made for other models than {models[0]} with {models[1]}; record a trace "
                    "of these and calibrate on it."
                )
    if request.settings.mode == "bounded" and policy.bounds is None:
        raise ConfigError(f"{where} holds no bounds of beta: calibrate without --feedback quality.")
    return (tau if request.tau is None else request.tau), name, note


def in_words(totals: dict[str, float]) -> str:
    """The sums as one line."""
    said = (
        f"{totals['prompts']:.0f} prompt{'' if totals['prompts'] == 1 else 's'}, {totals['tokens']:.0f} tokens: "
        f"LLM passes saved {totals['llm_passes_saved']:.1%} "
        f"({totals['llm_passes']:.0f} instead of {totals['tokens']:.0f}), "
        f"drafts accepted {totals['accepted_share']:.1%}, verified {totals['verified_share']:.1%}, "
        f"{totals['uplink_bytes']:.0f} B up, {totals['downlink_bytes']:.0f} B down"
    ).replace("%", " %")
    if totals["peer_drafted"]:
        said += f"; {totals['peer_drafted']:.0f} drafts from peers"
    if totals["peer"]:
        said += f"; {totals['peer']:.0f} tokens from peers"
        if totals["peer_audited"]:
            said += f", {totals['peer_wrong']:.0f} of {totals['peer_audited']:.0f} looked at were wrong"
    if totals["audited"]:
        said += (
            f"; of {totals['audited']:.0f} kept tokens looked at, the LLM refuses "
            f"{totals['audited_error'] / totals['audited']:.2%} in their place"
        )
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
