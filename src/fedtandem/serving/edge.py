"""The edge's routes: verifications go on to the cloud, peers are found, thresholds are learnt and handed out."""

import asyncio
import base64
import binascii
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import httpx
import numpy as np
from fastapi import FastAPI, Header, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from fedtandem.config.serve import EdgeConfig
from fedtandem.errors import InvalidMessage
from fedtandem.exchange.calibration import CalibrationReply
from fedtandem.exchange.carrier import Envelope
from fedtandem.exchange.verification import VerifyReply, VerifyRequest
from fedtandem.inference.gates import namespace
from fedtandem.inference.peers import PeerCache
from fedtandem.inference.uplink import unpack_ids
from fedtandem.serving.admission import Admission
from fedtandem.serving.auditing import TICKET, PeerAudits
from fedtandem.serving.breaker import Breaker
from fedtandem.serving.faults import Refusal
from fedtandem.serving.keys import Caller
from fedtandem.serving.line import MAX_REPLY_BYTES
from fedtandem.serving.logs import log
from fedtandem.serving.metrics import EdgeMetrics
from fedtandem.serving.policies import UNTIL
from fedtandem.serving.shell import FRAME, QUEUE, TENANT, caller_of, new_app, tell
from fedtandem.serving.tenants import tenant_key
from fedtandem.serving.thresholds import Thresholds
from fedtandem.serving.upstream import PEERS

PATHS = ("/v1/verify", "/v1/model", "/v1/tokenizer", "/v1/resolve", "/v1/relay")
SCOPES = dict.fromkeys(PATHS, "verify") | dict.fromkeys(("/v1/fl/report", "/v1/fl/policy"), "report")
MAX_CACHES = 256
Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class Question(BaseModel):
    """POST /v1/resolve."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scope: Hex
    model: Annotated[str, Field(max_length=512)]
    tokenizer: Annotated[str, Field(max_length=128)]
    decoding: Annotated[str, Field(max_length=64)]
    context: Hex
    embedding: Annotated[str, Field(max_length=1 << 16)]
    use: Literal["draft", "answer"] = "draft"
    """Answers are audited; drafts the LLM reads anyway."""


@dataclass
class EdgeState:
    """What an edge keeps.

    Attributes:
        attest_key: the secret it shares with the cloud; None keeps no answers.
        caches: (tenant, dimension) -> answers of that tenant; nobody looks into another's.
        thresholds: of each tenant.
        audits: of each tenant's peers.
    """

    config: EdgeConfig
    client: httpx.AsyncClient
    attest_key: bytes | None
    breaker: Breaker = field(default_factory=Breaker)
    caches: "OrderedDict[tuple[str, int], PeerCache]" = field(default_factory=OrderedDict)
    thresholds: dict[str, Thresholds] = field(default_factory=dict)
    audits: dict[str, PeerAudits] = field(default_factory=dict)

    def cache(self, tenant: str, dimension: int) -> PeerCache | None:
        """A tenant's answers; None where nothing can be attested."""
        if self.attest_key is None:
            return None
        found = self.caches.get((tenant, dimension))
        if found is None:
            found = PeerCache(
                tenant_key(self.attest_key, tenant), dimension, ttl_s=self.config.peer_ttl_s,
                quota=self.config.peer_quota,
            )  # fmt: skip
            self.caches[(tenant, dimension)] = found
            if len(self.caches) > MAX_CACHES:
                self.caches.popitem(last=False)
        return found

    def audits_of(self, tenant: str) -> PeerAudits:
        """How right a tenant's peers are."""
        if tenant not in self.audits:
            self.audits[tenant] = PeerAudits(tenant_key(self.attest_key or b"", tenant))
        return self.audits[tenant]

    def reconfigure(self, config: EdgeConfig) -> None:
        """Another price and validity, for the next policies; what was learnt stays."""
        self.config = config
        for one in self.thresholds.values():
            one.set(config.price, config.policy_valid_s)

    def of(self, tenant: str) -> Thresholds:
        """A tenant's thresholds."""
        if tenant not in self.thresholds:
            config = self.config
            self.thresholds[tenant] = Thresholds(config.name, config.price, config.policy_valid_s)
        return self.thresholds[tenant]


