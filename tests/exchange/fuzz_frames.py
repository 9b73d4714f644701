"""Feeds mutated messages to the decoders, under a limit of memory and time; `test_fuzz.py` runs it as a process.

    python tests/exchange/fuzz_frames.py 10000 0       # mutants, seed

Every mutant must end in `InvalidMessage`, or be a valid message that encodes to the very same content again.
Most mutants get correct checksums, so that the validators are tried and not the checksums.
"""

import json
import random
import resource
import signal
import struct
import sys
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from conftest import PUBLIC, V, all_envelopes, threshold_envelopes

from fedtandem.errors import InvalidMessage
from fedtandem.exchange.calibration import CalibrationReply, CalibrationRequest
from fedtandem.exchange.carrier import Envelope
from fedtandem.exchange.frame import canonical_json, decode_frame
from fedtandem.exchange.masking import MaskedReply, MaskingRequest, OfferReply
from fedtandem.exchange.messages import (
    Card,
    Expected,
    FetchReply,
    FetchRequest,
    Knowledge,
    WorkReply,
    WorkRequest,
)
from fedtandem.exchange.trace_card import TraceCard, TraceCardRequest
from fedtandem.knowledge.sparse_logits import SparseLogits

MEMORY_BYTES = 768 << 20
"""What decoding may take above the program itself before the system says no."""
SECONDS_EACH = 5
EXPECTED = Expected(vocab_size=V, public_hash=PUBLIC, max_bytes=64 << 20)
READ: dict[str, Callable[..., Any]] = {
    "card": Card.from_envelope,
    "work_request": WorkRequest.from_envelope,
    "first_request": WorkRequest.from_envelope,
    "standing_request": WorkRequest.from_envelope,
    "finish": WorkRequest.from_envelope,
    "work_reply": WorkReply.from_envelope,
    "fetch_request": FetchRequest.from_envelope,
    "fetch_reply": FetchReply.from_envelope,
}
THRESHOLDS: dict[str, Any] = {
    "trace_card_request": TraceCardRequest, "trace_card": TraceCard, "calibration_request": CalibrationRequest,
    "calibration_reply": CalibrationReply, "key_request": MaskingRequest, "masking_request": MaskingRequest,
    "offer_reply": OfferReply, "masked_reply": MaskedReply,
}  # fmt: skip
READ |= {name: message.from_envelope for name, message in THRESHOLDS.items()}
WEIRD: list[Any] = [
    None, True, False, -1, 0, 1, 255, 2**31, 2**63, 2**64, -(2**70), 0.0, -0.0, 1e308, 5e-324, "", "x" * 600, "\0", "é",
    "fp16", "u8", "work", "finish", [], {}, [[]], [1, 2], {"a": 1}, [[[[]]]], "b" * 64,
]  # fmt: skip
BYTES = [0, 1, 2, 127, 128, 254, 255]


def content_of(envelope: Envelope) -> bytes:
    return zstandard.ZstdDecompressor().decompress(envelope.body)


def frame(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=3, write_checksum=True, write_content_size=True).compress(content)


def with_content(envelope: Envelope, content: bytes) -> bytes:
    """The envelope around another content, all lengths and checksums right."""
    return replace(envelope, body=frame(content)).to_bytes()


def mend_checksum(data: bytes) -> bytes:
    """Length and checksum of a mutated envelope made right again."""
    if len(data) < 24:
        return data
    head = data[:12] + struct.pack("<Q", len(data) - 24)
    return head + struct.pack("<I", zlib.crc32(data[24:], zlib.crc32(head + b"\0" * 4))) + data[24:]


