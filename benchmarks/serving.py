"""What the serving tiers cost beside the models: one device and one cloud on loopback, with models that take no time.

    python benchmarks/serving.py [--only device|cloud|soak] [--seconds S] [--soak S] [--json FILE]

The models are stubs of this file: the real reader over a forward pass that returns the same sure law at once, so that
whatever is measured is ours. Tokenizer: the embedded one (V 300 or so). Device, cloud and pass-through are processes of
their own; the load is wrk's (Debian package `wrk`, compiled), one thread, 50 connections that stay open, a closed loop:
each waits for its answer, then for a random time around the pause that is printed, then asks again.

- pass-through: a plain FastAPI app, one route that reads JSON, asks the same model token by token in its handler and
  streams the same chunks. No key, log, metric, thread, routing.
- direct: the same model asked by a loop in this process, one answer at a time.
- loop: the decoding loop in this process on the same models (settings, uncertainty, noise), no HTTP.
- local, fedhlm, exact: the device, streamed. `fedhlm` measures u of every token and is always sure: HTTP and routing.
  `exact` has every block verified by the cloud, over HTTP.
Per request: p50 and p95 of wrk, and CPU of the process that serves, of answers of 1 token; per token: the same of
answers of 64 tokens, less those of 1, over 63. `full`: no pause, 50 requests in flight at any time; their latency is
then the queue's, and says nothing beyond requests per second and CPU.
- verifies: distinct requests (a new session and 20 ids each, 6 drafts) to the cloud, no pause; `embedded` is the
  embedded LLM behind it.
- soak (only with `--soak`): device and cloud with null models, all modes, streamed and whole, 50 connections; every
  answer is read to its end. Memory of both every 5 s; flat: the means of the last fifth and of the second one.
Targets: overhead over direct p50 <= 2 ms, p95 <= 8 ms a request, <= 0.3 ms a token; >= 500 verifies/s; no error, memory
within 5 %.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from torch import Tensor

from fedtandem.config.serve import ServeConfig
from fedtandem.exchange.verification import EMPTY, VerifyRequest
from fedtandem.federation.generate import TAU, measure
from fedtandem.inference.generate import generate
from fedtandem.inference.settings import DecodeSettings
from fedtandem.inference.uplink import Draft, pack_block
from fedtandem.models.language_model import LanguageModel
from fedtandem.models.load import ModelSpec, load_model
from fedtandem.models.session_reader import SessionReader
from fedtandem.serving import tiers
from fedtandem.serving.admission import Admission
from fedtandem.serving.keys import Keyring
from fedtandem.serving.listening import Listening, run, until
from fedtandem.serving.logs import start_logging
from fedtandem.serving.tiers import Tier, build_cloud, build_device

STREAMS, TOKENS = 50, 64
PAUSE_S = {1: 0.5, TOKENS: 2.5}
"""Mean pause between two requests of a connection, by tokens of an answer: 100 and 20 requests a second at most."""
SOAK_PAUSE_S = 4.5
"""At most twice that: a connection that says nothing for `limits.header_timeout_s` (10) at its beginning is cut off."""
PROMPT = "Q 3 + 5 * 2 A"
MODES = ("local", "fedhlm", "exact")
TICKS = os.sysconf("SC_CLK_TCK")
CONFIG = ServeConfig.model_validate(
    {
        # Patient: a machine with other work is no outage.
        "device": {"port": 0, "max_streams": 64, "deadline_ms": 60_000, "prompt_deadline_ms": 60_000},
        "cloud": {"port": 0},
        "limits": {"requests_per_minute": 10**9},
    }
)
LUA = """
local bodies, at, threads = {}, 0, {}
for part in io.open("%(file)s", "rb"):read("*a"):gmatch("(.-)\\nNEXT\\n") do bodies[#bodies + 1] = part end
bad, told = 0, 0
wrk.method = "POST"
wrk.headers["Content-Type"] = "%(kind)s"
function setup(thread) table.insert(threads, thread) end
function request()
  at = at %% #bodies + 1
  return wrk.format(nil, nil, nil, bodies[at])
end
local pause = %(pause_ms)d
if pause > 0 then function delay() return math.random(0, 2 * pause) end end
if %(reads)s then
  function response(status, headers, body)
    if status == 429 or status == 503 then told = told + 1
    elseif status == 200 and not body:find("[DONE]", 1, true) and not body:find('"usage":', 1, true) then
      bad = bad + 1
    end
  end
end
function done(summary, latency, requests)
  local e, cut, refused = summary.errors, 0, 0
  for _, thread in ipairs(threads) do cut, refused = cut + thread:get("bad"), refused + thread:get("told") end
  print(string.format('JSON {"requests": %%d, "s": %%f, "p50_ms": %%f, "p95_ms": %%f, "errors": %%d, "declared": %%d}',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(95) / 1e3,
    e.connect + e.read + e.write + e.status + e.timeout + cut, refused))
end
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="what serving costs beside the models")
    parser.add_argument("--only", choices=["device", "cloud", "soak"])
    parser.add_argument("--seconds", type=float, default=10, help="of load per figure")
    parser.add_argument("--soak", type=float, default=0, help="seconds of the soak; 0: none")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--serve", choices=["device", "cloud", "plain", "embedded"], help=argparse.SUPPRESS)
    parser.add_argument("--upstream", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.serve:
        serve_here(arguments.serve, arguments.upstream)
        return
    print(f"load: {'wrk, one thread' if shutil.which('wrk') else 'wrk is not there: asyncio in this process'}, "
          f"{STREAMS} connections; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")  # fmt: skip
    figures: dict[str, Any] = {"load_average": os.getloadavg()}
    if arguments.only in (None, "device"):
        figures["device"] = device_figures(arguments.seconds)
    if arguments.only in (None, "cloud"):
        figures["cloud"] = cloud_figures(arguments.seconds)
    if arguments.soak:
        figures["soak"] = soak(arguments.soak)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


# -- models that take no time -------------------------------------------------------------------------------------


def embedded(name: str = "chains-server") -> LanguageModel:
    lm = load_model(ModelSpec(f"embedded:{name}", tuning_method="none"))
    _ = lm.tokenizer.card.hash, lm.tokenizer.continue_ids(" ")
    return lm


def null_reader(lm: LanguageModel) -> SessionReader:
    """The real reader over a forward pass that is sure of one token, at once."""
    law = torch.zeros(lm.tokenizer.vocab_size)
    law[int(lm.tokenizer.continue_ids(" 3")[0])] = 20.0

    def forward(step: Tensor, mask: Tensor, cache: Any, n: int) -> tuple[Tensor, None]:
        return law.expand(len(step), n, -1), None

    return SessionReader(
        forward, vocab_size=len(law), pad_id=0, limit=None, can_cache=False, cache_bytes=0, name="null"
    )


@dataclass
class Direct:
    """A party of `generate` whose model is in this process."""

    lm: LanguageModel
    reader: SessionReader
    name: str = "null"
    limit: int | None = None

    @property
    def tokenizer(self) -> Any:
        return self.lm.tokenizer

    @property
    def vocab_size(self) -> int:
        return self.reader.vocab_size

    def cached_rows(self, n_rows: int) -> "Direct":
        return self

    def logits(self, rows: Sequence[int], ids: Sequence[Sequence[int]], last: Sequence[int]) -> list[Tensor]:
        return self.reader.logits([str(row) for row in rows], ids, last)

    def forget(self, row: int) -> None:
        self.reader.forget(str(row))


# -- the processes that serve -------------------------------------------------------------------------------------


def serve_here(what: str, upstream: str | None) -> None:
    """Serve one tier in this process until it is ended; device and cloud are the product's own, but for the model."""
    if what != "embedded":
        tiers._load = lambda model: with_null_reader(embedded())
    config = CONFIG.model_copy(update={"device": CONFIG.device.model_copy(update={"upstream": upstream})})
    tier = plain() if what == "plain" else build_device(config) if what == "device" else build_cloud(config)
    one = Listening(tier, config)
    start_logging()
    print(one.url, flush=True)

    async def forever() -> None:
        await until(asyncio.Event(), [one])

    run(forever())


def with_null_reader(lm: LanguageModel) -> LanguageModel:
    lm.session_reader = lambda cache_bytes: null_reader(lm)  # type: ignore[method-assign]
    return lm


async def nothing() -> None: ...


def plain() -> Tier:
    lm = embedded()
    reader, app = null_reader(lm), FastAPI()

    @app.post("/v1/completions")
    async def complete(request: Request) -> StreamingResponse:
        asked = await request.json()

        async def body() -> AsyncIterator[bytes]:
            for text in answer_alone(lm, reader, asked["prompt"], asked["max_tokens"]):
                choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": None}
                whole = {
                    "id": "x",
                    "object": "text_completion",
                    "created": 0,
                    "model": "x",
                    "choices": [choice],
                }
                yield b"data: " + json.dumps(whole).encode() + b"\n\n"
            yield b"data: [DONE]\n\n"

        return StreamingResponse(body(), media_type="text/event-stream")

    rules = Admission(Keyring(None), CONFIG.limits)
    return Tier("plain", "127.0.0.1", 0, app, "a pass-through", rules, nothing, lambda config: lambda: None)


def answer_alone(lm: LanguageModel, reader: SessionReader, prompt: str, n: int) -> Iterator[str]:
    """The model asked token by token."""
    ids = lm.tokenizer.encode_prompt(prompt).tolist()
    for _ in range(n):
        (logits,) = reader.logits(["x"], [ids], [1])
        ids.append(int(logits[0].argmax()))
        yield (lm.tokenizer.card.token_bytes[ids[-1]] or b"").decode("utf-8", "replace")


@dataclass
class Server:
    """A process that serves."""

    url: str
    pid: int

    @property
    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    @property
    def rss_mib(self) -> float:
        return (
            int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
        )


@contextmanager
def server(what: str, upstream: str = "") -> Iterator[Server]:
    command = [sys.executable, __file__, "--serve", what, "--upstream", upstream]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            yield Server(process.stdout.readline().strip(), process.pid)
        finally:
            process.terminate()


# -- load ---------------------------------------------------------------------------------------------------------


def load(
    url: str, bodies: Sequence[bytes], seconds: float, pause_s: float, *, reads: bool = False
) -> dict[str, float]:
    """Ask in a closed loop; requests, s, p50_ms, p95_ms, errors."""
    kind = "application/json" if bodies[0].startswith(b"{") else "application/octet-stream"
    if not shutil.which("wrk"):
        return asyncio.run(load_here(url, kind, bodies, seconds, pause_s))
    with tempfile.TemporaryDirectory() as folder:
        file, script = Path(folder, "bodies"), Path(folder, "load.lua")
        file.write_bytes(b"".join(body + b"\nNEXT\n" for body in bodies))
        script.write_text(
            LUA % {"file": file, "kind": kind, "pause_ms": 1000 * pause_s, "reads": str(reads).lower()}
        )
        command = [
            "wrk",
            "-t1",
            f"-c{STREAMS}",
            f"-d{seconds:.0f}s",
            "--timeout",
            "60s",
            "-s",
            str(script),
            url,
        ]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return dict(json.loads(said.rpartition("JSON ")[2]))


async def load_here(
    url: str, kind: str, bodies: Sequence[bytes], seconds: float, pause_s: float
) -> dict[str, float]:
    """The same, slower, where wrk is not installed: its CPU is this process's, its latencies are an upper bound."""
    import httpx

    took: list[float] = []
    errors, end = 0, time.monotonic() + seconds
    waiting = iter(bodies * (1 + int(1e6 / len(bodies))))

    async def one(client: httpx.AsyncClient) -> None:
        nonlocal errors
        while time.monotonic() < end:
            await asyncio.sleep(random.uniform(0, 2 * pause_s))
            began = time.monotonic()
            reply = await client.post(url, content=next(waiting), headers={"Content-Type": kind})
            took.append(1000 * (time.monotonic() - began))
            errors += reply.status_code != 200

    async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=STREAMS)) as client:
        await asyncio.gather(*(one(client) for _ in range(STREAMS)))
    cuts = statistics.quantiles(took, n=20)
    return {"requests": len(took), "s": seconds, "p50_ms": cuts[9], "p95_ms": cuts[18], "errors": errors}


