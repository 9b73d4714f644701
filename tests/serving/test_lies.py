"""A cloud or an edge that errs or lies: what it says is checked, and what cannot be is an outage that is declared."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace

import httpx
import numpy as np
import pytest

from fedtandem.errors import InvalidMessage
from fedtandem.exchange.verification import EMPTY, VerifyReply, VerifyRequest
from fedtandem.serving.hearing import refuse_what_cannot_be
from fedtandem.serving.tiers import build_cloud, build_device

PROMPT = "Q 3 + 5 * 2 A"
ANSWER = " 3 + 5 = 8 ; 8 * 2 = 6 ; # 6"
NONE_F, NONE_I = np.zeros(0, np.float32), np.zeros(0, np.int32)


def changed(**fields: object) -> Callable[[bytes], bytes]:
    return lambda body: replace(VerifyReply.from_bytes(body), **fields).to_bytes()


LIES: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda body: b"",
    "noise": lambda body: b"\x00\xff" * 300,
    "half a frame": lambda body: body[: len(body) // 2],
    "a flipped byte": lambda body: body[:-9] + bytes([body[-9] ^ 1]) + body[-8:],
    "a web page": lambda body: b"<html>sign in to this network</html>",
    "ids beyond the vocabulary": changed(tokens=np.array([10**6], np.int32), accepted=0),
    "negative ids": changed(tokens=np.array([-3], np.int32), accepted=0),
    "drafts nobody sent": changed(tokens=np.array([5] * 9, np.int32), accepted=9),
    "more than was asked for": changed(tokens=np.array([5] * 400, np.int32), accepted=0),
    "a billion passes": changed(passes=10**6),
    "log-probabilities that are none": changed(
        tokens=np.array([5], np.int32), accepted=0, log_probs=np.array([np.nan], np.float32)
    ),
    "audits of nothing": changed(disagreed=np.array([7] * 50, np.uint8)),
}


class Liar:
    """A real cloud's app whose answers on one path are changed on their way, from the `after`-th on."""

    def __init__(self, app) -> None:
        self.app = app
        self.tell("", None, 0)

    def tell(self, path: str, lie: "Callable[[bytes], bytes] | None", after: int) -> None:
        self.path, self.lie, self.after, self.seen = path, lie, after, 0

    async def __call__(self, scope, receive, send) -> None:
        if scope.get("path") != self.path or self.lie is None:
            return await self.app(scope, receive, send)
        self.seen += 1
        if self.seen <= self.after:
            return await self.app(scope, receive, send)
        held = bytearray()

        async def hold(message) -> None:
            if message["type"] == "http.response.body":
                held.extend(message.get("body", b""))

        await self.app(scope, receive, hold)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": self.lie(bytes(held))})
        return None


@pytest.fixture(scope="module")
def wired(lab) -> Iterator[SimpleNamespace]:
    held = SimpleNamespace()

    def cloud(_: dict[str, str]):
        tier = build_cloud(lab.config())
        held.liar = Liar(tier.app)
        return replace(tier, app=held.liar)

    def device(urls: dict[str, str]):
        return build_device(lab.config(device={"upstream": urls["cloud"]}))

    with lab.Running([cloud, device], lab.config()) as one:
        held.device, held.cloud = one.urls["device"], one.urls["cloud"]
        yield held


def ask(url: str, **more: object) -> httpx.Response:
    body = {"model": "fedtandem", "prompt": PROMPT, "temperature": 0, **more}
    return httpx.post(f"{url}/v1/completions", json=body, timeout=120)


@pytest.mark.parametrize("name", LIES)
def test_a_verdict_that_cannot_be_is_an_outage(wired: SimpleNamespace, name: str) -> None:
    wired.liar.tell("/v1/verify", LIES[name], 1)
    reply = ask(wired.device, on_outage="degrade", stream=True)
    lines = [json.loads(line[6:]) for line in reply.text.split("\n\n") if line and line != "data: [DONE]"]
    assert "".join(line["choices"][0]["text"] for line in lines) == ANSWER
    assert lines[-1]["fedtandem"]["degraded"] == "cloud-faulty"
    wired.liar.tell("/v1/verify", LIES[name], 0)
    refused = ask(wired.device)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "llm_unavailable")
    wired.liar.tell("", None, 0)
    assert ask(wired.device).json()["choices"][0]["text"] == ANSWER


@pytest.mark.parametrize(
    "said", [b"[]", b"{}", b'{"schema": 1}', b"[" * 50_000, b"null", b'{"model": 3, "limit": "x"}', b"\xff"]
)
def test_a_cloud_that_does_not_say_what_it_is(lab, wired: SimpleNamespace, said: bytes) -> None:
    wired.liar.tell("/v1/model", lambda _: said, 0)
    config = lab.config(device={"upstream": wired.cloud})
    with lab.Running([lambda _: build_device(config)], config) as one:
        refused = ask(one.urls["device"])
        assert refused.status_code in (502, 503)
        assert refused.json()["error"]["code"] in ("bad_upstream", "llm_unavailable")
        wired.liar.tell("", None, 0)


def test_every_verdict_that_can_be_is_believed(wired: SimpleNamespace) -> None:
    for mode, logprobs in (("exact", None), ("exact", 2), ("cloud", 0), ("fedhlm", 3)):
        reply = ask(wired.device, mode=mode, logprobs=logprobs, seed=4, temperature=1, max_tokens=12)
        assert (reply.status_code, reply.headers["x-degraded"]) == (200, "none")


def test_what_is_refused_is_named() -> None:
    asked = VerifyRequest(
        session="s", model="m", tokenizer="t", base=0, known="", place=0, room=3, uplink="greedy", temperature=1.0,
        seed=0, top_k=30, top=-1, more=0, audits=0, scope="", new_ids=np.arange(3, dtype=np.int32), block=b"",
        embedding=EMPTY,
    )  # fmt: skip
    good = VerifyReply(
        np.array([1, 2], np.int32), 1, 1, NONE_I, np.zeros(0, np.uint8), NONE_F, NONE_I, NONE_F
    )
    refuse_what_cannot_be(good, asked, [1], 5)
    for fields, word in (
        ({"tokens": np.array([1, 5], np.int32)}, "vocabulary"),
        ({"tokens": np.array([3, 2], np.int32)}, "drafts"),
        ({"tokens": np.array([1, 2, 3], np.int32)}, "room"),
    ):
        with pytest.raises(InvalidMessage, match=word):
            refuse_what_cannot_be(replace(good, **fields), asked, [1], 5)
