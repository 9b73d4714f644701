"""Texts that come and go read as if each had been read alone, whatever the memory keeps."""

import random
from functools import cache

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, MistralConfig, MistralForCausalLM

from fedtandem.errors import ModelError
from fedtandem.models.embedded import EMBEDDED
from fedtandem.models.language_model import LanguageModel
from fedtandem.models.load import ModelSpec, load_model


@cache
def server() -> LanguageModel:
    return load_model(ModelSpec("embedded:chains-server", tuning_method="none"))


@cache
def model(name: str) -> LanguageModel:
    """An embedded model, or one of an architecture whose cache cannot be cut."""
    if name.startswith("embedded:"):
        return load_model(ModelSpec(name, tuning_method="none"))
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 279}
    torch.manual_seed(0)
    if name == "sliding windows":
        made = MistralForCausalLM(
            MistralConfig(**sizes, intermediate_size=48, num_key_value_heads=1, sliding_window=4)
        )
    else:
        made = BloomForCausalLM(BloomConfig(hidden_size=32, n_layer=2, n_head=2, vocab_size=279))
    return LanguageModel(made.eval(), server().tokenizer, name=name)


@pytest.mark.parametrize("cache_bytes", [0, 60_000, 10**9], ids=["nothing fits", "few fit", "all fit"])
@pytest.mark.parametrize("name", [*EMBEDDED, "sliding windows", "no positions"])
def test_a_text_reads_as_it_does_alone_whoever_joins_leaves_or_is_cropped(
    name: str, cache_bytes: int
) -> None:
    draw = random.Random(4)
    lm = model(name)
    reader = lm.session_reader(cache_bytes)
    texts: dict[str, list[int]] = {}
    for _ in range(30):
        chosen = [f"s{i}" for i in draw.sample(range(6), draw.randint(1, 4))]
        for who in chosen:
            text = texts.setdefault(who, [draw.randrange(3, 250) for _ in range(draw.randint(3, 9))])
            if len(text) > 5 and draw.random() < 0.5:
                del text[draw.randint(3, len(text)) :]
            text += [draw.randrange(3, 250) for _ in range(draw.randint(0, 5))]
        if draw.random() < 0.2:
            reader.forget(draw.choice(list(texts)))
        last = [draw.randint(1, min(4, len(texts[who]))) for who in chosen]
        answers = reader.logits(chosen, [texts[who] for who in chosen], last)
        for who, count, answer in zip(chosen, last, answers, strict=True):
            fresh = lm.cached_rows(1).logits([0], [texts[who]], [count])[0]
            torch.testing.assert_close(answer, fresh, atol=2e-4, rtol=1e-4)
        assert reader.held_bytes <= cache_bytes
    if name == "embedded:chains-server":
        assert (reader.evicted > 0) == (cache_bytes < 10**9)


def test_only_what_is_new_is_read_again() -> None:
    reader = server().session_reader(10**9)
    text = list(range(3, 13))
    assert reader.new_tokens("a", text, 1) == 10
    reader.logits(["a"], [text], [1])
    assert reader.new_tokens("a", [*text, 20, 21], 1) == 2
    assert reader.new_tokens("a", [*text, 20, 21], 5) == 5  # logits inside what was read need it fed again
    assert reader.new_tokens("b", text, 1) == 10
    reader.forget("a")
    assert reader.held_bytes == 0


def test_a_text_beyond_the_context_is_refused() -> None:
    with pytest.raises(ModelError, match="context of 512"):
        server().session_reader(0).logits(["a"], [[5] * 513], [1])
