"""What happens when the LLM is slow, down or busy: a declared mode, no token lost or doubled, no hung stream."""

import asyncio
import json
import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import pytest

from fedtandem.serving.breaker import CLOSED, HALF_OPEN, OPEN, Breaker
from fedtandem.serving.logs import LOGGER
from fedtandem.serving.tiers import build_cloud, build_device

PROMPT = "Q 3 + 5 * 2 A"
ANSWER = " 3 + 5 = 8 ; 8 * 2 = 6 ; # 6"


class Unreliable:
    """A real cloud's app, whose verifications after the first `good` ones go wrong for `bad` requests: each is answered
    with a status, or never."""

    def __init__(self, app) -> None:
        self.app = app
        self.good, self.bad, self.way = 10**9, 0, 503
        self.seen = 0

    def fails(self, good: int, bad: int, way: "int | str") -> None:
        self.good, self.bad, self.way, self.seen = good, bad, way, 0

    async def __call__(self, scope, receive, send) -> None:
        if scope.get("path") != "/v1/verify":
            return await self.app(scope, receive, send)
        self.seen += 1
        if not self.good < self.seen <= self.good + self.bad:
            return await self.app(scope, receive, send)
        if self.way == "hang":
            await asyncio.sleep(8)
        if self.way == "after":  # worked on, but the reply is lost on its way

            async def swallow(message) -> None: ...

            await self.app(scope, receive, swallow)
        status = self.way if isinstance(self.way, int) else 500
        headers = [(b"retry-after", b"1")] if status == 429 else []
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"{}"})
        return None


@pytest.fixture(scope="module")
def wired(lab) -> Iterator[tuple[str, Unreliable, list]]:
    """A device's address, its unreliable cloud, and the device's breakers to be reset."""
    config = lab.config(
        device={"deadline_ms": 4000.0, "prompt_deadline_ms": 4000.0, "request_timeout_s": 60.0}
    )
    held: dict = {}

    def cloud(_: dict[str, str]):
        tier = build_cloud(config)
        held["cloud"] = Unreliable(tier.app)
        return replace(tier, app=held["cloud"])

    def device(urls: dict[str, str]):
        pointed = config.device.model_copy(update={"upstream": urls["cloud"]})
        return build_device(config.model_copy(update={"device": pointed}))

    with lab.Running([cloud, device], config) as one:
        yield one.urls["device"], held["cloud"], []


@pytest.fixture
def url(wired) -> Iterator[str]:
    yield wired[0]
    wired[1].fails(10**9, 0, 503)
    # A success closes the breaker; while it is open, probes are 5 s apart.
    for _ in range(40):
        if ask(wired[0]).status_code == 200:
            return
        time.sleep(0.5)
    pytest.fail("the device did not recover")


@pytest.fixture
def cloud(wired) -> Unreliable:
    return wired[1]


def ask(url: str, **more: object) -> httpx.Response:
    body = {"model": "fedtandem", "prompt": PROMPT, "temperature": 0, **more}
    return httpx.post(f"{url}/v1/completions", json=body, timeout=60)


def text_of(reply: httpx.Response) -> str:
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]["text"]


@pytest.mark.parametrize("way", [503, "hang", "after"])
def test_a_second_try_hides_one_failure(url: str, cloud: Unreliable, way: "int | str") -> None:
    cloud.fails(1, 1, way)
    reply = ask(url)
    assert text_of(reply) == ANSWER
    assert reply.headers["x-degraded"] == "none"


@pytest.mark.parametrize(("way", "status"), [(503, 503), ("hang", 503), (429, 429)])
def test_exact_says_when_the_llm_is_gone(url: str, cloud: Unreliable, way: "int | str", status: int) -> None:
    cloud.fails(0, 99, way)
    began = time.monotonic()
    reply = ask(url)
    assert reply.status_code == status
    assert reply.json()["error"]["code"] == "llm_unavailable"
    assert int(reply.headers["retry-after"]) >= 1
    assert reply.headers["x-mode"] == "exact"
    assert time.monotonic() - began < 40


