"""What travels between client and server while they generate: four ways to send a block of drafts, in bytes.

    shared_noise, greedy   kind 1 B, count 1 B, then per draft: id 4 B
    scalar                 ..., then per draft: id 4 B, q(d) 2 B; the law of one position on its refusal only
    sparse                 ..., then per draft: k pairs (id, 8-bit probability), the drafted token first

Numbers are little-endian. Ids inside a law take as many bits as the vocabulary needs (30 pairs of 32,000: 87 B).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedtandem.errors import InvalidMessage

Uplink = Literal["shared_noise", "scalar", "sparse", "greedy"]
UPLINKS: tuple[Uplink, ...] = ("shared_noise", "scalar", "sparse", "greedy")

SCALAR_BITS = 16
SPARSE_BITS = 8


@dataclass(frozen=True, eq=False)
class SparseLaw:
    """A law of k tokens whose probabilities are whole parts of 2^bits - 1: it travels without any rounding.

    Attributes:
        token_ids: (k,) int64, distinct.
        weights: (k,) int64 >= 0 that sum to 2^bits - 1; the probability is weight / (2^bits - 1).
        bits: 8 or 16.
    """

    token_ids: Tensor
    weights: Tensor
    bits: int

    @property
    def whole(self) -> int:
        """What the weights sum to."""
        return (1 << self.bits) - 1

    @property
    def probabilities(self) -> Tensor:
        """Of `token_ids`; (k,) float64."""
        return self.weights.double() / self.whole

    def of(self, token: int) -> float:
        """The probability of one token."""
        return int(self.weights[self.token_ids == token].sum()) / self.whole

    def dense(self, vocab_size: int) -> Tensor:
        """(V,) float64."""
        law = torch.zeros(vocab_size, dtype=torch.float64)
        law[self.token_ids] = self.probabilities
        return law


def sparse_law(q: Tensor, k: int, bits: int) -> SparseLaw:
    """The k likeliest tokens of q (V,), rounded to whole parts. Draw from *this*, not from q: only then is
    verification with it exact.

    Parts go to the largest remainders, so that they sum to the whole; ties go to the likelier token.
    """
    top = q.double().topk(min(k, q.shape[-1]))
    whole = (1 << bits) - 1
    shares = top.values.numpy()
    shares = shares / shares.sum() * whole
    weights = np.floor(shares).astype(np.int64)
    missing = whole - int(weights.sum())
    weights[np.argsort(weights - shares, kind="stable")[:missing]] += 1
    return SparseLaw(top.indices, torch.from_numpy(weights), bits)


@dataclass(frozen=True, eq=False)
class Draft:
    """One drafted token.

    Attributes:
        token: its id.
        law: what it was drawn from, where the server accepts or resamples; None where it compares with its own.
        u: how unsure its drafter was; None where that is not of this token.
    """

    token: int
    law: SparseLaw | None = None
    u: float | None = None


def pack_ids(ids: Sequence[int]) -> bytes:
    """4 B each."""
    return b"".join(token.to_bytes(4, "little") for token in ids)


def unpack_ids(data: bytes) -> list[int]:
    """`pack_ids` undone; bytes beyond the last whole id are left out."""
    return [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data) // 4 * 4, 4)]


def pack_law(law: SparseLaw, first: int, vocab_size: int) -> bytes:
    """The pairs of a law, the token `first` in front: which one was drafted costs nothing."""
    pairs = list(zip(law.token_ids.tolist(), law.weights.tolist(), strict=True))
    pairs.sort(key=lambda pair: pair[0] != first)
    width = id_bits(vocab_size)
    value = 0
    for token, weight in pairs:
        value = (value << (width + law.bits)) | (token << law.bits) | weight
    return value.to_bytes(_law_bytes(len(pairs), vocab_size, law.bits), "little")


def unpack_law(data: bytes, k: int, vocab_size: int, bits: int) -> SparseLaw:
    """`pack_law` undone; the drafted token is at index 0.

    Raises:
        InvalidMessage: not such a law.
    """
    value, width = int.from_bytes(data, "little"), id_bits(vocab_size)
    pairs = []
    for _ in range(k):
        pairs.append(((value >> bits) % 2**width, value % 2**bits))
        value >>= width + bits
    ids, weights = torch.tensor(pairs[::-1], dtype=torch.int64).reshape(k, 2).unbind(dim=1)
    if (
        value
        or len(set(ids.tolist())) < k
        or int(ids.max()) >= vocab_size
        or int(weights.sum()) != (1 << bits) - 1
    ):
        raise InvalidMessage(
            f"{len(data)} bytes are no law of {k} of {vocab_size} tokens in {bits} bits; client and server must "
            "agree on top_k and on the tokenizer."
        )
    return SparseLaw(ids, weights, bits)


_KINDS = {None: 0, SCALAR_BITS: 1, SPARSE_BITS: 2}


def pack_block(drafts: Sequence[Draft], vocab_size: int) -> bytes:
    """A block of drafts, all of one kind, as in this file's first lines."""
    kind = None if not drafts or drafts[0].law is None else drafts[0].law.bits
    parts = [bytes([_KINDS[kind], len(drafts)])]
    for draft in drafts:
        if draft.law is None:
            parts.append(pack_ids([draft.token]))
        elif draft.law.bits == SCALAR_BITS:
            weight = int(draft.law.weights[draft.law.token_ids == draft.token])
            parts += [pack_ids([draft.token]), weight.to_bytes(2, "little")]
        else:
            parts.append(pack_law(draft.law, draft.token, vocab_size))
    return b"".join(parts)


