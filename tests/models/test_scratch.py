"""Models made on the spot: they learn, the same input gives the same weights, the cache is keyed by content."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.errors import ModelError
from fedtandem.models.language_model import LanguageModel, collate
from fedtandem.models.load import ModelSpec, load_model
from fedtandem.models.scratch import (
    ScratchSpec,
    cached_scratch,
    learning_rate_factor,
    scratch_key,
    train_from_scratch,
)
from fedtandem.models.scratch_tokenizer import train_tokenizer

ROWS = [("one", " a"), ("two", " b"), ("three", " a"), ("four", " b")]
SPEC = ScratchSpec(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, tokenizer="bytes", updates=60, batch_size=4,
    learning_rate=2e-2, warmup_updates=5, max_length=32,
)  # fmt: skip


def mean_loss(lm: LanguageModel) -> float:
    batch = collate(lm.tokenizer.encode_many(ROWS), lm.tokenizer.pad_id)
    with torch.no_grad():
        return float(F.cross_entropy(lm.logits_at(batch), batch.targets))


def test_training_learns_its_rows_and_the_same_spec_gives_the_same_bits() -> None:
    seen: list[tuple[int, int]] = []
    first = train_from_scratch(SPEC, ROWS, on_step=lambda done, of, _loss: seen.append((done, of)))
    assert mean_loss(first) < 0.3
    assert (seen[0], seen[-1]) == ((1, 60), (60, 60))
    assert not first.model.training
    torch.rand(3)  # the global generator plays no part
    again = train_from_scratch(SPEC, ROWS)
    assert all(torch.equal(value, again.state()[name]) for name, value in first.state().items())
    other = train_from_scratch(replace(SPEC, seed=1, updates=1), ROWS)
    assert any(not torch.equal(value, other.state()[name]) for name, value in first.state().items())


def test_windows_of_running_text_have_no_eos_to_learn() -> None:
    lm = train_from_scratch(replace(SPEC, eos=False, updates=150, learning_rate=1e-2), [("", "abcdefgh" * 2)])
    ids = lm.generate([lm.tokenizer.encode_prompt("abcdef")], max_new_tokens=6)[0]
    assert lm.tokenizer.decode_answer(ids) == "ghabcd"


def test_a_model_is_made_once_and_found_again(tmp_path: Path) -> None:
    spec = replace(SPEC, updates=3)
    made = cached_scratch(spec, ROWS, cache=tmp_path)
    found = cached_scratch(spec, ROWS, cache=tmp_path)
    assert made.cpu_seconds > 0
    assert (found.folder, found.cpu_seconds) == (made.folder, 0.0)
    lm = load_model(ModelSpec(str(made.folder), tuning_method="full"))
    fresh = train_from_scratch(spec, ROWS)
    assert all(torch.equal(value, lm.state()[name]) for name, value in fresh.state().items())


@given(st.lists(st.tuples(st.text(max_size=5), st.text(min_size=1, max_size=5)), min_size=1, max_size=4))
def test_the_key_changes_with_the_texts_their_order_and_the_spec(rows: list[tuple[str, str]]) -> None:
    key = scratch_key(SPEC, rows)
    assert key == scratch_key(SPEC, list(rows))
    assert key != scratch_key(replace(SPEC, seed=9), rows)
    assert key != scratch_key(SPEC, [*rows, ("x", "y")])
    assert key != scratch_key(SPEC, rows, ["x"])
    assert key != scratch_key(SPEC, [(prompt + answer[0], answer[1:]) for prompt, answer in rows])
    if rows != rows[::-1]:
        assert key != scratch_key(SPEC, rows[::-1])


def test_the_rate_rises_falls_and_ends_just_above_zero() -> None:
    spec = replace(SPEC, updates=10, warmup_updates=4)
    assert [learning_rate_factor(update, spec) for update in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert learning_rate_factor(4, spec) == 1.0
    assert learning_rate_factor(9, spec) == pytest.approx(1 / 6)
    assert learning_rate_factor(9, replace(spec, schedule="constant")) == 1.0


def test_what_cannot_be_made_is_refused() -> None:
    with pytest.raises(ModelError, match="no text"):
        train_from_scratch(SPEC, [])
    with pytest.raises(ModelError, match="architecture 'rnn' is unknown"):
        train_from_scratch(replace(SPEC, architecture="rnn"), ROWS)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="tokenizer kind 'words' is unknown"):
        train_tokenizer("words", [], 0)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="need 259"):
        train_tokenizer("bpe", ["a"], 100)


TEXTS = ["Q 3 + 5 * 2 A 3 + 5 = 8 ; 8 * 2 = 6 ; # 6", "the cat sat on the mat, the cat did"]
TOKENIZERS = {
    kind: train_tokenizer(kind, TEXTS, 300, bos=kind == "pieces") for kind in ("bytes", "bpe", "pieces")
}


@pytest.mark.parametrize("kind", sorted(TOKENIZERS))
@given(prompt=st.text(max_size=12), answer=st.text(min_size=1, max_size=12))
def test_every_tokenizer_writes_any_text_and_knows_every_boundary(
    kind: str, prompt: str, answer: str
) -> None:
    tokenizer = TOKENIZERS[kind]
    encoded = tokenizer.encode(prompt, answer, max_length=512)
    assert tokenizer.decode_answer(encoded.targets) == answer
    assert encoded.scored
    assert encoded.end_byte.tolist()[-1] == len(answer.encode()) == encoded.n_answer_bytes
    assert (encoded.end_byte >= 0).all()
    assert int(encoded.input_ids.max()) < tokenizer.vocab_size


def test_the_three_kinds_cut_one_text_differently() -> None:
    def pieces(kind: str) -> list[str]:
        tokenizer = TOKENIZERS[kind]
        return [tokenizer.card.tokens[i] for i in tokenizer.encode_prompt(" 3 + 5")]

    assert pieces("bytes") == ["Ġ", "3", "Ġ", "+", "Ġ", "5"]
    assert pieces("bpe") == ["Ġ3", "Ġ+", "Ġ5"]
    assert pieces("pieces") == ["<s>", "▁", "3", "▁+", "▁", "5"]
    assert len({tokenizer.card.hash for tokenizer in TOKENIZERS.values()}) == 3


def test_a_tokenizer_comes_back_from_disk_with_the_same_hash(tmp_path: Path) -> None:
    from fedtandem.models.tokenizer import TextTokenizer

    for kind, tokenizer in TOKENIZERS.items():
        tokenizer.save(tmp_path / kind)
        again = TextTokenizer.from_pretrained(tmp_path / kind)
        assert again.card.hash == tokenizer.card.hash
        assert (again.bos_id, again.eos_id, again.pad_id) == (
            tokenizer.bos_id,
            tokenizer.eos_id,
            tokenizer.pad_id,
        )


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "gpt_neox", "bloom", "qwen2"])
def test_a_saved_model_is_loaded_with_its_own_tokenizer(architecture: str, tmp_path: Path) -> None:
    """transformers 5 would cut a Qwen2's texts as Qwen2 does, whatever its files say."""
    spec = replace(SPEC, architecture=architecture, tokenizer="bpe", vocab_size=300, updates=1)  # type: ignore[arg-type]
    made = train_from_scratch(spec, ROWS, tokenizer_texts=["Q 3 + 5 * 2 A 3 + 5 = 8 ; # 8"] * 9)
    made.save(tmp_path / "model")
    again = load_model(ModelSpec(str(tmp_path / "model"), tuning_method="full"))
    assert again.tokenizer.card.hash == made.tokenizer.card.hash
