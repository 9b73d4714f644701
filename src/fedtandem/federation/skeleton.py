"""A party without its weights: tokenizer, shape, one sample as its tokens. Enough to check a config by."""

from typing import Any

from fedtandem.config import PartyConfig, RunConfig
from fedtandem.data.load import load_samples
from fedtandem.data.public import Sample
from fedtandem.federation.estimate import ModelShape

SHOWN_TOKENS = 60


def skeleton(config: RunConfig, name: str, party: PartyConfig) -> tuple[Any, Any]:
    """A party's tokenizer, and its model without weights (PyTorch's `meta` device)."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from fedtandem.errors import ModelError
    from fedtandem.models.load import locate
    from fedtandem.models.scratch import scratch_config
    from fedtandem.models.scratch_tokenizer import train_tokenizer
    from fedtandem.models.tokenizer import TextTokenizer

    if party.scratch is not None:
        samples = load_samples(party.scratch.data.to_source(), where=f"{name}, pretraining data")
        texts = [sample.prompt + (sample.answer or "") for sample in samples]
        spec = party.scratch.to_spec(config.seed, samples)
        tokenizer = train_tokenizer(spec.tokenizer, texts, spec.vocab_size, bos=spec.bos)
        shape = scratch_config(spec, tokenizer)
    else:
        source = str(locate(party.model))
        try:
            shape = AutoConfig.from_pretrained(
                source, revision=party.revision, trust_remote_code=party.trust_remote_code
            )
        except (OSError, ValueError) as error:
            raise ModelError(f"{name}: {party.model!r} has no usable config.json: {error}") from error
        tokenizer = TextTokenizer.from_pretrained(source, revision=party.revision)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape)
    return tokenizer, model


def shape_of_model(party: PartyConfig, model: Any, vocab_size: int) -> ModelShape:
    """The sizes that memory, bytes and time follow from."""
    config = model.config
    parameters = sum(weight.numel() for weight in model.parameters())
    trainable = parameters if party.tuning.method == "full" else _lora_size(party, model)
    wide = party.dtype == "float32" or (party.dtype == "auto" and not _has_bf16(party.device))
    return ModelShape(
        parameters=parameters,
        trainable=trainable,
        hidden_size=int(config.hidden_size),
        n_layers=int(config.num_hidden_layers),
        n_heads=int(config.num_attention_heads),
        vocab_size=vocab_size,
        # Full tuning keeps its master weights in 32 bits.
        bytes_per_weight=0.5 if party.load_in_4bit else 4 if wide or party.tuning.method == "full" else 2,
    )


def _lora_size(party: PartyConfig, model: Any) -> int:
    """Weights of the adapter, counted on the model without weights."""
    import torch

    from fedtandem.models.adapters import attach_lora

    with torch.device("meta"):
        adapted = attach_lora(model, party.tuning.peft, seed=0)
    return sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)


def _has_bf16(device: str) -> bool:
    import torch

    from fedtandem.models.load import choose_device, choose_dtype

    return choose_dtype("auto", choose_device(device)) == torch.bfloat16


def render(tokenizer: Any, sample: Sample, party: PartyConfig) -> str:
    """One sample as a party's tokens; those it learns to write stand in [brackets]."""
    if sample.answer is None:
        ids = tokenizer.encode_prompt(sample.prompt, chat_template=party.chat_template)
        learnt: set[int] = set()
    else:
        encoded = tokenizer.encode(
            sample.prompt,
            sample.answer,
            max_length=party.max_length,
            chat_template=party.chat_template,
            eos=sample.eos,
        )
        ids, learnt = encoded.input_ids, set((encoded.positions + 1).tolist())
    words = tokenizer.hf.convert_ids_to_tokens([int(i) for i in ids])
    shown = [f"[{word}]" if at in learnt else str(word) for at, word in enumerate(words)]
    first = max(0, min(learnt, default=0) - SHOWN_TOKENS // 2)
    cut = shown[first : first + SHOWN_TOKENS]
    return ("... " if first else "") + " ".join(cut) + (" ..." if first + SHOWN_TOKENS < len(shown) else "")
