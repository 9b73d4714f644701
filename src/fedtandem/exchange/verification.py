"""What a device and its cloud say to each other while an answer is being written.

A request names what the cloud knows already by its length and a hash, brings what is new, and the block of drafts
(`inference/uplink.py`). Ids are always the LLM's own, bound to its tokenizer's hash: ids of two tokenizers never meet.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedtandem.exchange.carrier import SCHEMA
from fedtandem.exchange.frame import Array, decode_frame, encode_frame
from fedtandem.exchange.reading import Reader
from fedtandem.inference.peers import Attested

MAX_BYTES = 4 << 20
"""Largest content of such a frame: half a million ids of a prompt, and room."""
MAX_IDS = 1 << 20
MAX_TOP = 20
MAX_MORE = 256
MAX_SESSION = 128
EMPTY = np.zeros(0, dtype=np.float16)

JUDGED = ("greedy", "shared_noise", "sparse")
"""Uplinks that need one exchange per block. `scalar` would need a second one on every refusal."""


def hash_of(ids: Sequence[int]) -> str:
    """32 hex digits of token ids."""
    return hashlib.blake2b(np.asarray(ids, dtype="<i4").tobytes(), digest_size=16).hexdigest()


def decoding_of(uplink: str, temperature: float) -> str:
    """How tokens were chosen, as peers' namespaces name it."""
    return f"{uplink} {temperature:g}"


@dataclass(frozen=True, eq=False)
class VerifyRequest:
    """One block to be judged.

    Attributes:
        session: one answer; the device's choice, unique in its tenant.
        tokenizer: hash of the LLM's tokenizer, which all ids are of.
        base, known: how many ids the cloud is said to hold, and their hash; 0 and "" send the whole text.
        place: how many tokens of the answer stand; the noise of the next one is that of this place.
        room: tokens that may still be written; at least 1.
        uplink: of `JUDGED`.
        temperature, seed, top_k: as in `DecodeSettings`.
        top: log-probabilities wanted per token: -1 none, 0 the token's own, up to 20 alternatives.
        more: tokens the LLM may go on to write alone.
        audits: so many of the last new ids are drafts that were kept unseen.
        scope: what besides tenant, model and decoding must agree before peers share an answer; "" asks for no entry.
        new_ids: prompt and answer from `base` on; (N,) int32.
        block: `uplink.pack_block` of the drafts.
        embedding: of the place, for peers; (D,) float16, empty without.
    """

    session: str
    tokenizer: str
    base: int
    known: str
    place: int
    room: int
    uplink: str
    temperature: float
    seed: int
    top_k: int
    top: int
    more: int
    audits: int
    scope: str
    new_ids: npt.NDArray[np.int32]
    block: bytes
    embedding: npt.NDArray[np.float16]

    def to_bytes(self) -> bytes:
        """As a frame."""
        header = _header(self, "verify_request", ("new_ids", "block", "embedding"))
        arrays: dict[str, Array] = {
            "new_ids": self.new_ids,
            "block": np.frombuffer(self.block, np.uint8),
            "embedding": self.embedding,
        }
        return encode_frame(header, arrays)

    @classmethod
    def from_bytes(cls, data: bytes) -> "VerifyRequest":
        """Decode and check.

        Raises:
            InvalidMessage: a field is not what a request may hold.
        """
        read = _reader(data, "verify_request", "a device")
        uplink = read.text("uplink")
        if uplink not in JUDGED:
            raise read.refuse("uplink", uplink, ", ".join(JUDGED))
        request = cls(
            session=read.text("session"), tokenizer=read.text("tokenizer"), base=read.integer("base", 0, MAX_IDS),
            known=read.text("known", empty=True), place=read.integer("place", 0, MAX_IDS),
            room=read.integer("room", 1, MAX_IDS), uplink=uplink, temperature=read.positive("temperature"),
            seed=read.integer("seed", 0, 2**64 - 1), top_k=read.integer("top_k", 1, 1 << 16),
            top=read.integer("top", -1, MAX_TOP), more=read.integer("more", 0, MAX_MORE),
            audits=read.integer("audits", 0, MAX_IDS), scope=read.text("scope", empty=True),
            new_ids=read.array("new_ids", np.int32), block=read.array("block", np.uint8).tobytes(),
            embedding=read.array("embedding", np.float16),
        )  # fmt: skip
        if len(request.session) > MAX_SESSION:
            raise read.refuse("session", request.session, f"at most {MAX_SESSION} characters")
        total = request.base + len(request.new_ids)
        if not request.place < total or request.audits > min(request.place, len(request.new_ids)):
            raise read.refuse(
                "place", request.place, f"less than the {total} ids of the text, and no fewer than audits"
            )
        if len(request.new_ids) and int(request.new_ids.min()) < 0:
            raise read.refuse("new_ids", int(request.new_ids.min()), "ids of 0 and more")
        if not np.isfinite(request.embedding).all():
            raise read.refuse("embedding", "not finite", "finite numbers")
        read.finish()
        return request