def unpack_block(data: bytes, k: int, vocab_size: int) -> list[tuple[int, float | SparseLaw | None]]:
    """The drafted tokens with what came along: nothing, q(d), or the whole law.

    Raises:
        InvalidMessage: truncated, too long, or an id outside the vocabulary.
    """
    kept = min(k, vocab_size)
    sizes = {0: 4, 1: 6, 2: _law_bytes(kept, vocab_size, SPARSE_BITS)}
    if len(data) < 2 or data[0] not in sizes or len(data) != 2 + data[1] * sizes[data[0]]:
        raise InvalidMessage(f"{len(data)} bytes are no block of drafts; the message was cut or changed.")
    size = sizes[data[0]]
    drafts: list[tuple[int, float | SparseLaw | None]] = []
    for start in range(2, len(data), size):
        part = data[start : start + size]
        if data[0] == 2:
            law = unpack_law(part, kept, vocab_size, SPARSE_BITS)
            drafts.append((int(law.token_ids[0]), law))
            continue
        token = int.from_bytes(part[:4], "little")
        if token >= vocab_size:
            raise InvalidMessage(f"a draft has the id {token}, the vocabulary ends at {vocab_size - 1}.")
        sent = int.from_bytes(part[4:], "little") / (2**SCALAR_BITS - 1)
        drafts.append((token, sent if data[0] == 1 else None))
    return drafts


def pack_verdict(accepted: int, token: int | None) -> bytes:
    """How many drafts stand (1 B) and the token that follows them (4 B, none at the end of an answer)."""
    return bytes([accepted]) + (b"" if token is None else pack_ids([token]))


def pack_text_block(text: str, ends: bool) -> bytes:
    """A block between different tokenizers: flag "the answer ends here" 1 B, then UTF-8."""
    return bytes([ends]) + text.encode()


def pack_text_verdict(accepted_bytes: int, token: bytes | None) -> bytes:
    """How many bytes of the block stand (4 B), then the bytes of the token that follows."""
    return accepted_bytes.to_bytes(4, "little") + (token or b"")


def id_bits(vocab_size: int) -> int:
    """Bits of one id of this vocabulary; at least 1."""
    return max(1, (vocab_size - 1).bit_length())


def _law_bytes(k: int, vocab_size: int, bits: int) -> int:
    return -(-k * (id_bits(vocab_size) + bits) // 8)