def completion(mode: str, n: int, **more: Any) -> bytes:
    whole = {"model": "fedtandem", "prompt": PROMPT, "max_tokens": n, "temperature": 0, "stream": True} | more
    return json.dumps(whole | ({} if mode == "plain" else {"mode": mode})).encode()


# -- figures ------------------------------------------------------------------------------------------------------


def device_figures(seconds: float) -> dict[str, Any]:
    arms: dict[str, dict[str, float]] = {"direct": in_process("direct"), "loop": in_process("loop")}
    with server("plain") as baseline, server("cloud") as cloud, server("device", cloud.url) as device:
        for mode in ("plain", *MODES):
            arms[mode] = over_http(baseline if mode == "plain" else device, mode, seconds)
    print(f"\n{'':<8}{'p50 ms':>9}{'p95 ms':>9}{'CPU ms':>9} a request {'p50 ms':>9}{'CPU ms':>9} a token "
          f"{'full: req/s':>14}{'CPU ms':>9}")  # fmt: skip
    for name, arm in arms.items():
        full = f"{arm['full_rate']:>14.0f}{arm['full_cpu_ms']:>9.2f}" if "full_rate" in arm else ""
        print(f"{name:<8}{arm['p50_ms']:>9.2f}{arm['p95_ms']:>9.2f}{arm['cpu_ms']:>9.2f}{'':>11}"
              f"{arm['token_ms']:>9.3f}{arm['token_cpu_ms']:>9.3f}{'':>9}{full}")  # fmt: skip
    for mode in MODES:
        arm, direct = arms[mode], arms["direct"]
        p50, p95, token = (arm[key] - direct[key] for key in ("p50_ms", "p95_ms", "token_ms"))
        print(
            f"{mode} over direct: p50 {p50:.2f} ms {met(p50 <= 2)}, p95 {p95:.2f} ms {met(p95 <= 8)}, a token "
            f"{token:.3f} ms {met(token <= 0.3)}; CPU of a request {arm['cpu_ms'] / arms['plain']['cpu_ms']:.2f}x the "
            f"pass-through's, {arm['rate']:.0f} and {arm['long_rate']:.0f} requests/s"
        )
    return arms


