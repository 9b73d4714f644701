"""Who writes paths: a model on this machine, or one behind an endpoint."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Protocol

from fedtandem.errors import ModelError
from fedtandem.evaluation.reading import read_answers
from fedtandem.models.endpoint import Endpoint, NoAnswer
from fedtandem.models.language_model import LanguageModel


@dataclass(frozen=True)
class Written:
    """One prompt's path, or why there is none.

    Attributes:
        text: as written, leading separator included; "" where there is none.
        nats_per_byte: the writer's own loss; None behind an endpoint.
        fault: why there is no path; "" where there is one.
    """

    text: str
    nats_per_byte: float | None = None
    fault: str = ""


class Writer(Protocol):
    """Somebody who writes paths."""

    identity: str
    """All that decides what it writes, beside the prompt."""

    def write(self, prompts: Sequence[str]) -> Iterator[tuple[int, Written]]:
        """(index of the prompt, its path), each as soon as it is there, in any order."""
        ...


@dataclass
class ModelWriter:
    """A model on this machine: greedy, in batches, each with its own loss."""

    lm: LanguageModel
    template: str
    max_new_tokens: int
    batch_size: int
    chat_template: bool

    def __post_init__(self) -> None:
        digest = hashlib.sha256()
        for name, tensor in sorted(self.lm.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        about = [digest.hexdigest(), self.lm.tokenizer.card.hash, self.max_new_tokens, self.chat_template]
        self.identity = json.dumps(about)

    def write(self, prompts: Sequence[str]) -> Iterator[tuple[int, Written]]:
        """See `Writer`; a prompt the model cannot read is a fault of its own, not of its batch."""
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            try:
                yield from zip(batch, self._batch([prompts[i] for i in batch]), strict=True)
            except ModelError:
                for i in batch:
                    try:
                        yield i, self._batch([prompts[i]])[0]
                    except ModelError as error:
                        yield i, Written("", fault=str(error))

    def _batch(self, prompts: Sequence[str]) -> list[Written]:
        tokenizer = self.lm.tokenizer
        ids = [tokenizer.encode_prompt(text, chat_template=self.chat_template) for text in prompts]
        written = self.lm.generate(ids, max_new_tokens=self.max_new_tokens, batch_size=self.batch_size)
        texts = [tokenizer.decode_answer(new) for new in written]
        said = [i for i, text in enumerate(texts) if text.strip()]
        encoded = tokenizer.encode_many(
            [(prompts[i], texts[i]) for i in said],
            max_length=2**30,
            chat_template=self.chat_template,
            positions="answer",
            eos=[False] * len(said),
        )
        losses = read_answers(self.lm, encoded, batch_size=self.batch_size)
        results = [Written("", fault="the model wrote nothing")] * len(prompts)
        for i, loss in zip(said, losses, strict=True):
            results[i] = Written(texts[i], float(loss.sum()) / len(texts[i].encode()))
        return results


@dataclass
class EndpointWriter:
    """A model behind an endpoint: text alone, several requests at once."""

    endpoint: Endpoint
    template: str
    max_new_tokens: int
    parallel: int

    def __post_init__(self) -> None:
        self.identity = json.dumps([self.endpoint.url, self.endpoint.model, self.max_new_tokens])

    def write(self, prompts: Sequence[str]) -> Iterator[tuple[int, Written]]:
        """See `Writer`.

        Raises:
            NetworkError: no request will be answered; those that were are told first.
        """
        with ThreadPoolExecutor(max_workers=self.parallel) as pool:
            waiting = {pool.submit(self._one, prompt): i for i, prompt in enumerate(prompts)}
            try:
                for future in as_completed(waiting):
                    yield waiting[future], future.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _one(self, prompt: str) -> Written:
        try:
            return Written(self.endpoint.chat(prompt, max_tokens=self.max_new_tokens).strip())
        except NoAnswer as error:
            return Written("", fault=str(error))
