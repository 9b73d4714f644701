"""A frame: a JSON header and named arrays as one checked, compressed run of bytes.

    frame    = one zstandard frame (level 3, content size and checksum present) around
    content  = a safetensors buffer: 8-byte length, JSON of dtypes, shapes and offsets, then the arrays;
               our own header is the text "header" of its `__metadata__`

There is exactly one valid content for a header and its arrays, so what is accepted encodes to the same content
again. `zstd -d` turns a frame into a file that any safetensors reader opens.
"""

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from fedtandem.errors import InvalidMessage

Array = npt.NDArray[Any]
Header = dict[str, Any]

MAX_FRAME_BYTES = 1 << 31
"""Largest content, before compression; whole models under FedAvg are the reason it is not smaller."""
MAX_HEADER_BYTES = 1 << 20
"""Largest JSON text; everything long travels as an array."""
MAX_ARRAYS = 20_000
_MAX_DIMENSIONS = 8
_MAX_RATIO = 50_000
"""Nothing zstandard makes unpacks to more times its size (a block of 128 KiB takes at least 4 bytes)."""
_MAX_WINDOW_BYTES = 1 << 23
_LEVEL = 3

_LENGTH = struct.Struct("<Q")
_DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("bool"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def encode_frame(header: Mapping[str, Any], arrays: Mapping[str, Array]) -> bytes:
    """Pack a header and arrays.

    Args:
        header: JSON values with text keys; no NaN or infinity.
        arrays: numpy arrays by name; bool, integer or IEEE float, any shape.

    Raises:
        InvalidMessage: a value JSON cannot hold, a dtype that does not travel, or more than the limits allow.
    """
    content = _content(header, arrays)
    if len(content) > MAX_FRAME_BYTES:
        raise InvalidMessage(
            f"the frame holds {len(content):,} bytes, at most {MAX_FRAME_BYTES:,} may travel. "
            "Tune with LoRA instead of whole models, or keep fewer logits (knowledge.top_k)."
        )
    packer = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True, write_content_size=True)
    return packer.compress(content)


def decode_frame(
    data: bytes | memoryview, *, max_bytes: int = MAX_FRAME_BYTES
) -> tuple[Header, dict[str, Array]]:
    """Unpack and check a frame; believes nothing, and allocates nothing before its size was checked.

    Args:
        data: exactly one frame.
        max_bytes: largest content that is unpacked.

    Returns:
        The header and the arrays, which own their memory.

    Raises:
        InvalidMessage: truncated, tampered with, too large, or not the one valid form of its content.
    """
    return _parse(_unpack(data, max_bytes))


