"""What every classifier is: texts in, a law over classes and an embedding out; and several of them as one."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Protocol

import torch
from torch import Tensor

from fedtandem.errors import ModelError


@dataclass(frozen=True, eq=False)
class ClassLaws:
    """What a classifier makes of B texts.

    Attributes:
        probs: (B, C) float32, rows sum to 1.
        embedding: one vector per text; (B, D) float32. Of what, each classifier says.
    """

    probs: Tensor
    embedding: Tensor


class Classifier(Protocol):
    """A model that classifies texts, ready to be asked."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the C classes."""
        ...

    @property
    def fingerprint(self) -> str:
        """Of weights and vocabulary."""
        ...

    def read(self, texts: Sequence[str]) -> ClassLaws:
        """The law of every text."""
        ...


class Vote:
    """Several classifiers as one: the mean of their laws, the embedding of the first.

    Args:
        members: with the same classes in the same order.
        name: for messages.

    Raises:
        ModelError: none, or their classes differ.
    """

    def __init__(self, members: Sequence[Classifier], name: str) -> None:
        if not members or any(member.labels != members[0].labels for member in members):
            told = "; ".join(f"{member.name}: {', '.join(member.labels)}" for member in members)
            raise ModelError(
                f"a vote needs members with the same classes in the same order; given: {told or 'none'}."
            )
        self.name, self.labels, self._members = name, members[0].labels, tuple(members)
        whole = blake2b(" ".join(member.fingerprint for member in members).encode(), digest_size=8)
        self.fingerprint = f"{name}:{whole.hexdigest()}"

    def read(self, texts: Sequence[str]) -> ClassLaws:
        """The mean law of every text."""
        read = [member.read(texts) for member in self._members]
        return ClassLaws(torch.stack([laws.probs for laws in read]).mean(dim=0), read[0].embedding)


def checked_labels(texts: Sequence[str], label: Sequence[int], labels: Sequence[str]) -> Tensor:
    """Labels to train on, (N,) int64.

    Raises:
        ModelError: not one class index per text, or a class outside the names.
    """
    y = torch.as_tensor(label, dtype=torch.int64)
    if y.shape != (len(texts),) or not len(y):
        raise ModelError(
            f"{len(texts)} texts with {len(y)} labels; training needs one label for each, and a text."
        )
    if not bool(((y >= 0) & (y < len(labels))).all()):
        bad = int(y[(y < 0) | (y >= len(labels))][0])
        raise ModelError(f"label {bad} is no class; there are {len(labels)}: {', '.join(labels)}.")
    return y


def balanced_weights(label: Tensor, classes: int) -> Tensor:
    """N / (C n_c) for each class, so that all weigh alike; (C,) float32. A class without texts weighs 0."""
    n = torch.bincount(label, minlength=classes).float()
    return torch.where(n > 0, len(label) / (classes * n.clamp_min(1)), 0.0)
