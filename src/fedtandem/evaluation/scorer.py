"""Held-out scores of a model: exact match, accuracy by likelihood, bits per byte, Rouge-L."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedtandem.data.public import Sample, references_of
from fedtandem.errors import ConfigError, DataError
from fedtandem.evaluation.reading import Progress, read_answers
from fedtandem.evaluation.rouge import rouge_l
from fedtandem.models.encoded import Encoded
from fedtandem.models.language_model import LanguageModel

METRICS: Mapping[str, bool] = {"exact_match": True, "accuracy": True, "bits_per_byte": False, "rouge_l": True}
"""Metric -> whether higher is better."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One score with the items it is made of; `value` = Σ item_values / Σ item_weights."""

    metric: str
    value: float
    n: int
    """Items asked for, those that could not be scored included."""
    higher_is_better: bool
    item_values: NDArray[np.float32]
    """(n,): 0 or 1, a Rouge-L F-measure, or the bits of the item's answer; 0 where it could not be scored."""
    item_weights: NDArray[np.float32]
    """(n,): 1, or the bytes of the item's answer; 0 where it could not be scored (the answer was cut)."""

    @property
    def n_scored(self) -> int:
        """Items that count."""
        return int((self.item_weights > 0).sum())


def evaluate(
    lm: LanguageModel,
    samples: Sequence[Sample],
    metric: str,
    *,
    batch_size: int = 32,
    max_length: int = 512,
    chat_template: bool = False,
    max_new_tokens: int = 128,
    on_progress: Progress | None = None,
) -> Evaluation:
    """Score a model on held-out samples.

    Args:
        lm: put into evaluation mode for the time being; its weights are untouched.
        samples: n >= 1, labelled. `accuracy` needs choices and the index of the right one.
        metric: one of `METRICS`, each described at its function below.
        batch_size: texts per forward pass at most; changes the speed, never the score (to rounding).
        max_length: tokens per text. An answer that does not fit leaves its item out (weight 0).
        chat_template: wrap prompts in the tokenizer's own chat template.
        max_new_tokens: length limit of a generated text (`rouge_l`).
        on_progress: called with (texts done, all texts).

    Raises:
        ConfigError: no such metric, or it needs an extra that is not installed.
        DataError: no samples, a sample without what the metric needs, or none that fits `max_length`.
        ModelError: the model gave NaN.
    """
    if metric not in METRICS:
        raise ConfigError(f"there is no metric {metric!r}; there are {', '.join(METRICS)}.")
    if not samples:
        raise DataError(f"{metric} of {lm.name}: there are no samples to score.")
    _check(samples, metric)
    if metric == "rouge_l":
        prompts = [
            lm.tokenizer.encode_prompt(sample.prompt, chat_template=chat_template) for sample in samples
        ]
        written = lm.generate(
            prompts, max_new_tokens=max_new_tokens, batch_size=batch_size, on_progress=on_progress
        )
        values = rouge_l(
            [lm.tokenizer.decode_answer(ids) for ids in written],
            [references_of(sample) for sample in samples],
        )
        return make_evaluation(metric, values, np.ones(len(samples)))
    options = [_answers(sample, metric) for sample in samples]
    texts = [(sample, answer) for sample, answers in zip(samples, options, strict=True) for answer in answers]
    encoded = lm.tokenizer.encode_many(
        [(sample.prompt, answer) for sample, answer in texts],
        max_length=max_length,
        chat_template=chat_template,
        eos=[sample.eos for sample, _ in texts],
    )
    read = read_answers(
        lm, encoded, want_hits=metric == "exact_match", batch_size=batch_size, on_progress=on_progress
    )
    splits = np.cumsum([0, *map(len, options)])
    score = _SCORES[metric]
    items = [
        score(sample, encoded[first:last], read[first:last])
        for sample, first, last in zip(samples, splits, splits[1:], strict=False)
    ]
    weights = np.array([weight for _, weight in items])
    if not weights.any():
        raise DataError(
            f"{metric} of {lm.name}: none of {len(samples)} answers fits max_length = {max_length} tokens. "
            "Raise it."
        )
    return make_evaluation(metric, np.array([value for value, _ in items]), weights)