def edge_app(state: EdgeState, *, admission: Admission, metrics: EdgeMetrics) -> FastAPI:
    """The app of an edge."""

    async def is_ready() -> Mapping[str, object]:
        try:
            reply = await state.client.get("/readyz", timeout=5.0)
            return {"ready": reply.status_code == 200, "cloud": reply.status_code}
        except httpx.HTTPError:
            return {"ready": False, "cloud": "unreachable"}

    def refresh() -> None:
        metrics.breaker.set(state.breaker.state)
        metrics.rounds.set(sum(one.rounds for one in state.thresholds.values()))
        metrics.price.set(state.config.price)
        for tenant, audits in state.audits.items():
            metrics.precision.labels(tenant).set(audits.lower_bound)
        for tenant, one in state.thresholds.items():
            if one.tau is not None:
                metrics.tau.labels(f"{tenant}/{state.config.name}").set(one.tau)

    app = new_app(
        "edge", scopes=SCOPES, admission=admission, metrics=metrics, is_ready=is_ready, refresh=refresh
    )  # fmt: skip

    @app.get("/v1/model")
    async def model(request: Request) -> Response:
        return await _passed_on(state, request, b"")

    @app.get("/v1/tokenizer")
    async def tokenizer(request: Request) -> Response:
        return await _passed_on(state, request, b"")

    @app.post("/v1/verify", response_class=Response)
    async def verify(request: Request) -> Response:
        caller, body = caller_of(request), await request.body()
        reply = await _passed_on(state, request, body)
        if reply.status_code == 200 and TICKET in request.headers:
            ticket = request.headers[TICKET]
            metrics.audits.labels(_judge(state, caller.tenant, ticket, body, bytes(reply.body))).inc()
        elif reply.status_code == 200 and PEERS in request.headers:
            metrics.inserted.labels(_share(state, caller, body, bytes(reply.body))).inc()
        return reply

    @app.post("/v1/relay", response_class=Response)
    async def relay(request: Request) -> Response:
        return await _passed_on(state, request, await request.body())

    @app.post("/v1/resolve")
    async def resolve(question: Question, request: Request) -> dict[str, Any]:
        caller = caller_of(request)
        vector = _vector(question.embedding)
        cache = state.cache(caller.tenant, len(vector))
        if cache is None:
            metrics.lookups.labels("off").inc()
            return {"outcome": "off", "similarity": -1.0, "tokens": []}
        scope = namespace(
            caller.tenant, question.model, question.tokenizer, question.scope, question.decoding
        )
        found = cache.look_up(vector, scope, bytes.fromhex(question.context), time.time())
        metrics.lookups.labels(found.outcome).inc()
        tell(request, peers=found.outcome)
        tokens = [] if found.entry is None else unpack_ids(found.entry.answer)
        said = {"outcome": found.outcome, "similarity": found.similarity, "tokens": tokens}
        if question.use == "draft":
            return said
        audits = state.audits_of(caller.tenant)
        ticket = audits.ticket(found, state.config.peer_audit_rate)
        return {**said, "ticket": ticket, "error": 1 - audits.lower_bound}

    @app.post("/v1/fl/report", status_code=204, response_class=Response)
    async def report(request: Request) -> Response:
        caller = caller_of(request)
        try:
            reply = CalibrationReply.from_envelope(Envelope.from_bytes(await request.body()))
            state.of(caller.tenant).report(caller.name, reply)
        except InvalidMessage:
            metrics.refused.labels("invalid").inc()
            raise
        except Refusal as refusal:
            metrics.refused.labels(refusal.code).inc()
            raise
        return Response(status_code=204)

    @app.get("/v1/fl/policy")
    async def policy(request: Request, if_none_match: Annotated[str | None, Header()] = None) -> Response:
        published = await asyncio.to_thread(state.of(caller_of(request).tenant).published)
        if published is None:
            raise Refusal(404, "no device has reported enough yet; use the built-in threshold.", "no_policy")
        headers = {
            "etag": published.etag, UNTIL: f"{published.until_s:.0f}",
            "cache-control": f"private, max-age={state.config.policy_valid_s:.0f}",
        }  # fmt: skip
        if if_none_match == published.etag:
            return Response(status_code=304, headers=headers)
        return Response(published.text, media_type="application/json", headers=headers)

    return app


