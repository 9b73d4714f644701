"""What all tiers' apps have in common: health, metrics, faults as JSON, the door."""

import inspect
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from fedtandem import __version__
from fedtandem.errors import FedtandemError
from fedtandem.serving.admission import Admission
from fedtandem.serving.door import Door
from fedtandem.serving.faults import Refusal, refusal_of
from fedtandem.serving.keys import NAME, Caller
from fedtandem.serving.logs import log
from fedtandem.serving.metrics import Metrics
from fedtandem.serving.openai_wire import ONLY

FRAME = "application/vnd.fedtandem.frame"
TENANT = "x-fedtandem-tenant"
"""Header: for whom an edge asks; believed of keys with the scope `relay` alone."""

QUEUE = "x-queue"
"""Header of a verification's reply: forward passes of the LLM that wait behind it."""


def caller_of(request: Request) -> Caller:
    """Who the door let in."""
    caller: Caller = request.state.caller
    return caller


def tenant_of(request: Request) -> str:
    """Whose request it is.

    Raises:
        Refusal: the header names another tenant, and this key may not speak for others.
    """
    caller = caller_of(request)
    said = request.headers.get(TENANT, caller.tenant)
    if said != caller.tenant and "relay" not in caller.scopes:
        raise Refusal(
            403,
            "this key may not speak for another tenant: an edge's key needs the scope relay.",
            "insufficient_scope",
        )
    if not NAME.fullmatch(said):
        raise Refusal(400, f"{TENANT} is no tenant's name.", "bad_tenant")
    return said


def tell(request: Request, **fields: object) -> None:
    """Add fields to the request's line in the log."""
    request.scope["state"].setdefault("told", {}).update(fields)


class Straight(APIRoute):
    """A route of the schema, without what FastAPI resolves for every request: its function makes the response itself.

    Args:
        path: of the route.
        endpoint: takes the body, where its first parameter is a pydantic model, and the request.
    """

    def __init__(self, path: str, endpoint: Callable[..., Awaitable[Response]], **more: Any) -> None:
        super().__init__(path, endpoint, **more)
        first = next(iter(inspect.signature(endpoint).parameters.values())).annotation
        model = first if issubclass(first, BaseModel) else None

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            request = Request(scope, receive, send)
            asked = () if model is None else (await _body(request, model),)
            response = await endpoint(*asked, request)
            await response(scope, receive, send)

        self.app = app


async def _body(request: Request, model: type[BaseModel]) -> BaseModel:
    """The body, checked; of another kind than JSON it may come from any web page, and is refused."""
    body = await request.body()
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise Refusal(
            400, "body: send JSON, with the header Content-Type: application/json.", "invalid_request"
        )
    try:
        return model.model_validate_json(body)
    except ValidationError as fault:
        raise RequestValidationError(fault.errors(include_url=False, include_input=False)) from fault


def new_app(
    tier: str,
    *,
    scopes: Mapping[str, str],
    admission: Admission,
    metrics: Metrics,
    is_ready: Callable[[], Awaitable[Mapping[str, object]]],
    refresh: Callable[[], None],
) -> FastAPI:
    """An app with the routes every tier has.

    Args:
        tier: device, edge or cloud.
        scopes: as of `Door`.
        is_ready: what /readyz says; ready iff `ready` is true in it.
        refresh: brings gauges up to date before they are read.
    """
    app = FastAPI(title=f"fedtandem {tier}", version=__version__, docs_url=None, redoc_url=None)
    app.add_middleware(
        Door,
        tier=tier,
        scopes={**scopes, "/metrics": "metrics"},
        admission=admission,
        metrics=metrics,
    )  # type: ignore[arg-type,unused-ignore]

    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", include_in_schema=False)
    async def readyz() -> JSONResponse:
        said = dict(await is_ready())
        return JSONResponse(said, 200 if said.get("ready") else 503)

    @app.get("/metrics", include_in_schema=False)
    async def read_metrics() -> PlainTextResponse:
        refresh()
        return PlainTextResponse(metrics.text(), media_type="text/plain; version=0.0.4")

    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(FedtandemError, _faulty)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    return app


def answer(refusal: Refusal) -> JSONResponse:
    """A refusal as a response."""
    return JSONResponse(refusal.body(), refusal.status, refusal.headers)


async def _refused(_: Request, fault: Exception) -> Response:
    assert isinstance(fault, Refusal)
    return answer(fault)


async def _faulty(request: Request, fault: Exception) -> Response:
    assert isinstance(fault, FedtandemError)
    refusal = refusal_of(fault)
    if refusal.status >= 500:
        log("failed", level=40, fault=fault, request_id=request.state.request_id)
    return answer(refusal)


async def _http(_: Request, fault: Exception) -> Response:
    assert isinstance(fault, HTTPException)
    said = {404: "there is no such path here.", 405: "this path does not know this method."}
    text = said.get(fault.status_code, "the request cannot be answered.")
    return answer(Refusal(fault.status_code, text, "http_error", headers=dict(fault.headers or {})))


def _place(fault: Mapping[str, Any]) -> str:
    """The field at fault, without pydantic's names for one of several forms ("str", "list[TextPart]")."""
    steps = [step for step in fault["loc"] if step != "body"]
    if fault["type"] != "extra_forbidden":  # there the last one is the caller's own word
        steps = [step for step in steps if step not in _FORMS and re.fullmatch(r"[a-z_]+|[0-9]+", str(step))]
    return ".".join(map(str, steps))[:120] or "body"


_FORMS = ("str", "int", "float", "bool")


async def _invalid(_: Request, fault: Exception) -> Response:
    """Every faulty field by name; values are not repeated."""
    assert isinstance(fault, RequestValidationError)
    found = []
    for error in fault.errors():
        path = _place(error)
        said = "is not a field here" if error["type"] == "extra_forbidden" else error["msg"]
        if path in ONLY and error["type"] in ("greater_than_equal", "less_than_equal"):
            said = f"is served as {ONLY[path]} alone"
        if (path, said) not in found:
            found.append((path, said))
    text = "; ".join(f"{path}: {said}" for path, said in found[:8])
    return answer(Refusal(400, text, "invalid_request", param=found[0][0] if found else None))
