"""What the threat model promises and no other file tests; and that every test it names is there."""

import io
import json
import logging
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedtandem.config.serve import EdgeConfig
from fedtandem.exchange.verification import EMPTY, VerifyRequest
from fedtandem.inference.gates import namespace, token_gate
from fedtandem.inference.peers import Attested, sign
from fedtandem.inference.uplink import Draft, pack_block, pack_ids
from fedtandem.models.fingerprint import fingerprint
from fedtandem.models.load import ModelSpec, load_model
from fedtandem.serving.breaker import Breaker
from fedtandem.serving.edge import EdgeState
from fedtandem.serving.logs import LOGGER, start_logging
from fedtandem.serving.tenants import tenant_key
from fedtandem.serving.tiers import build_cloud, build_device

ROOT = Path(__file__).resolve().parents[2]
MARK = "Xanthippe"
PROMPT = "Q 3 + 5 * 2 A"
ANSWER = " 3 + 5 = 8 ; 8 * 2 = 6 ; # 6"


def test_every_test_the_threat_model_names_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "threat-model.md").read_text())
    assert len(named) > 30
    for file, name in named:
        assert f"def {name}(" in (ROOT / file).read_text(), f"{file}::{name}"


# -- what goes out -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("chat/completions", {"messages": [{"role": MARK, "content": "x"}]}),
        ("chat/completions", {"messages": [{"role": "user", "content": MARK, MARK: 1}], "n": 2}),
        ("chat/completions", {"messages": [{"role": "user", "content": MARK * 200}], "mode": "bounded"}),
        ("chat/completions", {"messages": [{"role": "user", "content": MARK}], "tools": [{"type": MARK}]}),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": MARK}], "response_format": {"type": MARK}},
        ),
        ("completions", {"prompt": MARK, "model": f"../../{MARK}"}),
        ("completions", {"prompt": [MARK, MARK]}),
        ("completions", {"prompt": MARK, "mode": MARK, "stop": MARK * 100, "user": MARK * 100}),
        ("completions", {"prompt": MARK * 1000}),
        ("embeddings", {"input": [[MARK]], "encoding_format": MARK}),
        ("embeddings", {"input": MARK, "model": MARK}),
    ],
)
def test_no_refusal_repeats_what_was_sent(url: str, path: str, body: dict) -> None:
    reply = httpx.post(f"{url}/{path}", json={"model": "fedtandem", **body}, timeout=60)
    assert 400 <= reply.status_code < 500, reply.text
    # A field's name is what the message is about; its value is not repeated.
    assert MARK not in reply.text.replace(f".{MARK}", "")
    assert MARK not in str(reply.headers)


def test_what_a_client_sends_cannot_forge_a_line_of_the_log(url: str) -> None:
    start_logging()
    lines = io.StringIO()
    handler = LOGGER.handlers[0]
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(lines)
    forged = '{"event":"request","key":"admin"}'
    try:
        for headers in ({"x-request-id": f"a\t{forged}"}, {"x-request-id": "ok", "user-agent": forged}):
            reply = httpx.post(f"{url}/models/%0a{forged}%1b[31m", headers=headers, timeout=60)
            assert reply.status_code in (404, 405)
        body = {"model": f"\n{forged}", "prompt": f"\n{forged}\x1b[2J"}
        assert httpx.post(f"{url}/completions", json=body, timeout=60).status_code == 404
    finally:
        handler.setStream(sys.stderr)
        LOGGER.handlers.clear()
    for line in lines.getvalue().splitlines():
        assert json.loads(line).get("key") != "admin"
    assert "\x1b" not in lines.getvalue()
    assert forged not in lines.getvalue()


# -- tenants -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory, lab) -> Iterator[str]:
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    lab.write_keys(file, ("a", "one", ["verify"]), ("b", "two", ["verify"]))
    config = lab.config(security={"keys": str(file)})
    with lab.Running([lambda _: build_cloud(config)], config) as one:
        yield one.urls["cloud"]


def test_a_verify_call_replayed_by_another_tenant_meets_nothing(cloud: str, lab) -> None:
    lm = load_model(ModelSpec("embedded:chains-server", tuning_method="none"))
    ids, card = lm.tokenizer.encode_prompt(PROMPT).tolist(), lm.tokenizer.card.hash
    first = VerifyRequest(
        session="s", model=fingerprint(lm.name, lm.model, card), tokenizer=card, base=0, known="", place=0, room=30,
        uplink="greedy", temperature=1.0, seed=0, top_k=30, top=-1, more=0, audits=0, scope="",
        new_ids=np.array(ids, np.int32), block=pack_block([], lm.tokenizer.vocab_size), embedding=EMPTY,
    )  # fmt: skip

    def post(body: bytes, key: str) -> httpx.Response:
        return httpx.post(f"{cloud}/v1/verify", content=body, headers=lab.bearer(key), timeout=120)

    mine = post(first.to_bytes(), "a")
    assert mine.status_code == 200
    # Caught on its way and sent with another key, it stands alone: the first tenant's session goes on unharmed.
    assert post(first.to_bytes(), "b").content == mine.content
    block = pack_block([Draft(5)], lm.tokenizer.vocab_size)
    assert post(replace(first, block=block).to_bytes(), "b").status_code == 200
    assert post(first.to_bytes(), "a").content == mine.content
    assert post(first.to_bytes(), "").status_code == 401


