"""Rouge-L on sentences that can be counted by hand."""

import sys

import pytest

from fedtandem.errors import ConfigError
from fedtandem.evaluation.rouge import rouge_l


def test_it_is_the_f_measure_of_the_longest_common_subsequence() -> None:
    # common subsequence: the ... on the mat (4 of 6 words predicted, 4 of 5 in the reference)
    (score,) = rouge_l(["the dog sat on the mat"], [["the on a the mat"]])
    assert score == pytest.approx(2 * (4 / 6) * (4 / 5) / (4 / 6 + 4 / 5))


def test_the_best_reference_counts_and_words_are_stemmed() -> None:
    scores = rouge_l(["two cats", "", "abc"], [["a dog", "two cat"], ["x"], ["xyz"]])
    assert scores.tolist() == [1.0, 0.0, 0.0]


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(ConfigError, match=r"fedtandem\[eval\]"):
        rouge_l(["a"], [["a"]])
