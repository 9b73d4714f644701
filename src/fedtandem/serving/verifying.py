"""The cloud's work on one verify request, from its text to the reply; HTTP is elsewhere."""

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from fedtandem.config.serve import CloudConfig
from fedtandem.errors import DataError
from fedtandem.exchange.verification import VerifyReply, VerifyRequest, decoding_of
from fedtandem.inference.gates import namespace, token_gate
from fedtandem.inference.judging import Block, drafts_of, judge_block, token_log_probs
from fedtandem.inference.peers import Attested, sign
from fedtandem.inference.settings import DecodeSettings
from fedtandem.inference.uplink import pack_ids
from fedtandem.inference.verify import Verdict
from fedtandem.models.fingerprint import fingerprint
from fedtandem.models.language_model import LanguageModel
from fedtandem.models.tokenizer import TextTokenizer
from fedtandem.serving.batching import Batcher
from fedtandem.serving.faults import Refusal
from fedtandem.serving.openai_wire import RelayRequest
from fedtandem.serving.sessions import Judged, Key, Sessions
from fedtandem.serving.skew import refuse_another_model
from fedtandem.serving.tenants import tenant_key

PEER_WINDOW = 24
"""Tokens before a place that must be equal for peers to share what was written there."""

NO_LAWS = (np.zeros(0, np.float32), np.zeros(0, np.int32), np.zeros(0, np.float32))
"""`token_log_probs` of nothing."""

Step = tuple[Verdict, np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]


