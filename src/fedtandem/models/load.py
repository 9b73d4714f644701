"""From a name or a folder to a `LanguageModel`: device, number format, quantisation, adapter, vocabulary check."""

import importlib.util
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from fedtandem.errors import ModelError, OutOfMemoryFailure, VocabularyMismatch
from fedtandem.models.adapters import attach_lora, check_vocabulary, is_adapted, read_sidecar, without_bars
from fedtandem.models.embedded import EMBEDDED, embedded_folder
from fedtandem.models.language_model import LanguageModel
from fedtandem.models.tokenizer import TextTokenizer

TuningMethod = Literal["lora", "full", "none"]


@dataclass(frozen=True)
class ModelSpec:
    """Which model, how it is held in memory, and what of it is tuned. Plain values."""

    model: str
    """"embedded:NAME", a folder (a model's or a PEFT adapter's), or a name on the Hugging Face hub."""
    revision: str | None = None
    tuning_method: TuningMethod = "lora"
    peft: Mapping[str, object] = field(default_factory=dict)
    """Arguments of `peft.LoraConfig` beyond the defaults."""
    dtype: str = "auto"
    """"auto" (bf16 where the device has it, else fp32), "float32", "bfloat16" or "float16"."""
    device: str = "auto"
    """"auto" (CUDA, else MPS, else CPU), "cpu", "cuda", "cuda:1", "mps"; "balanced" spreads layers over all GPUs."""
    load_in_4bit: bool = False
    """Base weights in 4-bit NF4; needs the `quant` extra and LoRA."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time."""
    attn_implementation: str | None = None
    """As in `transformers`; None takes its choice."""
    trust_remote_code: bool = False
    seed: int = 0
    """Of the adapter's first weights."""


def load_model(spec: ModelSpec) -> LanguageModel:
    """Load a model, check its vocabulary, attach an adapter if LoRA is asked for; left in evaluation mode.

    A PEFT folder written by `LanguageModel.save` loads as its base model with that adapter.

    Raises:
        ModelError: not found, unknown settings, a missing extra; says what to do.
        VocabularyMismatch: the tokenizer is not the one the weights were made with, or has more entries than
            the model.
        OutOfMemoryFailure: the weights do not fit.
    """
    _check_settings(spec)
    device = choose_device(spec.device)
    compute = choose_dtype(spec.dtype, device)
    # Full tuning at paper rates vanishes in bf16 weights: keep them in fp32 and compute under autocast.
    is_master = spec.tuning_method == "full" and compute == torch.bfloat16
    weights = torch.float32 if is_master else compute

    source = locate(spec.model)
    adapter = source if isinstance(source, Path) and (source / "adapter_config.json").is_file() else None
    base = locate(_base_of(adapter)) if adapter is not None else source
    tokenizer_source = source if adapter is None or (adapter / "tokenizer.json").is_file() else base
    tokenizer = _load_tokenizer(tokenizer_source, spec)
    for folder in {source, base}:
        if isinstance(folder, Path):
            check_vocabulary(folder, tokenizer)
    model = _load_weights(base, spec, weights, device)
    rows = model.get_input_embeddings().weight.shape[0]
    if tokenizer.vocab_size > rows:
        raise VocabularyMismatch(
            f"{spec.model}: the tokenizer has {tokenizer.vocab_size} entries, the model only {rows}; use the "
            "tokenizer the model was trained with."
        )
    if adapter is not None:
        model = _load_adapter(model, adapter, trainable=spec.tuning_method == "lora")
    elif spec.tuning_method == "lora":
        model = attach_lora(model, spec.peft, spec.seed)
    if spec.tuning_method == "none":
        model.requires_grad_(False)
    if spec.gradient_checkpointing:
        _checkpoint_activations(model)
    model.eval()
    return LanguageModel(
        model,
        tokenizer,
        name=spec.model,
        source=_source_name(spec.model if adapter is None else _base_of(adapter)),
        method=spec.tuning_method,
        autocast_dtype=compute if is_master else None,
    )


