"""Cropping and feeding on gives what a fresh reading gives, in three architectures."""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtandem.errors import ModelError
from fedtandem.models import cached_rows
from fedtandem.models.embedded import EMBEDDED
from fedtandem.models.language_model import LanguageModel
from fedtandem.models.load import ModelSpec, load_model

ROWS = 3


@cache
def embedded(name: str) -> LanguageModel:
    return load_model(ModelSpec(name, tuning_method="none"))


step = st.tuples(
    st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=ROWS, unique=True),  # who goes on
    st.lists(st.integers(0, 6), min_size=ROWS, max_size=ROWS),  # tokens taken back
    st.lists(st.lists(st.integers(3, 250), min_size=1, max_size=4), min_size=ROWS, max_size=ROWS),
    st.integers(1, 4),  # places wanted
)


@pytest.mark.parametrize("name", EMBEDDED)
@pytest.mark.parametrize("slack", [0, 32])
def test_crop_and_feed_equals_a_fresh_reading(name: str, slack: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no slack the cache is squeezed all the time."""
    monkeypatch.setattr(cached_rows, "SLACK_COLUMNS", slack)
    lm = embedded(name)

    @settings(max_examples=8)
    @given(st.lists(step, min_size=1, max_size=6), st.integers(0, ROWS))
    def check(steps: list[tuple[list[int], list[int], list[list[int]], int]], leaves_after: int) -> None:
        rows = lm.cached_rows(ROWS)
        texts = [[5], [6, 7], [8, 9, 10]]
        gone: set[int] = set()
        for i, (chosen, back, new, wanted) in enumerate(steps):
            if i == 2:
                gone = set(range(leaves_after))
                for row in gone:
                    rows.forget(row)
            chosen = [row for row in chosen if row not in gone]
            if not chosen:
                continue
            for row in chosen:
                texts[row] = texts[row][: max(1, len(texts[row]) - back[row])] + new[row]
            last = [min(wanted, len(texts[row])) for row in chosen]
            found = rows.logits(chosen, [texts[row] for row in chosen], last)
            for row, count, logits in zip(chosen, last, found, strict=True):
                fresh = lm.cached_rows(1).logits([0], [texts[row]], [count])[0]
                assert logits.shape == (count, lm.tokenizer.vocab_size)
                torch.testing.assert_close(logits, fresh, atol=2e-4, rtol=1e-4)

    check()


@pytest.mark.parametrize("name", EMBEDDED)
def test_without_a_cache_the_answers_are_the_same(name: str) -> None:
    lm = embedded(name)
    rows = lm.cached_rows(2)
    afresh = lm.cached_rows(2)
    afresh._can_cache = False
    texts = [[5, 6, 7, 8], [9, 10]]
    for _ in range(3):
        for ours, theirs in zip(
            rows.logits([0, 1], texts, [2, 1]), afresh.logits([0, 1], texts, [2, 1]), strict=True
        ):
            torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)
        texts = [[*text, 11, 12] for text in texts]


@pytest.mark.parametrize("kind", ["bloom", "mistral"])
def test_models_whose_cache_cannot_be_cut_read_afresh_and_rightly(kind: str) -> None:
    """One counts its places by columns, the other forgets all but the last six."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = embedded(EMBEDDED[0]).tokenizer
    shape = {
        "bloom": {"n_layer": 2, "n_head": 4},
        "mistral": {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                    "intermediate_size": 64, "sliding_window": 6},
    }[kind]  # fmt: skip
    config = AutoConfig.for_model(kind, vocab_size=tokenizer.vocab_size, hidden_size=32, **shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        lm = LanguageModel(AutoModelForCausalLM.from_config(config), tokenizer, name=kind)
    rows = lm.cached_rows(2)
    texts = [list(range(5, 14)), [9, 10]]
    for i in range(4):
        for text, logits in zip(texts, rows.logits([0, 1], texts, [2, 1]), strict=True):
            fresh = lm.cached_rows(1).logits([0], [text], [len(logits)])[0]
            torch.testing.assert_close(logits, fresh, atol=1e-5, rtol=1e-4)
        texts = [[*text[: len(text) - i % 3], 20 + i, 21, 22] for text in texts]


def test_a_growing_text_is_fed_token_by_token() -> None:
    """The point of a cache: one new token costs one column."""
    lm = embedded(EMBEDDED[0])
    rows = lm.cached_rows(1)
    widths: list[int] = []
    forward = rows._forward

    def watched(step_ids: torch.Tensor, *rest: object) -> object:
        widths.append(step_ids.shape[1])
        return forward(step_ids, *rest)

    rows._forward = watched
    rows.logits([0], [[5, 6, 7]], [1])
    rows.logits([0], [[5, 6, 7, 8]], [1])
    rows.logits([0], [[5, 6, 7, 8, 9, 10]], [3])  # a block of two: one more place, from what came before it
    rows.logits([0], [[5, 6, 7, 8, 4]], [1])
    assert widths == [3, 1, 3, 1]


def test_what_cannot_be_read_is_refused() -> None:
    rows = embedded(EMBEDDED[0]).cached_rows(1)
    with pytest.raises(ModelError, match="last 3 of 2 tokens"):
        rows.logits([0], [[5, 6]], [3])
    with pytest.raises(ModelError, match=r"grown to 600 tokens.*holds 512"):
        rows.logits([0], [[5] * 600], [1])


def test_ids_that_follow_other_text_carry_no_start() -> None:
    for name in EMBEDDED:
        tokenizer = embedded(name).tokenizer
        ids = tokenizer.continue_ids(" 3 + 5")
        assert tokenizer.decode_answer(ids) == " 3 + 5"
        assert tokenizer.bos_id not in ids.tolist()
        assert tokenizer.continue_ids("").size == 0
