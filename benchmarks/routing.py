"""Routing's own cost: uncertainty, thresholds, peers; each beside a plain way of doing it, in one process on one core.

    python benchmarks/routing.py [--usearch] [--json FILE]

Definitions
- uncertainty: ms per token of `expected` on 64 logits, one token at a time (as in generation) and in batches of 256;
  beside it 20 vectorised samples on the same 64 logits, and the published form: the same 20 samples over a whole
  vocabulary of 32,000.
- histogram, 10,000 clients: from a stack of their counts (64 bins, 500 tokens each, all labelled) to thresholds for
  every client, 100 clusters and all, at a price and at a budget (which searches the price); no bootstrap. Beside it
  the same client thresholds one by one, isotonic fits by scipy, on a sample and scaled up.
- bootstrap: 200 draws for one scope.
- round of 1,000 clients: their reported thresholds to 50 edges and a cloud: clip, limit, cap, weighted medians, blend.
- round through frames: one gradient round of 1,000 clients of 300 tokens behind 4 edges, every message encoded,
  counted and decoded, the clients' own five steps included.
- peer search: 100,000 entries of 384 numbers, gates and signature included. `all pass`: every entry is behind the
  same gate, the worst case; `--usearch` adds its approximate index, built entry by entry. Beside it a scan in plain
  Python over entries, on a sample and scaled up.
CPU seconds of this process, the best of several.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from scipy.optimize import isotonic_regression

from fedtandem.algorithms.fedhlm import Settings, two_levels
from fedtandem.algorithms.threshold_parties import Edge, ThresholdClient
from fedtandem.exchange.calibration import CalibrationReply, CalibrationRequest
from fedtandem.federation.local import LocalCarrier
from fedtandem.inference.aggregation import capped, clipped, limited
from fedtandem.inference.gates import namespace, text_gate
from fedtandem.inference.histogram import BINS, Histogram, bootstrap_bins
from fedtandem.inference.peers import Attested, PeerCache, sign
from fedtandem.inference.threshold import Goal, learn_thresholds
from fedtandem.inference.uncertainty import expected_of_best, perturbation

VOCABULARY = 32_000
SCIPY_CLIENTS = 200
SCAN_ENTRIES = 2_000
TARGETS = {
    "expected, 64 logits, 1 token, ms": 0.2,
    "histogram, 10,000 clients, price, s": 1.0,
    "histogram, 10,000 clients, budget, s": 1.0,
    "round of 1,000 clients, s": 0.15,
    "peer search, all pass, ms": 25.0,
    "peer search, none passes, ms": 25.0,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="uncertainty, thresholds and peers")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument(
        "--usearch", action="store_true", help="also its index of 100,000 entries: takes minutes"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures = uncertainty() | histogram() | rounds() | peers(arguments.usearch)
    for name, value in figures.items():
        target = TARGETS.get(name)
        met = "" if target is None else f"   (target {target:g}: {'met' if value <= target else 'MISSED'})"
        print(f"{name:<58} {value:>12,.4f}{met}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


def uncertainty() -> dict[str, float]:
    noise = torch.Generator().manual_seed(0)
    figures = {}
    for n, repeats in ((1, 400), (256, 20)):
        whole = 3 * torch.randn(n, VOCABULARY, generator=noise)
        few = (
            (3 * torch.randn(n, 64, generator=noise)).sort(-1, descending=True).values
        )  # as a draft finds them
        draft, token = few.argmax(-1), whole.argmax(-1)
        label = "1 token" if n == 1 else f"{n} at a time"
        closed = 1000 / n * best(lambda z=few: expected_of_best(z), repeats)
        sampled = 1000 / n * best(lambda z=few, d=draft: perturbation(z, noise, d), repeats)
        full = whole[:8]  # 20 x 32,000 probabilities a token: a few show it
        published = 1000 / len(full) * best(lambda z=full, d=token[:8]: perturbation(z, noise, d), 3)
        figures |= {
            f"expected, 64 logits, {label}, ms": closed,
            f"20 samples, 64 logits, {label}, ms": sampled,
            f"20 samples, {VOCABULARY:,} logits, {label}, ms": published,
            f"expected is faster than 20 samples, {label}, times": sampled / closed,
            f"expected is faster than the published form, {label}, times": published / closed,
        }
    return figures


def histogram() -> dict[str, float]:
    rng = np.random.default_rng(0)
    n, tokens = 10_000, 500
    u = rng.beta(1.2, 3.0, (n, tokens))
    beta = rng.random((n, tokens)) < np.clip(0.82 * u - 0.06, 0, 1)
    place = np.arange(n)[:, None] * BINS + np.maximum(np.ceil(u * BINS).astype(int) - 1, 0)

    def counts(weight: np.ndarray) -> np.ndarray:
        return np.bincount(place.ravel(), weight.ravel(), minlength=n * BINS).reshape(n, BINS)

    sent, wrong = (u > 0.5).astype(float), beta.astype(float)
    kept = 1 - sent
    stack = Histogram(
        counts(np.ones_like(u)), counts(sent), counts(sent * wrong), counts(sent * wrong), counts(kept),
        counts(kept * wrong), counts(kept * wrong), 1.0,
    )  # fmt: skip
    group = np.arange(n) % 100

    def solve(goal: Goal) -> object:
        return learn_thresholds(stack, group, goal, rng, draws=0)

    def one_by_one() -> None:
        for k in range(SCIPY_CLIENTS):
            total = stack.tokens[k]
            seen = total > 0
            fit = np.zeros(BINS)
            means = (stack.sent_beta + stack.audited_beta)[k][seen] / total[seen]
            fit[seen] = isotonic_regression(means, weights=total[seen]).x
            np.argmin(np.concatenate([[0.0], np.cumsum(total * (fit - 0.3))]))

    price = best(lambda: solve(Goal("price", 0.3)), 3)
    plain = best(one_by_one, 3) * n / SCIPY_CLIENTS
    scope = stack[:100].sum()
    return {
        "histogram, 10,000 clients, price, s": price,
        "histogram, 10,000 clients, budget, s": best(lambda: solve(Goal("share", 0.1)), 2),
        "client thresholds one by one with scipy, s (scaled)": plain,
        "bootstrap of one scope, 200 draws, s": best(lambda: bootstrap_bins(scope, 0.3, rng), 3),
        "bytes of one client's report": float(len(report(300).handle(ask("count")).to_bytes())),
    }


def report(tokens: int, k: int = 0) -> ThresholdClient:
    rng = np.random.default_rng(k)
    u = rng.beta(1.2, 3.0, tokens)
    beta = (rng.random(tokens) < np.clip(0.82 * u - 0.06, 0, 1)).astype(float)
    return ThresholdClient(
        f"client-{k:04d}", ("slm", "llm"), u, beta, ["s"] * tokens, np.arange(tokens, dtype=np.int64), b"key"
    )


def ask(job: str) -> object:
    return CalibrationRequest(1, job, 1.0, 0.3, (), np.array([0.5])).to_envelope()  # type: ignore[arg-type]


def rounds() -> dict[str, float]:
    rng = np.random.default_rng(1)
    last, reports, n = np.full(1000, 0.5), rng.random(1000), rng.integers(50, 500, 1000).astype(float)
    group = np.arange(1000) % 50

    def one() -> None:
        two_levels(limited(clipped(reports), last), capped(n), group, 50, Settings())

    clients = {f"client-{k:04d}": report(300, k) for k in range(1000)}
    names = sorted(clients)
    edges = {
        f"edge-{c}": Edge(f"edge-{c}", LocalCarrier({x: clients[x] for x in names[c::4]})) for c in range(4)
    }
    carrier = LocalCarrier(edges)
    seen = [0]

    def through_frames() -> None:
        answers = carrier.ask(dict.fromkeys(edges, ask("descend")), deadline_s=60)
        replies = [CalibrationReply.from_envelope(reply) for reply in answers.replies.values()]
        seen[0] = sum(len(reply.names) for reply in replies)
        tau = np.concatenate([reply.tau for reply in replies])
        weight = np.concatenate([reply.labelled for reply in replies])
        two_levels(limited(clipped(tau), last), capped(weight), np.repeat(np.arange(4), 250), 4, Settings())

    framed = best(through_frames, 3)
    assert seen[0] == 1000
    return {"round of 1,000 clients, s": best(one, 10), "round of 1,000 clients through frames, s": framed}


def peers(with_usearch: bool) -> dict[str, float]:
    rng = np.random.default_rng(2)
    n, d, key = 100_000, 384, b"key"
    space = namespace("tenant", "llm", "tokenizer", "", "greedy")
    cache = PeerCache(key, d, quota=n)
    vectors = rng.standard_normal((n, d), dtype=np.float32)
    entry = sign(Attested("tenant", "llm", space, text_gate("a question"), b"1", 0.0), key)
    for vector in vectors:
        cache.insert("client", vector, entry)
    query = vectors[7] + 0.01 * rng.standard_normal(d, dtype=np.float32)
    same, other = text_gate("a question"), text_gate("another question")
    assert cache.look_up(query, space, same, 1.0).outcome == "hit"
    assert cache.look_up(query, space, other, 1.0).outcome == "gate_refused"
    some = [(vector.tolist(), entry) for vector in vectors[:SCAN_ENTRIES]]

    def scan() -> None:
        wanted, best_cosine = query.tolist(), -2.0
        for vector, stored in some:
            if stored.context == same and stored.namespace == space and stored.time_s > -1:
                best_cosine = max(best_cosine, sum(a * b for a, b in zip(vector, wanted, strict=True)))

    found = {}
    if with_usearch:
        approximate = PeerCache(key, d, quota=n, index="usearch")
        started = time.process_time()
        for vector in vectors:
            approximate.insert("client", vector, entry)
        found["peer insertion, usearch, ms"] = 1000 * (time.process_time() - started) / n
        found["peer search, none passes, usearch, ms"] = 1000 * best(
            lambda: approximate.look_up(query, space, other, 1.0), 100
        )
    return found | {
        "peer search, all pass, ms": 1000 * best(lambda: cache.look_up(query, space, same, 1.0), 15),
        "peer search, none passes, ms": 1000 * best(lambda: cache.look_up(query, space, other, 1.0), 15),
        "plain Python scan, ms (scaled)": 1000 * best(scan, 2) * n / SCAN_ENTRIES,
    }


def best(work: Callable[[], object], repeats: int) -> float:
    """CPU seconds of one call: the best of `repeats`, after one to warm up; short calls in tens."""
    work()
    inner = 10 if repeats >= 100 else 1
    times = []
    for _ in range(max(1, repeats // inner)):
        started = time.process_time()
        for _ in range(inner):
            work()
        times.append((time.process_time() - started) / inner)
    return min(times)


if __name__ == "__main__":
    main()
