"""Counted bytes are serialised bytes, and every message can be read back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.errors import InvalidMessage
from fedtandem.inference.uplink import (
    Draft,
    SparseLaw,
    pack_block,
    pack_law,
    pack_text_block,
    pack_verdict,
    sparse_law,
    unpack_block,
    unpack_law,
)


@st.composite
def sparse_laws(draw: st.DrawFn, bits: int) -> tuple[SparseLaw, int, int]:
    """A law, its vocabulary's size, and one of its tokens that can be drafted."""
    size = draw(st.integers(1, 40))
    weights = draw(st.lists(st.integers(0, 50), min_size=size, max_size=size).filter(any))
    q = torch.tensor(weights, dtype=torch.float64)
    law = sparse_law(q / q.sum(), draw(st.integers(1, 30)), bits)
    return law, size, draw(st.sampled_from(law.token_ids[law.weights > 0].tolist()))


@given(st.data(), st.sampled_from([8, 16]))
def test_a_law_survives_the_wire_bit_by_bit(data: st.DataObject, bits: int) -> None:
    law, vocab_size, drafted = data.draw(sparse_laws(bits))
    packed = pack_law(law, drafted, vocab_size)
    read = unpack_law(packed, len(law.token_ids), vocab_size, bits)
    assert int(read.token_ids[0]) == drafted
    assert torch.equal(read.dense(vocab_size), law.dense(vocab_size))


@pytest.mark.parametrize(("vocab_size", "size"), [(32_000, 87), (128_256, 94), (151_936, 98)])
def test_thirty_pairs_take_what_the_spec_says(vocab_size: int, size: int) -> None:
    law = sparse_law(torch.rand(vocab_size, generator=torch.Generator().manual_seed(1)), 30, 8)
    first = int(law.token_ids[7])
    assert len(pack_law(law, first, vocab_size)) == size
    assert torch.equal(unpack_law(pack_law(law, first, vocab_size), 30, vocab_size, 8).dense(vocab_size),
                       law.dense(vocab_size))  # fmt: skip


@given(st.data(), st.sampled_from([None, 8, 16]), st.integers(0, 6))
def test_a_block_survives_the_wire(data: st.DataObject, bits: int | None, count: int) -> None:
    drafts = []
    law, vocab_size, drafted = data.draw(sparse_laws(bits or 8))
    for _ in range(count):
        drafts.append(Draft(drafted, None if bits is None else law))
    packed = pack_block(drafts, vocab_size)
    k = len(law.token_ids)
    size = {None: 4, 16: 6, 8: len(pack_law(law, drafted, vocab_size))}[bits]
    assert len(packed) == 2 + count * size
    for (token, came_along), draft in zip(unpack_block(packed, k, vocab_size), drafts, strict=True):
        assert token == draft.token
        if bits is None:
            assert came_along is None
        elif bits == 16:  # the server has exactly the probability the draft was drawn with
            assert came_along == float(law.dense(vocab_size)[token])
        else:
            assert isinstance(came_along, SparseLaw)
            assert torch.equal(came_along.dense(vocab_size), law.dense(vocab_size))


def test_broken_messages_are_refused() -> None:
    law = sparse_law(torch.tensor([0.5, 0.25, 0.25]), 3, 8)
    block = pack_block([Draft(1, law)], 3)
    for broken in (b"", block[:-1], block + b"0", b"\x07" + block[1:]):
        with pytest.raises(InvalidMessage):
            unpack_block(broken, 3, 3)
    with pytest.raises(InvalidMessage, match="id 9"):
        unpack_block(pack_block([Draft(9)], 10), 3, 5)
    with pytest.raises(InvalidMessage, match="top_k"):
        unpack_law(pack_law(law, 1, 3)[::-1], 3, 3, 8)


def test_the_small_messages() -> None:
    assert len(pack_verdict(3, 17)) == 5
    assert len(pack_verdict(3, None)) == 1
    assert pack_text_block("é", True) == b"\x01\xc3\xa9"
