"""Batches, logits, weights in and out of a model."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.errors import ModelError, VocabularyMismatch
from fedtandem.models.language_model import LanguageModel, collate
from fedtandem.models.load import ModelSpec, load_model
from fedtandem.models.scratch_tokenizer import train_tokenizer
from fedtandem.models.tokenizer import TextTokenizer

Make = Callable[..., LanguageModel]
ROWS = [("ab", " c"), ("", "window"), ("a longer prompt", " yes")]


def test_a_batch_in_the_head(byte_tokenizer: TextTokenizer) -> None:
    # "a" + "b" + EOS and "a" + "bc" + EOS: the shorter text gets one pad.
    encoded = byte_tokenizer.encode_many([("a", "b"), ("a", "bc")])
    a, b, c = (int(i) for i in byte_tokenizer.encode_prompt("abc"))
    pad, eos = byte_tokenizer.pad_id, byte_tokenizer.eos_id
    batch = collate(encoded, pad)
    assert batch.input_ids.tolist() == [[a, b, eos, pad], [a, b, c, eos]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert (batch.row.tolist(), batch.col.tolist()) == ([0, 0, 1, 1, 1], [0, 1, 0, 1, 2])
    assert batch.targets.tolist() == [b, eos, b, c, eos]
    assert batch.splits.tolist() == [0, 2, 5]
    left = collate(encoded, pad, "left")
    assert left.input_ids.tolist() == [[pad, a, b, eos], [a, b, c, eos]]
    assert left.col.tolist() == [1, 2, 0, 1, 2]


@given(
    st.lists(st.tuples(st.text(max_size=8), st.text(min_size=1, max_size=8)), min_size=1, max_size=5),
    st.sampled_from(["left", "right"]),
)
def test_padding_is_neither_attended_to_nor_a_target(rows: list[tuple[str, str]], side: str) -> None:
    tokenizer = _TOKENIZER
    encoded = tokenizer.encode_many(rows)
    batch = collate(encoded, tokenizer.pad_id, side)  # type: ignore[arg-type]
    assert batch.attention_mask.sum(1).tolist() == [len(text.input_ids) for text in encoded]
    assert bool(batch.attention_mask[batch.row, batch.col].all())
    assert bool(batch.attention_mask[batch.row, batch.col + 1].all())
    assert torch.equal(batch.input_ids[batch.row, batch.col + 1], batch.targets)
    for b, text in enumerate(encoded):
        assert np.array_equal(batch.targets[batch.splits[b] : batch.splits[b + 1]], text.targets)


_TOKENIZER = train_tokenizer("bytes", [], 0)


def test_no_text_makes_no_batch() -> None:
    with pytest.raises(ValueError, match="at least one"):
        collate([], 0)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "bloom", "gpt_neox", "qwen2"])
def test_gradients_are_those_of_the_full_forward(make_tiny: Make, architecture: str) -> None:
    lm = make_tiny(architecture=architecture)
    batch = collate(lm.tokenizer.encode_many(ROWS), lm.tokenizer.pad_id)
    assert lm.selects_hidden
    lm.model.train()
    chosen = torch.autograd.grad(
        F.cross_entropy(lm.logits_at(batch), batch.targets), lm.trainable_parameters()
    )
    lm.selects_hidden = False
    full = torch.autograd.grad(F.cross_entropy(lm.logits_at(batch), batch.targets), lm.trainable_parameters())
    for ours, theirs in zip(chosen, full, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_a_model_that_scales_its_logits_takes_the_long_way_and_is_right() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "granite", vocab_size=_TOKENIZER.vocab_size, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, intermediate_size=16, logits_scaling=8.0,
    )  # fmt: skip
    lm = LanguageModel(AutoModelForCausalLM.from_config(config).eval(), _TOKENIZER, name="granite")
    batch = collate(_TOKENIZER.encode_many(ROWS), _TOKENIZER.pad_id)
    assert not lm.selects_hidden
    with torch.no_grad():
        full = lm.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        torch.testing.assert_close(
            lm.logits_at(batch), full[batch.row, batch.col][:, : _TOKENIZER.vocab_size]
        )


def test_a_text_longer_than_the_context_is_refused_with_the_remedy(make_tiny: Make) -> None:
    lm = make_tiny(architecture="gpt2", max_length=8)
    batch = collate(lm.tokenizer.encode_many([("0123456789", " a")]), lm.tokenizer.pad_id)
    with pytest.raises(ModelError, match="max_length"):
        lm.logits_at(batch)


def test_the_state_of_a_full_model_holds_every_weight_once_and_is_a_copy(make_tiny: Make) -> None:
    lm = make_tiny()
    state = lm.state()
    assert sum(value.numel() for value in state.values()) == lm.n_parameters()[0] == lm.n_parameters()[1]
    name = next(iter(state))
    state[name] += 1
    assert not torch.equal(lm.state()[name], state[name])
    lm.load_state(state)
    assert torch.equal(lm.state()[name], state[name])


def test_weights_of_another_model_are_refused_and_change_nothing(make_tiny: Make) -> None:
    lm = make_tiny()
    before = lm.state()
    with pytest.raises(ModelError, match="missing"):
        lm.load_state({"somewhere.weight": torch.zeros(1)})
    with pytest.raises(ModelError, match="has shape"):
        lm.load_state({name: torch.zeros(3) for name in before})
    spoilt = {name: value.clone() for name, value in before.items()}
    next(iter(spoilt.values())).view(-1)[0] = float("nan")
    with pytest.raises(ModelError, match="NaN"):
        lm.load_state(spoilt)
    assert all(torch.equal(value, before[name]) for name, value in lm.state().items())


def test_a_full_model_survives_the_disk_and_stock_transformers_reads_it(
    make_tiny: Make, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lm = make_tiny(architecture="opt")
    lm.save(tmp_path / "model")
    batch = collate(lm.tokenizer.encode_many(ROWS), lm.tokenizer.pad_id)
    again = load_model(ModelSpec(str(tmp_path / "model"), tuning_method="full"))
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        expected = lm.logits_at(batch)
        assert torch.equal(again.logits_at(batch), expected)
        logits = stock(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        torch.testing.assert_close(logits[batch.row, batch.col], expected, atol=1e-5, rtol=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path / "model").encode("ab") == [
        int(i) for i in lm.tokenizer.encode_prompt("ab")
    ]
    other = make_tiny(architecture="opt", seed=1)
    other.restore(tmp_path / "model")
    assert all(torch.equal(value, lm.state()[name]) for name, value in other.state().items())


def test_weights_made_with_another_vocabulary_are_refused(make_tiny: Make, tmp_path: Path) -> None:
    lm = make_tiny()
    lm.save(tmp_path / "model")
    train_tokenizer("bpe", ["abab abab"], 300).save(tmp_path / "model")  # a mix-up of tokenizer files
    with pytest.raises(VocabularyMismatch, match="made with vocabulary"):
        load_model(ModelSpec(str(tmp_path / "model"), tuning_method="full"))
    swapped = LanguageModel(lm.model, TextTokenizer.from_pretrained(tmp_path / "model"), name="swapped")
    with pytest.raises(VocabularyMismatch):
        swapped.restore(tmp_path / "model")


def test_an_adapter_is_not_looked_for_in_a_full_model_s_folder(make_tiny: Make, tmp_path: Path) -> None:
    make_tiny().save(tmp_path / "model")
    adapted = load_model(ModelSpec(str(tmp_path / "model"), tuning_method="lora"))
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors is missing"):
        adapted.restore(tmp_path / "model")
