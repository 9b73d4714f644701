import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load

from fedtandem.errors import InvalidMessage
from fedtandem.exchange.frame import MAX_HEADER_BYTES, decode_frame, encode_frame

dtypes = st.sampled_from(["?", "u1", "i1", "<u2", "<i2", "<f2", "<u4", "<i4", "<f4", "<u8", "<i8", "<f8"])
arrays = st.dictionaries(
    st.text(st.characters(codec="utf-8"), max_size=8),
    dtypes.flatmap(
        lambda d: hnp.arrays(np.dtype(d), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    ),
    max_size=5,
)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3)
    ),
    max_leaves=8,
)
headers = st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), json_values, max_size=4)


@given(headers, arrays)
def test_decoding_undoes_encoding_and_there_is_one_frame_for_one_content(header: Any, content: Any) -> None:
    data = encode_frame(header, content)
    header_again, content_again = decode_frame(data)
    assert header_again == header
    assert set(content_again) == set(content)
    for name, array in content.items():
        assert content_again[name].dtype == array.dtype
        assert content_again[name].shape == array.shape
        assert content_again[name].tobytes() == array.tobytes()
    assert encode_frame(header_again, content_again) == data


def test_the_content_is_a_safetensors_file() -> None:
    # Any safetensors reader opens a frame once zstd has unpacked it.
    given_arrays = {
        "a": np.arange(3, dtype=np.int64),
        "b": np.ones((2, 2), np.float16),
        "c": np.zeros(0, np.uint8),
    }
    content = zstandard.ZstdDecompressor().decompress(encode_frame({"round": 1}, given_arrays))
    loaded = load(content)
    assert set(loaded) == set(given_arrays)
    assert all(np.array_equal(loaded[name], array) for name, array in given_arrays.items())


def packed(content: bytes, **options: bool) -> bytes:
    settings = {"write_checksum": True, "write_content_size": True} | options
    return zstandard.ZstdCompressor(level=3, **settings).compress(content)


def content_of(described: object, data: bytes = b"", header: str = "{}") -> bytes:
    """A content with any array table; correct in everything else."""
    if isinstance(described, dict):
        described = {"__metadata__": {"header": header}, **described}
    text = json.dumps(described, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def one(dtype: str = "U8", shape: Any = (2,), offsets: Any = (0, 2)) -> dict[str, Any]:
    return {"a": {"data_offsets": offsets, "dtype": dtype, "shape": shape}}


def test_the_hand_made_frame_of_these_tests_is_a_valid_one() -> None:
    assert decode_frame(packed(content_of(one(), b"\1\2")))[1]["a"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "too few for a header"),
        (struct.pack("<Q", 1 << 60) + b"{}", "claims"),
        (struct.pack("<Q", 3) + b"{} ", "multiple of 8"),
        (content_of([]), "expected a JSON object"),
        (struct.pack("<Q", 8) + b"[[[[[[[[", "no JSON"),
        (struct.pack("<Q", 80_000) + b"[" * 80_000, "no JSON"),
        (struct.pack("<Q", 8) + b"\xff" * 8, "no JSON"),
        (struct.pack("<Q", 16) + b'{"a":1,"a":1}   ', "canonical"),
        (struct.pack("<Q", 16) + b'{"a":1e999}     ', "JSON"),
        (struct.pack("<Q", 16) + b'{}              ', "padded"),
        (struct.pack("<Q", 16) + b'{"a":{}}        ', "padded"),
        (struct.pack("<Q", 8) + b"{}      ", "no __metadata__"),
        (content_of({}, header="[]"), "expected a JSON object"),
        (content_of({}, header='{"a":NaN}'), "JSON"),
        (content_of({}, header='{"a": 1}'), "canonical"),
        (content_of({}, b"\0"), "1 bytes of no array"),
        (content_of(one("BF16"), b"\0\0"), "described as"),
        (content_of(one("U8", (3,)), b"\0\0"), "claims bytes"),
        (content_of(one("U8", (2,), (0, 9)), b"\0\0"), "claims bytes"),
        (content_of(one("U8", (2,), (1, 3)), b"\0\0\0"), "claims bytes"),
        (content_of(one("U8", (-1, -2)), b"\0\0"), "described as"),
        (content_of(one("U8", (2.0,)), b"\0\0"), "described as"),
        (content_of(one("U8", (True, 2)), b"\0\0"), "described as"),
        (content_of(one("U8", (1 << 40, 1 << 40)), b"\0\0"), "claims bytes"),
        (content_of(one("U8", (1 << 40,), (0, 1 << 40))), "claims bytes"),
        (content_of(one("U8", (0, 1 << 40, 1 << 40), (0, 0))), "shape"),
        (content_of(one("U8", (1,) * 9, (0, 1)), b"\0"), "described as"),
        (content_of(one("BOOL", (2,)), b"\0\2"), "holds the byte 2"),
        (content_of({"a": 5}), "described as 5"),
        (content_of({"a": {}}), "described as"),
    ],
)  # fmt: skip
def test_a_content_that_is_not_the_one_valid_form_is_refused(content: bytes, told: str) -> None:
    with pytest.raises(InvalidMessage, match=told):
        decode_frame(packed(content))