def scramble(data: bytes, draw: random.Random) -> bytes:
    """Flip, cut, insert, repeat, overwrite: one to three times."""
    broken = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        at = draw.randrange(len(broken) + 1)
        what = draw.randrange(6)
        if what == 0 and at < len(broken):
            broken[at] ^= 1 << draw.randrange(8)
        elif what == 1:
            del broken[at:]
        elif what == 2:
            broken[at:at] = draw.randbytes(draw.choice((1, 2, 8, 64)))
        elif what == 3:
            del broken[at : at + draw.choice((1, 2, 8, 64))]
        elif what == 4:
            broken[at:at] = broken[at : at + draw.choice((4, 32))]
        elif at < len(broken):
            broken[at] = draw.choice(BYTES)
    return bytes(broken)


def split(content: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """(our header, array table, array bytes)"""
    (length,) = struct.unpack_from("<Q", content)
    table = json.loads(content[8 : 8 + length])
    return json.loads(table.pop("__metadata__")["header"]), table, content[8 + length :]


def join(header: Any, table: dict[str, Any], data: bytes) -> bytes:
    text = canonical_json({"__metadata__": {"header": canonical_json(header).decode()}, **table})
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) inside a JSON value."""
    keys = (
        list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    )
    return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]


def edit_json(value: Any, draw: random.Random) -> None:
    container, key = draw.choice(places(value) or [(value, "new")])
    what = draw.randrange(4)
    if what == 0 and isinstance(container, dict):
        container[draw.choice(["new", "party", "rows", "a\x1b", "round"])] = deepcopy(draw.choice(WEIRD))
    elif what == 1:
        if key in container or isinstance(container, list):
            del container[key]
    elif what == 2 and key in container and isinstance(container[key], int):
        container[key] += draw.choice((-1, 1, 7, 2**32))
    else:
        container[key] = deepcopy(draw.choice(WEIRD))


def edit_array(table: dict[str, Any], data: bytes, draw: random.Random) -> bytes:
    """Special numbers into one array, at one place or everywhere."""
    name = draw.choice(sorted(table))
    first, last = table[name]["data_offsets"]
    if first == last:
        return data
    dtype = {"F32": "<f4", "F16": "<f2", "I32": "<i4"}.get(table[name]["dtype"], "u1")
    special = [np.nan, np.inf, -np.inf, -0.0, 1e-7, 60000.0] if "f" in dtype else BYTES
    array = np.frombuffer(data[first:last], dtype).copy()
    where = slice(None) if draw.random() < 0.2 else draw.randrange(len(array))
    array[where] = draw.choice(special)
    return data[:first] + array.tobytes() + data[last:]


def rebuild(header: Any, arrays: dict[str, np.ndarray], draw: random.Random) -> bytes:
    """Arrays dropped, swapped, reshaped, retyped, cut or grown, with a table that fits them."""
    names = sorted(arrays)
    name, other = draw.choice(names), draw.choice(names)
    array = arrays[name]
    what = draw.randrange(7)
    if what == 0:
        del arrays[name]
    elif what == 1:
        arrays[name], arrays[other] = arrays[other], array
    elif what == 2:
        arrays[name] = array.reshape(-1) if array.ndim > 1 else array.reshape(1, -1)
    elif what == 3:
        with np.errstate(invalid="ignore"):
            arrays[name] = array.astype(
                draw.choice(["u1", "<i4", "<f4", "<f8", "<i8", "?"]), casting="unsafe"
            )
    elif what == 4:
        arrays[name] = array[..., :-1]
    elif what == 5:
        arrays[name] = np.concatenate([array, array], axis=-1)
    else:
        arrays[draw.choice(["new", name + ".x", "adapter.x", "knowledge.rows.peak"])] = array
    order = sorted(arrays, key=lambda n: (-arrays[n].dtype.itemsize, n))
    kinds = {
        "u1": "U8",
        "i4": "I32",
        "f4": "F32",
        "f8": "F64",
        "i8": "I64",
        "u8": "U64",
        "f2": "F16",
        "b1": "BOOL",
    }
    table: dict[str, Any] = {}
    data = b""
    for key in order:
        raw = np.ascontiguousarray(arrays[key]).tobytes()
        kind = kinds[arrays[key].dtype.str[1:]]
        table[key] = {
            "data_offsets": [len(data), len(data) + len(raw)],
            "dtype": kind,
            "shape": list(arrays[key].shape),
        }
        data += raw
    return join(header, table, data)


def bombs() -> list[tuple[str, bytes]]:
    """Small messages that claim, or truly unpack to, a great deal."""
    made: list[tuple[str, bytes]] = []
    for name, envelope in (all_envelopes() | threshold_envelopes()).items():
        header, table, data = split(content_of(envelope))
        names = sorted(table)
        for size in (1 << 31, 1 << 40, (1 << 48) - 1, 1 << 63):
            for array in names[:3]:
                grown = table | {array: table[array] | {"shape": [size], "data_offsets": [0, size]}}
                made.append((name, with_content(envelope, join(header, grown, data))))
            made.append((name, with_content(envelope, struct.pack("<Q", size) + content_of(envelope)[8:])))
            lie = b"\x28\xb5\x2f\xfd\xe4" + struct.pack("<Q", size) + b"\1\0\0" + b"\0" * 4
            made.append((name, replace(envelope, body=lie).to_bytes()))
            head = envelope.to_bytes()
            made.append((name, head[:12] + struct.pack("<Q", size) + head[20:]))
        made.append((name, with_content(envelope, struct.pack("<Q", 1 << 20) + b"[" * (1 << 20))))
        made.append(
            (name, with_content(envelope, join({"deep": json.loads("[" * 400 + "]" * 400)}, table, data)))
        )
        made.append((name, with_content(envelope, b"\0" * (100 << 20))))
    envelope = all_envelopes()["work_reply"]
    header, arrays = decode_frame(envelope.body)
    many = 2_000_000
    arrays["knowledge.rows.counts"] = np.zeros((1, many), np.uint8)
    arrays["knowledge.rows.tail"] = np.zeros((2, many), np.uint8)
    arrays["knowledge.rows.end"] = np.zeros((1, many), np.uint8)
    arrays["knowledge.rows.segment"] = np.zeros(many, np.uint8)
    for planes in (np.full((4, 3), 255, np.uint8), np.full((4, many), 255, np.uint8)):
        for array in ("counts", "samples", "ids", "end"):
            swollen = arrays | {f"knowledge.rows.{array}": planes}
            made.append(
                (
                    "work_reply",
                    with_content(envelope, rebuild(header, swollen | {"zzz": planes}, random.Random(3))),
                )
            )
            made.append(("work_reply", with_content(envelope, encode_plainly(header, swollen))))
    return made


def encode_plainly(header: Any, arrays: dict[str, np.ndarray]) -> bytes:
    order = sorted(arrays, key=lambda n: (-arrays[n].dtype.itemsize, n))
    kinds = {"u1": "U8", "f4": "F32", "f2": "F16"}
    table, parts, at = {}, [], 0
    for key in order:
        raw = np.ascontiguousarray(arrays[key]).tobytes()
        shape = list(arrays[key].shape)
        table[key] = {
            "data_offsets": [at, at + len(raw)],
            "dtype": kinds[arrays[key].dtype.str[1:]],
            "shape": shape,
        }
        parts.append(raw)
        at += len(raw)
    return join(header, table, b"".join(parts))


def mutant(envelope: Envelope, draw: random.Random) -> tuple[str, bytes]:
    """One mutated message, and how it was made."""
    way = draw.choice(
        ["wire", "body", "content", "json", "json", "table", "array", "array", "arrays", "arrays"]
    )
    content = content_of(envelope)
    header, table, data = split(content)
    if not table and way in ("array", "arrays", "table"):
        way = "json"
    if way == "wire":
        return way, scramble(envelope.to_bytes(), draw)
    if way == "body":
        return way, mend_checksum(scramble(envelope.to_bytes(), draw))
    if way == "content":
        return way, with_content(envelope, scramble(content, draw))
    if way == "arrays":
        arrays = decode_frame(envelope.body)[1]
        return way, with_content(envelope, rebuild(header, arrays, draw))
    for _ in range(draw.choice((1, 1, 2))):
        if way == "json":
            edit_json(header, draw)
        elif way == "table":
            edit_json(table, draw)
        else:
            data = edit_array(table, data, draw)
    return way, with_content(envelope, join(header, table, data))


def check_accepted(message: Any, envelope: Envelope) -> None:
    """What was accepted is valid by the plainest reading, and has no second form (of thresholds: one it settles in)."""
    if type(message) in THRESHOLDS.values():
        again = message.to_envelope()
        assert content_of(type(message).from_envelope(again).to_envelope()) == content_of(again)
        assert again.round == envelope.round
        return
    again = message.to_envelope(envelope.kind) if isinstance(message, WorkRequest) else message.to_envelope()
    assert content_of(again) == content_of(envelope), "accepted, but encodes to another content"
    assert again.round == envelope.round
    knowledge = getattr(message, "knowledge", None)
    if isinstance(knowledge, Knowledge):
        n = len(knowledge.scores)
        assert not np.isnan(knowledge.scores).any()
        index = knowledge.sample_index.tolist()
        assert index == sorted(set(index))
        assert all(0 <= i < n for i in index)
        if knowledge.rows is not None:
            check_rows(knowledge.rows)
            assert knowledge.rows.n_samples == len(index)
        assert knowledge.texts is None or len(knowledge.texts) == n
    for array in (getattr(message, "adapter", None) or {}).values():
        assert np.isfinite(array).all()


def check_rows(rows: SparseLogits) -> None:
    splits = rows.row_splits.tolist()
    assert rows.sample_splits[-1] == rows.n_rows
    for row, (first, last) in enumerate(pairwise(splits)):
        ids = rows.token_ids[first:last].tolist()
        assert ids == sorted(set(ids))
        assert all(0 <= i < V for i in ids)
        mass = np.exp(rows.log_probs[first:last].astype(float)).sum() + np.exp(float(rows.tail_log_prob[row]))
        assert abs(mass - 1) < 0.05


def try_one(name: str, data: bytes) -> str:
    """ "refused" or "accepted"; anything else is a fault."""
    try:
        envelope = Envelope.from_bytes(data)
        message = READ[name](envelope, expected=EXPECTED)
    except InvalidMessage as error:
        return "refused" if len(str(error)) < 4000 else "refused in an error nobody can read"
    check_accepted(message, envelope)
    return "accepted"


def peak_bytes() -> int:
    """The most memory this process has held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


