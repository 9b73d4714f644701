"""Texts that come and go read as if each had been read alone, whatever the memory keeps."""

import random
from functools import cache

import pytest
import torch

from fedtandem.errors import ModelError
from fedtandem.models.language_model import LanguageModel
from fedtandem.models.load import ModelSpec, load_model


@cache
def server() -> LanguageModel:
    return load_model(ModelSpec("embedded:chains-server", tuning_method="none"))


def fresh(ids: list[int], last: int) -> torch.Tensor:
    return server().cached_rows(1).logits([0], [ids], [last])[0]


@pytest.mark.parametrize("cache_bytes", [0, 60_000, 10**9], ids=["nothing fits", "few fit", "all fit"])
def test_a_text_reads_as_it_does_alone_whoever_joins_leaves_or_is_cropped(cache_bytes: int) -> None:
    draw = random.Random(4)
    reader = server().session_reader(cache_bytes)
    texts: dict[str, list[int]] = {}
    for _ in range(40):
        chosen = [f"s{i}" for i in draw.sample(range(6), draw.randint(1, 4))]
        for name in chosen:
            text = texts.setdefault(name, [draw.randrange(3, 270) for _ in range(draw.randint(3, 9))])
            if len(text) > 5 and draw.random() < 0.5:
                del text[draw.randint(3, len(text)) :]
            text += [draw.randrange(3, 270) for _ in range(draw.randint(0, 5))]
        if draw.random() < 0.2:
            reader.forget(draw.choice(list(texts)))
        last = [draw.randint(1, min(4, len(texts[name]))) for name in chosen]
        answers = reader.logits(chosen, [texts[name] for name in chosen], last)
        for name, count, answer in zip(chosen, last, answers, strict=True):
            torch.testing.assert_close(answer, fresh(texts[name], count), atol=2e-4, rtol=1e-4)
        assert reader.held_bytes <= cache_bytes
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
