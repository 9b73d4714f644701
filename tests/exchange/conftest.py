"""Small messages of every kind, with all their fields filled."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedtandem.alignment.card import VocabularyCard
from fedtandem.alignment.sequence import EndTable
from fedtandem.exchange.calibration import N_BINS, N_COUNTS, N_SUMS, CalibrationReply, CalibrationRequest
from fedtandem.exchange.carrier import Envelope
from fedtandem.exchange.masking import KEY_BYTES, MaskedReply, MaskingRequest, Offer, OfferReply
from fedtandem.exchange.messages import Card, FetchReply, FetchRequest, Knowledge, WorkReply, WorkRequest
from fedtandem.exchange.trace_card import TraceCard, TraceCardRequest
from fedtandem.knowledge.sparse_logits import SparseLogits, sparsify, splits_of

V = 300
N = 6
PUBLIC = "b" * 64


def make_rows(samples: tuple[int, ...] = (2, 0, 3), *, top_k: int = 5, mass: float = 0.95) -> SparseLogits:
    """Rows of random logits, one sample without any, one row that says nothing."""
    n = sum(samples)
    logits = torch.randn(n, V, generator=torch.Generator().manual_seed(7)) * 3
    ids, log_probs, counts, tail = sparsify(logits, top_k, mass)
    halves = log_probs.astype(np.float16).astype(np.float32)
    return SparseLogits(
        token_ids=ids,
        log_probs=halves,
        row_splits=splits_of(counts),
        tail_log_prob=tail.astype(np.float16).astype(np.float32),
        end_byte=(np.arange(n) * 3 - 1).astype(np.int32),
        segment=np.ones(n, np.uint8),
        sample_splits=splits_of(np.array(samples, np.int64)),
    )


def make_vocabulary() -> VocabularyCard:
    pieces = [chr(0x4E00 + i) for i in range(V - 1)]
    return VocabularyCard(
        tokens=("</s>", *pieces),
        token_bytes=(None, *(piece.encode() for piece in pieces)),
        roles={"eos": 0},
        special=frozenset({0}),
        marker="▁",
    )


def make_knowledge(party: str = "clinic-a", *, values: str = "fp16", texts: bool = True) -> Knowledge:
    return Knowledge(
        party=party,
        round=2,
        vocab_hash=make_vocabulary().hash,
        public_hash=PUBLIC,
        scores=np.array([0.5, np.inf, 1.25, 0.0, 3.5, 2.0], np.float32),
        sample_index=np.array([0, 3, 5], np.int32),
        rows=make_rows(),
        texts=("", "é 7", "a\nb", "", "five", " six") if texts else None,
        values=values,  # type: ignore[arg-type]
    )


def make_card() -> Card:
    return Card(
        party="clinic-a",
        vocabulary=make_vocabulary(),
        public_hash=PUBLIC,
        n_public=3,
        ends=EndTable(
            np.array([0, 3, -1, 0], np.int32), np.array([1, 1, 1, 0], np.uint8), np.array([0, 2, 2, 4])
        ),
        token_ids=np.array([4, 0, 299, 7], np.int32),
        n_private=12,
        model="tiny",
        trainable_bytes=1000,
    )


def make_adapter() -> dict[str, np.ndarray]:
    return {
        "layer.0.lora_A": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3),
        "layer.0.lora_B": np.zeros((3, 2), np.float16),
    }


def all_envelopes() -> dict[str, Envelope]:
    """One envelope per kind of message, and the u8 coding."""
    knowledge, server = make_knowledge(), make_knowledge("server", texts=False)
    metrics = [{"metric": "bits_per_byte", "value": 1.5, "n": 3}]
    reply = WorkReply(2, "clinic-a", knowledge, make_adapter(), metrics, 12)
    finish = WorkRequest(3, server, None, distil=True, tune=False, want_rows=False, return_adapter=False)
    work = WorkRequest(3, server, make_adapter(), distil=True, tune=True, want_rows=True, return_adapter=True)
    stands = WorkRequest(
        3, None, None, distil=True, tune=True, want_rows=False, return_adapter=False, stands=2
    )
    first = WorkRequest(1, None, None, distil=False, tune=True, want_rows=False, return_adapter=False)
    return {
        "card": make_card().to_envelope(),
        "work_request": work.to_envelope(),
        "first_request": first.to_envelope(),
        "standing_request": stands.to_envelope(),
        "finish": finish.to_envelope("finish"),
        "work_reply": reply.to_envelope(),
        "fetch_request": FetchRequest(2, np.array([0, 3, 5], np.int32)).to_envelope(),
        "fetch_reply": FetchReply(2, "clinic-a", make_knowledge(values="u8")).to_envelope(),
    }


def threshold_envelopes() -> dict[str, Envelope]:
    """One envelope per message of a calibration."""
    ask = CalibrationRequest(3, "count", 0.5, 0.25, ("a", "b"), np.array([0.25, 0.5]))
    counts = np.zeros((2, N_COUNTS, N_BINS))
    counts[:, :4, 10] = 3, 2, 1, 0.5
    reply = CalibrationReply(
        round=3, party="north", names=("a", "b"), models=(("slm", "llm"), ("slm-b", "llm")), tokens=np.array([3, 3]),
        skipped=np.ones(2), tau=np.array([0.25, 0.5]), labelled=np.array([2, 2]), counts=counts,
        sums=np.ones((2, N_SUMS)),
    )  # fmt: skip
    offers = tuple(Offer(name, bytes(range(KEY_BYTES)), b"signature") for name in "abc")
    return {
        "trace_card_request": TraceCardRequest().to_envelope(),
        "trace_card": TraceCard(
            "a", "north", ("expected", "margin"), ("agreement",), masked=True
        ).to_envelope(),
        "calibration_request": ask.to_envelope(),
        "calibration_reply": reply.to_envelope(),
        "key_request": MaskingRequest(3, "run", 1).to_envelope(),
        "masking_request": MaskingRequest(
            3, "run", 1, offers, replace(ask, names=(), tau=np.array([0.5]))
        ).to_envelope(),
        "offer_reply": OfferReply(3, 1, offers[0], ("slm", "llm")).to_envelope(),
        "masked_reply": MaskedReply(3, "a", 1, np.arange(9, dtype=np.uint64) << np.uint64(60)).to_envelope(),
    }


@pytest.fixture(scope="session")
def envelopes() -> dict[str, Envelope]:
    return all_envelopes()


@pytest.fixture(scope="session")
def about_thresholds() -> dict[str, Envelope]:
    return threshold_envelopes()


@pytest.fixture
def knowledge() -> Callable[..., Knowledge]:
    return make_knowledge


@pytest.fixture
def rows() -> Callable[..., SparseLogits]:
    return make_rows


@pytest.fixture
def card() -> Card:
    return make_card()


@pytest.fixture
def adapter() -> dict[str, np.ndarray]:
    return make_adapter()