@pytest.mark.parametrize("good", [0, 1, 2])
def test_degrade_goes_on_from_the_committed_prefix_and_says_so(
    url: str, cloud: Unreliable, good: int
) -> None:
    cloud.fails(good, 99, 503)
    reply = ask(url, on_outage="degrade")
    text = text_of(reply)
    assert reply.headers["x-degraded"].startswith("cloud-")
    account = reply.json()["fedtandem"]
    assert account["route"]["degraded"] > 0
    assert sum(account["route"].values()) == reply.json()["usage"]["completion_tokens"]
    # This SLM writes this answer as the LLM does: a token lost or doubled at the seam would show.
    assert text == ANSWER


def test_a_stream_that_loses_the_llm_declares_it_at_its_end(url: str, cloud: Unreliable) -> None:
    cloud.fails(1, 99, 503)
    lines = [line for line in ask(url, stream=True, on_outage="degrade").text.split("\n\n") if line]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert lines[-1] == "data: [DONE]"
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == ANSWER
    assert chunks[-1]["fedtandem"]["degraded"].startswith("cloud-")


def test_a_stream_that_begins_without_the_llm_says_so_in_its_headers(url: str, cloud: Unreliable) -> None:
    cloud.fails(0, 99, 503)
    reply = ask(url, stream=True, on_outage="degrade")
    assert reply.headers["x-degraded"].startswith("cloud-")


def test_an_exact_stream_ends_with_an_error_and_what_it_showed_stands(url: str, cloud: Unreliable) -> None:
    cloud.fails(1, 99, 503)
    reply = ask(url, stream=True)
    lines = [json.loads(line.removeprefix("data: ")) for line in reply.text.split("\n\n") if line]
    shown = "".join(line["choices"][0]["text"] for line in lines[:-1])
    assert ANSWER.startswith(shown)
    assert shown
    assert lines[-1]["error"]["code"] == "llm_unavailable"


def test_stall_waits_until_the_llm_is_back(url: str, cloud: Unreliable) -> None:
    cloud.fails(1, 6, 503)
    reply = ask(url, on_outage="stall")
    assert text_of(reply) == ANSWER
    assert reply.headers["x-degraded"] == "none"


def test_fedhlm_goes_on_alone_without_being_asked_to(url: str, cloud: Unreliable) -> None:
    cloud.fails(0, 99, 503)
    reply = ask(
        url, mode="fedhlm", prompt="please write a poem about the sea", temperature=1, seed=1, max_tokens=40
    )
    assert text_of(reply)
    assert reply.headers["x-degraded"].startswith("cloud-")
    assert reply.json()["fedtandem"]["verified_tokens"] == 0


def test_the_breaker_opens_probes_and_closes() -> None:
    now = [0.0]
    breaker = Breaker(now_s=lambda: now[0])
    for _ in range(4):
        assert breaker.lets_through()
        breaker.failed()
    now[0] = 11.0  # the four have left the window
    breaker.failed()
    assert breaker.state == CLOSED
    for _ in range(4):
        breaker.failed()
    assert breaker.state == OPEN
    assert not breaker.lets_through()
    now[0] += 5.0
    assert breaker.state == HALF_OPEN
    assert breaker.lets_through()
    assert not breaker.lets_through()  # one probe at a time
    breaker.failed()
    assert breaker.probe_in_s == pytest.approx(5.0)
    now[0] += 5.0
    assert breaker.lets_through()
    breaker.succeeded()
    assert breaker.state == CLOSED


def test_a_client_that_goes_away_ends_the_work(url: str, cloud: Unreliable) -> None:
    body = {"model": "fedtandem", "prompt": "tell me", "stream": True, "max_tokens": 400, "mode": "local",
            "temperature": 1.9, "seed": 4}  # fmt: skip
    with (
        httpx.Client() as client,
        client.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as reply,
    ):
        next(reply.iter_lines())
    for _ in range(100):
        lines = httpx.get(f"{url}/metrics").text.splitlines()
        if "streams 0.0" in lines:
            return
        time.sleep(0.1)
    pytest.fail("the answer is still being written")


