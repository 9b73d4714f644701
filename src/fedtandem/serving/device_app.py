"""The device's routes: what an OpenAI client expects, streamed or whole."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response

from fedtandem.errors import ModelError
from fedtandem.serving.admission import Admission
from fedtandem.serving.answering import Prompt
from fedtandem.serving.browser import add_page
from fedtandem.serving.choosing import PRICE
from fedtandem.serving.device import Device, readiness
from fedtandem.serving.embedding import embedded
from fedtandem.serving.faults import Refusal
from fedtandem.serving.logs import log
from fedtandem.serving.metrics import DeviceMetrics
from fedtandem.serving.openai_wire import ChatRequest, CompletionRequest, EmbeddingRequest
from fedtandem.serving.replying import Exchange
from fedtandem.serving.shell import Straight, new_app
from fedtandem.serving.tools import tool_field, with_tools
from fedtandem.serving.upstream import Outage, Rejected
from fedtandem.serving.words import ChatWords, CompletionWords

SCOPES = dict.fromkeys(("/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/embeddings"), "infer")
STARTED = int(time.time())


def device_app(device: Device, *, admission: Admission, metrics: DeviceMetrics) -> FastAPI:
    """The app of a device."""

    async def is_ready() -> Mapping[str, object]:
        model, refused = None, ""
        try:
            if device.upstream is not None:
                model = await asyncio.to_thread(device.upstream.model)
        except Outage:
            pass
        except (Rejected, ModelError) as fault:
            refused = "the upstream cannot be used; the log says why"
            log("upstream unusable", level=40, tier="device", says=str(fault))
        return readiness(device, model, refused)

    def refresh() -> None:
        metrics.streams.set(device.running)
        policy = device.policies.current()
        metrics.price.set((PRICE if policy is None else policy.price) + device.price.surcharge)
        metrics.audit_tv.set(device.ledger.audit_error)
        if device.upstream is not None:
            metrics.breaker.set(device.upstream.breaker.state)

    app = new_app(
        "device", scopes=SCOPES, admission=admission, metrics=metrics, is_ready=is_ready, refresh=refresh
    )  # fmt: skip
    add_page(app)
    if device.peering is not None:
        device.peering.outcomes = lambda outcome: metrics.lookups.labels(outcome).inc()
    name = device.config.served_name
    listed = {"id": name, "object": "model", "created": STARTED, "owned_by": "fedtandem"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [listed]}

    @app.get("/v1/models/{model}")
    async def model(model: str) -> dict[str, Any]:
        if model != name:
            raise Refusal(404, f"this device serves {name!r} and no other model.", "model_not_found", "model")
        return listed

    async def chat(asked: ChatRequest, request: Request) -> Response:
        prompt = Prompt(messages=tuple((message.role, message.text) for message in asked.messages))
        top = (asked.top_logprobs or 0) if asked.logprobs else -1
        if asked.top_logprobs is not None and not asked.logprobs:
            raise Refusal(400, "top_logprobs needs logprobs: true.", "invalid_request", "top_logprobs")
        if tool_field(asked):
            return await with_tools(device, metrics, request, asked)
        return await Exchange(device, metrics, request, asked, ChatWords(asked)).answer(prompt, top)

    async def complete(asked: CompletionRequest, request: Request) -> Response:
        prompt = Prompt(text=asked.prompt if isinstance(asked.prompt, str) else asked.prompt[0])
        top = -1 if asked.logprobs is None else asked.logprobs
        return await Exchange(device, metrics, request, asked, CompletionWords(asked)).answer(prompt, top)

    for path, endpoint in (("/v1/chat/completions", chat), ("/v1/completions", complete)):
        app.router.add_api_route(
            path, endpoint, methods=["POST"], response_model=None, route_class_override=Straight
        )

    @app.post("/v1/embeddings")
    async def embeddings(asked: EmbeddingRequest, request: Request) -> dict[str, Any]:
        if asked.model != name:
            raise Refusal(404, f"this device serves {name!r} and no other model.", "model_not_found", "model")
        result: dict[str, Any] = await device.run(lambda: embedded(device, asked))
        request.state.charge(result["usage"]["total_tokens"])
        return result

    return app
