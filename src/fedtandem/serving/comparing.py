"""Generate and compare: any OpenAI-compatible server as the LLM. It writes on greedily; drafts that equal it stand.

The server says nothing of laws, so only greedy answers are exact, and log-probabilities are not known. Text comes back
and is read by the LLM's tokenizer, which must be given: what it cuts otherwise than the server did is only cut so here.

Source: specification of FedHLM, section 9, L1′ (first implementation).
"""

import asyncio
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedtandem.config.serve import CloudConfig
from fedtandem.errors import ConfigError, DataError, NetworkError
from fedtandem.exchange.verification import VerifyReply, VerifyRequest
from fedtandem.inference.bridge import spell
from fedtandem.inference.judging import drafts_of
from fedtandem.models.endpoint import Endpoint, NoAnswer, Refused
from fedtandem.models.tokenizer import TextTokenizer
from fedtandem.serving.faults import Refusal
from fedtandem.serving.logs import log
from fedtandem.serving.openai_wire import RelayRequest
from fedtandem.serving.sessions import Judged, Key, Sessions
from fedtandem.serving.skew import refuse_another_model

HALF = "\ufffd"
"""What a server shows of a character whose last bytes are still to come."""


class CompareService:
    """A served model as verifier.

    Args:
        endpoint: where it is; needs /completions.
        tokenizer: of the model served there.
        sessions: what stands.
    """

    def __init__(self, endpoint: Endpoint, tokenizer: TextTokenizer, sessions: Sessions) -> None:
        if not endpoint.model:
            raise ConfigError("cloud.endpoint needs cloud.endpoint_model: the model's name there.")
        self.endpoint, self.tokenizer, self.sessions = endpoint, tokenizer, sessions
        self.fingerprint = f"{endpoint.model}@endpoint"
        self.limit: int | None = None
        self.attests, self.relays = False, True
        self.queue = 0.0
        """Not known of a server elsewhere."""
        self._fault = ""

    async def fault(self) -> str:
        """Why the server could not be asked the last time, and cannot be now; "" where it can."""
        if self._fault:
            await asyncio.to_thread(self._look)
        return self._fault

    def _look(self) -> None:
        try:
            self.endpoint.exchange("models", None, lambda reply: None)
            self._fault = ""
        except Refused as fault:
            if fault.status == 404:  # it is there, and lists no models
                self._fault = ""
        except NetworkError:
            pass

    async def close(self) -> None:
        """Let the connections go."""
        await asyncio.to_thread(self.endpoint.close)

    def bound(self, config: CloudConfig) -> None:
        """Another bound of sessions; nothing waits or is cached here."""
        self.sessions.bound(config.max_sessions)

    def gauges(self) -> dict[str, float]:
        """For the metrics."""
        return {"sessions": len(self.sessions)}

    async def relay(self, asked: RelayRequest) -> Mapping[str, Any]:
        """Have the server answer a request with tools.

        Raises:
            Refusal: it has no usable answer.
            NetworkError: nobody is there.
        """
        payload = asked.model_dump(mode="json", exclude_none=True)
        try:
            return await asyncio.to_thread(self.endpoint.ask, "chat/completions", payload, dict)
        except (NoAnswer, Refused) as fault:
            log("tools not answered", level=30, fault=fault, tier="cloud")
            # Not a fault of this tier's: breakers must not open for a server that knows no tools.
            raise Refusal(400, "the LLM's server gave no usable answer: it may not serve tools, or be overloaded.",
                          "llm_refuses", "tools") from fault  # fmt: skip

    async def verify(self, tenant: str, body: bytes) -> Judged:
        """Answer one request, as `VerifyService.verify`.

        Raises:
            Refusal: the request wants what this server cannot say.
        """
        request = VerifyRequest.from_bytes(body)
        digest = hashlib.blake2b(body, digest_size=16).digest()
        key = (tenant, request.session)
        known = self.sessions.replayed(key, digest)
        if known is not None:
            return known
        refuse_another_model(request, self.fingerprint, self.tokenizer.card.hash)
        if request.uplink != "greedy":
            raise Refusal(
                400, "this cloud compares texts: only greedy answers (temperature 0).", "greedy_only"
            )
        if request.top >= 0:
            raise Refusal(400, "this cloud knows no log-probabilities.", "no_logprobs")
        ids = self.sessions.text(key, request)
        try:
            reply = await asyncio.to_thread(self._compare, key, request, ids, digest)
        except NetworkError as fault:
            if not self._fault:
                log("LLM lost", level=40, tier="cloud", says=str(fault))
            self._fault = "the LLM's server cannot be asked; the log says why"
            raise
        self._fault = ""
        return reply

    def _compare(self, key: Key, request: VerifyRequest, ids: list[int], digest: bytes) -> Judged:
        eos_id = self.tokenizer.eos_id
        if max(ids) >= self.tokenizer.vocab_size:
            raise DataError("a token's id is beyond the vocabulary.")
        drafts = drafts_of(request.block, request.uplink, request.top_k, self.tokenizer.vocab_size)
        wanted = min(request.room, len(drafts) + 1 + request.more)
        written, ends = self._written(self._prompt(ids), wanted)
        own = [*map(int, self.tokenizer.continue_ids(written)), *([eos_id] if ends else [])][: request.room]
        accepted = 0
        while accepted < min(len(drafts), len(own)) and drafts[accepted].token == own[accepted]:
            accepted += 1
        # Beyond the block only what was asked for; a text's last token may be half of a longer one.
        tokens = own[: max(accepted + 1, accepted + 1 + request.more)]
        if not tokens:
            raise DataError("the server wrote nothing and did not end its answer.")
        nothing = np.zeros(0, np.int32)
        said = VerifyReply(
            np.array(tokens, np.int32), accepted, 1, nothing, np.zeros(0, np.uint8), np.zeros(0, np.float32),
            nothing, np.zeros(0, np.float32),
        )  # fmt: skip
        reply = Judged.of(said)
        self.sessions.settle(key, [*ids, *tokens], digest, reply)
        return reply

    def _prompt(self, ids: list[int]) -> str | list[int]:
        """Text, which any server takes; with marks in the middle (a chat template) ids, which most do."""
        card = self.tokenizer.card
        begin = 1 if ids[0] in card.special else 0  # the server writes its own
        if any(token in card.special for token in ids[begin:]):
            return ids
        return spell(card, ids).decode("utf-8", "replace")

    def _written(self, prompt: str | list[int], n_tokens: int) -> tuple[str, bool]:
        """What the server writes on, up to a whole character, and whether it ended."""
        for more in (0, 3, 6):
            payload = {"prompt": prompt, "max_tokens": n_tokens + more, "temperature": 0}
            choice = self.endpoint.ask("completions", payload, lambda reply: dict(reply["choices"][0]))
            text, ends = str(choice["text"]), choice.get("finish_reason") == "stop"
            if ends or not text.endswith(HALF):
                return text, ends
        return text.rstrip(HALF), False
