"""What a distance to the LLM costs: every mode beside a plain stream from the LLM, at round trips of 10, 50 and 100 ms.

    python benchmarks/rtt.py [--prompts N] [--json FILE]

The embedded models behind the product's own tiers, in one process on loopback. A pass of the SLM takes 12 ms, one of
the LLM 30 ms, as in the specification's table: what the real pass leaves of that time is slept. Between client or
device and the LLM lies a proxy that passes every byte on after half a round trip, each way, in order and without
holding back those behind it. One greedy answer at a time, streamed, all modes on the same prompts.

- stream: the LLM alone, served as an OpenAI API behind the proxy: what one would have without a device.
- local, fedhlm, exact, cloud: the device's modes; its line to the cloud goes through the proxy, the client is beside
  it.
"""

import argparse
import asyncio
import json
import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import httpx
import torch

from fedtandem.config.serve import ServeConfig
from fedtandem.data.chains import ChainsSource
from fedtandem.models.language_model import LanguageModel
from fedtandem.serving import tiers
from fedtandem.serving.listening import Listening, run, until
from fedtandem.serving.tiers import build_cloud, build_device

PASS_S = {"embedded:chains-client-a": 0.012, "embedded:chains-server": 0.030}
RTT_MS = (10, 50, 100)
MODES = ("local", "fedhlm", "exact", "cloud")
SERVED = {"stream": "local"}
"""The LLM alone is the model of a device of its own."""
PATIENT = {"port": 0, "deadline_ms": 60_000, "prompt_deadline_ms": 60_000}


def main() -> None:
    parser = argparse.ArgumentParser(description="what a distance to the LLM costs")
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    plain = tiers._load
    tiers._load = lambda model: slowed(plain(model), PASS_S[str(model)])
    samples = ChainsSource(n=arguments.prompts, steps=(1, 2, 3), seed=77).samples()
    figures = measured([sample.prompt for sample in samples])
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


def slowed(lm: LanguageModel, pass_s: float) -> LanguageModel:
    """The same model, of another speed."""
    forward = lm._forward

    def slow(*inputs: Any) -> Any:
        began = time.monotonic()
        output = forward(*inputs)
        time.sleep(max(0.0, began + pass_s - time.monotonic()))
        return output

    lm._forward = slow  # type: ignore[method-assign]
    return lm


# -- what lies between --------------------------------------------------------------------------------------------


class Distance:
    """A proxy on loopback that passes bytes on later.

    Attributes:
        one_way_s: how much later.
        port: where it listens.
    """

    def __init__(self, target: str) -> None:
        url = httpx.URL(target)
        self._target = (url.host, url.port)
        self.one_way_s = 0.0
        self.port = 0

    async def listen(self) -> None:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]

    async def _connected(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        far, forth = await asyncio.open_connection(*self._target)
        await asyncio.gather(self._passed_on(near, forth), self._passed_on(far, back))

    async def _passed_on(self, source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while part := await source.read(1 << 16):
            loop.call_later(self.one_way_s, to.write, part)  # equal delays keep their order
        loop.call_later(self.one_way_s, to.close)


class Place:
    """The LLM twice (as a cloud, and alone as an OpenAI API), two proxies, a device; in a thread of their own."""

    def __init__(self) -> None:
        config = ServeConfig.model_validate({"device": PATIENT, "cloud": {"port": 0}})
        self._cloud = Listening(build_cloud(config), config)
        alone = {**PATIENT, "model": config.cloud.model, "mode": "local", "upstream": None}
        alone_config = ServeConfig.model_validate({"device": alone})
        self._alone = Listening(build_device(alone_config), alone_config)
        self.proxies = [Distance(self._cloud.url), Distance(self._alone.url)]
        self._is_up = threading.Event()
        threading.Thread(target=lambda: run(self._serve()), daemon=True).start()
        self._is_up.wait()

    async def _serve(self) -> None:
        for proxy in self.proxies:
            await proxy.listen()
        own = {**PATIENT, "upstream": f"http://127.0.0.1:{self.proxies[0].port}"}
        config = ServeConfig.model_validate({"device": own})
        device = await asyncio.to_thread(lambda: Listening(build_device(config), config))
        self.urls = dict.fromkeys(MODES, device.url)
        self.urls["stream"] = f"http://127.0.0.1:{self.proxies[1].port}"
        self._is_up.set()
        await until(asyncio.Event(), [self._cloud, self._alone, device])


# -- figures ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """One answer as a client sees it."""

    text: str
    tokens: int
    first_s: float
    seconds: float
    llm_passes: int


def ask(client: httpx.Client, url: str, prompt: str, mode: str) -> Seen:
    body = {"model": "fedtandem", "prompt": prompt, "temperature": 0, "max_tokens": 64, "stream": True,
            "mode": mode, "stream_options": {"include_usage": True}}  # fmt: skip
    text, told, used, first_s = "", {}, {}, 0.0
    began = time.monotonic()
    with client.stream("POST", f"{url}/v1/completions", json=body) as reply:
        reply.raise_for_status()
        for line in reply.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            written = "".join(choice["text"] for choice in chunk["choices"])
            first_s = first_s or (time.monotonic() - began if written else 0.0)
            text += written
            told, used = chunk.get("fedtandem", told), chunk["usage"] or used
    return Seen(text, used["completion_tokens"], first_s, time.monotonic() - began, told["llm_passes"])


def measured(prompts: Sequence[str], say: Callable[[str], None] = print) -> dict[str, Any]:
    say(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; {len(prompts)} prompts")
    place, figures = Place(), {}
    with httpx.Client(timeout=120) as client:
        for mode, url in place.urls.items():
            ask(client, url, prompts[0], SERVED.get(mode, mode))  # connections, tokenizers
        say(
            f"{'RTT':>6} {'mode':<8}{'tokens/s':>10}{'answer ms':>11}{'first ms':>10}{'passes':>9}{'as LLM':>9}"
        )
        for rtt_ms in RTT_MS:
            for proxy in place.proxies:
                proxy.one_way_s = rtt_ms / 2000
            arms = {
                mode: [ask(client, place.urls[mode], prompt, SERVED.get(mode, mode)) for prompt in prompts]
                for mode in ("stream", *MODES)
            }  # fmt: skip
            for mode, seen in arms.items():
                row = summary(seen, arms["stream"])
                figures[f"{mode} {rtt_ms}"] = row
                say(f"{rtt_ms:>6} {mode:<8}{row['tokens_per_s']:>10.1f}{row['answer_ms']:>11.0f}"
                    f"{row['first_ms']:>10.0f}"
                    f"{row['llm_passes']:>9.2f}{row['equal']:>6}/{len(seen)}")  # fmt: skip
    return figures


def summary(seen: Sequence[Seen], streamed: Sequence[Seen]) -> dict[str, float]:
    """Tokens of all answers over their time; medians of an answer and its first text; passes a token; equal texts."""
    tokens = sum(one.tokens for one in seen)
    return {
        "tokens_per_s": tokens / sum(one.seconds for one in seen),
        "answer_ms": 1000 * statistics.median(one.seconds for one in seen),
        "first_ms": 1000 * statistics.median(one.first_s for one in seen),
        "llm_passes": sum(one.llm_passes for one in seen) / tokens,
        "equal": sum(one.text == other.text for one, other in zip(seen, streamed, strict=True)),
    }


if __name__ == "__main__":
    main()