def choose_device(wanted: str) -> torch.device:
    """The device of inputs: "auto" takes this process's GPU (LOCAL_RANK under `accelerate launch`), MPS or the CPU.

    Raises:
        ModelError: the device does not exist here.
    """
    if wanted in ("auto", "balanced"):
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        return torch.device("mps" if wanted == "auto" and torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f'device {wanted!r} cannot be used here ({str(error).splitlines()[0]}); use device = "auto".'
        ) from error
    return device


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """The number format to compute in; "auto": bf16 where the device computes in it natively, else fp32.

    Raises:
        ModelError: an unknown name.
    """
    if wanted == "auto":
        if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16
        return torch.float32
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if wanted not in known:
        raise ModelError(f"dtype {wanted!r} is unknown; use auto, {', '.join(known)}.")
    return known[wanted]


def locate(name: str) -> Path | str:
    """The folder of a model, or the name itself where it can only be on the hub.

    Raises:
        ModelError: an unknown embedded name, or a path that does not exist.
    """
    if name.startswith("embedded:"):
        return embedded_folder(name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or folder.is_file():
        raise ModelError(
            f"model folder {name} does not exist. Give a folder with config.json, a name on the Hugging Face hub, "
            f"or one of {', '.join(EMBEDDED)}."
        )
    return name


def _check_settings(spec: ModelSpec) -> None:
    if spec.tuning_method not in ("lora", "full", "none"):
        raise ModelError(f"tuning.method {spec.tuning_method!r} is unknown; use lora, full or none.")
    if not spec.load_in_4bit:
        return
    if spec.tuning_method == "full":
        raise ModelError('load_in_4bit cannot go with tuning.method = "full"; use "lora".')
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError("load_in_4bit needs the package bitsandbytes: pip install 'fedtandem[quant]'.")


def _base_of(adapter: Path) -> str:
    """The base model of a PEFT folder: the sidecar's name, else PEFT's own record."""
    sidecar = read_sidecar(adapter)
    if sidecar is not None and sidecar.base:
        return sidecar.base
    content = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    return str(content["base_model_name_or_path"])


def _checkpoint_activations(model: Any) -> None:
    """Switch gradient checkpointing on, in transformers 4 and 5 alike."""
    causal = model.get_base_model() if is_adapted(model) else model
    if hasattr(causal, "activation_checkpointing_enable"):
        causal.activation_checkpointing_enable()
    else:
        causal.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def _source_name(name: str) -> str:
    """A name that still leads to the model from another working directory."""
    folder = Path(name).expanduser()
    return str(folder.resolve()) if folder.is_dir() else name


def _load_tokenizer(source: Path | str, spec: ModelSpec) -> TextTokenizer:
    try:
        return TextTokenizer.from_pretrained(str(source), revision=spec.revision)
    except (OSError, ValueError) as error:
        raise ModelError(_not_found(spec, error)) from error


def _load_weights(source: Path | str, spec: ModelSpec, dtype: torch.dtype, device: torch.device) -> Any:
    """The causal model on its device."""
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {
        "dtype": dtype,
        "revision": spec.revision or "main",
        "trust_remote_code": spec.trust_remote_code,
    }
    if spec.attn_implementation is not None:
        options["attn_implementation"] = spec.attn_implementation
    if spec.load_in_4bit:
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        options["device_map"] = {"": device}
    if spec.device == "balanced":
        options["device_map"] = "balanced"
    try:
        with without_bars():
            model: Any = AutoModelForCausalLM.from_pretrained(str(source), **options)
        return model if "device_map" in options else model.to(device)
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryFailure(
            f'{spec.model} does not fit on {device}: use load_in_4bit, a smaller dtype, device = "balanced" over '
            "several GPUs, or a smaller model."
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(_not_found(spec, error)) from error


def _load_adapter(model: Any, folder: Path, *, trainable: bool) -> Any:
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    except (RuntimeError, ValueError, OSError) as error:
        raise ModelError(f"{folder}: the adapter does not fit its base model: {error}") from error


def _not_found(spec: ModelSpec, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"{spec.model} could not be loaded: {reason} Give a folder with config.json, tokenizer.json and weights, a "
        f"name on the Hugging Face hub (with network access), or one of {', '.join(EMBEDDED)}."
    )
