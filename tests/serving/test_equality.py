"""`exact` through HTTP writes what the LLM alone writes, by many at once, streamed or not."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import httpx
import pytest

from fedtandem.data.chains import ChainsSource
from fedtandem.inference.decode import DecodeSettings
from fedtandem.inference.generate import Generation, generate
from fedtandem.models.load import ModelSpec, load_model

N_PROMPTS = int(os.environ.get("FEDTANDEM_PROMPTS", "24"))
"""FEDTANDEM_PROMPTS=200 for a long look."""
NEW_TOKENS = 32
SEED = 40


@cache
def prompts() -> list[str]:
    return [sample.prompt for sample in ChainsSource(n=N_PROMPTS, steps=(1, 2, 3), seed=77).samples()]


@cache
def alone(uplink: str) -> list[Generation]:
    server = load_model(ModelSpec("embedded:chains-server", tuning_method="none"))
    chosen = DecodeSettings(mode="cloud", uplink=uplink, max_new_tokens=NEW_TOKENS, seed=SEED)
    return generate(None, server, prompts(), chosen)


def asked(url: str, i: int, temperature: float, **more: object) -> dict:
    return {
        "model": "fedtandem", "prompt": prompts()[i], "temperature": temperature, "seed": SEED + i,
        "max_tokens": NEW_TOKENS, **more,
    }  # fmt: skip


def whole(client: httpx.Client, url: str, i: int, temperature: float) -> str:
    reply = client.post(f"{url}/completions", json=asked(url, i, temperature), timeout=300)
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]["text"]


def streamed(client: httpx.Client, url: str, i: int, temperature: float) -> str:

    text = ""
    with client.stream(
        "POST", f"{url}/completions", json=asked(url, i, temperature, stream=True), timeout=300
    ) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
    return text


@pytest.mark.parametrize(("uplink", "temperature"), [("greedy", 0.0), ("shared_noise", 1.0)])
def test_exact_equals_the_llm_alone(url: str, uplink: str, temperature: float) -> None:
    with httpx.Client() as client, ThreadPoolExecutor(8) as pool:
        ways = [whole, streamed]
        came = list(pool.map(lambda i: ways[i % 2](client, url, i, temperature), range(N_PROMPTS)))
    differ = [i for i, answer in enumerate(alone(uplink)) if came[i] != answer.text]
    # Sums in a batch come out otherwise in their last bits: only there may an answer differ.
    assert all(alone(uplink)[i].record.near_ties for i in differ)
    assert len(differ) <= max(1, N_PROMPTS // 100)
    print(f"{uplink}: {N_PROMPTS} prompts, {len(differ)} differ, each at a near tie")
