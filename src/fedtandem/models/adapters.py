"""Attach a PEFT adapter, take its weights out and put them back, write and read folders with their vocabulary hash."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedtandem.atomic import whole_folder
from fedtandem.errors import ModelError, VocabularyMismatch
from fedtandem.models.tokenizer import TextTokenizer

LORA_TARGETS: Mapping[str, tuple[str, ...]] = {
    "opt": ("q_proj", "v_proj"),
    "gpt2": ("c_attn",),
    "bloom": ("query_key_value",),
    "gpt_neox": ("query_key_value",),
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mistral": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "qwen2": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "qwen3": ("q_proj", "k_proj", "v_proj", "o_proj"),
}
"""`model_type` -> the layers LoRA goes to; any other architecture gets "all-linear".

Source: FATE-LLM's FedMKT examples (OPT, GPT-2, LLaMA, Bloom); GPT-NeoX and Qwen2 by analogy."""

PAPER_LORA: Mapping[str, object] = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "bias": "none"}
"""Source: FedMKT, arXiv:2406.02224v4, appendix on hyperparameters."""

SIDECAR = "fedtandem.json"
SCHEMA = 1


@dataclass(frozen=True)
class Sidecar:
    """What `fedtandem.json` beside saved weights says."""

    vocabulary_hash: str
    method: str
    """"lora": an adapter; "full" or "none": all weights."""
    base: str
    """Where an adapter's base model is found: "embedded:NAME", a folder or a hub name; "" where nobody knows."""
    schema: int = SCHEMA


def lora_targets(model_type: str) -> list[str] | str:
    """The layers that LoRA goes to by default, e.g. ["q_proj", "v_proj"] for "opt", else "all-linear"."""
    return list(LORA_TARGETS[model_type]) if model_type in LORA_TARGETS else "all-linear"


def attach_lora(model: Any, settings: Mapping[str, object], seed: int) -> Any:
    """Freeze the model and give it a LoRA adapter that changes nothing yet.

    Args:
        model: a causal model of `transformers`.
        settings: arguments of `peft.LoraConfig`; what is missing comes from `PAPER_LORA` and `lora_targets`.
        seed: of the adapter's first weights; torch's global generator is left as it was.

    Returns:
        A PeftModel.

    Raises:
        ModelError: an unknown setting, or targets that the model does not have.
    """
    from peft import LoraConfig, get_peft_model

    model_type = str(model.config.model_type)
    values: dict[str, Any] = {
        **PAPER_LORA,
        "target_modules": lora_targets(model_type),
        "task_type": "CAUSAL_LM",
        # GPT-2 stores its projections transposed (Conv1D); with other targets this must stay False.
        "fan_in_fan_out": model_type == "gpt2",
        **settings,
    }
    try:
        config = LoraConfig(**values)
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"peft: {error}. The keys of a `peft` block are the arguments of peft.LoraConfig; given: "
            f"{', '.join(sorted(settings)) or 'none'}."
        ) from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, config)
        except ValueError as error:
            linear = sorted({name.rpartition(".")[2] for name, module in model.named_modules()
                             if type(module).__name__ in ("Linear", "Conv1D")})  # fmt: skip
            raise ModelError(
                f"peft: {error} Layers of this {model_type} model that could be targets: {', '.join(linear)}."
            ) from error


@contextmanager
def without_bars() -> Iterator[None]:
    """No progress bars of transformers inside this block: the program draws its own."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


def is_adapted(model: Any) -> bool:
    """Whether the model is a PeftModel."""
    return hasattr(model, "peft_config")


def read_state(model: Any) -> dict[str, Tensor]:
    """The adapter's weights, or every weight of a model without one; each once; copies on the CPU, contiguous."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in _live_state(model).items()}


def _live_state(model: Any) -> dict[str, Tensor]:
    if is_adapted(model):
        from peft import get_peft_model_state_dict

        state: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
        return state
    return dict(model.named_parameters())  # tied weights appear once