def canonical_json(value: object) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, UTF-8.

    Raises:
        InvalidMessage: NaN, infinity, a lone surrogate, or a type JSON does not have.
    """
    try:
        return _CANONICAL.encode(value).encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidMessage(f"the header cannot be written as JSON: {error}.") from error


def _content(header: Mapping[str, Any], arrays: Mapping[str, Array]) -> bytes:
    described: dict[str, Any] = {"__metadata__": {"header": canonical_json(header).decode("utf-8")}}
    buffers: list[bytes] = []
    offset = 0
    for name, array in sorted(arrays.items(), key=_place):
        dtype = array.dtype.newbyteorder("<") if array.dtype.byteorder == ">" else array.dtype
        if dtype not in _DTYPE_NAMES or name == "__metadata__":
            raise InvalidMessage(f"array {name!r} of {array.dtype} cannot travel; use {', '.join(_DTYPES)}.")
        buffer = np.ascontiguousarray(array, dtype=dtype).tobytes()
        described[name] = {
            "data_offsets": [offset, offset + len(buffer)],
            "dtype": _DTYPE_NAMES[dtype],
            "shape": list(array.shape),
        }
        buffers.append(buffer)
        offset += len(buffer)
    text = canonical_json(described)
    text += b" " * (-len(text) % 8)  # the first array starts at a multiple of 8
    if len(text) > MAX_HEADER_BYTES or len(arrays) > MAX_ARRAYS:
        raise InvalidMessage(
            f"the frame's header has {len(text):,} bytes and {len(arrays):,} arrays; at most {MAX_HEADER_BYTES:,} "
            f"and {MAX_ARRAYS:,} may travel. Send fewer metrics or tensors."
        )
    return b"".join([_LENGTH.pack(len(text)), text, *buffers])


def _place(item: tuple[str, Array]) -> tuple[int, str]:
    """Wide numbers first, so that every array is aligned; then by name."""
    return -item[1].dtype.itemsize, item[0]


def _unpack(data: bytes | memoryview, max_bytes: int) -> bytes:
    again = "The message was cut short or changed on the way; ask for it again."
    try:
        promised = zstandard.get_frame_parameters(data)
    except zstandard.ZstdError as error:
        raise InvalidMessage(
            f"the frame's first bytes are {bytes(data[:4])!r}, no zstandard frame. {again}"
        ) from error
    size = promised.content_size
    if size in (zstandard.CONTENTSIZE_UNKNOWN, zstandard.CONTENTSIZE_ERROR) or not promised.has_checksum:
        raise InvalidMessage(
            f"the frame states no {'checksum' if size >= 0 and not promised.has_checksum else 'size'}; both are "
            "required. Encode it with fedtandem."
        )
    if size > max_bytes:
        raise InvalidMessage(
            f"the frame unpacks to {size:,} bytes, at most {max_bytes:,} are accepted. It was not unpacked. "
            "Have the sender tune with LoRA or keep fewer logits (knowledge.top_k)."
        )
    if size > _MAX_RATIO * len(data):
        raise InvalidMessage(f"the frame has {len(data)} bytes and claims to unpack to {size:,}. {again}")
    if promised.dict_id or (promised.window_size > _MAX_WINDOW_BYTES and promised.window_size > size):
        raise InvalidMessage(
            f"the frame asks for a window of {promised.window_size:,} bytes and dictionary {promised.dict_id}; neither "
            "is needed. Encode it with fedtandem."
        )
    try:
        unpacker = zstandard.ZstdDecompressor()
        content = unpacker.decompress(data, allow_extra_data=False)
    except (zstandard.ZstdError, MemoryError) as error:
        raise InvalidMessage(f"the frame cannot be unpacked: {error}. {again}") from error
    if len(content) != size:
        raise InvalidMessage(f"the frame holds {len(content)} bytes, but it says {size}. {again}")
    return content


def _parse(content: bytes) -> tuple[Header, dict[str, Array]]:
    if len(content) < _LENGTH.size:
        raise InvalidMessage(
            f"the frame holds {len(content)} bytes, too few for a header. Encode it with fedtandem."
        )
    (length,) = _LENGTH.unpack_from(content)
    start = _LENGTH.size + length
    if length > MAX_HEADER_BYTES or start > len(content) or length % 8:
        raise InvalidMessage(
            f"the frame's header claims {length:,} bytes of {len(content):,}; at most {MAX_HEADER_BYTES:,}, and a "
            "multiple of 8. Encode it with fedtandem."
        )
    text = content[_LENGTH.size : start]
    described = _json(text.rstrip(b" "), "array table")
    if len(text) - len(text.rstrip(b" ")) > 7:
        raise InvalidMessage("the frame's header is padded by more than 7 spaces. Encode it with fedtandem.")
    metadata = described.pop("__metadata__", None)
    if len(described) > MAX_ARRAYS:
        raise InvalidMessage(
            f"the frame names {len(described):,} arrays; at most {MAX_ARRAYS:,}. Send fewer."
        )
    if (
        not isinstance(metadata, dict)
        or list(metadata) != ["header"]
        or not isinstance(metadata["header"], str)
    ):
        raise InvalidMessage(
            "the frame has no __metadata__ with one text 'header'. Encode it with fedtandem."
        )
    return _json(metadata["header"].encode("utf-8"), "header"), _arrays(described, content, start)


def _arrays(described: Mapping[str, Any], content: bytes, start: int) -> dict[str, Array]:
    found: list[tuple[int, str, np.dtype[Any], tuple[int, ...], int, int]] = []
    for name, entry in described.items():
        dtype, shape, first, last = _entry(name, entry)
        found.append((-dtype.itemsize, name, dtype, shape, first, last))
    found.sort(key=lambda item: item[:2])
    offset = 0
    arrays: dict[str, Array] = {}
    for _, name, dtype, shape, first, last in found:
        count = 1
        for side in shape:  # Python integers: tampered shapes may not wrap round
            count *= side
        if first != offset or last - first != count * dtype.itemsize or start + last > len(content):
            raise InvalidMessage(
                f"array {name!r} {shape} of {dtype} claims bytes {first} to {last}; expected {offset} to "
                f"{offset + count * dtype.itemsize} of {len(content) - start}. Encode it with fedtandem."
            )
        raw = np.frombuffer(content, np.uint8, last - first, start + first)
        if dtype.kind == "b" and raw.size and int(raw.max()) > 1:
            raise InvalidMessage(f"array {name!r} is BOOL but holds the byte {int(raw.max())}. Send 0 or 1.")
        try:
            arrays[name] = raw.copy().view(dtype).reshape(shape)
        except ValueError as error:  # an empty array with sides beyond any memory
            raise InvalidMessage(f"array {name!r} has the shape {shape}: {error}. Send it flat.") from error
        offset = last
    if start + offset != len(content):
        raise InvalidMessage(
            f"the frame ends with {len(content) - start - offset} bytes of no array. Encode it with fedtandem."
        )
    return arrays


def _entry(name: str, entry: object) -> tuple[np.dtype[Any], tuple[int, ...], int, int]:
    if isinstance(entry, dict) and sorted(entry) == ["data_offsets", "dtype", "shape"]:
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        good_shape = isinstance(shape, list) and len(shape) <= _MAX_DIMENSIONS and all(map(_is_size, shape))
        good_offsets = isinstance(offsets, list) and len(offsets) == 2 and all(map(_is_size, offsets))
        if isinstance(dtype, str) and dtype in _DTYPES and good_shape and good_offsets:
            return _DTYPES[dtype], tuple(shape), offsets[0], offsets[1]
    raise InvalidMessage(
        f"array {name!r} is described as {str(entry)[:200]}; expected dtype, shape and data_offsets."
    )


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 48


def _json(text: bytes, what: str) -> Header:
    try:
        value = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidMessage(f"the frame's {what} is no JSON: {error}. Encode it with fedtandem.") from error
    if not isinstance(value, dict):
        raise InvalidMessage(f"the frame's {what} is {str(value)[:80]!r}; expected a JSON object.")
    # One text per value: no double keys, odd numbers, NaN or spaces.
    if canonical_json(value) != text:
        raise InvalidMessage(f"the frame's {what} is not in canonical JSON. Encode it with fedtandem.")
    return value
