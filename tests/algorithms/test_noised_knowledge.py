"""Clipping and noise on what is sent: off changes nothing, on keeps a valid message, asked twice it is one draw."""

from dataclasses import replace

import numpy as np
import pytest

from fedtandem.algorithms.noised_knowledge import KnowledgeNoise
from fedtandem.exchange.knowledge import Knowledge
from fedtandem.exchange.messages import FetchReply
from fedtandem.knowledge.sparse_logits import SparseLogits

KEY = bytes(32)


def knowledge() -> Knowledge:
    """Three samples, one without a score; two rows each of the others, three tokens a row."""
    log_probs = np.log(np.tile(np.array([0.6, 0.3, 1e-6], np.float32), 4))
    rows = SparseLogits(
        token_ids=np.tile(np.array([1, 4, 7], np.int32), 4), log_probs=log_probs,
        row_splits=np.arange(5, dtype=np.int64) * 3, tail_log_prob=np.log(np.full(4, 0.1 - 1e-6, np.float32)),
        end_byte=np.array([0, 1, 0, 1], np.int32), segment=np.ones(4, np.uint8),
        sample_splits=np.array([0, 2, 4, 4], np.int64),
    )  # fmt: skip
    scores = np.array([0.2, 9.0, np.inf], np.float32)
    return Knowledge("a", 1, "0" * 64, "1" * 64, scores, np.arange(3, dtype=np.int32), rows)


def test_nothing_set_changes_nothing() -> None:
    told = KnowledgeNoise()(knowledge())
    assert told.rows is not None
    assert told.rows.same_as(knowledge().rows)  # type: ignore[arg-type]
    assert np.array_equal(told.scores, knowledge().scores)


def test_clips_are_kept_and_rows_still_sum_to_one() -> None:
    told = KnowledgeNoise(score_clip=5.0, row_clip=6.0)(knowledge())
    assert told.scores.tolist() == pytest.approx([0.2, 5.0, np.inf])
    assert told.rows is not None
    assert told.rows.log_probs.min() > -6.1  # exp(-6) more than before, then divided by the new sum
    np.testing.assert_allclose(told.rows.kept_mass() + np.exp(told.rows.tail_log_prob), 1, atol=1e-5)


def test_noise_is_of_its_size_sent_as_a_valid_message_and_drawn_once() -> None:
    noised = KnowledgeNoise(score_noise=0.1, row_noise=0.5, key=KEY)
    told = noised(knowledge())
    assert np.isinf(told.scores[2])
    assert FetchReply.from_envelope(FetchReply(1, "a", told).to_envelope()).knowledge.rows is not None
    assert np.array_equal(told.scores, noised(knowledge()).scores)
    assert not np.array_equal(
        told.scores, KnowledgeNoise(score_noise=0.1, key=bytes([1] * 32))(knowledge()).scores
    )
    many = replace(
        knowledge(), scores=np.full(5000, 3.0, np.float32), sample_index=np.zeros(0, np.int32), rows=None
    )
    assert noised(many).scores.std() == pytest.approx(0.1, rel=0.06)
    assert noised(replace(many, scores=np.zeros(100, np.float32))).scores.min() >= 0
