"""Connections to one address, kept open, with its breaker."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpcore
import httpx

from fedtandem.serving.breaker import Breaker

MAX_REPLY_BYTES = 64 << 20
"""A tokenizer's files; whatever else comes is far smaller."""
_LOST = (
    httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, httpcore.ConnectionNotAvailable,
    httpcore.UnsupportedProtocol,
)  # fmt: skip


@dataclass(frozen=True)
class Reply:
    """What an upstream answered.

    Attributes:
        status_code: of HTTP.
        headers: by name in small letters.
        content: the body, whole.
    """

    status_code: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def text(self) -> str:
        """The body as UTF-8; what is none is replaced."""
        return self.content.decode("utf-8", "replace")

    def json(self) -> Any:
        """The body as JSON.

        Raises:
            ValueError: it is none.
        """
        return json.loads(self.content)


class Line:
    """One address. The pool is httpx's own; httpx around it costs as much again as the whole exchange.

    Args:
        url: of the tier.
        key: shown as a bearer token; "" shows none.
        connections: kept open at most; twice as many are opened.
        tls: `verify` of httpx.
    """

    def __init__(self, url: str, key: str, connections: int, tls: Mapping[str, Any]) -> None:
        base = httpx.URL(url)
        self._base = (base.raw_scheme, base.raw_host, base.port)
        self._prefix = base.raw_path.rstrip(b"/")
        self._host = base.netloc
        self.breaker = Breaker(name=url)
        context = tls.get("verify") or (httpx.create_ssl_context() if base.scheme == "https" else None)
        self._pool = httpcore.ConnectionPool(
            context,
            max_connections=2 * connections,
            max_keepalive_connections=connections,
            keepalive_expiry=5.0,
        )
        self._key: list[tuple[bytes, bytes]] = []
        self.show(key)

    def show(self, key: str) -> None:
        """Show this API key from now on."""
        self._key = [(b"Authorization", f"Bearer {key}".encode())] if key else []

    def close(self) -> None:
        """Let the connections go."""
        self._pool.close()

    def send(
        self, method: str, path: str, body: bytes, timeout_s: float, headers: Mapping[str, str]
    ) -> Reply | None:
        """The reply; None where nobody answers in time, or with a fault of the server's."""
        try:
            reply = self._read(method, path, body, timeout_s, headers)
        except _LOST as error:
            self.breaker.failed(f"{type(error).__name__}: {error}"[:300])
            return None
        if reply.status_code >= 500:
            self.breaker.failed(f"HTTP {reply.status_code}")
            return None
        self.breaker.succeeded()
        return reply

    def _read(
        self, method: str, path: str, body: bytes, timeout_s: float, headers: Mapping[str, str]
    ) -> Reply:
        """The reply, whole: within the time even where it comes byte by byte, and of a bounded size."""
        end, parts, n_bytes = time.monotonic() + timeout_s, [], 0
        request = httpcore.Request(
            method,
            httpcore.URL(
                scheme=self._base[0], host=self._base[1], port=self._base[2], target=self._prefix + path.encode()
            ),
            headers=[
                (b"Host", self._host), (b"Content-Length", b"%d" % len(body)), *self._key,
                *((name.encode(), value.encode()) for name, value in headers.items()),
            ],
            content=body,
            extensions={"timeout": dict.fromkeys(("connect", "read", "write", "pool"), timeout_s)},
        )  # fmt: skip
        reply = self._pool.handle_request(request)
        try:
            for part in reply.iter_stream():
                parts.append(part)
                n_bytes += len(part)
                if n_bytes > MAX_REPLY_BYTES or time.monotonic() > end:
                    raise httpcore.ReadError(
                        f"a reply of more than {MAX_REPLY_BYTES} bytes, or one that does not end."
                    )
        finally:
            reply.close()
        said = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in reply.headers}
        return Reply(reply.status, said, b"".join(parts))
