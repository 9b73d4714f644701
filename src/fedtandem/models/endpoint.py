"""An OpenAI-compatible chat endpoint: asked patiently, believed only after a look.

Busy servers (429), broken ones (5xx), silence and garbage are tried again with growing pauses; what stays wrong is a
`NetworkError` that says what the last try came to. A refusal (401, 403, 404) is final at once.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from fedtandem.errors import NetworkError

T = TypeVar("T")

TOP_LOGPROBS = 20
"""The most that the chat interface allows, and vLLM's default limit."""
MAX_PAUSE_S = 30.0
REFUSED = frozenset({401, 403, 404})


class Refused(NetworkError):
    """The endpoint does not admit us or does not know the model: asking again is of no use."""


class Unusable(ValueError):
    """A reply came, but says nothing that can be used."""


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


class Endpoint:
    """A model behind HTTP.

    Args:
        base_url: up to and including "/v1".
        model: as the server calls it.
        api_key: sent as bearer token; None sends none.
        timeout_s: for each try.
        tries: of a question, the first included.
        pause_s: before the second try; doubled each time, never above 30.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        tries: int = 4,
        pause_s: float = 0.5,
    ) -> None:
        self.model = model
        self.url = base_url.rstrip("/") + "/chat/completions"
        self.gives_logprobs = True
        self._tries, self._pause_s = tries, pause_s
        headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._client = httpx.Client(timeout=timeout_s, headers=headers)

    @property
    def fingerprint(self) -> str:
        """The model's name and its server: weights behind HTTP cannot be hashed."""
        return f"{self.model}@{httpx.URL(self.url).host}"

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

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
            Refused: 401, 403 or 404.
            NetworkError: no usable answer after all tries.
        """
        last = ""
        for tried in range(self._tries):
            wants = logprobs and self.gives_logprobs
            try:
                reply = self._once(messages, max_tokens, wants)
                return read(reply), reply
            except _Busy as busy:
                last, pause = str(busy), busy.pause_s
            except Unusable as garbage:
                last, pause = f"an answer that cannot be used: {garbage}", None
            except _NoLogprobs:
                self.gives_logprobs, last = False, "log-probabilities are refused"
                continue
            except httpx.HTTPError as error:
                last, pause = f"{type(error).__name__}: {error}", None
            if tried + 1 < self._tries:
                time.sleep(min(MAX_PAUSE_S, self._pause_s * 2**tried if pause is None else pause))
        raise NetworkError(f"{self.url}: {last} ({self._tries} tries)")

    def _once(self, messages: Sequence[Mapping[str, str]], max_tokens: int, logprobs: bool) -> Reply:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": list(messages),
            "max_tokens": max_tokens,
            "temperature": 0,
        }
        if logprobs:
            body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        request = self._client.build_request("POST", self.url, json=body)
        started = time.perf_counter()
        response = self._client.send(request)
        ms = 1000 * (time.perf_counter() - started)
        if response.status_code == 429 or response.status_code >= 500:
            raise _Busy(f"status {response.status_code}", _retry_after(response))
        told = response.text[:200]
        if response.status_code in REFUSED:
            raise Refused(f"{self.url} refuses with status {response.status_code}: {told}")
        if response.status_code != 200:
            if logprobs and "logprobs" in response.text:
                raise _NoLogprobs
            raise NetworkError(f"{self.url}: status {response.status_code}: {told}")
        return _reply(response, ms, len(request.content))


class _Busy(Exception):
    def __init__(self, text: str, pause_s: float | None) -> None:
        super().__init__(text)
        self.pause_s = pause_s


class _NoLogprobs(Exception):
    """The server refuses the question because of its log-probabilities."""


def _retry_after(response: httpx.Response) -> float | None:
    try:
        return max(0.0, float(response.headers["retry-after"]))
    except (KeyError, ValueError):
        return None


def _reply(response: httpx.Response, ms: float, request_bytes: int) -> Reply:
    try:
        choice = response.json()["choices"][0]
        text = choice["message"]["content"]
        told = (choice.get("logprobs") or {}).get("content") or ()
        tokens = tuple(str(place["token"]) for place in told)
        top = tuple(
            {str(entry["token"]): float(entry["logprob"]) for entry in place.get("top_logprobs") or ()}
            for place in told
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise Unusable(f"{type(error).__name__} in {response.text[:80]!r}") from error
    if not isinstance(text, str):
        raise Unusable(f"content = {text!r}")
    if any(not value <= 1e-6 or math.isnan(value) for place in top for value in place.values()):
        raise Unusable("a log-probability is above 0 or NaN")
    return Reply(text, tokens, top, ms, request_bytes)