def test_arrays_out_of_their_order_are_refused() -> None:
    table = {
        "a": {"data_offsets": [0, 1], "dtype": "U8", "shape": [1]},
        "b": {"data_offsets": [1, 3], "dtype": "U16", "shape": [1]},
    }
    with pytest.raises(InvalidMessage, match="claims bytes"):
        decode_frame(packed(content_of(table, b"\0\0\0")))


@pytest.mark.parametrize("missing", ["write_checksum", "write_content_size"])
def test_a_frame_without_checksum_or_size_is_refused(missing: str) -> None:
    with pytest.raises(InvalidMessage, match="states no"):
        decode_frame(packed(content_of({}), **{missing: False}))


def test_no_byte_may_follow_and_none_may_be_missing() -> None:
    data = encode_frame({"a": 1}, {"x": np.arange(50)})
    for broken in (data + b"\0", data[:-1], data[: len(data) // 2], b"", data + data):
        with pytest.raises(InvalidMessage):
            decode_frame(broken)


def test_one_changed_bit_anywhere_is_noticed_or_changes_nothing() -> None:
    # zstandard has a bit without meaning in its own header; the envelope's checksum covers that one too.
    sent = np.random.default_rng(0).integers(0, 255, 60, np.uint8)
    data = encode_frame({"a": 1}, {"x": sent})
    passed = 0
    for bit in range(8 * len(data)):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        try:
            header, arrays = decode_frame(bytes(broken))
        except InvalidMessage:
            continue
        passed += 1
        assert header == {"a": 1}
        assert np.array_equal(arrays["x"], sent)
    assert passed <= 1


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    bomb = packed(b"\0" * (64 << 20))
    assert len(bomb) < 8 << 10
    tracemalloc.start()
    try:
        with pytest.raises(InvalidMessage, match="It was not unpacked"):
            decode_frame(bomb, max_bytes=1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_frame_that_lies_about_its_size_is_refused_before_it_is_unpacked() -> None:
    # Single-segment zstandard frame with an 8-byte content size of 1 GiB and nothing in it.
    lie = b"\x28\xb5\x2f\xfd" + bytes([0b11100100]) + struct.pack("<Q", 1 << 30) + b"\1\0\0" + b"\0" * 4
    tracemalloc.start()
    try:
        with pytest.raises(InvalidMessage, match="claims to unpack"):
            decode_frame(lie)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, "\ud800"])
def test_what_json_cannot_hold_is_refused_by_the_sender(value: object) -> None:
    with pytest.raises(InvalidMessage, match="JSON"):
        encode_frame({"a": value}, {})


def test_what_the_receiver_would_refuse_is_refused_by_the_sender() -> None:
    with pytest.raises(InvalidMessage, match="cannot travel"):
        encode_frame({}, {"a": np.zeros(1, np.complex64)})
    with pytest.raises(InvalidMessage, match="cannot travel"):
        encode_frame({}, {"__metadata__": np.zeros(1, np.uint8)})
    with pytest.raises(InvalidMessage, match="Send fewer"):
        encode_frame({"a": "x" * MAX_HEADER_BYTES}, {})


def test_a_frame_written_today_is_read_tomorrow(request: pytest.FixtureRequest) -> None:
    # Made by encode_frame of what is asserted here; it must stay readable as long as schema 1 lives.
    golden = Path(request.path).parents[1] / "golden" / "frame-schema-1.bin"
    header, content = decode_frame(golden.read_bytes())
    assert header == {"note": "schema 1", "round": 3}
    assert content["ids"].tolist() == [1, 2, 3]
    assert content["values"].tolist() == [[0.5, -1.0]]
