"""Batches hold every text once, of like length, and never more logits than agreed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.evaluation import reading
from fedtandem.models.encoded import Encoded


def text(length: int, rows: int) -> Encoded:
    return Encoded(
        np.zeros(length, np.int32), np.arange(rows, dtype=np.int32), np.zeros(rows, np.int32),
        np.ones(rows, np.uint8), rows, True, np.zeros(rows, np.bool_),
    )  # fmt: skip


lengths = st.integers(1, 20).flatmap(lambda rows: st.tuples(st.integers(rows + 1, 30), st.just(rows)))


@given(st.lists(lengths, max_size=30), st.integers(1, 8), st.integers(1, 9))
def test_batches_cover_all_texts_within_both_limits(
    sizes: list[tuple[int, int]], batch_size: int, vocab_size: int
) -> None:
    texts = [text(length, rows) for length, rows in sizes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "MAX_LOGITS", 100)
        found = list(reading.batches(texts, batch_size, vocab_size))
    assert sorted(i for batch in found for i in batch) == list(range(len(texts)))
    for batch in found:
        assert len(batch) <= batch_size
        assert len(batch) == 1 or vocab_size * sum(len(texts[i].positions) for i in batch) <= 100
    order = [len(texts[i].input_ids) for batch in found for i in batch]
    assert order == sorted(order)