def main(n_mutants: int, seed: int) -> int:
    originals = all_envelopes() | threshold_envelopes()
    draw = random.Random(seed)
    heavy = bombs()
    for name, envelope in originals.items():
        assert try_one(name, envelope.to_bytes()) == "accepted", name

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of making the mutants
    before = peak_bytes()
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError("a mutant took too long")))
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    names = list(originals)
    for i in range(n_mutants + len(heavy)):
        if i < len(heavy):
            way, (name, data) = "bomb", heavy[i]
        else:
            name = draw.choice(names)
            way, data = mutant(originals[name], draw)
        signal.setitimer(signal.ITIMER_REAL, SECONDS_EACH)
        started = time.perf_counter()
        try:
            outcome = try_one(name, data)
        except BaseException:
            signal.setitimer(signal.ITIMER_REAL, 0)
            print(f"mutant {i} of {name} by {way}, seed {seed}: {data[:80]!r}", file=sys.stderr)
            traceback.print_exc()
            return 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        slowest = max(slowest, time.perf_counter() - started)
        outcomes[f"{way} {outcome}"] += 1
    grown = peak_bytes() - before
    print(
        json.dumps(
            {
                "mutants": n_mutants + len(heavy),
                "grown_bytes": grown,
                "slowest_s": slowest,
                "outcomes": outcomes,
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