def write_state(model: Any, state: Mapping[str, Tensor], *, where: str) -> None:
    """Put a `read_state` back, casting to each weight's dtype and device.

    Args:
        where: names the model in messages.

    Raises:
        ModelError: missing, unknown or misshapen weights, or values that are not finite; nothing was changed.
    """
    live = _live_state(model)
    missing, unknown = sorted(live.keys() - state.keys()), sorted(state.keys() - live.keys())
    if missing or unknown:
        raise ModelError(
            f"{where}: the weights do not belong to this model: missing {_few(missing)}; unknown {_few(unknown)}. "
            "Use the model and the `peft` block they were made with."
        )
    for name, value in state.items():
        if value.shape != live[name].shape:
            raise ModelError(
                f"{where}: weight {name} has shape {tuple(value.shape)}, this model needs "
                f"{tuple(live[name].shape)}. Use the model and the `peft` block it was made with."
            )
        if not bool(torch.isfinite(value).all()):
            raise ModelError(f"{where}: weight {name} holds NaN or infinite values; they were not loaded.")
    with torch.no_grad():
        for name, value in state.items():
            live[name].copy_(value)


def _few(names: list[str]) -> str:
    """At most three names of a list."""
    if not names:
        return "none"
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def save_folder(model: Any, tokenizer: TextTokenizer, folder: Path, *, base: str, method: str) -> None:
    """Write weights, tokenizer and sidecar; the folder appears whole or not at all.

    Raises:
        DiskFull: nothing half-written is left.
    """
    sidecar = Sidecar(vocabulary_hash=tokenizer.card.hash, method=method, base=base)
    with whole_folder(folder) as unfinished:
        with without_bars():
            if is_adapted(model):
                model.save_pretrained(str(unfinished), save_embedding_layers=False)
            else:
                model.save_pretrained(str(unfinished))
        tokenizer.save(unfinished)
        (unfinished / SIDECAR).write_text(json.dumps(asdict(sidecar), indent=2) + "\n", encoding="utf-8")
        for file in unfinished.iterdir():
            file.chmod(0o644)  # safetensors writes for the owner alone


def restore_folder(model: Any, tokenizer: TextTokenizer, folder: Path, *, name: str) -> None:
    """Load what `save_folder` wrote into a model of the same shape.

    Raises:
        ModelError: no weights there, or not this model's.
        VocabularyMismatch: they were made with another tokenizer.
    """
    from safetensors.torch import load_file

    check_vocabulary(folder, tokenizer)
    file = folder / ("adapter_model.safetensors" if is_adapted(model) else "model.safetensors")
    if not file.is_file():
        found = ", ".join(sorted(path.name for path in folder.glob("*.safetensors"))) or "no weights"
        raise ModelError(
            f"{name}: {file} is missing ({found} there). An adapter needs `tuning.method` as when it was saved."
        )
    state = load_file(file)
    if not is_adapted(model):
        # transformers leaves a tied weight out under one of its names; the model's own names decide.
        state = {key: value for key, value in state.items() if key in dict(model.named_parameters())}
    write_state(model, state, where=f"{name}, {folder}")


def read_sidecar(folder: Path) -> Sidecar | None:
    """The sidecar of a folder; None where there is none (a stock model).

    Raises:
        ModelError: it cannot be read.
    """
    file = folder / SIDECAR
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        sidecar = Sidecar(**content)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{file} cannot be read ({error}); save the model again.") from error
    if sidecar.schema != SCHEMA:
        raise ModelError(
            f"{file} has schema {sidecar.schema}, this version reads {SCHEMA}; save the model again."
        )
    return sidecar


def check_vocabulary(folder: Path, tokenizer: TextTokenizer) -> None:
    """Refuse weights that were made with another vocabulary; such a mix-up would train silently.

    Raises:
        VocabularyMismatch: names both hashes. A folder without sidecar passes.
    """
    sidecar = read_sidecar(folder)
    if sidecar is not None and sidecar.vocabulary_hash != tokenizer.card.hash:
        raise VocabularyMismatch(
            f"{folder}: the weights were made with vocabulary {sidecar.vocabulary_hash[:12]}, the tokenizer here "
            f"has {tokenizer.card.hash[:12]}. Put back the tokenizer files they were saved with, or tune again."
        )