def met(is_met: bool) -> str:
    return "(met)" if is_met else "(MISSED)"


def in_process(what: str, repeats: int = 100) -> dict[str, float]:
    lm = embedded()
    reader, uncertainty = null_reader(lm), measure("expected")
    party = Direct(lm, reader)

    def answer(n: int) -> None:
        if what == "direct":
            for _ in answer_alone(lm, reader, PROMPT, n):
                ...
        else:
            settings = DecodeSettings(
                mode="fedhlm", uplink="greedy", tau=TAU, max_new_tokens=n, audit="passing"
            )
            generate(party, party, [PROMPT], settings, uncertainty=uncertainty)

    wall: dict[int, list[float]] = {}
    cpu: dict[int, float] = {}
    for n in (1, TOKENS):
        answer(n)
        started, wall[n] = time.process_time(), []
        for _ in range(repeats):
            began = time.perf_counter()
            answer(n)
            wall[n].append(1000 * (time.perf_counter() - began))
        cpu[n] = 1000 * (time.process_time() - started) / repeats
    cuts, long = statistics.quantiles(wall[1], n=20), statistics.median(wall[TOKENS])
    return {"p50_ms": cuts[9], "p95_ms": cuts[18], "cpu_ms": cpu[1], "token_ms": (long - cuts[9]) / (TOKENS - 1),
            "token_cpu_ms": (cpu[TOKENS] - cpu[1]) / (TOKENS - 1)}  # fmt: skip