def test_more_than_may_wait_are_told_to_come_back(lab) -> None:
    config = lab.config(device={"upstream": None, "mode": "local", "max_streams": 1, "max_waiting": 1})
    with lab.Running([lambda _: build_device(config)], config) as one, ThreadPoolExecutor(12) as pool:
        device = one.urls["device"]
        replies = list(pool.map(lambda i: ask(device, temperature=1.9, seed=i, max_tokens=200), range(12)))
    statuses = [reply.status_code for reply in replies]
    assert set(statuses) == {200, 429}
    assert all(int(reply.headers["retry-after"]) >= 1 for reply in replies if reply.status_code == 429)


@pytest.mark.parametrize("streamed", [True, False])
def test_an_answer_that_outlives_the_service_says_so(lab, streamed: bool) -> None:
    """The LLM has gone and the answer waits for it: after `shutdown_s` who asked is told, not cut off."""
    cloud = lab.config()
    with lab.Running([lambda _: build_cloud(cloud)], cloud) as far:
        table = {"on_outage": "stall", "upstream": far.urls["cloud"]}
        config = lab.config(device=table, limits={"shutdown_s": 0.5})
        with lab.Running([lambda _: build_device(config)], config) as one, ThreadPoolExecutor(1) as pool:
            url = one.urls["device"]
            assert text_of(ask(url)) == ANSWER
            far.stop()
            held = pool.submit(ask, url, mode="exact", stream=streamed)
            while "streams 1.0" not in httpx.get(f"{url}/metrics").text.splitlines():
                time.sleep(0.01)
            one.stop()
            reply = held.result(60)
    assert reply.status_code == 503  # nothing was shown yet
    assert reply.json()["error"]["code"] == "service_ends"


def test_ready_only_where_the_mode_can_be_served(lab, tmp_path) -> None:
    lab.write_keys(tmp_path / "keys.toml", ("app", "one", ["infer"]))
    cloud = lab.config(security={"keys": str(tmp_path / "keys.toml")})
    with lab.Running([lambda _: build_cloud(cloud)], cloud) as far:
        for mode in ("fedhlm", "exact"):  # the cloud is there and takes no request without a key
            device = lab.config(device={"mode": mode, "upstream": far.urls["cloud"]})
            with lab.Running([lambda _, config=device: build_device(config)], device) as one:
                reply = httpx.get(f"{one.urls['device']}/readyz", timeout=60)
                assert reply.status_code == 503, mode
                assert "cannot be used" in reply.json()["llm"]


def test_the_log_says_once_why_an_upstream_is_lost() -> None:
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append((record.getMessage(), record.fields.get("why")))
    breaker = Breaker(name="https://cloud.example")
    LOGGER.addHandler(handler)
    try:
        for why in ("no route", "no route", "certificate has expired"):
            breaker.failed(why)
        breaker.succeeded()
        breaker.succeeded()
    finally:
        LOGGER.removeHandler(handler)
    assert said == [
        ("upstream lost", "no route"), ("upstream lost", "certificate has expired"), ("upstream back", None),
    ]  # fmt: skip


def test_ending_finishes_the_streams_that_are_open(lab) -> None:
    with lab.running() as one:
        body = {"model": "fedtandem", "prompt": PROMPT, "temperature": 0, "stream": True}
        with httpx.Client() as client, client.stream(
            "POST", f"{one.urls['device']}/v1/completions", json=body, timeout=60
        ) as reply:  # fmt: skip
            lines = reply.iter_lines()
            first = next(lines)
            one._loop.call_soon_threadsafe(one._told.set)
            rest = [line for line in lines if line]
    text = "".join(
        json.loads(line.removeprefix("data: "))["choices"][0]["text"] for line in [first, *rest[:-1]]
    )
    assert text == ANSWER
    assert rest[-1] == "data: [DONE]"


def test_without_its_edge_a_device_asks_the_cloud_itself(lab) -> None:
    config = lab.config()
    with lab.Running([lambda _: build_cloud(config)], config) as one:
        table = {"upstream": "http://127.0.0.1:9", "fallback": one.urls["cloud"]}
        with lab.Running([lambda _: build_device(lab.config(device=table))], config) as two:
            for _ in range(8):  # also once the breaker of the edge is open
                reply = ask(two.urls["device"], peer="draft")
                assert text_of(reply) == ANSWER
                assert reply.headers["x-degraded"] == "none"
            assert "breaker_state 2.0" in httpx.get(f"{two.urls['device']}/metrics").text
