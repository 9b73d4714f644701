"""A vocabulary on the wire."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.alignment.card import VocabularyCard
from fedtandem.errors import InvalidMessage, VocabularyMismatch

SMALL = VocabularyCard(
    tokens=("</s>", "▁a", "<0xC3>", "", "b"),
    token_bytes=(None, b" a", b"\xc3", None, b"b"),
    roles={"eos": 0},
    special=frozenset({0}),
    marker="▁",
)


@st.composite
def cards(draw: st.DrawFn) -> VocabularyCard:
    tokens = draw(st.lists(st.text(max_size=4), min_size=1, max_size=6))
    spelled = [draw(st.none() | st.binary(max_size=4)) for _ in tokens]
    ids = st.integers(0, len(tokens) - 1)
    roles = draw(st.dictionaries(st.sampled_from(["eos", "bos", "unk", "pad"]), ids))
    special = draw(st.frozensets(ids))
    return VocabularyCard(
        tuple(tokens), tuple(spelled), roles, special, draw(st.sampled_from(["▁", "Ġ", ""]))
    )


@given(card=cards())
def test_what_is_sent_is_what_arrives(card):
    back = VocabularyCard.from_arrays(*card.to_arrays())
    assert back == card
    assert back.hash == card.hash


@given(one=cards(), other=cards())
def test_the_hash_tells_vocabularies_apart(one, other):
    assert (one.hash == other.hash) == (one == other)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("schema", 99), ("marker", 3), ("marker", "x" * 9), ("hash", "short"), ("hash", None), ("roles", [1]),
        ("roles", {"eos": 5}), ("roles", {"eos": True}), ("roles", {"king": 0}), ("roles", {"eos": -1}),
    ],
)  # fmt: skip
def test_a_wrong_header_is_named_and_refused(field, value):
    header, arrays = SMALL.to_arrays()
    with pytest.raises(InvalidMessage, match=field if field != "roles" else "role"):
        VocabularyCard.from_arrays({**header, field: value}, arrays)


@pytest.mark.parametrize(
    ("field", "array"),
    [
        ("text", np.zeros(3, np.int32)), ("text", np.zeros((1, 2), np.uint8)), ("text", np.zeros(2, np.uint8)),
        ("text", np.full(14, 255, np.uint8)), ("text_length", np.array([4, 4, 6, 0, -1], np.int32)),
        ("text_length", np.array([2**31 - 1] * 5, np.int32)), ("bytes", np.zeros(0, np.uint8)),
        ("bytes_length", np.zeros(4, np.int32)), ("bytes_length", np.array([-2, 2, 1, -1, 1], np.int32)),
        ("special", np.array([7], np.int32)), ("special", np.array([-1], np.int32)), ("special", None),
    ],
)  # fmt: skip
def test_a_wrong_array_is_refused(field, array):
    header, arrays = SMALL.to_arrays()
    changed = {k: v for k, v in {**arrays, field: array}.items() if v is not None}
    with pytest.raises(InvalidMessage):
        VocabularyCard.from_arrays(header, changed)


def test_content_that_does_not_have_the_promised_hash_is_refused():
    header, _ = SMALL.to_arrays()
    _, other = replace(SMALL, token_bytes=(None, b" b", b"\xc3", None, b"b")).to_arrays()
    with pytest.raises(VocabularyMismatch, match=SMALL.hash[:12]):
        VocabularyCard.from_arrays(header, other)


def test_a_token_with_two_roles_counts_for_the_first():
    card = replace(SMALL, roles={"pad": 0, "bos": 0, "eos": 0})
    assert card.role_of(0) == "eos"
    assert card.role_of(1) is None
    assert repr(SMALL).startswith("VocabularyCard(5 tokens")