def over_http(one: Server, mode: str, seconds: float) -> dict[str, float]:
    url, got = f"{one.url}/v1/completions", {}
    for n, pause_s in [(1, 0.0), *PAUSE_S.items()]:  # `full` first: it warms up as well
        before = one.cpu_s
        said = load(url, [completion(mode, n)], seconds, pause_s)
        said["cpu_ms"] = 1000 * (one.cpu_s - before) / max(1, said["requests"])
        if said["errors"]:
            print(f"{mode}, {n} tokens: {said['errors']:.0f} errors")
        got["full" if not pause_s else n] = said
    short, long, full = got[1], got[TOKENS], got["full"]
    return {
        "p50_ms": short["p50_ms"], "p95_ms": short["p95_ms"], "cpu_ms": short["cpu_ms"],
        "rate": short["requests"] / short["s"], "long_rate": long["requests"] / long["s"],
        "long_p50_ms": long["p50_ms"], "long_p95_ms": long["p95_ms"],
        "token_ms": (long["p50_ms"] - short["p50_ms"]) / (TOKENS - 1),
        "token_cpu_ms": (long["cpu_ms"] - short["cpu_ms"]) / (TOKENS - 1),
        "full_rate": full["requests"] / full["s"], "full_cpu_ms": full["cpu_ms"], "full_p50_ms": full["p50_ms"],
        "full_p95_ms": full["p95_ms"], "errors": sum(said["errors"] for said in got.values()),
    }  # fmt: skip


