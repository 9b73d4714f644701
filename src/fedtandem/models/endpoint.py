"""A language model behind an OpenAI-compatible HTTP endpoint: asked with patience, believed with care."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx

from fedtandem.errors import ConfigError, NetworkError

T = TypeVar("T")

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
"""HTTP states that may be gone in a moment."""
REFUSED = frozenset({401, 403, 404, 405})
"""HTTP states that every later request would meet too."""
LONGEST_WAIT_S = 60.0
"""No `Retry-After` is waited for longer."""


class NoAnswer(NetworkError):
    """One request has no usable answer after all attempts; the next request may have one."""


class Refused(NetworkError):
    """The server does not admit us, or knows no such model or path: asking again is of no use.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Endpoint:
    """A server that speaks OpenAI's wire format. May be used from several threads.

    Attributes:
        url: base address, as in OPENAI_BASE_URL: "http://127.0.0.1:8000/v1".
        model: the model's name there; "" where the server has only one.
        api_key: sent as a bearer token, never shown or written; None sends none.
        timeout_s: of one attempt.
        attempts: per request, the first included.
        backoff_s: wait before the second attempt; doubles with each. A `Retry-After` of the server goes before it.
        sleep: how to wait.
        transport: how to connect; None is the network.
    """

    url: str
    model: str = ""
    api_key: str | None = field(default=None, repr=False)
    timeout_s: float = 120.0
    attempts: int = 5
    backoff_s: float = 1.0
    sleep: Callable[[float], None] = time.sleep
    transport: httpx.BaseTransport | None = None

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(
                f"the endpoint is {self.url!r}; give the address the API begins with, e.g. http://127.0.0.1:8000/v1."
            )
        if self.attempts < 1:
            raise ConfigError(f"attempts is {self.attempts}; a request needs at least 1.")
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        self._client = httpx.Client(
            base_url=self.url.rstrip("/") + "/",
            timeout=self.timeout_s,
            headers=headers,
            transport=self.transport,
        )

    @classmethod
    def from_environment(cls, url: str | None = None, model: str = "", **settings: Any) -> "Endpoint":
        """An endpoint at `url`, else OPENAI_BASE_URL, with the key of OPENAI_API_KEY.

        Raises:
            ConfigError: neither says where it is.
        """
        address = url or os.environ.get("OPENAI_BASE_URL")
        if not address:
            raise ConfigError("no endpoint: give its address, or set OPENAI_BASE_URL.")
        return cls(address, model, os.environ.get("OPENAI_API_KEY") or None, **settings)

    def __enter__(self) -> "Endpoint":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the connections go."""
        self._client.close()

    # -- what is asked -------------------------------------------------------------------------------------------

    def chat(self, prompt: str, *, max_tokens: int, temperature: float = 0.0, system: str = "") -> str:
        """The reply to one user message; text only, so any served model will do.

        Raises:
            NoAnswer, NetworkError: as `ask`.
        """
        messages = [{"role": "system", "content": system}] if system else []
        payload = {
            "messages": [*messages, {"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            "temperature": temperature,
        }
        return self.ask("chat/completions", payload, _text_of_chat)

    def complete(self, prompt: str, *, max_tokens: int, temperature: float = 0.0) -> str:
        """What follows a text, from a server that has the older /completions.

        Raises:
            NoAnswer, NetworkError: as `ask`.
        """
        payload = {"prompt": prompt, "max_tokens": max_tokens, "temperature": temperature}
        return self.ask("completions", payload, _text_of_completion)

    def models(self) -> list[str]:
        """The names of the served models.

        Raises:
            NoAnswer, NetworkError: as `ask`.
        """
        return self.ask("models", None, lambda reply: [str(entry["id"]) for entry in reply["data"]])

    def ask(self, path: str, payload: Mapping[str, Any] | None, read: Callable[[Mapping[str, Any]], T]) -> T:
        """One request: asked again while the answer may yet come, then given up.

        Args:
            path: under `url`, e.g. "chat/completions".
            payload: the JSON body; `model` is filled in. None is a GET.
            read: takes what is wanted out of the reply; its KeyError, IndexError, TypeError or ValueError means
                that the reply is not what the format says, and is asked for again.

        Raises:
            NoAnswer: this request has no usable answer (too many tries, or the server will not take it).
            Refused: no request will have one: no admission, no such model or path.
            NetworkError: nobody is there.
        """
        return self.exchange(path, payload, lambda reply: read(reply.json()))

    def exchange(
        self, path: str, payload: Mapping[str, Any] | None, take: Callable[[httpx.Response], T]
    ) -> T:
        """As `ask`, with the whole HTTP reply: its time (`elapsed`) and its request besides the JSON."""
        fault = ""
        for attempt in range(self.attempts):
            last = attempt + 1 == self.attempts
            wait = self.backoff_s * 2**attempt
            try:
                reply = self._send(path, payload)
            except httpx.ConnectError as error:
                if last:
                    raise NetworkError(
                        f"nobody answers at {self.url}: {error}. Start the server, or correct the address."
                    ) from error
            except httpx.HTTPError as error:
                fault = f"{type(error).__name__} {error}".strip()
            else:
                if reply.status_code in REFUSED:
                    raise Refused(
                        f"{self.url}/{path} refuses with HTTP {reply.status_code}: {_said(reply)}. "
                        f"{_REMEDY[reply.status_code]}",
                        reply.status_code,
                    )
                if reply.status_code in RETRIED:
                    fault = f"HTTP {reply.status_code}: {_said(reply)}"
                    wait = _asked_wait(reply, wait)
                elif reply.status_code >= 300:
                    raise NoAnswer(f"HTTP {reply.status_code}: {_said(reply)}")
                else:
                    try:
                        return take(reply)
                    except (KeyError, IndexError, TypeError, ValueError) as error:
                        fault = f"no answer in the reply {reply.text[:120]!r} ({error})"
            if not last:
                self.sleep(min(wait, LONGEST_WAIT_S))
        raise NoAnswer(f"{self.attempts} attempts, the last: {fault}")

    def _send(self, path: str, payload: Mapping[str, Any] | None) -> httpx.Response:
        if payload is None:
            return self._client.get(path)
        return self._client.post(path, json={"model": self.model, **payload} if self.model else dict(payload))


_REMEDY = {
    401: "Set OPENAI_API_KEY.",
    403: "The key is not admitted to this model.",
    404: "Check the address (it usually ends in /v1) and the model's name.",
    405: "Check the address: it is no such API.",
}


def _text_of_chat(reply: Mapping[str, Any]) -> str:
    return _text(reply["choices"][0]["message"]["content"])


def _text_of_completion(reply: Mapping[str, Any]) -> str:
    return _text(reply["choices"][0]["text"])


def _text(value: object) -> str:
    """A text that says something."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError("the reply's text is empty")
    return value


def _said(reply: httpx.Response) -> str:
    """The server's own words about a fault."""
    try:
        error = reply.json()["error"]
        return str(error["message"] if isinstance(error, Mapping) else error)[:200]
    except (KeyError, TypeError, ValueError):
        return (reply.text.strip() or "no message")[:200]


def _asked_wait(reply: httpx.Response, otherwise: float) -> float:
    """Seconds of a `Retry-After` header, as a number or a date; `otherwise` where there is none."""
    header = reply.headers.get("retry-after", "")
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return otherwise
