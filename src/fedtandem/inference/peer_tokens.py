"""Peers in generation: what the LLM wrote for others, found by the prompt's embedding and reused token by token.

An answer is remembered whole, with which of its tokens the LLM resolved. For a prompt that passes the cache's gates it
is used as far as it agrees with what stands: as drafts, which the LLM verifies, or as answers to uncertain tokens.
Equal content words before and equal tokens since: the context of a reused token is never merely similar.
"""

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fedtandem.inference.gates import text_gate
from fedtandem.inference.peers import Attested, PeerCache, sign

Embed = Callable[[Sequence[str]], npt.NDArray[np.floating[Any]]]
"""N texts -> (N, D)."""


class Peers(Protocol):
    """Who may know how a row goes on."""

    def known(self, row: int, written: Sequence[int]) -> "Known | None":
        """What follows these tokens of this row's answer; None if nobody knows."""
        ...

    def learn(self, row: int, written: Sequence[int], resolved: Sequence[bool]) -> None:
        """A finished answer, and which of its tokens the LLM resolved."""
        ...


class PeerSource(Protocol):
    """Where peers' answers are found; `PeerBook` is one, an edge on another machine may be another."""

    def open(self, prompts: Sequence[str]) -> Peers:
        """For the answers to these prompts."""
        ...


@dataclass(frozen=True)
class Known:
    """How an answer went on for somebody else.

    Attributes:
        tokens: the next ones, in the LLM's ids; not empty.
        resolved: whether the LLM wrote or verified each of them.
        error: an upper bound of the chance that the LLM would write another one here; 1 where nothing was audited.
    """

    tokens: list[int]
    resolved: list[bool]
    error: float = 1.0


class PeerBook:
    """One client's way to an edge's cache.

    Args:
        embed: prompts to vectors (N, D).
        space: `gates.namespace`: who may share answers.
        cache: the edge's; one that lives as long as this book if None. Its key has to be `key`.
        key: the tenant's, by which the cloud signs what it resolves.
        tenant, model, client: whose answers, which LLM, who inserts.
        now: the clock, seconds since 1970.
    """

    def __init__(
        self,
        embed: Embed,
        space: bytes,
        *,
        cache: PeerCache | None = None,
        key: bytes | None = None,
        tenant: str = "",
        model: str = "",
        client: str = "",
        now: Callable[[], float] = time.time,
    ) -> None:
        self._embed, self._space, self._cache = embed, space, cache
        self._key = secrets.token_bytes(32) if key is None else key
        self._tenant, self._model, self._client, self._now = tenant, model, client, now

    def open(self, prompts: Sequence[str]) -> "OpenBook":
        """Look these prompts up."""
        vectors = np.asarray(self._embed(prompts), dtype=np.float32)  # (B, D)
        if self._cache is None:
            self._cache = PeerCache(self._key, vectors.shape[1])
        gates = [text_gate(prompt) for prompt in prompts]
        return OpenBook(
            self, vectors, gates, [self._found(v, g) for v, g in zip(vectors, gates, strict=True)]
        )

    def insert(self, vector: npt.NDArray[np.float32], gate: bytes, answer: bytes) -> None:
        """Keep an answer that the cloud attests."""
        if self._cache is not None:
            entry = Attested(self._tenant, self._model, self._space, gate, answer, self._now())
            self._cache.insert(self._client, vector, sign(entry, self._key))

    def _found(self, vector: npt.NDArray[np.float32], gate: bytes) -> Known | None:
        assert self._cache is not None
        entry = self._cache.look_up(vector, self._space, gate, self._now()).entry
        return None if entry is None else unpack_answer(entry.answer)


class OpenBook:
    """The book at the pages of one batch; a `Peers`."""

    def __init__(
        self,
        book: PeerBook,
        vectors: npt.NDArray[np.float32],
        gates: Sequence[bytes],
        found: Sequence[Known | None],
    ) -> None:
        self._book, self._vectors, self._gates, self._found = book, vectors, gates, found

    def known(self, row: int, written: Sequence[int]) -> Known | None:
        """What follows, if what stands is how the peer's answer begins."""
        found, n = self._found[row], len(written)
        if found is None or len(found.tokens) <= n or found.tokens[:n] != list(written):
            return None
        return Known(found.tokens[n:], found.resolved[n:])

    def learn(self, row: int, written: Sequence[int], resolved: Sequence[bool]) -> None:
        """Keep an answer that no peer had, unless the LLM resolved nothing of it."""
        if self._found[row] is None and any(resolved):
            self._book.insert(self._vectors[row], self._gates[row], pack_answer(written, resolved))


def pack_answer(tokens: Sequence[int], resolved: Sequence[bool]) -> bytes:
    """Per token its id, 4 B little-endian, then per token 1 B: resolved by the LLM or not."""
    return np.asarray(tokens, dtype="<u4").tobytes() + np.asarray(resolved, dtype=np.uint8).tobytes()


def unpack_answer(data: bytes) -> Known | None:
    """`pack_answer` undone; None for anything else."""
    n, rest = divmod(len(data), 5)
    flags = np.frombuffer(data, np.uint8, offset=4 * n)
    if rest or n == 0 or (flags > 1).any():
        return None
    return Known(np.frombuffer(data, "<u4", count=n).tolist(), flags.astype(bool).tolist())