class VerifyService:
    """An LLM that judges blocks for many devices.

    Args:
        lm: the LLM.
        batcher: reads for it.
        sessions: what stands.
        attest_key: signs what peers may share; None signs nothing.
        now_s: the clock of entries.
    """

    def __init__(
        self,
        lm: LanguageModel,
        batcher: Batcher,
        sessions: Sessions,
        *,
        attest_key: bytes | None = None,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self.lm, self.batcher, self.sessions = lm, batcher, sessions
        self.fingerprint = fingerprint(lm.name, lm.model, lm.tokenizer.card.hash)
        self.relays = False
        self._attest_key, self._now_s = attest_key, now_s
        self._running: dict[Key, tuple[bytes, asyncio.Task[Judged]]] = {}

    @property
    def tokenizer(self) -> TextTokenizer:
        """The LLM's."""
        return self.lm.tokenizer

    @property
    def limit(self) -> int | None:
        """Tokens its context holds."""
        return self.batcher.reader.limit

    async def fault(self) -> str:
        """None: the model is here."""
        return ""

    async def close(self) -> None:
        """Finish what waits and let the thread go."""
        await asyncio.to_thread(self.batcher.close)

    def bound(self, config: CloudConfig) -> None:
        """Other bounds, from the next verification on."""
        self.sessions.bound(config.max_sessions)
        self.batcher.bound(
            max_batch=config.max_batch, max_waiting=config.max_waiting, cache_bytes=config.cache_mb << 20
        )

    def gauges(self) -> dict[str, float]:
        """For the metrics."""
        reader = self.batcher.reader
        return {
            "sessions": len(self.sessions),
            "cache_bytes": reader.held_bytes,
            "evicted": reader.evicted,
            "waiting": self.batcher.waiting,
            "batch": self.batcher.jobs / max(1, self.batcher.passes),
        }

    @property
    def attests(self) -> bool:
        """Whether entries for peers are signed."""
        return self._attest_key is not None

    @property
    def queue(self) -> float:
        """Forward passes that wait: jobs over those that share one."""
        return self.batcher.waiting / self.batcher.max_batch

    async def relay(self, asked: RelayRequest) -> Mapping[str, Any]:
        """Not here: this model writes text.

        Raises:
            Refusal: always.
        """
        raise Refusal(400, "this cloud reads its LLM itself and calls no tools.", "not_served", "tools")

    async def verify(self, tenant: str, body: bytes) -> Judged:
        """Answer one request.

        The same bytes get the same reply: while the first is still being worked on (a hedge), and afterwards as long
        as the session has not gone on.

        Raises:
            InvalidMessage: not a request.
            UnknownPrefix: the text it goes on from is not known here.
            VocabularyMismatch: it means another model.
            DataError: the text does not fit the LLM's context.
            Overloaded: too much waits.
        """
        request = VerifyRequest.from_bytes(body)
        digest = hashlib.blake2b(body, digest_size=16).digest()
        key = (tenant, request.session)
        known = self.sessions.replayed(key, digest)
        if known is not None:
            return known
        running = self._running.get(key)
        if running is not None and running[0] == digest:
            return await asyncio.shield(running[1])
        if running is not None:
            await asyncio.wait(
                [running[1]]
            )  # a device asks one thing at a time; its older question comes first
        ids = self.sessions.text(key, request)
        task = asyncio.get_running_loop().create_task(self._answer(key, request, ids, digest))
        self._running[key] = (digest, task)
        task.add_done_callback(lambda done: self._ended(key, done))
        return await asyncio.shield(task)

    def _ended(self, key: Key, task: "asyncio.Task[Judged]") -> None:
        if self._running.get(key, (b"", None))[1] is task:
            del self._running[key]
        if not task.cancelled():
            task.exception()  # seen: who asked may have gone

    async def _answer(self, key: Key, request: VerifyRequest, ids: list[int], digest: bytes) -> Judged:
        block = self._block(request, ids)
        verdict, disagreed, laws = await self._step(key, block, request.top)
        tokens, near_ties, passes = list(verdict.tokens), list(verdict.near_ties), 1
        all_laws = [laws]
        eos_id = self.lm.tokenizer.eos_id
        for _ in range(request.more):
            if tokens[-1] == eos_id or len(tokens) >= request.room or not self._fits(len(ids) + len(tokens)):
                break
            block = replace(
                block, ids=[*ids, *tokens], place=request.place + len(tokens), room=request.room - len(tokens),
                drafts=[], audits=0,
            )  # fmt: skip
            verdict_more, _, laws = await self._step(key, block, request.top)
            tokens += verdict_more.tokens
            near_ties += verdict_more.near_ties
            all_laws.append(laws)
            passes += 1
        own, top_ids, top = (np.concatenate(parts) for parts in zip(*all_laws, strict=True))
        said = VerifyReply(
            np.array(tokens, np.int32), verdict.accepted, passes, np.array(near_ties, np.int32), disagreed,
            own, top_ids, top, self._entry(key[0], request, ids, tokens),
        )  # fmt: skip
        reply = Judged.of(said)
        for gone in self.sessions.settle(key, [*ids, *tokens], digest, reply):
            self.batcher.forget("/".join(gone))
        if tokens[-1] == eos_id or len(tokens) >= request.room:
            self.batcher.forget("/".join(key))  # its last block: nothing more will be read
        return reply

    def _block(self, request: VerifyRequest, ids: list[int]) -> Block:
        tokenizer = self.lm.tokenizer
        refuse_another_model(request, self.fingerprint, tokenizer.card.hash)
        drafts = drafts_of(request.block, request.uplink, request.top_k, tokenizer.vocab_size)
        if max(ids) >= tokenizer.vocab_size:
            raise DataError(
                f"a token has the id {max(ids)}; the vocabulary ends at {tokenizer.vocab_size - 1}."
            )
        if not self._fits(len(ids) + len(drafts)):
            raise DataError(
                f"the text has {len(ids)} tokens and {len(drafts)} drafts; the LLM's context holds "
                f"{self.batcher.reader.limit}."
            )
        if len(drafts) > request.room:
            raise DataError(
                f"{len(drafts)} drafts for a room of {request.room}; send no more than may be written."
            )
        settings = DecodeSettings(
            uplink=request.uplink,  # type: ignore[arg-type]
            temperature=request.temperature, seed=request.seed, top_k=request.top_k, max_new_tokens=request.room,
        )  # fmt: skip
        return Block(ids, request.place, request.room, drafts, request.audits, settings)

    def _fits(self, n_tokens: int) -> bool:
        limit = self.batcher.reader.limit
        return limit is None or n_tokens <= limit

    async def _step(self, key: Key, block: Block, top: int) -> Step:
        eos_id = self.lm.tokenizer.eos_id

        def judged(logits: Tensor) -> Step:
            verdict, disagreed = judge_block(block, logits, eos_id)
            if top < 0:
                return verdict, disagreed, NO_LAWS
            places = logits[block.audits : block.audits + len(verdict.tokens)]
            return verdict, disagreed, token_log_probs(places, verdict.tokens, top)

        future = self.batcher.submit("/".join(key), block.text, block.last, judged)
        return await asyncio.wrap_future(future)

    def _entry(
        self, tenant: str, request: VerifyRequest, ids: list[int], tokens: list[int]
    ) -> Attested | None:
        if self._attest_key is None or not request.scope:
            return None
        decoding = decoding_of(request.uplink, request.temperature)
        scope = namespace(tenant, self.fingerprint, request.tokenizer, request.scope, decoding)
        entry = Attested(
            tenant, self.fingerprint, scope, token_gate(ids, PEER_WINDOW), pack_ids(tokens), self._now_s()
        )
        return sign(entry, tenant_key(self._attest_key, tenant))