async def _passed_on(state: EdgeState, request: Request, body: bytes) -> Response:
    """To the cloud and back, many devices over few connections; what fails there is a 503 here."""
    if not state.breaker.lets_through():
        wait = str(max(1, round(state.breaker.probe_in_s)))
        raise Refusal(503, "the cloud does not answer; it is asked again soon.", "cloud_down",
                      headers={"Retry-After": wait})  # fmt: skip
    headers = {TENANT: caller_of(request).tenant, "x-request-id": request.state.request_id}
    if body:
        is_json = request.headers.get("content-type", "").startswith("application/json")
        headers["Content-Type"] = "application/json" if is_json else FRAME
    try:
        async with asyncio.timeout(state.config.deadline_ms / 1000):
            reply, content = await _asked(state, request, body, headers)
    except (httpx.HTTPError, TimeoutError) as error:
        state.breaker.failed(f"{type(error).__name__}: {error}"[:300])
        raise Refusal(503, "the cloud does not answer; it is asked again soon.", "cloud_down",
                      headers={"Retry-After": "1"}) from None  # fmt: skip
    if reply.status_code >= 500:
        state.breaker.failed(f"HTTP {reply.status_code}")
    else:
        state.breaker.succeeded()
    passed = {
        name: reply.headers[name] for name in ("content-type", "retry-after", QUEUE) if name in reply.headers
    }
    return Response(content, reply.status_code, passed)


async def _asked(
    state: EdgeState, request: Request, body: bytes, headers: Mapping[str, str]
) -> tuple[httpx.Response, bytes]:
    """The cloud's reply and its body, which is of a bounded size whatever the cloud says."""
    parts, n_bytes = [], 0
    limit_s = state.config.deadline_ms / 1000
    async with state.client.stream(
        request.method, request.url.path, content=body, headers=headers, timeout=limit_s
    ) as reply:
        async for part in reply.aiter_bytes():
            parts.append(part)
            n_bytes += len(part)
            if n_bytes > MAX_REPLY_BYTES:
                raise httpx.ReadError(f"a reply of more than {MAX_REPLY_BYTES} bytes.")
    return reply, b"".join(parts)


def _share(state: EdgeState, caller: Caller, body: bytes, answer: bytes) -> str:
    """Keep an attested answer for the caller's peers; what came of it."""
    try:
        request, reply = VerifyRequest.from_bytes(body), VerifyReply.from_bytes(answer)
    except InvalidMessage:
        return "bad frame"
    cache = None if not len(request.embedding) else state.cache(caller.tenant, len(request.embedding))
    if cache is None or reply.entry is None:
        return "not attested"
    if reply.entry.tenant != caller.tenant:
        return "another tenant"
    taken = cache.insert(caller.name, request.embedding.astype(np.float32), reply.entry)
    return "taken" if taken.taken else taken.reason


def _judge(state: EdgeState, tenant: str, ticket: str, body: bytes, answer: bytes) -> str:
    """An audit's verdict, with what follows for whoever inserted the answer; right, wrong or unusable."""
    try:
        request, reply = VerifyRequest.from_bytes(body), VerifyReply.from_bytes(answer)
    except InvalidMessage:
        return "unusable"
    verdict, owner = state.audits_of(tenant).judge(ticket, request, reply)
    if verdict == "wrong":
        for (whose, _), cache in state.caches.items():
            if whose == tenant:
                cache.report_audit(owner, False)
        log("peer was wrong", level=30, tier="edge", tenant=tenant, key=owner)
    return verdict


def _vector(text: str) -> np.ndarray:
    try:
        raw = base64.b64decode(text, validate=True)
        vector = np.frombuffer(raw, "<f2").astype(np.float32)
    except (binascii.Error, ValueError):
        vector = np.zeros(0, np.float32)
    if not len(vector) or not np.isfinite(vector).all():
        raise Refusal(
            400, "embedding must be base64 of finite half-precision numbers.", "bad_embedding", "embedding"
        )
    return vector
