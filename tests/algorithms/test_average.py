"""Step 12: FedAvg of equal clients."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.algorithms.fedmkt import average
from fedtandem.errors import InvalidMessage
from fedtandem.exchange.messages import WorkReply


def reply(name: str, values: list[float], n_private: int) -> WorkReply:
    weights = {"lora": np.asarray(values, dtype=np.float32)}
    return WorkReply(round=1, party=name, knowledge=None, adapter=weights, metrics=[], n_private=n_private)


def test_the_mean_is_weighted_by_private_sizes() -> None:
    mean = average({"a": reply("a", [0.0, 4.0], 30), "b": reply("b", [4.0, 0.0], 10)})
    assert mean["lora"].tolist() == [1.0, 3.0]


vectors = st.lists(st.floats(-10, 10, width=32), min_size=3, max_size=3)


@given(rows=st.lists(vectors, min_size=1, max_size=5))
def test_equal_sizes_give_the_plain_mean_whatever_the_order(rows: list[list[float]]) -> None:
    replies = {f"c{i}": reply(f"c{i}", row, 7) for i, row in enumerate(rows)}
    mean = average(replies)["lora"]
    np.testing.assert_allclose(mean, np.mean(np.asarray(rows, dtype=np.float64), axis=0), atol=1e-5)
    assert np.array_equal(mean, average(dict(reversed(replies.items())))["lora"])


def test_another_model_cannot_be_averaged() -> None:
    with pytest.raises(InvalidMessage, match="b: its weights differ"):
        average({"a": reply("a", [0.0, 1.0], 1), "b": reply("b", [0.0], 1)})