def cloud_figures(seconds: float) -> dict[str, Any]:
    import httpx

    lm, figures = embedded(), {}
    ids = lm.tokenizer.encode_prompt("Q 3 + 5 * 2 A 3 + 5 = 8 ;").tolist()[:20]
    block = pack_block(
        [Draft(int(i)) for i in lm.tokenizer.continue_ids(" 8 * 2 = 6 ;")[:6]], lm.tokenizer.vocab_size
    )
    for what in ("cloud", "embedded"):
        with server(what) as cloud:
            said = httpx.get(f"{cloud.url}/v1/model").json()
            frames = [
                VerifyRequest(
                    session=f"{i:032x}", model=said["model"], tokenizer=said["tokenizer"], base=0, known="", place=0,
                    room=40, uplink="greedy", temperature=1.0, seed=0, top_k=30, top=-1, more=0, audits=0, scope="",
                    new_ids=np.array(ids, np.int32), block=block, embedding=EMPTY,
                ).to_bytes()
                for i in range(round(2000 * seconds))
            ]  # fmt: skip
            before = cloud.cpu_s
            got = load(f"{cloud.url}/v1/verify", frames, seconds, 0.0)
            got |= {
                "rate": got["requests"] / got["s"],
                "cpu_ms": 1000 * (cloud.cpu_s - before) / got["requests"],
            }
        figures[what] = got
        bar = f" {met(got['rate'] >= 500)}" if what == "cloud" else ""
        print(
            f"verifies/s, {'null' if what == 'cloud' else what} model: {got['rate']:.0f}{bar}; CPU "
            f"{got['cpu_ms']:.2f} ms each; errors {got['errors']:.0f}; p50 {got['p50_ms']:.0f} ms of the queue"
        )
    return figures


def soak(seconds: float) -> dict[str, Any]:
    """Device and cloud under an even load; their memory beside it."""
    bodies = [
        completion(mode, n, stream=stream)
        for mode in MODES
        for n in (1, 16, TOKENS)
        for stream in (True, False)
    ]
    held: dict[str, list[float]] = {"device": [], "cloud": []}
    with server("cloud") as cloud, server("device", cloud.url) as device, ThreadPoolExecutor(1) as pool:
        running = pool.submit(load, f"{device.url}/v1/completions", bodies, seconds, SOAK_PAUSE_S, reads=True)
        while not running.done():
            held["device"].append(device.rss_mib)
            held["cloud"].append(cloud.rss_mib)
            wait([running], timeout=5)
        got: dict[str, Any] = running.result() | {"rss_mib": held, "cpu_s": [device.cpu_s, cloud.cpu_s]}
    print(
        f"soak: {got['requests']:.0f} answers in {got['s']:.0f} s ({got['requests'] / got['s']:.0f}/s), errors "
        f"{got['errors']:.0f} {met(not got['errors'])}, of these declared (429, 503) "
        f"{got.get('declared', 0):.0f}, p50 {got['p50_ms']:.1f} ms, p95 {got['p95_ms']:.1f} ms"
    )
    for name, seen in held.items():
        if not seen[-1]:
            print(f"{name}: its process ended before the soak did {met(False)}")
            continue
        fifth = max(1, len(seen) // 5)
        early, late = statistics.mean(seen[fifth : 2 * fifth]), statistics.mean(seen[-fifth:])
        print(
            f"{name}: {early:.0f} -> {late:.0f} MiB, {late / early - 1:+.1%} {met(abs(late / early - 1) <= 0.05)}"
        )
    return got


if __name__ == "__main__":
    main()
