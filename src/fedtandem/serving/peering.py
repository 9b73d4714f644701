"""A device's side of peers: what it tells the edge of a place, and what it makes of an answer.

Peers only draft: the LLM reads what they propose like any draft, so that nothing they say changes an answer's law.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedtandem.inference.bridge import spell
from fedtandem.inference.gates import token_gate
from fedtandem.inference.peer_tokens import Known
from fedtandem.models.language_model import LanguageModel
from fedtandem.models.tokenizer import TextTokenizer
from fedtandem.serving.asking import Asking
from fedtandem.serving.upstream import Outage, Upstream
from fedtandem.serving.verifying import PEER_WINDOW

if TYPE_CHECKING:
    from fedtandem.serving.answering import Prompt

EMBEDDED_TOKENS = 64
"""Of the end of a text, for its embedding."""
DEADLINE_S = 0.2
"""For the edge's answer; who is slower than that is not waited for."""


class Peering:
    """Look-ups at the edge.

    Args:
        lm: the SLM; a place's embedding is its last hidden state there.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self._lm = lm
        self.outcomes: Callable[[str], None] = lambda outcome: None

    def scope(self, prompt: "Prompt") -> str:
        """What must agree besides tenant, model and decoding: the system's messages."""
        system = [text for role, text in prompt.messages if role in ("system", "developer")]
        return hashlib.sha256(json.dumps(system).encode()).hexdigest()[:32]

    def embed(self, tokenizer: TextTokenizer) -> Callable[[list[int]], npt.NDArray[np.float16]]:
        """A function of the LLM's ids: the place's embedding, (D,) float16."""

        def embedding(ids: list[int]) -> npt.NDArray[np.float16]:
            text = spell(tokenizer.card, ids[-EMBEDDED_TOKENS:]).decode("utf-8", "replace")
            own = self._lm.tokenizer.encode_prompt(text).tolist()[-EMBEDDED_TOKENS:]
            return self._lm.hidden_states([own])[0][-1].numpy().astype(np.float16)

        return embedding

    def look_up(self, upstream: Upstream, asking: Asking) -> list[int]:
        """What the LLM wrote for a peer after the same words, in its own ids; nothing if nobody knows."""
        question = asking.peer_question()
        if question is None:
            return []
        ids, asked, embedding = question
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
            self.outcomes(str(said.get("outcome", "failed")))
        except (Outage, ValueError, TypeError, AttributeError, RecursionError):  # whatever an edge may say
            self.outcomes("failed")
            return []
        return [token for token in tokens if 0 <= token < asking.vocab_size]


class EdgePeers:
    """The peers of one answer, asked through the edge; a `PeerSource` of one prompt. The cloud tells the edge what it
    resolves, so there is nothing to teach here."""

    def __init__(self, peering: Peering, upstream: Upstream, asking: Asking) -> None:
        self._peering, self._upstream, self._asking = peering, upstream, asking

    def open(self, prompts: Sequence[str]) -> "EdgePeers":
        """For the answer that is being written."""
        return self

    def known(self, row: int, written: Sequence[int]) -> Known | None:
        """What follows, attested by the cloud."""
        tokens = self._peering.look_up(self._upstream, self._asking)
        return Known(tokens, [True] * len(tokens)) if tokens else None

    def learn(self, row: int, written: Sequence[int], resolved: Sequence[bool]) -> None:
        """Nothing: entries come from the cloud alone."""
