"""The device's line to its edge or cloud: pooled connections, deadlines, one hedged second try, a breaker."""

import base64
import binascii
import math
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedtandem.errors import ModelError, NetworkError
from fedtandem.exchange.carrier import SCHEMA
from fedtandem.models.tokenizer import TextTokenizer
from fedtandem.serving.breaker import Breaker
from fedtandem.serving.line import Line, Reply
from fedtandem.serving.pricing import Price
from fedtandem.serving.sessions import UnknownPrefix
from fedtandem.serving.shell import FRAME, QUEUE
from fedtandem.serving.turns import TURNS

TOKENIZER_FILES = frozenset(
    {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"}
)
INFO_DEADLINE_S = 10.0
FAILED_FOR_S = 1.0
"""Who waited while another asked what the LLM is, and nobody said, does not ask again so soon."""
PEERS = "x-peers"
"""Header: this verification's answer may be kept for peers."""


class Outage(NetworkError):
    """The LLM did not answer in time.

    Attributes:
        reason: down, slow, busy, faulty or breaker-open; for headers.
        retry_after_s: when to come back.
    """

    def __init__(self, reason: str, retry_after_s: float = 1.0) -> None:
        super().__init__(f"the LLM cannot be asked now ({reason}).")
        self.reason, self.retry_after_s = reason, retry_after_s


class Rejected(NetworkError):
    """The upstream will not take this request; asking again is of no use.

    Attributes:
        status, code: of its refusal.
        said: its own words.
    """

    def __init__(self, reply: Reply) -> None:
        self.status, self.code, self.said = reply.status_code, _code(reply), _said(reply)
        super().__init__(f"the upstream refuses with HTTP {self.status} ({self.code}): {self.said}")


@dataclass(frozen=True)
class RemoteModel:
    """What the upstream says of the LLM.

    Attributes:
        fingerprint: its name with a hash.
        tokenizer: its own, whole.
        limit: tokens its context holds.
        attests: whether it signs entries for peers.
        relays: whether a server of its own answers requests with tools.
    """

    fingerprint: str
    tokenizer: TextTokenizer
    limit: int | None
    attests: bool
    relays: bool = False


class Upstream:
    """An edge, and maybe the cloud behind it for when the edge is gone; may be used from several threads.

    Args:
        url: of the edge or the cloud.
        key: shown as a bearer token; "" shows none.
        connections: kept open at most.
        fallback: the cloud's own address; None: there is no other way.
        tls: `verify` of httpx.
        own_tokenizer: used where the LLM's is the same, so that it need not be fetched.
        price: told how busy the cloud is.
    """

    def __init__(
        self,
        url: str,
        key: str,
        *,
        connections: int,
        fallback: str | None = None,
        tls: dict[str, Any] | None = None,
        own_tokenizer: TextTokenizer | None = None,
        price: Price | None = None,
    ) -> None:
        self._lines = [Line(one, key, connections, tls or {}) for one in (url, fallback) if one is not None]
        self._tries = ThreadPoolExecutor(2 * connections, thread_name_prefix="upstream")
        self._own, self._price = own_tokenizer, price
        self._model: RemoteModel | None = None
        self._silent: Outage | None = None
        self._silent_until = 0.0
        self._lock = threading.Lock()

    @property
    def breaker(self) -> Breaker:
        """Of the first address."""
        return self._lines[0].breaker

    def show(self, key: str) -> None:
        """Show another API key from now on."""
        for line in self._lines:
            line.show(key)

    def close(self) -> None:
        """Let the connections go."""
        self._tries.shutdown(wait=False, cancel_futures=True)
        for line in self._lines:
            line.close()

    def model(self) -> RemoteModel:
        """The LLM behind this line; asked once.

        Raises:
            Outage: nobody says.
            ModelError: it speaks another version, or its tokenizer cannot be used.
        """
        if (known := self._model) is not None:
            return known
        with TURNS.away(), self._lock:  # one asks, the others wait for it
            if self._model is not None:
                return self._model
            if self._silent is not None and time.monotonic() < self._silent_until:
                raise Outage(self._silent.reason, self._silent.retry_after_s)
            try:
                self._model, self._silent = self._ask_model(), None
            except Outage as outage:
                self._silent, self._silent_until = outage, time.monotonic() + FAILED_FOR_S
                raise
            return self._model

    def forget_model(self) -> None:
        """Ask anew with the next request: another model is served now."""
        with self._lock:
            self._model = None

    def verify(self, body: bytes, deadline_s: float, *, request_id: str = "", shares: bool = False) -> bytes:
        """Have a block judged.

        The second try goes out when half of the time is over or the first has failed; the request is idempotent, so
        whichever answers first counts.

        Args:
            body: the frame.
            deadline_s: for both tries together.
            request_id: for its log.
            shares: the edge may keep the answer for peers.

        Raises:
            Outage: no answer within the deadline.
            UnknownPrefix: the whole text is asked for.
            Rejected: this request is not taken.
        """
        headers = {"Content-Type": FRAME, "x-request-id": request_id, **({PEERS: "draft"} if shares else {})}
        reply = self.post("/v1/verify", body, deadline_s, headers)
        if reply.status_code == 200:
            if self._price is not None:
                self._price.called(_number(reply.headers.get(QUEUE)))
            return reply.content
        code = _code(reply)
        if reply.status_code == 409:
            if code == "another_model":
                self.forget_model()
                raise Outage("model-changed")
            raise UnknownPrefix("the upstream asks for the whole text.")
        if reply.status_code == 429:
            if self._price is not None:
                self._price.refused()
            raise Outage("busy", _retry_after(reply))
        raise Rejected(reply)

    def post(
        self,
        path: str,
        body: bytes,
        deadline_s: float,
        headers: Mapping[str, str],
        *,
        edge_only: bool = False,
        is_hedged: bool = True,
    ) -> Reply:
        """Send, with one hedged second try, over the other address where there is one; any reply below 500 counts.

        Args:
            edge_only: what the cloud itself does not know (peers, thresholds).
            is_hedged: whether a slow first try gets company; a failed one always does.

        Raises:
            Outage: none came.
        """
        with TURNS.away():
            return self._post(path, body, deadline_s, headers, edge_only, is_hedged)

    def _post(
        self,
        path: str,
        body: bytes,
        deadline_s: float,
        headers: Mapping[str, str],
        edge_only: bool,
        is_hedged: bool,
    ) -> Reply:
        lines = self._open(edge_only)
        first = next(lines)
        end = time.monotonic() + deadline_s
        try:
            running = {self._tries.submit(first.send, "POST", path, body, deadline_s, headers)}
            done, running = _first(running, deadline_s / 2 if is_hedged else deadline_s)
            reply = _good(done)
            left = end - time.monotonic()
            if reply is None and left > 0:
                running.add(self._tries.submit(next(lines, first).send, "POST", path, body, left, headers))
            while running and reply is None and (left := end - time.monotonic()) > 0:
                done, running = _first(running, left)
                reply = _good(done)
        except RuntimeError as error:  # the service is ending: no new try can be made
            raise Outage("down") from error
        if reply is None:
            raise Outage("slow" if running else "down", max(1.0, first.breaker.probe_in_s))
        return reply

    def get(self, path: str, headers: Mapping[str, str] | None = None, *, edge_only: bool = False) -> Reply:
        """One GET, over the other address where the first fails.

        Raises:
            Outage: no reply, or a fault of the server's.
        """
        with TURNS.away():
            for line in self._open(edge_only):
                reply = line.send("GET", path, b"", INFO_DEADLINE_S, headers or {})
                if reply is not None:
                    return reply
        raise Outage("down")

    def _open(self, edge_only: bool) -> Iterator[Line]:
        """The addresses that may be asked, at least one; a breaker is asked when its address is about to be.

        Raises:
            Outage: all have failed too often.
        """
        known = self._lines[:1] if edge_only else self._lines
        opened = False
        for line in known:
            if line.breaker.lets_through():
                opened = True
                yield line
        if not opened:
            raise Outage("breaker-open", max(1.0, min(line.breaker.probe_in_s for line in known)))

    def _ask_model(self) -> RemoteModel:
        said = self._json("/v1/model")
        limit, name = said.get("limit"), said.get("tokenizer")
        if (
            not isinstance(said.get("model"), str)
            or not isinstance(name, str)
            or type(limit) not in (int, type(None))
        ):
            raise ModelError(
                "the upstream does not say which model and tokenizer it serves; is it a fedtandem tier?"
            )
        if said.get("schema") != SCHEMA:
            raise ModelError(
                f"the upstream speaks schema {said.get('schema')}, this device {SCHEMA}; run the same fedtandem."
            )
        own = self._own
        tokenizer = own if own is not None and own.card.hash == name else self._fetch_tokenizer()
        if tokenizer.card.hash != name:
            raise ModelError(
                "the upstream's tokenizer is not the one it names; is another model behind it now?"
            )
        return RemoteModel(
            said["model"], tokenizer, limit, bool(said.get("attests")), bool(said.get("relays"))
        )

    def _fetch_tokenizer(self) -> TextTokenizer:
        files = self._json("/v1/tokenizer").get("files")
        if not isinstance(files, dict):
            raise ModelError("the upstream sent no tokenizer's files; is it a fedtandem tier?")
        with tempfile.TemporaryDirectory() as folder:
            for name, text in files.items():
                if name not in TOKENIZER_FILES:
                    raise ModelError(
                        f"the upstream sent {name[:40]!r} as part of a tokenizer; it is not taken."
                    )
                try:
                    (Path(folder) / name).write_bytes(base64.b64decode(text, validate=True))
                except (binascii.Error, TypeError) as error:
                    raise ModelError(f"the upstream's {name} is no base64.") from error
            return TextTokenizer.from_pretrained(folder)

    def _json(self, path: str) -> dict[str, Any]:
        reply = self.get(path)
        if reply.status_code != 200:
            raise Rejected(reply)
        try:
            value = reply.json()
        except (ValueError, RecursionError) as error:
            raise Outage("faulty") from error
        if not isinstance(value, dict):
            raise Outage("faulty")
        return value


Try = Future[Reply | None]


def _first(running: set[Try], timeout_s: float) -> tuple[set[Try], set[Try]]:
    done, left = wait(running, timeout=max(0.0, timeout_s), return_when=FIRST_COMPLETED)
    return set(done), set(left)


def _good(done: set[Try]) -> Reply | None:
    replies = [future.result() for future in done if not future.cancelled()]
    return next((reply for reply in replies if reply is not None), None)


def _code(reply: Reply) -> str:
    try:
        return str(reply.json()["error"]["code"])[:60]
    except (KeyError, TypeError, ValueError):
        return "no code"


def _said(reply: Reply) -> str:
    try:
        return str(reply.json()["error"]["message"])[:300]
    except (KeyError, TypeError, ValueError):
        return "no message"


def _number(text: str | None) -> float:
    """Of a header; 0 where it says nothing."""
    try:
        value = float(text or 0)
    except ValueError:
        return 0.0
    return value if 0 <= value < math.inf else 0.0


def _retry_after(reply: Reply) -> float:
    try:
        return min(60.0, max(1.0, float(reply.headers.get("retry-after", "1"))))
    except ValueError:
        return 1.0
