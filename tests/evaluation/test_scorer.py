"""Scores equal their definitions written out, item by item, whatever the batches."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedtandem.data.public import Sample
from fedtandem.errors import ConfigError, DataError, ModelError
from fedtandem.evaluation.scorer import evaluate, make_evaluation, pool
from fedtandem.models.language_model import LanguageModel

WORDS = (" yes", " no", " maybe seven", " the cat sat", " ☕")
rows = st.builds(
    lambda i, prompt, label, eos: Sample(str(i), prompt, WORDS[label], WORDS, label, eos=eos),
    st.integers(0, 99),
    st.sampled_from(["", "Q:", "the dog ran to", "größer als\n", "the cat " * 9]),
    st.integers(0, len(WORDS) - 1),
    st.booleans(),
)
QUICK = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@torch.no_grad()
def log_probs(lm: LanguageModel, sample: Sample, answer: str) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """The dense distributions at the answer's rows by one plain forward pass; the targets; which are EOS."""
    text = lm.tokenizer.encode(sample.prompt, answer, eos=sample.eos)
    logits = lm.model(input_ids=torch.from_numpy(text.input_ids[None].astype(np.int64))).logits[0]
    dense = logits[torch.from_numpy(text.positions.astype(np.int64)), : lm.tokenizer.vocab_size]
    return dense.double().log_softmax(-1), text.targets, text.is_eos


def bits(lm: LanguageModel, sample: Sample, answer: str) -> float:
    """-log2 p(answer | prompt), EOS left out."""
    dense, targets, is_eos = log_probs(lm, sample, answer)
    return -float(
        dense[torch.arange(len(targets)), torch.from_numpy(targets.astype(np.int64))][~is_eos].sum()
    ) / (math.log(2))


@QUICK
@given(samples=st.lists(rows, min_size=1, max_size=5), batch_size=st.integers(1, 7))
def test_bits_per_byte_is_the_bits_of_all_answers_over_their_bytes(
    lm: LanguageModel, samples: list[Sample], batch_size: int
) -> None:
    got = evaluate(lm, samples, "bits_per_byte", batch_size=batch_size)
    expected = [bits(lm, sample, sample.answer or "") for sample in samples]
    assert got.item_values == pytest.approx(expected, rel=1e-4)
    assert got.item_weights.tolist() == [len((sample.answer or "").encode()) for sample in samples]
    assert got.value == pytest.approx(sum(expected) / sum(got.item_weights), rel=1e-4)
    assert (got.n, got.higher_is_better) == (len(samples), False)


@QUICK
@given(samples=st.lists(rows, min_size=1, max_size=4), batch_size=st.integers(1, 7))
def test_accuracy_chooses_the_option_with_the_fewest_bits_per_byte(
    lm: LanguageModel, samples: list[Sample], batch_size: int
) -> None:
    got = evaluate(lm, samples, "accuracy", batch_size=batch_size)
    chosen = [min(WORDS, key=lambda word: bits(lm, sample, word) / len(word.encode())) for sample in samples]
    assert got.item_values.tolist() == [
        float(word == sample.answer) for word, sample in zip(chosen, samples, strict=True)
    ]
    assert got.value == pytest.approx(np.mean(got.item_values))


