"""Recording a trace: what every kind of recorder gives, and what they share."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from fedtandem.data.items import Item
from fedtandem.data.traces import TraceInfo
from fedtandem.errors import NetworkError
from fedtandem.models.endpoint import Refused

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class Recorded:
    """What came of some items.

    Attributes:
        columns: of a trace, row by row; items that failed have no row.
        failed: id of an item -> why the cloud has no answer to it.
    """

    columns: Mapping[str, Any]
    failed: Mapping[str, str]


class Recorder(Protocol):
    """Two models that decide on items."""

    @property
    def info(self) -> TraceInfo:
        """Of the whole trace."""
        ...

    @property
    def note(self) -> str:
        """What a reader of the trace has to know; "" where there is nothing."""
        ...

    def record(self, items: Sequence[Item]) -> Recorded:
        """Both models' decisions on a batch of items."""
        ...


def ask_all(asked: Sequence[T], ask: Callable[[T], R], parallel: int) -> list[R | NetworkError]:
    """Ask about several things at once; one that fails does not take the others with it.

    Raises:
        Refused: the endpoint does not admit us at all.
    """

    def one(what: T) -> R | NetworkError:
        try:
            return ask(what)
        except Refused:
            raise
        except NetworkError as error:
            return error

    with ThreadPoolExecutor(max_workers=max(1, parallel)) as pool:
        return list(pool.map(one, asked))


def parties(items: Sequence[Item]) -> dict[str, list[str]]:
    """The columns that say whose decisions these are."""
    return {
        "client": [item.client for item in items],
        "cluster": [item.cluster for item in items],
        "session": [item.id for item in items],
    }


def top_law(logits: Tensor, k: int, draft: Tensor) -> tuple[Tensor, Tensor]:
    """The k likeliest tokens of each law, the draft always among them.

    Args:
        logits: (N, V), raw.
        draft: (N,) int64.

    Returns:
        ids and probabilities of the whole law, (N, k) int64 and float32; k at most V.
    """
    probs = logits.float().softmax(dim=-1)
    top = probs.topk(min(k, probs.shape[-1]), dim=-1)
    ids, values = top.indices.clone(), top.values.clone()
    missing = ~(ids == draft[:, None]).any(dim=-1)
    ids[missing, -1] = draft[missing]
    values[missing, -1] = probs[missing, draft[missing]]
    return ids, values


def laws_along(
    model: Any, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> list[Tensor]:
    """The law at every place of given answers, in one pass.

    Args:
        model: a `NextTokenModel` that reads B rows.
        prompts, answers: ids; no answer is empty.

    Returns:
        Per row raw logits (n, V) on the CPU: place i has seen the prompt and the first i tokens of the answer.
    """
    texts = [[*prompt, *answer[:-1]] for prompt, answer in zip(prompts, answers, strict=True)]
    found = model.logits(list(range(len(texts))), texts, [len(answer) for answer in answers])
    return [torch.as_tensor(logits).float().cpu() for logits in found]
