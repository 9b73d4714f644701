"""Train a small language model from nothing: tokenizer and weights from the same texts, cached by content."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F

from fedtandem.errors import ModelError
from fedtandem.models.encoded import Encoded
from fedtandem.models.language_model import LanguageModel, collate
from fedtandem.models.scratch_tokenizer import TokenizerKind, train_tokenizer
from fedtandem.models.tokenizer import TextTokenizer

Architecture = Literal["llama", "gpt2", "opt", "gpt_neox", "bloom", "qwen2"]
TextRow = tuple[str, str]
"""Prompt and answer; the prompt of running text is empty."""
CACHE_VERSION = 1
"""Part of the cache key; raised when the same spec would give another model."""


@dataclass(frozen=True)
class ScratchSpec:
    """A model to be made: shape, tokenizer, training. The same spec and texts always give the same weights."""

    architecture: Architecture = "llama"
    hidden_size: int = 96
    num_hidden_layers: int = 3
    num_attention_heads: int = 6
    intermediate_size: int | None = None
    """None: 4 x hidden_size, or 8/3 x rounded up to 8 for the gated Llama and Qwen2."""
    max_length: int = 512
    """Context in tokens."""
    tokenizer: TokenizerKind = "bpe"
    vocab_size: int = 512
    """At most so many entries; texts with few different pieces give fewer."""
    bos: bool = False
    """Whether texts begin with BOS."""
    positions: Literal["answer", "all"] = "answer"
    """What is learnt: answers, or prompts too."""
    eos: bool = True
    """False for windows of running text: no EOS inside a document."""
    updates: int = 1000
    batch_size: int = 64
    learning_rate: float = 3e-3
    warmup_updates: int = 30
    weight_decay: float = 0.01
    schedule: Literal["linear", "constant"] = "linear"
    """After the warm-up: down to zero at the last update, or level."""
    seed: int = 0


def train_from_scratch(
    spec: ScratchSpec,
    rows: Sequence[TextRow],
    *,
    tokenizer_texts: Sequence[str] = (),
    on_step: Callable[[int, int, float], None] | None = None,
    device: torch.device | str = "cpu",
) -> LanguageModel:
    """Train tokenizer and model on rows.

    Args:
        rows: (prompt, answer) texts; drawn in random order, again and again until `spec.updates` are done.
        tokenizer_texts: what the tokenizer is trained on; empty takes the rows. It may show strings that the
            weights never see, so that they can be written later.
        on_step: called with (updates done, all updates, loss in nats per token).

    Returns:
        The model in evaluation mode, tuning method "full"; its name tells shape and seed.

    Raises:
        ModelError: no rows, or an unknown architecture.
    """
    if not rows:
        raise ModelError("a model cannot be trained from scratch on no text; give at least one row.")
    texts = list(tokenizer_texts) or [prompt + answer for prompt, answer in rows]
    tokenizer = train_tokenizer(spec.tokenizer, texts, spec.vocab_size, bos=spec.bos)
    lm = untrained(spec, tokenizer, device=device)
    encoded = tokenizer.encode_many(rows, max_length=spec.max_length, positions=spec.positions, eos=spec.eos)
    _train(lm, encoded, spec, on_step)
    return lm


def untrained(
    spec: ScratchSpec, tokenizer: TextTokenizer, *, device: torch.device | str = "cpu"
) -> LanguageModel:
    """A model of the wanted shape with random weights, drawn from `spec.seed` alone."""
    from transformers import AutoModelForCausalLM

    config = scratch_config(spec, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        model = AutoModelForCausalLM.from_config(config)
    name = f"{spec.architecture} d{spec.hidden_size} L{spec.num_hidden_layers}, seed {spec.seed}"
    model.eval()
    return LanguageModel(model.to(device), tokenizer, name=name, method="full")


def scratch_config(spec: ScratchSpec, tokenizer: TextTokenizer) -> Any:
    """The `transformers` configuration of a spec: tied embeddings, no dropout.

    Raises:
        ModelError: an unknown architecture.
    """
    from transformers import AutoConfig

    d, layers, heads = spec.hidden_size, spec.num_hidden_layers, spec.num_attention_heads
    gated = spec.intermediate_size or -(-8 * d // 24) * 8
    plain = spec.intermediate_size or 4 * d
    base = {
        "vocab_size": tokenizer.vocab_size,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }
    common = {"hidden_size": d, "num_hidden_layers": layers, "num_attention_heads": heads}
    length = {"max_position_embeddings": spec.max_length}
    shapes: dict[str, dict[str, Any]] = {
        "llama": {**common, **length, "intermediate_size": gated},
        "qwen2": {**common, **length, "intermediate_size": gated, "num_key_value_heads": heads},
        "gpt_neox": {**common, **length, "intermediate_size": plain},
        "gpt2": {
            "n_embd": d, "n_layer": layers, "n_head": heads, "n_inner": plain, "n_positions": spec.max_length,
            "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
        },
        "opt": {**common, **length, "ffn_dim": plain, "word_embed_proj_dim": d, "dropout": 0.0},
        "bloom": {"hidden_size": d, "n_layer": layers, "n_head": heads},
    }  # fmt: skip
    if spec.architecture not in shapes:
        raise ModelError(f"architecture {spec.architecture!r} is unknown; use {', '.join(shapes)}.")
    return AutoConfig.for_model(spec.architecture, **base, **shapes[spec.architecture])


def _train(
    lm: LanguageModel,
    encoded: Sequence[Encoded],
    spec: ScratchSpec,
    on_step: Callable[[int, int, float], None] | None,
) -> None:
    """Plain AdamW on mean cross-entropy per label token."""
    optimizer = torch.optim.AdamW(
        lm.trainable_parameters(), lr=spec.learning_rate, betas=(0.9, 0.95), weight_decay=spec.weight_decay
    )
    generator = torch.Generator().manual_seed(spec.seed)
    order: list[int] = []
    lm.model.train()
    for update in range(spec.updates):
        while len(order) < spec.batch_size:
            order += torch.randperm(len(encoded), generator=generator).tolist()
        chosen, order = order[: spec.batch_size], order[spec.batch_size :]
        batch = collate([encoded[i] for i in chosen], lm.tokenizer.pad_id)
        for group in optimizer.param_groups:
            group["lr"] = spec.learning_rate * learning_rate_factor(update, spec)
        loss = F.cross_entropy(lm.logits_at(batch).float(), batch.targets.to(lm.device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(lm.trainable_parameters(), 1.0)
        optimizer.step()
        if on_step is not None:
            on_step(update + 1, spec.updates, float(loss.detach()))
    lm.model.eval()


def learning_rate_factor(update: int, spec: ScratchSpec) -> float:
    """Share of the full rate at an update (from 0): linear warm-up, then linear decay to zero, or level."""
    if update < spec.warmup_updates:
        return (update + 1) / spec.warmup_updates
    if spec.schedule == "constant":
        return 1.0
    return (spec.updates - update) / max(1, spec.updates - spec.warmup_updates)


def cache_folder() -> Path:
    """Where made models are kept: FEDTANDEM_CACHE, else ~/.cache/fedtandem."""
    chosen = os.environ.get("FEDTANDEM_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "fedtandem"


def scratch_key(spec: ScratchSpec, rows: Sequence[TextRow], tokenizer_texts: Sequence[str] = ()) -> str:
    """SHA-256 (hex) of everything that decides the weights: spec, texts, version of torch and of this file."""
    head = {"spec": asdict(spec), "version": CACHE_VERSION, "torch": str(torch.__version__)}
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for prompt, answer in rows:
        digest.update(json.dumps([prompt, answer]).encode() + b"\n")
    for text in tokenizer_texts:
        digest.update(json.dumps(text).encode() + b"\n")
    return digest.hexdigest()


@dataclass(frozen=True)
class Made:
    """A model from the cache, or just made."""

    folder: Path
    cpu_seconds: float
    """Spent on making it now; 0 when it came from the cache."""


def cached_scratch(
    spec: ScratchSpec,
    rows: Sequence[TextRow],
    *,
    tokenizer_texts: Sequence[str] = (),
    cache: Path | None = None,
    on_step: Callable[[int, int, float], None] | None = None,
    device: torch.device | str = "cpu",
) -> Made:
    """The folder of a model made from these texts; made now if it is not there yet.

    Two processes that make the same model at the same time both succeed; one result stays.

    Raises:
        ModelError: see `train_from_scratch`.
        DiskFull: no room in the cache; nothing half-written is left.
    """
    key = scratch_key(spec, rows, tokenizer_texts)
    folder = (cache or cache_folder()) / "models" / key[:32]
    if (folder / "model.safetensors").is_file():
        return Made(folder, 0.0)
    started = time.process_time()
    lm = train_from_scratch(spec, rows, tokenizer_texts=tokenizer_texts, on_step=on_step, device=device)
    lm.save(folder)
    return Made(folder, time.process_time() - started)
