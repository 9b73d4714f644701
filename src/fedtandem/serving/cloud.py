"""The cloud's routes: blocks are judged, and the LLM says what it is."""

import base64
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response

from fedtandem import __version__
from fedtandem.config.serve import LimitsConfig
from fedtandem.exchange.carrier import SCHEMA
from fedtandem.exchange.verification import VerifyReply
from fedtandem.models.language_model import LanguageModel
from fedtandem.serving.keys import Keyring
from fedtandem.serving.metrics import CloudMetrics
from fedtandem.serving.shell import FRAME, new_app, tell, tenant_of
from fedtandem.serving.verifying import VerifyService

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
SCOPES = {"/v1/verify": "verify", "/v1/model": "verify", "/v1/tokenizer": "verify"}


def cloud_app(
    service: VerifyService, *, keyring: Keyring, limits: LimitsConfig, metrics: CloudMetrics
) -> FastAPI:
    """The app of a cloud."""

    async def is_ready() -> Mapping[str, object]:
        return {"ready": True, "model": service.fingerprint}

    def refresh() -> None:
        reader, batcher = service.batcher.reader, service.batcher
        metrics.sessions.set(len(service.sessions))
        metrics.cache_bytes.set(reader.held_bytes)
        metrics.evicted.set(reader.evicted)
        metrics.waiting.set(batcher.waiting)
        metrics.batch.set(batcher.jobs / max(1, batcher.passes))

    app = new_app(
        "cloud", scopes=SCOPES, keyring=keyring, limits=limits, metrics=metrics, is_ready=is_ready, refresh=refresh
    )  # fmt: skip
    described = describe(service)
    files = tokenizer_files(service.lm)

    @app.get("/v1/model")
    async def model() -> dict[str, Any]:
        return described

    @app.get("/v1/tokenizer")
    async def tokenizer() -> dict[str, Any]:
        return {"hash": described["tokenizer"], "files": files}

    @app.post("/v1/verify", response_class=Response)
    async def verify(request: Request) -> Response:
        reply = await service.verify(tenant_of(request), await request.body())
        said = VerifyReply.from_bytes(reply)
        own = len(said.tokens) - said.accepted
        metrics.tokens.labels("slm").inc(said.accepted)
        metrics.tokens.labels("llm").inc(own)
        metrics.drafts.labels("accepted").inc(said.accepted)
        metrics.cost.inc(said.passes)
        tell(request, accepted=said.accepted, own=own, passes=said.passes)
        return Response(reply, media_type=FRAME)

    return app


def describe(service: VerifyService) -> dict[str, Any]:
    """What a device has to know of the LLM."""
    lm = service.lm
    return {
        "version": __version__, "schema": SCHEMA, "model": service.fingerprint, "tokenizer": lm.tokenizer.card.hash,
        "vocab_size": lm.tokenizer.vocab_size, "limit": service.batcher.reader.limit,
        "attests": service.attests,
    }  # fmt: skip


def tokenizer_files(lm: LanguageModel) -> dict[str, str]:
    """The tokenizer as files, base64: what `from_pretrained` needs, and nothing that could be run."""
    with tempfile.TemporaryDirectory() as folder:
        lm.tokenizer.save(Path(folder))
        return {
            name: base64.b64encode((Path(folder) / name).read_bytes()).decode()
            for name in TOKENIZER_FILES
            if (Path(folder) / name).is_file()
        }
