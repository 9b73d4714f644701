"""What every request passes before it is answered: id, sizes, key, scope and rate; and what it leaves in the log."""

import asyncio
import re
import time
import uuid
from collections.abc import Mapping
from functools import partial
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedtandem.config.serve import LimitsConfig
from fedtandem.serving.admission import Admission
from fedtandem.serving.faults import Refusal
from fedtandem.serving.keys import Caller
from fedtandem.serving.logs import log
from fedtandem.serving.metrics import Metrics

OPEN = frozenset({"/healthz", "/readyz", "/", "/page.css", "/page.js"})
"""Asked by who watches over processes and by browsers, without a key; they tell nothing."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Door:
    """ASGI middleware around a tier's routes.

    Args:
        app: the routes.
        tier: for logs.
        scopes: path -> the scope it needs; other paths need the first of them. Unknown paths are 404 inside.
        admission: who may come in, and how much of what.
        metrics: counted into.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        tier: str,
        scopes: Mapping[str, str],
        admission: Admission,
        metrics: Metrics,
    ) -> None:
        self._app, self._tier, self._scopes = app, tier, scopes
        self._admission, self._metrics = admission, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection's event."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = _Visit(scope, receive, send, self._admission.limits)
        try:
            caller = self._admitted(scope, visit)
            scope.setdefault("state", {}).update(
                caller=caller, request_id=visit.request_id, charge=partial(self._charge, caller)
            )
            await self._app(scope, visit.receive, visit.send)
        except Refusal as refusal:
            await visit.refuse(refusal)
        except Exception as fault:
            log("failed", level=40, fault=fault, tier=self._tier, request_id=visit.request_id)
            await visit.refuse(
                Refusal(500, "the service failed on this request; its log says how.", "internal_error")
            )
        finally:
            self._leave(visit)

    def _admitted(self, scope: Scope, visit: "_Visit") -> Caller | None:
        limits, headers = self._admission.limits, visit.headers
        n_bytes = sum(len(name) + len(value) for name, value in scope["headers"])
        if n_bytes > limits.max_header_bytes:
            raise Refusal(431, f"headers hold {n_bytes} bytes; at most {limits.max_header_bytes}.", "headers")
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > limits.max_body_bytes:
            raise Refusal(413, f"a body may hold at most {limits.max_body_bytes} bytes.", "body_too_large")
        path = scope["path"]
        if path in self._scopes:
            visit.known_path = path
        if path in OPEN:
            return None
        caller = self._admission.keyring.caller(headers.get("authorization", ""))
        if caller is None:
            raise Refusal(401, "no valid API key: send Authorization: Bearer KEY.", "invalid_api_key",
                          headers={"WWW-Authenticate": "Bearer"})  # fmt: skip
        visit.caller = caller
        needed = self._scopes.get(path, next(iter(self._scopes.values())))
        if needed not in caller.scopes:
            raise Refusal(403, f"this key lacks the scope {needed}.", "insufficient_scope")
        self._admission.hold_back(caller, is_counted=path != "/metrics")
        return caller

    def _charge(self, caller: Caller | None, tokens: int) -> None:
        if caller is not None:
            self._admission.quotas.charge(caller.name, tokens)

    def _leave(self, visit: "_Visit") -> None:
        route = visit.route
        seconds = time.monotonic() - visit.began
        self._metrics.visited(route, visit.status, seconds, visit.bytes_in, visit.bytes_out)
        if route in OPEN or route == "/metrics":
            return
        fields: dict[str, Any] = {
            "tier": self._tier, "request_id": visit.request_id, "method": visit.method, "route": route,
            "status": visit.status, "ms": round(1000 * seconds, 1), "bytes_in": visit.bytes_in,
            "bytes_out": visit.bytes_out,
        }  # fmt: skip
        if visit.caller is not None:
            fields |= {"key": visit.caller.name, "tenant": visit.caller.tenant}
        log("request", **fields, **visit.scope.get("state", {}).get("told", {}))


class _Visit:
    """One request on its way through."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: LimitsConfig) -> None:
        self.scope, self._receive, self._send, self._limits = scope, receive, send, limits
        self.headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
        }
        asked = self.headers.get("x-request-id", "")
        self.request_id = asked if _REQUEST_ID.fullmatch(asked) else uuid.uuid4().hex
        self.method: str = scope["method"]
        self.began = time.monotonic()
        self.bytes_in = self.bytes_out = 0
        self.status = 0
        self.caller: Caller | None = None
        self.known_path = "other"
        self._whole = self._is_over = False
        self._refusal: Refusal | None = None

    @property
    def route(self) -> str:
        """The path where it is one of ours; strangers' paths may hold anything and are not written down."""
        path = getattr(self.scope.get("route"), "path", None)
        return path if isinstance(path, str) else self.known_path

    async def receive(self) -> Message:
        """The body's next part, within its limits of size and time."""
        if self._whole:
            return await self._receive()
        try:
            left = self.began + self._limits.body_timeout_s - time.monotonic()
            async with asyncio.timeout(max(0.0, left)):
                message = await self._receive()
        except TimeoutError:
            raise self._stopped(
                408, f"the body did not arrive in {self._limits.body_timeout_s:g} s.", "slow"
            ) from None
        if message["type"] == "http.request":
            self.bytes_in += len(message.get("body", b""))
            self._whole = not message.get("more_body", False)
            if self.bytes_in > self._limits.max_body_bytes:
                raise self._stopped(
                    413, f"a body may hold at most {self._limits.max_body_bytes} bytes.", "body_too_large"
                )
        return message

    def _stopped(self, status: int, message: str, code: str) -> Refusal:
        """A refusal in the middle of a body: it is what goes out, whatever the routes make of the break."""
        self._refusal = Refusal(status, message, code)
        return self._refusal

    async def send(self, message: Message) -> None:
        """Pass a part of the response on."""
        if self._refusal is not None:
            refusal, self._refusal = self._refusal, None
            await self.refuse(refusal)
            self._is_over = True
        if self._is_over:
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", []), (b"x-request-id", self.request_id.encode())]
        elif message["type"] == "http.response.body":
            self.bytes_out += len(message.get("body", b""))
        await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        """Answer with a refusal, unless an answer has begun."""
        if self.status:
            return
        headers = {"content-type": "application/json", **refusal.headers}
        body = refusal.encoded()
        headers["content-length"] = str(len(body))
        listed = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": refusal.status, "headers": listed})
        await self.send({"type": "http.response.body", "body": body})
