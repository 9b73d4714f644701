"""A device's side of peers: what it tells the edge of a place, and what it makes of an answer.

As drafts (`exact`) the LLM reads what peers propose like any draft, so that nothing they say changes an answer's law.
As answers to uncertain tokens (`fedhlm`, `bounded`) they are shown as they are: then the whole prompt's content words
have to agree, and a share is put to the LLM afterwards.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedtandem.inference.bridge import spell
from fedtandem.inference.gates import text_gate, token_gate
from fedtandem.inference.peer_tokens import Known
from fedtandem.models.language_model import LanguageModel
from fedtandem.models.tokenizer import TextTokenizer
from fedtandem.serving.answering import ENCODING, Prompt
from fedtandem.serving.asking import Asking
from fedtandem.serving.auditing import TICKET
from fedtandem.serving.choosing import PeerUse
from fedtandem.serving.shell import FRAME
from fedtandem.serving.turns import TURNS
from fedtandem.serving.upstream import Outage, Upstream
from fedtandem.serving.verifying import PEER_WINDOW

EMBEDDED_TOKENS = 64
"""Of the end of a text, for its embedding."""
DEADLINE_S = 0.2
"""For the edge's answer; who is slower than that is not waited for."""
AUDIT_DEADLINE_S = 30.0
MAX_WAITING = 32
"""Audits of one device that wait."""


class Peering:
    """Look-ups at the edge.

    Args:
        lm: the SLM; a place's embedding is its last hidden state there.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self._lm = lm
        self.outcomes: Callable[[str], None] = lambda outcome: None
        self._audits = ThreadPoolExecutor(1, thread_name_prefix="peer-audit")
        self._waiting = threading.BoundedSemaphore(MAX_WAITING)

    def close(self) -> None:
        """Let the audits that wait go."""
        self._audits.shutdown(wait=False, cancel_futures=True)

    def scope(self, prompt: Prompt, use: PeerUse) -> str:
        """What must agree besides tenant, model and decoding: the system's messages; for answers also the content
        words of the whole prompt, as in `generate --peer answer`."""
        agreed = [text for role, text in prompt.messages if role in ("system", "developer")]
        if use == "answer":
            others = [text for role, text in prompt.messages if role not in ("system", "developer")]
            agreed.append(text_gate("\n".join(others) or prompt.text).hex())
        return hashlib.sha256(json.dumps([use, *agreed]).encode()).hexdigest()[:32]

    def audit(self, upstream: Upstream, body: bytes, ticket: str) -> None:
        """Put a peer's answer to the LLM, some time; the edge reads the verdict. What is too much falls away."""
        if not self._waiting.acquire(blocking=False):
            return

        def ask() -> None:
            try:
                headers = {"Content-Type": FRAME, TICKET: ticket}
                upstream.post("/v1/verify", body, AUDIT_DEADLINE_S, headers, edge_only=True)
            except Outage:
                pass  # an audit that does not happen counts for nothing
            finally:
                self._waiting.release()

        try:
            self._audits.submit(ask)
        except RuntimeError:  # the device is ending
            self._waiting.release()

    def embed(self, tokenizer: TextTokenizer) -> Callable[[list[int]], npt.NDArray[np.float16]]:
        """A function of the LLM's ids: the place's embedding, (D,) float16."""

        def embedding(ids: list[int]) -> npt.NDArray[np.float16]:
            text = spell(tokenizer.card, ids[-EMBEDDED_TOKENS:]).decode("utf-8", "replace")
            with ENCODING:
                own = self._lm.tokenizer.encode_prompt(text).tolist()[-EMBEDDED_TOKENS:]
            with TURNS.away():
                return self._lm.hidden_states([own])[0][-1].numpy().astype(np.float16)

        return embedding

    def look_up(self, upstream: Upstream, asking: Asking, ids: list[int]) -> "Hit | None":
        """What the LLM wrote for a peer after the same words; None if nobody knows."""
        question = asking.peer_question(ids)
        if question is None:
            return None
        asked, embedding = question
        body = {
            **asked,
            "context": token_gate(ids, PEER_WINDOW).hex(),
            "embedding": base64.b64encode(embedding.tobytes()).decode(),
        }
        try:
            reply = upstream.post(
                "/v1/resolve",
                json.dumps(body).encode(),
                DEADLINE_S,
                {"Content-Type": "application/json"},
                edge_only=True,
            )
            said = reply.json() if reply.status_code == 200 else {}
            tokens = [int(token) for token in said.get("tokens", [])][:64]
            error, ticket = float(said.get("error", 1.0)), str(said.get("ticket", ""))
            self.outcomes(str(said.get("outcome", "failed")))
        except (Outage, ValueError, TypeError, AttributeError, RecursionError):  # whatever an edge may say
            self.outcomes("failed")
            return None
        if not tokens or not all(0 <= token < asking.vocab_size for token in tokens) or not 0 <= error <= 1:
            return None
        return Hit(tokens, error, ticket)


@dataclass(frozen=True)
class Hit:
    """What a peer was answered.

    Attributes:
        tokens: in the LLM's ids.
        error: how often such answers are wrong, at most.
        ticket: of the audit it was drawn for; "" if it was not.
    """

    tokens: list[int]
    error: float
    ticket: str


class EdgePeers:
    """The peers of one answer, asked through the edge; a `PeerSource` of one prompt. The cloud tells the edge what it
    resolves, so there is nothing to teach here."""

    def __init__(self, peering: Peering, upstream: Upstream, asking: Asking, prompt: list[int]) -> None:
        self._peering, self._upstream, self._asking, self._prompt = peering, upstream, asking, prompt
        self._found: tuple[list[int], Hit] | None = None
        """What stood where a hit was found, and the hit."""

    def open(self, prompts: Sequence[str]) -> "EdgePeers":
        """For the answer that is being written."""
        return self

    def known(self, row: int, written: Sequence[int]) -> Known | None:
        """What follows, attested by the cloud: the rest of the last hit while it agrees with what stands, else a new
        look-up."""
        stands = list(written)
        rest = self._rest(stands)
        if rest is None:
            hit = self._peering.look_up(self._upstream, self._asking, [*self._prompt, *stands])
            if hit is None:
                return None
            self._found = (stands, hit)
            self._have_audited(stands, hit)
            rest = hit.tokens
        error = 1.0 if self._found is None else self._found[1].error
        return Known(rest, [True] * len(rest), error)

    def _rest(self, stands: list[int]) -> list[int] | None:
        if self._found is None:
            return None
        before, hit = self._found
        n = len(stands) - len(before)
        agrees = 0 < n < len(hit.tokens) and stands == [*before, *hit.tokens[:n]]
        return hit.tokens[n:] if agrees else None

    def _have_audited(self, stands: list[int], hit: Hit) -> None:
        if hit.ticket:
            body = self._asking.audit_request([*self._prompt, *stands], len(stands), hit.tokens)
            if body is not None:
                self._peering.audit(self._upstream, body, hit.ticket)

    def learn(self, row: int, written: Sequence[int], resolved: Sequence[bool]) -> None:
        """Nothing: entries come from the cloud alone."""
