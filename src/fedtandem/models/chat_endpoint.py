"""A served model's answers with their log-probabilities, believed only after a look."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from fedtandem.models.endpoint import Endpoint, NoAnswer

T = TypeVar("T")

TOP_LOGPROBS = 20
"""The most that the chat interface allows, and vLLM's default limit."""


class Unusable(ValueError):
    """A reply came, but says nothing that can be used; it is asked for again."""


@dataclass(frozen=True)
class Reply:
    """One answer.

    Attributes:
        text: of the first choice.
        tokens: the generated ones; () where the server gives no log-probabilities.
        top: per generated token its alternatives, token text -> log-probability.
        ms: from the request to the answer, the successful try alone.
        request_bytes: of the body sent.
    """

    text: str
    tokens: tuple[str, ...]
    top: tuple[Mapping[str, float], ...]
    ms: float
    request_bytes: int


class ChatEndpoint:
    """A model behind an OpenAI-compatible chat interface, asked greedily."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.gives_logprobs = True

    @property
    def fingerprint(self) -> str:
        """The model's name and its server: weights behind HTTP cannot be hashed."""
        return f"{self.endpoint.model}@{httpx.URL(self.endpoint.url).host}"

    def close(self) -> None:
        """Close the connections."""
        self.endpoint.close()

    def ask(
        self,
        messages: Sequence[Mapping[str, str]],
        read: Callable[[Reply], T],
        *,
        max_tokens: int,
        logprobs: bool = False,
    ) -> tuple[T, Reply]:
        """Ask until an answer can be read.

        Args:
            messages: role and content each.
            read: makes something of a reply, or raises `Unusable`.
            max_tokens: length limit of the answer; temperature is 0.
            logprobs: ask for the alternatives of each token; dropped for good where the server knows none.

        Returns:
            What `read` made of it, and the reply.

        Raises:
            Refused, NoAnswer, NetworkError: as `Endpoint.ask`.
        """
        wants = logprobs and self.gives_logprobs
        payload: dict[str, Any] = {"messages": list(messages), "max_tokens": max_tokens, "temperature": 0}
        if wants:
            payload |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}

        def take(response: httpx.Response) -> tuple[T, Reply]:
            reply = _reply(response)
            return read(reply), reply

        try:
            return self.endpoint.exchange("chat/completions", payload, take)
        except NoAnswer as fault:
            if not wants or "logprobs" not in str(fault):
                raise
        self.gives_logprobs = False
        return self.ask(messages, read, max_tokens=max_tokens)


def _reply(response: httpx.Response) -> Reply:
    choice = response.json()["choices"][0]
    text = choice["message"]["content"]
    told = (choice.get("logprobs") or {}).get("content") or ()
    tokens = tuple(str(place["token"]) for place in told)
    top = tuple(
        {str(entry["token"]): float(entry["logprob"]) for entry in place.get("top_logprobs") or ()}
        for place in told
    )
    if not isinstance(text, str):
        raise Unusable(f"content = {text!r}")
    if any(not value <= 1e-6 or math.isnan(value) for place in top for value in place.values()):
        raise Unusable("a log-probability is above 0 or NaN")
    ms = 1000 * response.elapsed.total_seconds()
    return Reply(text, tokens, top, ms, len(response.request.content))
