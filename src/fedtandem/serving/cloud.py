"""The cloud's routes: blocks are judged, and the LLM says what it is."""

import base64
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response

from fedtandem import __version__
from fedtandem.config.serve import CloudConfig
from fedtandem.exchange.carrier import SCHEMA
from fedtandem.models.tokenizer import TextTokenizer
from fedtandem.serving.admission import Admission
from fedtandem.serving.metrics import CloudMetrics
from fedtandem.serving.openai_wire import RelayRequest
from fedtandem.serving.sessions import Judged
from fedtandem.serving.shell import FRAME, QUEUE, Straight, new_app, tell, tenant_of

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
SCOPES = dict.fromkeys(("/v1/verify", "/v1/model", "/v1/tokenizer", "/v1/relay"), "verify")


class Judging(Protocol):
    """An LLM that judges blocks: a model here (`VerifyService`), or one that is served elsewhere (`CompareService`)."""

    @property
    def fingerprint(self) -> str:
        """Which model."""
        ...

    @property
    def tokenizer(self) -> TextTokenizer:
        """Its own."""
        ...

    @property
    def limit(self) -> int | None:
        """Tokens its context holds."""
        ...

    @property
    def attests(self) -> bool:
        """Whether entries for peers are signed."""
        ...

    @property
    def relays(self) -> bool:
        """Whether requests with tools can be answered."""
        ...

    async def fault(self) -> str:
        """Why nothing can be judged now; "" where it can."""
        ...

    async def relay(self, asked: RelayRequest) -> Mapping[str, Any]:
        """Have one answered by the LLM's own server: a chat completion."""
        ...

    @property
    def queue(self) -> float:
        """Forward passes that wait."""
        ...

    async def verify(self, tenant: str, body: bytes) -> Judged:
        """Answer one request."""
        ...

    def bound(self, config: CloudConfig) -> None:
        """Other bounds of sessions, waiting and caches."""
        ...

    def gauges(self) -> Mapping[str, float]:
        """For the metrics: name -> value."""
        ...


def cloud_app(service: Judging, *, admission: Admission, metrics: CloudMetrics) -> FastAPI:
    """The app of a cloud."""

    async def is_ready() -> Mapping[str, object]:
        fault = await service.fault()
        return {"ready": not fault, "model": service.fingerprint, **({"fault": fault} if fault else {})}

    def refresh() -> None:
        for name, value in service.gauges().items():
            metrics.gauges[name].set(value)

    app = new_app(
        "cloud", scopes=SCOPES, admission=admission, metrics=metrics, is_ready=is_ready, refresh=refresh
    )  # fmt: skip
    described = describe(service)
    files = tokenizer_files(service.tokenizer)

    @app.get("/v1/model")
    async def model() -> dict[str, Any]:
        return described

    @app.get("/v1/tokenizer")
    async def tokenizer() -> dict[str, Any]:
        return {"hash": described["tokenizer"], "files": files}

    async def verify(request: Request) -> Response:
        said = await service.verify(tenant_of(request), await request.body())
        metrics.tokens.labels("slm").inc(said.accepted)
        metrics.tokens.labels("llm").inc(said.own)
        metrics.drafts.labels("accepted").inc(said.accepted)
        metrics.cost.inc(said.passes)
        request.state.charge(said.accepted + said.own)
        tell(request, accepted=said.accepted, own=said.own, passes=said.passes)
        return Response(said.reply, media_type=FRAME, headers={QUEUE: f"{service.queue:.2f}"})

    app.router.add_api_route(
        "/v1/verify", verify, methods=["POST"], response_class=Response, route_class_override=Straight
    )

    @app.post("/v1/relay")
    async def relay(asked: RelayRequest, request: Request) -> dict[str, Any]:
        reply = dict(await service.relay(asked))
        used = reply.get("usage")
        n = used.get("completion_tokens") if isinstance(used, dict) else 0
        request.state.charge(n if isinstance(n, int) else 0)
        return reply

    return app


def describe(service: Judging) -> dict[str, Any]:
    """What a device has to know of the LLM."""
    tokenizer = service.tokenizer
    return {
        "version": __version__, "schema": SCHEMA, "model": service.fingerprint, "tokenizer": tokenizer.card.hash,
        "vocab_size": tokenizer.vocab_size, "limit": service.limit, "attests": service.attests,
        "relays": service.relays,
    }  # fmt: skip


def tokenizer_files(tokenizer: TextTokenizer) -> dict[str, str]:
    """The tokenizer as files, base64: what `from_pretrained` needs, and nothing that could be run."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        return {
            name: base64.b64encode((Path(folder) / name).read_bytes()).decode()
            for name in TOKENIZER_FILES
            if (Path(folder) / name).is_file()
        }
