"""Recording whole answers: one decision per question, each model's answer scored against the accepted ones."""

import hashlib
import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from fedtandem.data.items import Item
from fedtandem.data.traces import TraceInfo
from fedtandem.errors import NetworkError
from fedtandem.evaluation.recording import Recorded, ask_all, laws_along, parties
from fedtandem.inference.gates import text_gate
from fedtandem.models.chat_endpoint import ChatEndpoint, Unusable
from fedtandem.models.fingerprint import fingerprint
from fedtandem.models.language_model import LanguageModel

ANSWER_BYTES = 6
"""An answer's text as a number until all are known: 48 bits of its hash."""

Ids = npt.NDArray[np.int32]
Said = tuple[str, float, int]
"""Text, milliseconds, bytes of the request."""


class AnswerCloud(Protocol):
    """Whoever answers for the cloud."""

    @property
    def fingerprint(self) -> str:
        """Of its model."""
        ...

    def answer(self, prompts: Sequence[str]) -> list[Said | NetworkError]:
        """An answer to every prompt, or why there is none."""
        ...


class LocalAnswers:
    """A causal model on this machine, greedy."""

    def __init__(self, model: LanguageModel, max_new_tokens: int) -> None:
        self.fingerprint = fingerprint(model.name, model.model, model.tokenizer.card.hash)
        self._model, self._limit = model, max_new_tokens

    def answer(self, prompts: Sequence[str]) -> list[Said | NetworkError]:
        """An answer to every prompt."""
        encoded = [self._model.tokenizer.encode_prompt(prompt) for prompt in prompts]
        ids, ms = _written(self._model, encoded, self._limit)
        texts = [self._model.tokenizer.decode_answer(row) for row in ids]
        return [(text, ms, len(prompt.encode())) for text, prompt in zip(texts, prompts, strict=True)]


class EndpointAnswers:
    """A chat model behind HTTP; `parallel` questions at a time."""

    def __init__(self, endpoint: ChatEndpoint, max_new_tokens: int, parallel: int) -> None:
        self.fingerprint = endpoint.fingerprint
        self._endpoint, self._limit, self._parallel = endpoint, max_new_tokens, parallel

    def answer(self, prompts: Sequence[str]) -> list[Said | NetworkError]:
        """An answer to every prompt, or why there is none."""
        return ask_all(prompts, self._one, self._parallel)

    def _one(self, prompt: str) -> Said:
        text, reply = self._endpoint.ask(
            [{"role": "user", "content": prompt}], lambda reply: _some(reply.text), max_tokens=self._limit
        )
        return text, reply.ms, reply.request_bytes


class AnswerRecorder:
    """An SLM and a cloud that answer the same questions.

    The SLM's uncertainty is 1 - exp(mean log q) over the tokens it wrote: one minus their geometric mean.

    Args:
        mark: only what follows its last occurrence in an answer is compared, "####" say; "" compares all of it.
    """

    def __init__(
        self, slm: LanguageModel, cloud: AnswerCloud, *, max_new_tokens: int, mark: str, name: str
    ) -> None:
        self._slm, self._cloud, self._mark, self._limit = slm, cloud, mark, max_new_tokens
        self.note = ""
        own = fingerprint(slm.name, slm.model, slm.tokenizer.card.hash)
        self.info = TraceInfo(own, cloud.fingerprint, 2 ** (8 * ANSWER_BYTES), embedding=own, name=name)

    def record(self, items: Sequence[Item]) -> Recorded:
        """Both models' answers to a batch of questions."""
        tokenizer = self._slm.tokenizer
        prompts = [tokenizer.encode_prompt(item.text) for item in items]
        ids, slm_ms = _written(self._slm, prompts, self._limit)
        own = [tokenizer.decode_answer(row) for row in ids]
        read = [prompt.tolist() for prompt in prompts]
        doubt = self._doubts(read, [row.tolist() for row in ids])
        embedding = self._slm.embed(prompts)
        said = self._cloud.answer([item.text for item in items])
        failed = {
            item.id: str(one) for item, one in zip(items, said, strict=True) if isinstance(one, NetworkError)
        }
        kept = [i for i, one in enumerate(said) if not isinstance(one, NetworkError)]
        found = [one for one in said if not isinstance(one, NetworkError)]
        rows, texts = [items[i] for i in kept], [own[i] for i in kept]
        columns: dict[str, Any] = {
            **parties(rows), "position": np.zeros(len(rows), dtype=np.int64),
            "draft": np.array([self._number(text) for text in texts]),
            "answer": np.array([self._number(text) for text, _, _ in found]),
            "slm_score": self._scores(rows, texts), "llm_score": self._scores(rows, [one[0] for one in found]),
            "uncertainty": doubt[kept], "embedding": embedding[kept],
            "context": [text_gate(item.text).hex() for item in rows], "slm_ms": np.full(len(rows), slm_ms),
            "llm_ms": np.array([ms for _, ms, _ in found]),
            "request_bytes": np.array([size for _, _, size in found]),
        }  # fmt: skip
        return Recorded(columns, failed)

    def _doubts(self, prompts: Sequence[Sequence[int]], ids: Sequence[Sequence[int]]) -> Any:
        laws = laws_along(self._slm.cached_rows(len(prompts)), prompts, ids)
        doubts = []
        for law, row in zip(laws, ids, strict=True):
            log_q = law.log_softmax(dim=-1)[torch.arange(len(row)), torch.tensor(row)]
            doubts.append(1 - float(log_q.mean().exp()))
        return np.clip(np.array(doubts), 0, 1)

    def _scores(self, items: Sequence[Item], texts: Sequence[str]) -> Any:
        accepted = [{final_answer(one, self._mark) for one in item.references} for item in items]
        right = [final_answer(text, self._mark) in good for text, good in zip(texts, accepted, strict=True)]
        return np.array(right, dtype=np.float32)

    def _number(self, text: str) -> int:
        digest = hashlib.blake2b(final_answer(text, self._mark).encode(), digest_size=ANSWER_BYTES).digest()
        return int.from_bytes(digest, "big")


def _written(model: LanguageModel, prompts: Sequence[Ids], limit: int) -> tuple[list[Ids], float]:
    """Greedy answers, and the milliseconds of each: its share of the batch."""
    started = time.perf_counter()
    ids = model.generate(prompts, max_new_tokens=limit, batch_size=len(prompts))
    return ids, 1000 * (time.perf_counter() - started) / len(prompts)


def final_answer(text: str, mark: str) -> str:
    """What of an answer is compared: the part after the last mark, white space folded, without a closing point."""
    part = text.rpartition(mark)[2] if mark else text
    return " ".join(part.split()).removesuffix(".")


def _some(text: str) -> str:
    if not text.strip():
        raise Unusable("an empty answer")
    return text