def test_another_tenants_entry_is_neither_found_nor_taken() -> None:
    secret, ids, vector = b"s" * 32, [1, 2, 3], np.ones(4, np.float32)
    with httpx.Client() as client:
        state = EdgeState(EdgeConfig(), client, secret)  # type: ignore[arg-type]
        mine, other = state.cache("one", 4), state.cache("two", 4)
        assert mine is not None and other is not None  # noqa: PT018
        scope, context = namespace("one", "m", "t", "s", "d"), token_gate(ids, 24)
        entry = sign(Attested("one", "m", scope, context, pack_ids([7]), 0.0), tenant_key(secret, "one"))
        assert mine.insert("device", vector, entry).taken
        assert mine.look_up(vector, scope, context, 1.0).outcome == "hit"
        # Neither by asking for its namespace, nor by bringing the entry along, nor with a signature of one's own.
        assert other.look_up(vector, scope, context, 1.0).entry is None
        assert other.insert("device", vector, entry).reason == "not attested"
        forged = sign(replace(entry, tenant="two"), b"guess" * 7)
        assert other.insert("device", vector, forged).reason == "not attested"
        changed = replace(entry, answer=pack_ids([8]))
        assert mine.insert("device", vector, changed).reason == "not attested"


# -- every fault is declared -------------------------------------------------------------------------------------------


class Faulty:
    """A real cloud's app; each verification goes as its turn in the schedule says."""

    def __init__(self, app) -> None:
        self.app, self.schedule = app, []

    async def __call__(self, scope, receive, send) -> None:
        way = self.schedule.pop(0) if scope.get("path") == "/v1/verify" and self.schedule else "good"
        if way == "good":
            return await self.app(scope, receive, send)
        if way == "lost":  # worked on, but the reply does not arrive

            async def swallow(message) -> None: ...

            await self.app(scope, receive, swallow)
        status = way if isinstance(way, int) else 200
        body = b"nonsense" if way == "garbled" else b"{}"
        status = 503 if way == "lost" else status
        headers = [(b"retry-after", b"1")] if status == 429 else []
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        return None


@pytest.fixture(scope="module")
def faulty(lab) -> Iterator[tuple[str, Faulty]]:
    config = lab.config(device={"request_timeout_s": 60.0})
    held: list[Faulty] = []

    def cloud(_: dict[str, str]):
        tier = build_cloud(config)
        held.append(Faulty(tier.app))
        return replace(tier, app=held[0])

    def device(urls: dict[str, str]):
        table = {"upstream": urls["cloud"]}
        with pytest.MonkeyPatch.context() as patched:
            # The real one is closed for seconds after five faults, and the later examples would meet it alone.
            patched.setattr("fedtandem.serving.upstream.Breaker", partial(Breaker, probe_s=0.01))
            return build_device(config.model_copy(update={"device": config.device.model_copy(update=table)}))

    with lab.Running([cloud, device], config) as one:
        yield one.urls["device"], held[0]


WAYS = st.lists(st.sampled_from(["good", 503, 500, 429, 409, 400, "lost", "garbled"]), max_size=6)


@settings(max_examples=40, deadline=None, database=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(
    ways=WAYS, mode=st.sampled_from(["exact", "fedhlm", "cloud"]), stream=st.booleans(),
    on_outage=st.sampled_from(["error", "degrade"]),
)  # fmt: skip
def test_every_injected_fault_yields_a_declared_mode(
    faulty: tuple[str, Faulty], ways: list, mode: str, stream: bool, on_outage: str
) -> None:
    """Property 14; and 13: what a stream shows is the beginning of the whole answer, nothing twice, nothing lost."""
    url, cloud = faulty
    cloud.schedule = list(ways)
    body = {"model": "fedtandem", "prompt": PROMPT, "temperature": 0, "mode": mode, "stream": stream,
            "on_outage": on_outage}  # fmt: skip
    reply = httpx.post(f"{url}/v1/completions", json=body, timeout=120)
    cloud.schedule = []
    if reply.status_code != 200:
        assert reply.status_code in (400, 429, 502, 503), reply.text
        assert reply.json()["error"]["code"]
        if reply.status_code in (429, 503):
            assert int(reply.headers["retry-after"]) >= 1
        return
    assert reply.headers["x-mode"] in (mode, "local")
    if stream:
        lines = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line]
        chunks = [json.loads(line) for line in lines if line != "[DONE]"]
        shown = "".join(chunk["choices"][0]["text"] for chunk in chunks if "choices" in chunk)
        if lines[-1] != "[DONE]":
            assert chunks[-1]["error"]["code"]
            assert ANSWER.startswith(shown)
            return
        account = chunks[-1]["fedtandem"]
    else:
        shown, account = reply.json()["choices"][0]["text"], reply.json()["fedtandem"]
        assert reply.headers["x-degraded"] == account["degraded"]
    # This SLM writes this answer as the LLM does, so a seam that lost or doubled a token would show.
    assert shown == ANSWER
    assert (account["degraded"] != "none") == (account["route"]["degraded"] > 0)
    assert account["degraded"] == "none" or account["degraded"].startswith("cloud-")
