"""The estimate is arithmetic: it grows with what costs, and gives what one can work out by hand."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.federation.estimate import ModelShape, Work, flops, knowledge_bytes, memory_bytes, seconds

SMALL = ModelShape(
    parameters=1000, trainable=1000, hidden_size=8, n_layers=2, n_heads=2, vocab_size=50, bytes_per_weight=4
)
ONE = Work(
    train_tokens=10, train_steps=1, score_tokens=5, write_tokens=3, batch_size=2, length=4, positions=3
)


def test_memory_in_the_head() -> None:
    # weights 4000, gradient and moments 12000, activations 2 x (2*4) x (34*8 + 5*2*4) x 2 layers, logits 2*4*3*50
    assert memory_bytes(SMALL, ONE) == 4000 + 12000 + 2 * 8 * (272 + 40) * 2 + 1200


def test_flops_in_the_head() -> None:
    assert flops(SMALL, ONE) == 6 * 1000 * 10 + 2 * 1000 * 8
    assert flops(replace(SMALL, trainable=10), ONE) == 4 * 1000 * 10 + 2 * 1000 * 8


def test_an_adapter_and_four_bits_need_less_memory() -> None:
    adapter = replace(SMALL, trainable=10)
    assert (
        memory_bytes(replace(adapter, bytes_per_weight=0.5), ONE)
        < memory_bytes(adapter, ONE)
        < memory_bytes(SMALL, ONE)
    )
    deep = replace(SMALL, n_layers=24)
    assert memory_bytes(deep, replace(ONE, checkpointing=True)) < memory_bytes(deep, ONE)


sizes = st.integers(1, 10**6)


@given(sizes, sizes, st.integers(1, 128))
def test_bytes_grow_with_samples_positions_and_k(n: int, positions: int, k: int) -> None:
    base = knowledge_bytes(n, positions, top_k=k, values="fp16")
    assert knowledge_bytes(n + 1, positions, top_k=k, values="fp16") > base
    assert knowledge_bytes(n, positions, top_k=k + 1, values="fp16") > base
    assert knowledge_bytes(n, positions, top_k=k, values="u8") < base


@given(st.floats(1e6, 1e15), sizes)
def test_a_faster_machine_takes_less_time(speed: float, tokens: int) -> None:
    work = replace(ONE, train_tokens=tokens)
    assert seconds(SMALL, work, speed * 2) < seconds(SMALL, work, speed)


@pytest.mark.parametrize("field", ["train_tokens", "train_steps", "score_tokens", "write_tokens"])
def test_more_work_takes_longer(field: str) -> None:
    more = replace(ONE, **{field: 10 * getattr(ONE, field)})
    assert seconds(SMALL, more, 1e6) > seconds(SMALL, ONE, 1e6)