@dataclass(frozen=True, eq=False)
class VerifyReply:
    """What the LLM says of a block.

    Attributes:
        tokens: what is to be committed; (n,) int32.
        accepted: so many of them are drafts.
        passes: forward passes this took.
        near_ties: places of the answer that rounding may decide otherwise; int32.
        disagreed: per audited id 1 where the LLM would have chosen otherwise; uint8.
        log_probs: of each token, in nats, at temperature 1; (n,) float32, or empty.
        top_ids, top_log_probs: alternatives, `top` per token, likeliest first; flat.
        entry: what peers may share of it, signed; None without a scope.
    """

    tokens: npt.NDArray[np.int32]
    accepted: int
    passes: int
    near_ties: npt.NDArray[np.int32]
    disagreed: npt.NDArray[np.uint8]
    log_probs: npt.NDArray[np.float32]
    top_ids: npt.NDArray[np.int32]
    top_log_probs: npt.NDArray[np.float32]
    entry: Attested | None = None

    def to_bytes(self) -> bytes:
        """As a frame."""
        arrays = {name: getattr(self, name) for name in _REPLY_ARRAYS}
        header = _header(self, "verify_reply", (*arrays, "entry"))
        header["entry"] = None if self.entry is None else entry_to_json(self.entry)
        return encode_frame(header, arrays)

    @classmethod
    def from_bytes(cls, data: bytes) -> "VerifyReply":
        """Decode and check.

        Raises:
            InvalidMessage: a field is not what a reply may hold.
        """
        read = _reader(data, "verify_reply", "the cloud")
        tokens = read.array("tokens", np.int32)
        n = len(tokens)
        accepted = read.integer("accepted", 0, n)
        log_probs, top_ids = read.array("log_probs", np.float32), read.array("top_ids", np.int32)
        if n == 0 or len(log_probs) not in (0, n) or len(top_ids) % n:
            raise read.refuse("tokens", n, "at least one, with as many log-probabilities or none")
        reply = cls(
            tokens, accepted, read.integer("passes", 0, MAX_IDS), read.array("near_ties", np.int32),
            read.array("disagreed", np.uint8), log_probs, top_ids,
            read.array("top_log_probs", np.float32, len(top_ids)), entry_from_json(read, read.take("entry")),
        )  # fmt: skip
        read.finish()
        return reply


_REPLY_ARRAYS = ("tokens", "near_ties", "disagreed", "log_probs", "top_ids", "top_log_probs")


def entry_to_json(entry: Attested) -> dict[str, Any]:
    """An attested answer as JSON values; bytes in hex."""
    return {
        "tenant": entry.tenant, "model": entry.model, "namespace": entry.namespace.hex(),
        "context": entry.context.hex(), "answer": entry.answer.hex(), "time_s": entry.time_s,
        "signature": entry.signature.hex(),
    }  # fmt: skip


def entry_from_json(read: Reader, value: Any) -> Attested | None:
    """The inverse of `entry_to_json`; the signature is checked elsewhere.

    Raises:
        InvalidMessage: a field is missing, another one is there, or bytes are no hex.
    """
    if value is None:
        return None
    names = ("tenant", "model", "namespace", "context", "answer", "time_s", "signature")
    if not isinstance(value, Mapping) or sorted(value) != sorted(names):
        raise read.refuse("entry", type(value).__name__, f"the fields {', '.join(names)}")
    try:
        raw = {name: bytes.fromhex(value[name]) for name in ("namespace", "context", "answer", "signature")}
        return Attested(str(value["tenant"]), str(value["model"]), time_s=float(value["time_s"]), **raw)
    except (TypeError, ValueError) as error:
        raise read.refuse("entry", str(error), "bytes in hex and a time in seconds") from error


def _header(message: object, name: str, arrays: Sequence[str]) -> dict[str, Any]:
    plain = {key: value for key, value in vars(message).items() if key not in arrays}
    return {"schema": SCHEMA, "message": name, **plain}


def _reader(data: bytes, name: str, party: str) -> Reader:
    header, arrays = decode_frame(data, max_bytes=MAX_BYTES)
    read = Reader(header, arrays, party=party, round_number=None)
    for key, value in (("schema", SCHEMA), ("message", name)):
        got = read.take(key)
        if got != value or type(got) is not type(value):
            raise read.refuse(key, got, repr(value))
    return read
