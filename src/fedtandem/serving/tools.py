"""Requests with tools: answered by the LLM's own server, where there is one; elsewhere refused by the field's name.

Drafting and verifying are about text. A tool call is a form the LLM's server gives its text, so such a request goes
through edge and cloud to it as it is, once, and comes back whole: a stream of it has its parts at its end.
"""

import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from fedtandem.errors import ModelError
from fedtandem.serving.choosing import mode_of
from fedtandem.serving.device import Device, refusal_of_fault
from fedtandem.serving.faults import Refusal
from fedtandem.serving.metrics import DeviceMetrics
from fedtandem.serving.openai_wire import RELAYED, ChatRequest
from fedtandem.serving.shell import tell
from fedtandem.serving.upstream import Outage, Rejected
from fedtandem.serving.words import ChatWords

RELAY = "/v1/relay"


def tool_field(asked: ChatRequest) -> str:
    """The field by which a request uses tools; "" if it does not."""
    for name in ("tools", "tool_choice", "parallel_tool_calls"):
        if getattr(asked, name) is not None:
            return name
    return "messages" if any(one.role == "tool" or one.tool_calls for one in asked.messages) else ""


async def with_tools(
    device: Device, metrics: DeviceMetrics, request: Request, asked: ChatRequest
) -> Response:
    """Have the LLM's server answer.

    Raises:
        Refusal: this mode, device or cloud cannot; nothing of the request is ever left out.
    """
    field = tool_field(asked)
    if mode_of(asked, device.config) != "cloud":
        raise Refusal(400, f"{field}: tools are for the LLM's own server alone, so nothing is drafted: send mode = "
                           '"cloud", or leave them out.', "not_served", field)  # fmt: skip
    if asked.logprobs or asked.trace:
        raise Refusal(400, "logprobs and trace are not known of an answer with tools; leave them out.",
                      "not_served", "logprobs" if asked.logprobs else "trace")  # fmt: skip
    began = time.monotonic()
    reply = await device.run(lambda: _asked(device, asked, field, request.state.request_id))
    message, finish, usage = _read(reply)
    n = usage["completion_tokens"]
    request.state.charge(usage["total_tokens"])
    metrics.tokens.labels("llm").inc(n)
    metrics.ttft.observe(time.monotonic() - began)
    tell(request, mode="cloud", finish=finish, completion_tokens=n, relayed=field)
    headers = {
        "x-mode": "cloud", "x-degraded": "none", "x-route": f"slm=0, peer=0, llm={n}, degraded=0",
        "x-verified-tokens": str(n), "cache-control": "no-store",
    }  # fmt: skip
    whole = {
        "id": ChatWords(asked).id, "object": "chat.completion", "created": int(time.time()), "model": asked.model,
    }  # fmt: skip
    if asked.stream:
        parts = _parts({**whole, "object": "chat.completion.chunk"}, message, finish)
        if asked.includes_usage:
            parts.append({**whole, "object": "chat.completion.chunk", "choices": [], "usage": usage})
        return StreamingResponse(_events(parts), media_type="text/event-stream", headers=headers)
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    return JSONResponse({**whole, "choices": [choice], "usage": usage}, headers=headers)


def _asked(device: Device, asked: ChatRequest, field: str, request_id: str) -> Any:
    """The server's reply, through the tiers between; blocks."""
    upstream = device.upstream
    if upstream is None:
        raise Refusal(503, "mode cloud needs the LLM, and this device has no upstream.", "no_upstream")
    try:
        if not upstream.model().relays:
            text = "this LLM is read by fedtandem itself, which writes text; tools need a cloud with an endpoint."
            raise Refusal(400, f"{field}: {text}", "not_served", field)
        whole = asked.model_dump(mode="json", exclude_none=True, by_alias=True)
        body = {name: whole[name] for name in RELAYED if name in whole}
        if "max_completion_tokens" in whole:
            body["max_tokens"] = whole["max_completion_tokens"]
        headers = {"Content-Type": "application/json", "x-request-id": request_id}
        frame = json.dumps(body).encode()
        reply = upstream.post(RELAY, frame, device.config.request_timeout_s, headers, is_hedged=False)
        if reply.status_code == 429:
            raise Outage("busy")
        if reply.status_code != 200:
            raise Rejected(reply)
        return reply.json()
    except (Outage, Rejected) as fault:
        refusal = refusal_of_fault(fault, "cloud")
        assert refusal is not None
        raise refusal from fault
    except (ModelError, ValueError) as fault:
        raise Refusal(
            502, "the upstream cannot be used by this device; its log says why.", "bad_upstream"
        ) from fault


def _read(reply: Any) -> tuple[dict[str, Any], str, dict[str, int]]:
    """Message, finish reason and usage, as far as they are what the format says."""
    try:
        choice, used = reply["choices"][0], reply.get("usage") or {}
        message = choice["message"]
        calls = message.get("tool_calls") or []
        kept: dict[str, Any] = {"role": "assistant", "content": message.get("content"), "refusal": None}
        if calls:
            kept["tool_calls"] = [
                {"id": str(call["id"]), "type": "function",
                 "function": {name: str(call["function"][name]) for name in ("name", "arguments")}}
                for call in calls
            ]  # fmt: skip
        prompt, completion = (int(used.get(name, 0)) for name in ("prompt_tokens", "completion_tokens"))
        usage = {
            "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
        }  # fmt: skip
        return kept, str(choice["finish_reason"]), usage
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise Refusal(502, "the LLM's server sent no chat completion.", "bad_upstream") from error


def _parts(whole: Mapping[str, Any], message: Mapping[str, Any], finish: str) -> list[dict[str, Any]]:
    """The message as a stream's chunks."""
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": message["content"] or ""}]
    deltas += [{"tool_calls": [{"index": i, **call}]} for i, call in enumerate(message.get("tool_calls", []))]
    chunks = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None} for delta in deltas]
    last = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": finish}
    return [{**whole, "choices": [one]} for one in (*chunks, last)]


async def _events(parts: list[dict[str, Any]]) -> AsyncIterator[bytes]:
    for part in parts:
        yield b"data: " + json.dumps(part).encode() + b"\n\n"
    yield b"data: [DONE]\n\n"