def make_evaluation(metric: str, values: NDArray[np.floating], weights: NDArray[np.floating]) -> Evaluation:
    """An evaluation from its items; the value is summed in float64. NaN where nothing was scored."""
    total = float(weights.sum(dtype=np.float64))
    value = float(values.sum(dtype=np.float64)) / total if total else math.nan
    return Evaluation(
        metric, value, len(values), METRICS[metric], values.astype(np.float32), weights.astype(np.float32)
    )


def pool(evaluations: Sequence[Evaluation]) -> Evaluation:
    """One evaluation of all items together, in order: larger sets weigh more.

    Raises:
        ValueError: there are none, or they are of different metrics.
    """
    metrics = sorted({evaluation.metric for evaluation in evaluations})
    if len(metrics) != 1:
        raise ValueError(f"pool needs evaluations of one metric, not of {metrics}.")
    return make_evaluation(
        metrics[0],
        np.concatenate([evaluation.item_values for evaluation in evaluations]),
        np.concatenate([evaluation.item_weights for evaluation in evaluations]),
    )


Item = tuple[float, float]
"""(value, weight)."""


def exact_match(sample: Sample, texts: Sequence[Encoded], hits: Sequence[NDArray[np.floating]]) -> Item:
    """1 where the most likely next token is the answer's at every answer token and at its EOS, else 0.

    This equals comparing greedy decoding with the answer token by token, in one forward pass: if the first
    token is right, greedy decoding stands before the second with the same text as teacher forcing, and so on;
    at the first wrong one it has left the answer for good.

    Args:
        texts, hits: one of each; (P,) 1 where the row's argmax is its target.
    """
    return (float(hits[0].all()), 1.0) if texts[0].scored else (0.0, 0.0)


def accuracy(sample: Sample, texts: Sequence[Encoded], nll: Sequence[NDArray[np.floating]]) -> Item:
    """1 where the right option has the highest log-likelihood per UTF-8 byte, EOS excluded; ties: the first.

    Per byte, because options differ in length and parties in tokenizers.

    Args:
        texts, nll: one of each per option; (P,) nats.
    """
    if not all(text.scored for text in texts):
        return 0.0, 0.0
    per_byte = [
        float(loss[~text.is_eos].sum()) / text.n_answer_bytes for text, loss in zip(texts, nll, strict=True)
    ]
    return float(int(np.argmin(per_byte)) == sample.label), 1.0


def bits_per_byte(sample: Sample, texts: Sequence[Encoded], nll: Sequence[NDArray[np.floating]]) -> Item:
    """Bits of the answer, weighed by its UTF-8 bytes; EOS, which has no bytes, excluded.

    The set's value, Σ bits / Σ bytes, is comparable across tokenizers.

    Args:
        texts, nll: one of each; (P,) nats.
    """
    if not texts[0].scored:
        return 0.0, 0.0
    return float(nll[0][~texts[0].is_eos].sum()) / math.log(2), float(texts[0].n_answer_bytes)


_SCORES: Mapping[str, Callable[[Sample, Sequence[Encoded], Sequence[NDArray[np.floating]]], Item]] = {
    "exact_match": exact_match,
    "accuracy": accuracy,
    "bits_per_byte": bits_per_byte,
}


def _answers(sample: Sample, metric: str) -> tuple[str, ...]:
    return sample.choices if metric == "accuracy" else (sample.answer or "",)


def _check(samples: Sequence[Sample], metric: str) -> None:
    for sample in samples:
        if metric == "accuracy" and (len(sample.choices) < 2 or sample.label is None):
            raise DataError(
                f"accuracy needs choices and the right one, which sample {sample.id!r} lacks. Use "
                "multiple-choice "
                "rows or label words (`answers`), or another metric."
            )
        if metric != "accuracy" and not sample.answer:
            raise DataError(
                f"{metric} needs an answer, which sample {sample.id!r} lacks: score a labelled set."
            )
