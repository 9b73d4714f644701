"""Processes that are killed, lines that fall silent, floods and nonsense: no token lost or doubled, nothing hangs.

Cloud and edge are processes of their own, so that their death is one; a relay on the line strikes before a chosen
verification. Longer: FEDTANDEM_CHAOS=10000 random bodies.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from fedtandem.exchange.verification import EMPTY, VerifyRequest
from fedtandem.serving.tiers import build_device

N_BODIES = int(os.environ.get("FEDTANDEM_CHAOS", "150"))
PROMPT = "Q 3 + 5 * 2 A"
ANSWER = " 3 + 5 = 8 ; 8 * 2 = 6 ; # 6"
"""What the LLM writes, and this SLM too: a token lost or doubled at a seam would show."""
ENDS_S = 600.0
"""The device's limit for a whole answer here; nothing may last longer. A process takes its time to start where others
work too, and one answer waits for that."""
GROWS_MIB = 48.0
"""Of a process under thousands of requests: buffers and what allocators keep."""


class Served:
    """`fedtandem serve WHAT` on a port that it keeps over its deaths."""

    def __init__(self, what: str, *overrides: str) -> None:
        self._what, self._overrides = what, overrides
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port = one.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        words = [f"{self._what}.port={self.port}", "limits.body_timeout_s=1", *self._overrides]
        command = [sys.executable, "-m", "fedtandem", "serve", self._what]
        self.process = subprocess.Popen(
            [*command, *(part for word in words for part in ("-o", word))],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def wait(self) -> None:
        for _ in range(6000):
            try:
                if httpx.get(f"{self.url}/healthz", timeout=5).status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(0.1)
        pytest.fail(f"the {self._what} does not start")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    @property
    def rss_mib(self) -> float:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Relay:
    """A TCP line: before the n-th verification something is done, or it falls silent, open as it is."""

    def __init__(self, port: int) -> None:
        self._port, self._is_silent = port, threading.Event()
        self._left, self._strike = 0, lambda: None
        self._lines: list[socket.socket] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def before(self, verification: int, strike: Callable[[], None]) -> None:
        self._left, self._strike = verification, strike

    def fall_silent(self) -> None:
        self._is_silent.set()

    def heal(self) -> None:
        """What was silent stays so; new connections are served."""
        self._is_silent = threading.Event()

    def close(self) -> None:
        for one in (self._listening, *self._lines):
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                one, _ = self._listening.accept()
            except OSError:
                return
            try:
                other = socket.create_connection(("127.0.0.1", self._port))
            except OSError:
                one.close()
                continue
            self._lines += [one, other]
            for source, sink, asks in ((one, other, True), (other, one, False)):
                threading.Thread(
                    target=self._carry, args=(source, sink, asks, self._is_silent), daemon=True
                ).start()

    def _carry(self, source: socket.socket, sink: socket.socket, asks: bool, silent: threading.Event) -> None:
        try:
            while part := source.recv(1 << 16):
                if asks and b"POST /v1/verify" in part and self._left:
                    self._left -= 1
                    if not self._left:
                        self._strike()
                if not silent.is_set():  # half-open: taken, and never passed on
                    sink.sendall(part)
        except OSError:
            pass
        finally:
            if not silent.is_set():
                source.close()
                sink.close()


class Place:
    """Cloud and edge as processes, a relay, and a device behind it."""

    def __init__(self, cloud: Served, edge: Served, relay: Relay, device: str, alone: str) -> None:
        self.cloud, self.edge, self.relay, self.device, self.alone = cloud, edge, relay, device, alone


@pytest.fixture
def place(wired: Place) -> Place:
    """All well, whatever the test before left."""
    for one in (wired.cloud, wired.edge):
        if one.process.poll() is not None:
            one.start()
        one.wait()
    wired.relay.before(0, lambda: None)
    wired.relay.heal()
    for device in (wired.device, wired.alone):
        comes_back(device)
    return wired


@pytest.fixture(scope="module")
def wired(lab) -> Iterator[Place]:
    cloud = Served("cloud")
    edge = Served("edge", f"edge.upstream={cloud.url}")
    for one in (cloud, edge):
        one.wait()
    relay = Relay(edge.port)
    table = {
        "upstream": relay.url,
        "request_timeout_s": ENDS_S,
        "deadline_ms": 6000.0,
        "prompt_deadline_ms": 12000.0,
    }
    limits = {"body_timeout_s": 1.0}
    try:
        with (
            lab.Running([lambda _: build_device(lab.config(device={**table, "fallback": cloud.url}, limits=limits))],
                        lab.config(limits=limits)) as both,
            lab.Running([lambda _: build_device(lab.config(device=table))], lab.config()) as alone,
        ):  # fmt: skip
            yield Place(cloud, edge, relay, both.urls["device"], alone.urls["device"])
    finally:
        relay.close()
        for one in (cloud, edge):
            one.kill()


def ask(device: str, **more: object) -> httpx.Response:
    body = {"model": "fedtandem", "prompt": PROMPT, "temperature": 0, **more}
    began = time.monotonic()
    reply = httpx.post(f"{device}/v1/completions", json=body, timeout=2 * ENDS_S)
    assert time.monotonic() - began < ENDS_S + 30, "an answer outlasted its limit"
    return reply


def told(reply: httpx.Response) -> tuple[str, str]:
    """Text, and what is said of degradation."""
    assert reply.status_code == 200, reply.text
    if not reply.headers["content-type"].startswith("text/event-stream"):
        return reply.json()["choices"][0]["text"], reply.headers["x-degraded"]
    lines = [json.loads(line[6:]) for line in reply.text.split("\n\n") if line and line != "data: [DONE]"]
    text = "".join(line["choices"][0]["text"] for line in lines if "choices" in line)
    return text, lines[-1]["error"]["code"] if "error" in lines[-1] else lines[-1]["fedtandem"]["degraded"]


def comes_back(device: str) -> None:
    for _ in range(200):
        reply = ask(device)
        if reply.status_code == 200:
            assert told(reply) == (ANSWER, "none")
            return
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "llm_unavailable")
        time.sleep(0.5)
    pytest.fail("the device did not recover")


@pytest.mark.parametrize("stream", [False, True])
def test_a_killed_cloud_is_declared_and_comes_back(place: Place, stream: bool) -> None:
    place.relay.before(2, place.cloud.kill)
    if not stream:
        text, degraded = told(ask(place.device, on_outage="degrade"))
        assert (text, degraded[:6]) == (ANSWER, "cloud-")
        refused = ask(place.device)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "llm_unavailable")
        assert int(refused.headers["retry-after"]) >= 1
        doubtful = {
            "prompt": "please write a poem about the sea",
            "temperature": 1,
            "seed": 1,
            "max_tokens": 24,
        }
        text, degraded = told(ask(place.device, mode="fedhlm", stream=True, **doubtful))
        assert text
        assert degraded.startswith("cloud-")
        place.cloud.start()
    else:  # in mid-answer, and waited for: the cloud that comes back knows nothing of it
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(ask, place.device, on_outage="stall", stream=True)
            place.cloud.process.wait()
            place.cloud.start()
            assert told(waiting.result()) == (ANSWER, "none")
    place.cloud.wait()
    for device in (place.device, place.alone):
        comes_back(device)


def test_a_killed_edge_is_gone_around_and_comes_back(place: Place) -> None:
    place.relay.before(2, place.edge.kill)
    assert told(ask(place.device, stream=True)) == (ANSWER, "none")
    assert told(ask(place.device)) == (ANSWER, "none")
    text, degraded = told(ask(place.alone, on_outage="degrade"))
    assert (text, degraded[:6]) == (ANSWER, "cloud-")
    place.edge.start()
    place.edge.wait()
    comes_back(place.alone)


def test_a_line_that_falls_silent_is_given_up_in_time(place: Place) -> None:
    place.relay.before(2, place.relay.fall_silent)
    assert told(ask(place.device)) == (ANSWER, "none")  # the second try goes around it
    text, degraded = told(ask(place.alone, on_outage="degrade", stream=True))
    assert (text, degraded[:6]) == (ANSWER, "cloud-")
    refused = ask(place.alone)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "llm_unavailable")
    place.relay.heal()
    comes_back(place.alone)
    place.relay.before(2, place.relay.fall_silent)
    text, code = told(ask(place.alone, stream=True))
    assert code == "llm_unavailable"
    assert text
    assert ANSWER.startswith(text)
    place.relay.heal()
    comes_back(place.alone)


@pytest.mark.parametrize("tier", ["device", "edge", "cloud"])
def test_bodies_that_drip_are_ended_and_hold_up_nobody(place: Place, tier: str) -> None:
    port = {"device": httpx.URL(place.device).port, "edge": place.edge.port, "cloud": place.cloud.port}[tier]
    path = "/v1/completions" if tier == "device" else "/v1/verify"
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 900\r\n\r\n{{"
    )
    slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
    for one in slow:
        one.sendall(head.encode())
    assert told(ask(place.device)) == (ANSWER, "none")
    for one in slow:
        one.settimeout(30)
        try:
            one.sendall(b" ")
            assert b" 408 " in one.recv(4096).split(b"\r\n")[0]
        except (BrokenPipeError, ConnectionResetError):
            pass  # answered and closed before the byte was sent
        finally:
            one.close()


def test_ten_times_too_many_are_told_to_come_back(lab, place: Place) -> None:
    table = {"upstream": place.edge.url, "max_streams": 2, "max_waiting": 2}
    config = lab.config(device=table)
    with lab.Running([lambda _: build_device(config)], config) as one, ThreadPoolExecutor(40) as pool:
        replies = list(pool.map(lambda i: ask(one.urls["device"], stream=i % 2 == 0), range(40)))
    assert {reply.status_code for reply in replies} == {200, 429}
    for reply in replies:
        if reply.status_code == 429:
            assert int(reply.headers["retry-after"]) >= 1
        else:
            assert told(reply) == (ANSWER, "none")


def bodies(n: int) -> Iterator[tuple[str, str, bytes]]:
    """(tier, path, body): noise, JSON that is nothing, and what is nearly right."""
    dice = random.Random(5)
    asked = {
        "model": "fedtandem",
        "prompt": PROMPT,
        "max_tokens": 4,
        "temperature": 0,
        "mode": "local",
        "stop": ["#"],
    }
    frame = VerifyRequest(
        session="s", model="m", tokenizer="t", base=0, known="", place=0, room=9, uplink="greedy", temperature=1.0,
        seed=0, top_k=30, top=2, more=2, audits=0, scope="", block=b"", embedding=EMPTY,
        new_ids=np.arange(9, dtype=np.int32),
    ).to_bytes()  # fmt: skip
    right = {
        "/v1/completions": json.dumps(asked).encode(),
        "/v1/chat/completions": b'{"model":"fedtandem","messages":[{"role":"user","content":"Q 1 A"}],"max_tokens":2}',
        "/v1/embeddings": b'{"model":"fedtandem","input":["Q 1 A"]}',
        "/v1/verify": frame,
        "/v1/resolve": b'{"scope":"00","model":"m","tokenizer":"t","decoding":"d","context":"00","embedding":"AAA="}',
        "/v1/fl/report": frame,
    }
    places = [("device", path) for path in list(right)[:3]] + [("edge", path) for path in list(right)[3:]]
    for _ in range(n):
        tier, path = dice.choice([*places, ("cloud", "/v1/verify")])
        body = bytearray(right[path])
        kind = dice.randrange(4)
        if kind == 0:
            body = bytearray(dice.randbytes(dice.randrange(2000)))
        elif kind == 1:
            body = bytearray(
                dice.choice([b"[" * 20000, b'{"model": 1e999}', b"null", b'"\\ud800"', b"{}" * 50, b"-0"])
            )
        elif kind == 2:
            body = body[: dice.randrange(len(body))]
        else:
            for _ in range(dice.randrange(1, 6)):
                body[dice.randrange(len(body))] = dice.randrange(256)
        yield tier, path, bytes(body)


def test_random_bodies_break_nothing(place: Place) -> None:
    urls = {"device": place.device, "edge": place.edge.url, "cloud": place.cloud.url}
    held: list[float] = []
    with httpx.Client(timeout=60) as client:
        for i, (tier, path, body) in enumerate(bodies(N_BODIES)):
            if i == N_BODIES // 5:
                held = [place.cloud.rss_mib, place.edge.rss_mib]
            kind = "application/json" if path != "/v1/verify" else "application/octet-stream"
            reply = client.post(urls[tier] + path, content=body, headers={"content-type": kind})
            assert reply.status_code < 500, (tier, path, body[:200], reply.text)
            if reply.status_code >= 400:
                assert reply.json()["error"]["code"], (tier, path, body[:200])
    assert told(ask(place.device)) == (ANSWER, "none")
    for one, before in zip((place.cloud, place.edge), held, strict=True):
        assert one.rss_mib < before + GROWS_MIB
