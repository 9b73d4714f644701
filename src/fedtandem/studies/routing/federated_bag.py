"""A bag that clients train together without showing their texts: FedAvg, each word over the clients that hold it."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fedtandem.models.embedding_bag import BagSpec, EmbeddingBag, train_rows

Weights = dict[str, Tensor]


def federated(
    start: EmbeddingBag,
    clients: Sequence[tuple[Sequence[str], Sequence[int]]],
    spec: BagSpec,
    rounds: int,
    *,
    class_weight: Tensor | None = None,
    on_round: Callable[[EmbeddingBag, int], None] | None = None,
) -> EmbeddingBag:
    """Train by FedAvg.

    Args:
        start: the first weights, the vocabulary and the classes. Its words are taken as agreed on beforehand.
        clients: (texts, labels) of each.
        spec: of a client's training in each round; its epochs are local.
        rounds: of averaging.
        class_weight: (C,) float32, the same at all clients.
        on_round: called with the bag and the number of each round.

    Source: FedAvg, McMahan et al. 2017, arXiv:1602.05629. A word's row is averaged over the clients that hold the word
    (choice): over all of them, a rare word would hardly move.
    """
    encoded = [(start.encode(texts), torch.as_tensor(label, dtype=torch.int64)) for texts, label in clients]
    size = torch.tensor([float(len(label)) for _, label in encoded])
    holds = torch.stack(
        [torch.bincount(ids.flatten(), minlength=len(start.words) + 1) > 0 for ids, _ in encoded]
    )
    weights = start.weights
    for number in range(1, rounds + 1):
        own = BagSpec(**{**vars(spec), "seed": spec.seed + number, "decay": False,
                         "learning_rate": spec.learning_rate * (1 - (number - 1) / rounds)})  # fmt: skip
        trained = [train_rows(weights, ids, label, own, class_weight) for ids, label in encoded]
        weights = averaged(weights, trained, size, holds)
        if on_round is not None:
            on_round(EmbeddingBag(start.spec, start.words, start.labels, weights, start.name), number)
    return EmbeddingBag(start.spec, start.words, start.labels, weights, start.name)


def averaged(before: Weights, trained: Sequence[Weights], size: Tensor, holds: Tensor) -> Weights:
    """The mean of C clients' weights by size; a word's row over the clients that hold it, or as before if none does.

    Args:
        size: (C,) float32.
        holds: (C, 1 + V) bool.
    """
    share = holds * size[:, None]  # (C, 1 + V)
    total = share.sum(dim=0)
    rows = torch.zeros_like(before["rows"])
    for mine, weights in zip(share, trained, strict=True):
        rows += mine[:, None] * weights["rows"]
    rows = torch.where(total[:, None] > 0, rows / total.clamp_min(1)[:, None], before["rows"])
    plain = {
        key: (
            torch.stack([w[key] for w in trained]) * (size / size.sum()).view(-1, *[1] * before[key].ndim)
        ).sum(dim=0)
        for key in ("head", "bias")
    }
    return {"rows": rows, **plain}
