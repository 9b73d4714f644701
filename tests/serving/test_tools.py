"""Tools: through to the LLM's own server with the official client; everywhere else refused by the field's name."""

import json
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import httpx
import pytest
from fastapi import FastAPI, Request

from fedtandem.serving.command import all_tiers
from fedtandem.serving.tiers import build_edge

openai = pytest.importorskip("openai")
TOOL = {
    "type": "function",
    "function": {
        "name": "weather", "description": "of a place",
        "parameters": {"type": "object", "properties": {"place": {"type": "string", "default": None}}},
    },
}  # fmt: skip
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"place": "Turku"}'},
}


@pytest.fixture(scope="module")
def served(lab) -> Iterator[SimpleNamespace]:
    """Three tiers before a server that calls the first tool it is given, once, and says what it was asked."""
    heard: list[dict] = []
    server = FastAPI()

    @server.post("/v1/chat/completions")
    async def chat(request: Request) -> dict:
        asked = await request.json()
        heard.append(asked)
        told = [one for one in asked["messages"] if one["role"] == "tool"]
        message = {"role": "assistant", "content": told[0]["content"]} if told else {
            "role": "assistant", "content": None, "tool_calls": [CALL]}  # fmt: skip
        finish = "stop" if told else "tool_calls"
        return {"id": "x", "object": "chat.completion", "model": "large", "created": 1,
                "choices": [{"index": 0, "message": message, "finish_reason": finish}],
                "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}}  # fmt: skip

    config = lab.config()
    stub = [lambda _: replace(build_edge(config), app=server)]
    with lab.Running(stub, config) as llm:
        table = {
            "endpoint": f"{llm.urls['edge']}/v1",
            "endpoint_model": "large",
            "tokenizer": "embedded:chains-server",
        }
        with lab.Running(all_tiers(lab.config(cloud=table)), lab.config()) as one:
            yield SimpleNamespace(url=f"{one.urls['device']}/v1", heard=heard)


@pytest.fixture
def client(served: SimpleNamespace):
    with openai.OpenAI(base_url=served.url, api_key="none", max_retries=0, timeout=120) as one:
        yield one


def chat(client, messages: list | None = None, **more: object):
    mode = {"extra_body": {"mode": "cloud"}}
    asked = {
        "model": "fedtandem",
        "messages": messages or [{"role": "user", "content": "Turku?"}],
        "tools": [TOOL],
    }
    return client.chat.completions.create(**{**asked, **mode, **more})


def test_a_tool_is_called_and_its_result_read(client, served: SimpleNamespace) -> None:
    first = chat(client, tool_choice="required", temperature=0, max_completion_tokens=50)
    (call,) = first.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"place": "Turku"})
    assert first.choices[0].finish_reason == "tool_calls"
    assert first.usage.total_tokens == 12
    heard = served.heard[-1]
    assert (heard["tools"], heard["tool_choice"], heard["max_tokens"]) == ([TOOL], "required", 50)
    assert (heard["model"], heard["temperature"]) == ("large", 0)
    told = [
        {"role": "user", "content": "Turku?"},
        first.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "rain"},
    ]
    second = chat(client, told)
    assert second.choices[0].message.content == "rain"
    assert served.heard[-1]["messages"] == told


def test_a_stream_has_the_call_in_its_parts(client) -> None:
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    calls = [call for chunk in chunks if chunk.choices for call in chunk.choices[0].delta.tool_calls or []]
    assert [(call.index, call.id, call.function.arguments) for call in calls] == [
        (0, "call_1", '{"place": "Turku"}')
    ]
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "tool_calls"
    assert chunks[-1].usage.total_tokens == 12


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"extra_body": {"mode": "exact"}}, "tools"),
        ({"extra_body": {"mode": "local"}}, "tools"),
        ({"extra_body": {"privacy": "local-only"}}, "tools"),
        ({"extra_body": {}}, "tools"),
        ({"tools": openai.NOT_GIVEN, "tool_choice": "none", "extra_body": {"mode": "exact"}}, "tool_choice"),
        ({"logprobs": True}, "logprobs"),
        ({"tools": [{"type": "web"}]}, "tools.0"),
        ({"tools": [{**TOOL, "function": {"name": "../etc"}}]}, "tools.0.function.name"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0"),
    ],
)
def test_what_cannot_be_honoured_names_its_field(client, more: dict, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, **more)
    assert caught.value.param.startswith(param)


def test_an_llm_that_fedtandem_reads_itself_calls_no_tools(url: str) -> None:
    body = {
        "model": "fedtandem",
        "messages": [{"role": "user", "content": "Turku?"}],
        "tools": [TOOL],
        "mode": "cloud",
    }
    reply = httpx.post(f"{url}/chat/completions", json=body, timeout=60)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "tools")
    assert "endpoint" in reply.json()["error"]["message"]