def greedy_answers(lm: LanguageModel, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
    ids = [lm.tokenizer.encode_prompt(prompt) for prompt in prompts]
    return [lm.tokenizer.decode_answer(new) for new in lm.generate(ids, max_new_tokens=max_new_tokens)]


def test_exact_match_holds_for_what_the_model_writes_itself_and_for_nothing_else(lm: LanguageModel) -> None:
    prompts = [f"the cat {i} sat on" for i in range(12)] + [f"Q{i}: the dog" for i in range(12)]
    ids = [lm.tokenizer.encode_prompt(prompt) for prompt in prompts]
    written = lm.generate(ids, max_new_tokens=6)
    samples, expected = [], []
    for prompt, new in zip(prompts, written, strict=True):
        text = lm.tokenizer.decode_answer(new)
        if "�" in text or not text.strip():
            continue  # bytes that are no text cannot be an answer
        sample = Sample(prompt, prompt, text, eos=False)
        again = lm.tokenizer.encode(prompt, text, eos=False)
        # The same text in other tokens is another path: greedy decoding is compared token by token.
        samples.append(sample)
        expected.append(float(again.targets.tolist() == new.tolist()))
        samples.append(replace(sample, answer=text + "é"))
        longer = lm.tokenizer.encode(prompt, text + "é", eos=False).targets.tolist()
        expected.append(
            float(
                lm.generate([lm.tokenizer.encode_prompt(prompt)], max_new_tokens=len(longer))[0].tolist()
                == longer
            )
        )
    assert len(samples) >= 4
    assert 1.0 in expected
    assert 0.0 in expected
    got = evaluate(lm, samples, "exact_match", batch_size=5)
    assert got.item_values.tolist() == expected


def test_exact_match_asks_for_the_closing_eos_too(lm: LanguageModel) -> None:
    tried = 0
    for prompt in (f"Q{i}: the dog" for i in range(40)):
        first, second = lm.generate([lm.tokenizer.encode_prompt(prompt)], max_new_tokens=2)[0][:2]
        open_end = Sample("1", prompt, lm.tokenizer.decode_answer([first]), eos=False)
        if not open_end.answer or lm.tokenizer.encode(
            prompt, open_end.answer, eos=False
        ).targets.tolist() != [first]:
            continue  # no text, or text with another tokenisation
        assert evaluate(lm, [open_end], "exact_match").value == 1.0
        closed = evaluate(lm, [replace(open_end, eos=True)], "exact_match").value
        assert closed == float(second == lm.tokenizer.eos_id)
        tried += 1
    assert tried >= 3


@QUICK
@given(
    samples=st.lists(rows, min_size=1, max_size=6),
    metric=st.sampled_from(["bits_per_byte", "accuracy", "exact_match"]),
)
def test_order_and_batch_size_change_nothing_but_the_order(
    lm: LanguageModel, samples: list[Sample], metric: str
) -> None:
    one = evaluate(lm, samples, metric, batch_size=1)
    many = evaluate(lm, samples[::-1], metric, batch_size=64)
    assert one.item_values == pytest.approx(many.item_values[::-1], rel=1e-4)
    assert np.array_equal(one.item_weights, many.item_weights[::-1])


def test_rouge_l_takes_the_best_reference(lm: LanguageModel) -> None:
    prompt = "the cat sat on the mat and"
    (text,) = greedy_answers(lm, [prompt], 12)
    wrong = Sample("1", prompt, " zebra")
    right = Sample("2", prompt, " zebra", references=("zebra", f"word {text} word"))
    got = evaluate(lm, [wrong, right], "rouge_l", max_new_tokens=12)
    assert got.item_values[0] == 0
    assert got.item_values[1] >= 0
    assert got.higher_is_better
    assert got.item_weights.tolist() == [1, 1]


def test_a_cut_answer_counts_for_nothing_and_is_told(lm: LanguageModel) -> None:
    samples = [
        Sample("1", "Q:", " yes", (" yes", " no"), 0),
        Sample("2", "Q:", " é" * 40, (" yes", " é" * 40), 1),
    ]
    for metric in ("bits_per_byte", "exact_match", "accuracy"):
        cut = evaluate(lm, samples, metric, max_length=30)
        alone = evaluate(lm, samples[:1], metric, max_length=30)
        assert cut.value == pytest.approx(alone.value)
        assert (cut.n, cut.n_scored) == (2, 1)
        assert (cut.item_values[1], cut.item_weights[1]) == (0, 0)
        with pytest.raises(DataError, match="none of 1 answers fits max_length = 30"):
            evaluate(lm, samples[1:], metric, max_length=30)


def test_a_pool_weighs_items_alike(lm: LanguageModel) -> None:
    samples = [Sample(str(i), "Q:", word) for i, word in enumerate(WORDS)]
    whole = evaluate(lm, samples, "bits_per_byte")
    halves = pool([evaluate(lm, samples[:2], "bits_per_byte"), evaluate(lm, samples[2:], "bits_per_byte")])
    assert halves.value == pytest.approx(whole.value, rel=1e-5)
    assert halves.item_values == pytest.approx(whole.item_values, rel=1e-4)
    ones, zeros = (
        make_evaluation("accuracy", np.ones(3), np.ones(3)),
        make_evaluation("accuracy", np.zeros(1), np.ones(1)),
    )
    assert pool([ones, zeros]).value == 0.75
    with pytest.raises(ValueError, match="one metric"):
        pool([whole, ones])


def test_the_model_is_left_as_it_was_and_progress_is_told(lm: LanguageModel) -> None:
    told: list[tuple[int, int]] = []
    before = {name: weight.clone() for name, weight in lm.model.state_dict().items()}
    lm.model.train()
    evaluate(
        lm, [Sample(str(i), "Q:", " yes") for i in range(5)], "exact_match", batch_size=2,
        on_progress=lambda done, of: told.append((done, of)),
    )  # fmt: skip
    assert lm.model.training
    assert told == [(2, 5), (4, 5), (5, 5)]
    assert all(torch.equal(weight, before[name]) for name, weight in lm.model.state_dict().items())


def test_faults_say_what_to_do(lm: LanguageModel) -> None:
    free = [Sample("7", "Q:", " yes")]
    with pytest.raises(ConfigError, match="no metric 'f1'; there are exact_match"):
        evaluate(lm, free, "f1")
    with pytest.raises(DataError, match="no samples"):
        evaluate(lm, [], "accuracy")
    with pytest.raises(DataError, match="accuracy needs choices and the right one, which sample '7' lacks"):
        evaluate(lm, free, "accuracy")
    for metric in ("exact_match", "bits_per_byte", "rouge_l"):
        with pytest.raises(DataError, match=f"{metric} needs an answer, which sample '8' lacks"):
            evaluate(lm, [Sample("8", "Q:", None)], metric)


@pytest.mark.parametrize("metric", ["exact_match", "bits_per_byte"])
def test_nan_is_an_error_that_names_the_model(lm: LanguageModel, metric: str) -> None:
    weight = lm.model.get_output_embeddings().weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight[3] = math.nan
        with pytest.raises(ModelError, match="tiny gave NaN"):
            evaluate(lm, [Sample("1", "Q:", " yes")], metric)
    finally:
        with torch.no_grad():
            weight.copy_(kept)
