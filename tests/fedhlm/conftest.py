"""Small made-up traces: twenty clients at four edges, a weak SLM and a stronger LLM on four classes."""

from collections.abc import Callable
from pathlib import Path

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


@pytest.fixture(scope="session")
def save_classifier(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A tiny BERT with random weights and a byte tokenizer, in a folder as stock transformers writes it."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from fedtandem.models.scratch_tokenizer import train_tokenizer

    def save(name: str, seed: int, labels: tuple[str, ...] = ("World", "Sports", "Business")) -> Path:
        folder = tmp_path_factory.mktemp("classifiers") / name
        tokenizer = train_tokenizer("bytes", [], 0)
        config = BertConfig(
            vocab_size=tokenizer.vocab_size, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=64, initializer_range=0.5, pad_token_id=tokenizer.pad_id,
            id2label=dict(enumerate(labels)), label2id={name: i for i, name in enumerate(labels)},
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            BertForSequenceClassification(config).save_pretrained(folder)
        tokenizer.save(folder)
        return folder

    return save
