"""Scores held against rows: an honest one is never caught, a better claim is; and nobody teaches too much."""

import math
from pathlib import Path

import numpy as np
import pytest

from fedtandem.algorithms.defence import capped, least_score
from fedtandem.algorithms.lessons import Choice
from fedtandem.alignment.card import VocabularyCard
from fedtandem.knowledge.sparse_logits import SparseLogits
from fedtandem.studies import lying_clients


def test_only_the_liar_is_caught_whatever_the_lie(tmp_path: Path) -> None:
    """The study's own federation: four architectures, and an honest run beside."""
    lies = ("swapped rows",)
    found = lying_clients.one_seed(3, tmp_path, lies)
    for lie in lies:
        assert found[f"{lie}|defence"]["caught"] == ["b in round 1"], lie
    assert found["none|defence"]["caught"] == []
    assert found["swapped rows|open"]["loss"] > found["swapped rows|defence"]["loss"] + 0.05


def test_no_client_teaches_more_than_its_share() -> None:
    choice = Choice(np.array([0] * 8 + [1, -1]), ("a", "b"), np.arange(10))
    cut = capped(choice, 0.5, np.random.default_rng(0))
    assert len(cut.won_by("a")) == 5
    assert set(cut.won_by("a")) <= set(range(8))
    assert cut.won_by("b").tolist() == [8]
    assert np.array_equal(capped(choice, 1.0, np.random.default_rng(0)).teacher_of, choice.teacher_of)


CARD = VocabularyCard(("a", "b", "ab", "</s>"), (b"a", b"b", b"ab", None), {"eos": 3}, frozenset({3}), "")
SPELLER = {b"a": [0], b"b": [1], b"ab": [2]}


def rows(kept: list[tuple[int, float]], tails: list[float], ends: list[int]) -> SparseLogits:
    """One token kept in each row."""
    n = len(kept)
    return SparseLogits(
        token_ids=np.array([token for token, _ in kept], np.int32),
        log_probs=np.log(np.array([p for _, p in kept], np.float32)),
        row_splits=np.arange(n + 1, dtype=np.int64), tail_log_prob=np.log(np.array(tails, np.float32)),
        end_byte=np.array(ends, np.int32), segment=np.ones(n, np.uint8), sample_splits=np.array([0, n], np.int64),
    )  # fmt: skip


def test_the_least_score_by_hand() -> None:
    """Answer "ab" as a | b | EOS: p(a) = 0.5 was kept; b was not and has at most the tail, 0.1; p(EOS) = 0.25."""
    given = rows([(0, 0.5), (0, 0.9), (3, 0.25)], [0.5, 0.1, 0.75], [0, 1, 2])
    per_byte = least_score(given, b"ab", CARD, SPELLER, per_token=False)
    assert per_byte == pytest.approx((math.log(2) + math.log(10)) / 2, rel=1e-5)
    per_token = least_score(given, b"ab", CARD, SPELLER, per_token=True)
    assert per_token == pytest.approx((math.log(2) + math.log(10) + math.log(4)) / 3, rel=1e-5)


def test_what_rows_do_not_tell_counts_as_certain() -> None:
    unknown = rows([(0, 0.5), (0, 0.9)], [0.5, 0.1], [-1, 2])
    assert least_score(unknown, b"ab", CARD, SPELLER, per_token=False) == 0
    one_token = rows([(2, 0.5), (3, 0.9)], [0.5, 0.1], [0, 2])
    assert least_score(one_token, b"ab", CARD, SPELLER, per_token=False) == pytest.approx(
        math.log(2) / 2, rel=1e-5
    )
