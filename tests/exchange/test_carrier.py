import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.errors import InvalidMessage
from fedtandem.exchange.carrier import KINDS, SCHEMA, Envelope

envelopes = st.builds(
    Envelope, st.sampled_from(KINDS), st.integers(0, 2**32 - 1), st.just(SCHEMA), st.binary(max_size=40)
)


@given(envelopes)
def test_an_envelope_comes_back_as_it_was_and_counts_what_it_sends(envelope: Envelope) -> None:
    data = envelope.to_bytes()
    assert Envelope.from_bytes(data) == envelope
    assert len(data) == envelope.n_bytes


@given(envelopes, st.data())
def test_no_changed_bit_passes(envelope: Envelope, data: st.DataObject) -> None:
    broken = bytearray(envelope.to_bytes())
    bit = data.draw(st.integers(0, 8 * len(broken) - 1))
    broken[bit // 8] ^= 1 << bit % 8
    with pytest.raises(InvalidMessage):
        Envelope.from_bytes(bytes(broken))


@given(envelopes, st.integers(1, 30), st.binary(min_size=1, max_size=9))
def test_neither_cut_nor_glued(envelope: Envelope, missing: int, extra: bytes) -> None:
    data = envelope.to_bytes()
    for broken in (data[:-missing], data + extra, b""):
        with pytest.raises(InvalidMessage):
            Envelope.from_bytes(broken)


def with_checksum(head: bytes, body: bytes) -> bytes:
    return head + struct.pack("<I", zlib.crc32(body, zlib.crc32(head + b"\0\0\0\0"))) + body


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (struct.pack("<4sHHIQ", b"HTTP", 1, 0, 3, 2), "is no fedtandem envelope"),
        (struct.pack("<4sHHIQ", b"FTEN", 9, 0, 3, 2), "clinic-a, round 3: schema = 9.*Install the same"),
        (struct.pack("<4sHHIQ", b"FTEN", 1, 77, 3, 2), "clinic-a, round 3: kind = 77"),
        (struct.pack("<4sHHIQ", b"FTEN", 1, 0, 3, 1 << 60), "clinic-a, round 3: body = 2 bytes"),
    ],
)
def test_a_refusal_names_party_round_field_value_and_remedy(head: bytes, told: str) -> None:
    with pytest.raises(InvalidMessage, match=told):
        Envelope.from_bytes(with_checksum(head, b"ok"), party="clinic-a")
