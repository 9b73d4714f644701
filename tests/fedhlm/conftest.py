"""Small made-up traces: twenty clients at four edges, a weak SLM and a stronger LLM on four classes."""

from collections.abc import Callable

import numpy as np
import pytest

from fedtandem.data.traces import Trace, TraceInfo, make_trace
from fedtandem.inference.gates import text_gate

CLASSES = 4


def trace_columns(
    n: int = 2000, seed: int = 0, *, weak: float = 1.5, strong: float = 4.0, clients: int = 20
) -> dict:
    """A decision is hard for both models or for neither; the SLM is unsure where it is."""
    rng = np.random.default_rng(seed)
    client, label = rng.integers(0, clients, n), rng.integers(0, CLASSES, n)
    client[:clients] = np.arange(clients)
    hard = rng.exponential(1.0, n)

    def law(scale: float) -> np.ndarray:
        z = rng.normal(size=(n, CLASSES)) * hard[:, None]
        z[np.arange(n), label] += scale
        e = np.exp(z - z.max(axis=1, keepdims=True))
        return (e / e.sum(axis=1, keepdims=True)).astype(np.float32)

    q, p = law(weak), law(strong)
    ids = np.tile(np.arange(CLASSES, dtype=np.int32), (n, 1))
    return {
        "client": [f"c{i:02d}" for i in client],
        "cluster": [f"edge{i % 4}" for i in client],
        "session": [f"s{i}" for i in range(n)],
        "position": np.zeros(n, dtype=int),
        "draft": q.argmax(axis=1),
        "answer": p.argmax(axis=1),
        "label": label,
        "slm_ids": ids,
        "slm_probs": q,
        "llm_ids": ids,
        "llm_probs": p,
    }


INFO = TraceInfo("slm-a", "llm-a", CLASSES)


@pytest.fixture
def columns() -> Callable[..., dict]:
    return trace_columns


@pytest.fixture
def info() -> TraceInfo:
    return INFO


@pytest.fixture
def build() -> Callable[..., Trace]:
    def make(
        n: int = 2000, seed: int = 0, change: dict | None = None, info: TraceInfo = INFO, **how: float
    ) -> Trace:
        return make_trace(info, trace_columns(n, seed, **how) | (change or {}))

    return make


@pytest.fixture
def repeated(build: Callable[..., Trace]) -> Callable[..., Trace]:
    """A trace in which 200 texts come again and again; some come back negated, at the same place in space."""

    def make(n: int = 4000, seed: int = 0) -> Trace:
        rng = np.random.default_rng(seed)
        text = rng.integers(0, 200, n)
        negated = rng.random(n) < 0.2
        base = trace_columns(200, seed=9)
        centre = rng.normal(size=(200, 16))
        label = np.where(negated, (base["label"][text] + 1) % CLASSES, base["label"][text])
        ids = np.tile(np.arange(CLASSES, dtype=np.int32), (n, 1))
        q = np.full((n, CLASSES), 0.25, np.float32)
        return build(n, seed, {
            "label": label, "answer": label, "draft": np.zeros(n, int), "slm_ids": ids, "slm_probs": q,
            "llm_ids": ids, "llm_probs": np.eye(CLASSES, dtype=np.float32)[label],
            "embedding": centre[text] + 0.01 * rng.normal(size=(n, 16)),
            "context": [
                text_gate(f"question {t} is {'not ' if no else ''}so").hex()
                for t, no in zip(text, negated, strict=True)
            ],
        }, weak=0.5)  # fmt: skip

    return make
