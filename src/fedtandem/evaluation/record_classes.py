"""Recording classifications: one decision per document."""

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fedtandem.data.items import Item
from fedtandem.data.traces import TraceInfo
from fedtandem.errors import ModelError, NetworkError
from fedtandem.evaluation.recording import Recorded, ask_all, parties
from fedtandem.inference.gates import text_gate
from fedtandem.models.chat_endpoint import ChatEndpoint, Reply, Unusable
from fedtandem.models.classifier import Classifier

UNLISTED = 1e-3
"""A law over classes counts as whole if no class that the endpoint did not list can be likelier than this."""
MOST_DIGITS = 10
"""Classes that one token can name."""


@dataclass(frozen=True, eq=False)
class Judged:
    """The cloud's decision on one text; `probs` (C,) is None where it tells no law."""

    answer: int
    probs: Any
    ms: float
    request_bytes: int


class Cloud(Protocol):
    """Whoever classifies for the cloud."""

    @property
    def fingerprint(self) -> str:
        """Of its model."""
        ...

    def judge(self, texts: Sequence[str]) -> list[Judged | NetworkError]:
        """A decision on every text, or why there is none."""
        ...


class LocalCloud:
    """A classifier on this machine.

    Args:
        model: its classes are the SLM's, maybe in another order.
        labels: the SLM's classes.

    Raises:
        ModelError: the classes do not match.
    """

    def __init__(self, model: Classifier, labels: Sequence[str]) -> None:
        self.fingerprint = model.fingerprint
        self._model, self._order = model, class_order(labels, model.labels)

    def judge(self, texts: Sequence[str]) -> list[Judged | NetworkError]:
        """A decision on every text."""
        started = time.perf_counter()
        probs = self._model.read(texts).probs.numpy()[:, self._order]
        ms = 1000 * (time.perf_counter() - started) / len(texts)
        return [
            Judged(int(row.argmax()), row, ms, len(text.encode()))
            for text, row in zip(texts, probs, strict=True)
        ]


class EndpointCloud:
    """A chat model that is asked for the number of a class.

    Args:
        labels: of the classes, in the SLM's order.
        parallel: questions at a time.
    """

    def __init__(self, endpoint: ChatEndpoint, labels: Sequence[str], parallel: int) -> None:
        self.fingerprint = endpoint.fingerprint
        self._endpoint, self._labels, self._parallel = endpoint, tuple(labels), parallel

    def judge(self, texts: Sequence[str]) -> list[Judged | NetworkError]:
        """A decision on every text, or why there is none."""
        return ask_all(texts, self._one, self._parallel)

    def _one(self, text: str) -> Judged:
        listed = "\n".join(f"{i}: {label}" for i, label in enumerate(self._labels))
        question = (
            "Which class does the text belong to? Answer with its number and nothing else.\n\n"
            f"{listed}\n\nText: {text}\n\nNumber:"
        )
        answer, reply = self._endpoint.ask(
            [{"role": "user", "content": question}], lambda reply: class_of(reply.text, self._labels),
            max_tokens=8, logprobs=len(self._labels) <= MOST_DIGITS,
        )  # fmt: skip
        return Judged(answer, class_law(reply, len(self._labels)), reply.ms, reply.request_bytes)


class ClassRecorder:
    """An SLM and a cloud that classify the same texts."""

    def __init__(self, slm: Classifier, cloud: Cloud, name: str) -> None:
        self._slm, self._cloud = slm, cloud
        self.note = ""
        self.info = TraceInfo(
            slm=slm.fingerprint, llm=cloud.fingerprint, vocabulary=len(slm.labels), draft="greedy",
            embedding=slm.fingerprint, name=name,
        )  # fmt: skip

    def record(self, items: Sequence[Item]) -> Recorded:
        """Both models' decisions on a batch of texts."""
        texts = [item.text for item in items]
        started = time.perf_counter()
        laws = self._slm.read(texts)
        slm_ms = 1000 * (time.perf_counter() - started) / len(items)
        judged = self._cloud.judge(texts)
        failed = {
            item.id: str(one)
            for item, one in zip(items, judged, strict=True)
            if isinstance(one, NetworkError)
        }
        kept = [i for i, one in enumerate(judged) if isinstance(one, Judged)]
        found = [one for one in judged if isinstance(one, Judged)]
        rows = [items[i] for i in kept]
        probs = laws.probs.numpy()[kept]
        ids = np.tile(np.arange(probs.shape[1]), (len(rows), 1))
        columns: dict[str, Any] = {
            **parties(rows), "position": np.zeros(len(rows), dtype=np.int64), "draft": probs.argmax(axis=1),
            "answer": np.array([one.answer for one in found]), "slm_ids": ids, "slm_probs": probs,
            "label": np.array([item.label for item in rows]), "embedding": laws.embedding.numpy()[kept],
            "context": [text_gate(item.text).hex() for item in rows], "slm_ms": np.full(len(rows), slm_ms),
            "llm_ms": np.array([one.ms for one in found]),
            "request_bytes": np.array([one.request_bytes for one in found]),
        }  # fmt: skip
        if all(one.probs is not None for one in found):
            columns |= {"llm_ids": ids, "llm_probs": np.array([one.probs for one in found])}
        return Recorded(columns, failed)


def class_order(slm: Sequence[str], llm: Sequence[str]) -> list[int]:
    """Where each of the SLM's classes stands among the LLM's.

    Names that say nothing (LABEL_0) are taken in order.

    Raises:
        ModelError: other classes.
    """
    if len(slm) != len(llm):
        raise ModelError(
            f"the SLM has {len(slm)} classes ({', '.join(slm)}), the LLM {len(llm)} ({', '.join(llm)})."
        )
    if sorted(slm) == sorted(llm):
        return [list(llm).index(name) for name in slm]
    if any(all(re.fullmatch(r"LABEL_\d+", name) for name in names) for names in (slm, llm)):
        return list(range(len(slm)))
    raise ModelError(
        f"the classes have other names: the SLM's are {', '.join(slm)}, the LLM's {', '.join(llm)}. Make id2label "
        "in their config.json agree."
    )


def class_of(text: str, labels: Sequence[str]) -> int:
    """The class a chat model named, by number or by name.

    Raises:
        Unusable: neither.
    """
    said = text.strip()
    number = re.match(r"\W*(\d+)\b", said)
    if number and int(number[1]) < len(labels):
        return int(number[1])
    named = [i for i, label in enumerate(labels) if said.strip(" .\"'").casefold() == label.casefold()]
    if len(named) == 1:
        return named[0]
    raise Unusable(f"{said[:60]!r} names no class; expected 0 to {len(labels) - 1}")


def class_law(reply: Reply, n: int) -> Any:
    """The law over n classes at the token that names one, (n,) float32; None where it cannot be read off.

    Nothing is renormalised: what the alternatives do not list is not known, and a law of one listed token would be
    a point mass that the model never gave.
    """
    digits = {str(i): i for i in range(min(n, MOST_DIGITS))}
    for token, top in zip(reply.tokens, reply.top, strict=True):
        if token.strip() not in digits:
            continue
        probs = np.zeros(n, dtype=np.float32)
        for alternative, value in top.items():
            if alternative.strip() in digits:
                probs[digits[alternative.strip()]] += math.exp(value)
        # Alternatives come best first: what is not listed is at most as likely as the last of them.
        unlisted = math.exp(min(top.values(), default=0.0))
        if probs.all() or unlisted <= UNLISTED:
            return probs / max(1.0, float(probs.sum()))
        return None
    return None
