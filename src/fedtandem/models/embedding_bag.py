"""A bag of words with an embedding each: a classifier that a phone trains in seconds.

Source: fastText's classifier, Joulin et al. 2016, arXiv:1607.01759 (mean of word vectors, one linear layer).
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from fedtandem.models.classifier import ClassLaws, checked_labels
from fedtandem.models.fingerprint import fingerprint

_WORD = re.compile(r"\w+")
MAX_WORDS = 128
"""Words of a text that are read."""
ROWS = 4096


@dataclass(frozen=True)
class BagSpec:
    """Shape and training of a bag. The same spec and texts give the same weights.

    Attributes:
        vocabulary: words kept, the most frequent.
        dimension: of a word's embedding.
        pairs: neighbouring words count as words too.
        epochs, batch_size, learning_rate: of Adam; the rate falls linearly to 0 over the training, unless `decay`
            is false.
        word_dropout: share of a text's words left out at each step.
        seed: of first weights, order and dropout.
    """

    vocabulary: int = 12_000
    dimension: int = 32
    pairs: bool = False
    epochs: int = 6
    batch_size: int = 64
    learning_rate: float = 5e-3
    decay: bool = True
    word_dropout: float = 0.2
    seed: int = 0


class EmbeddingBag:
    """softmax(W · mean of the words' embeddings + b); its embedding of a text is that mean.

    Args:
        spec: of the shape; training is `trained`.
        words: the vocabulary, in the order of the rows; row 0 is padding.
        labels: names of the C classes.
        weights: rows (1 + V, D), head (C, D), bias (C,), all float32.
        name: for messages.
    """

    def __init__(
        self,
        spec: BagSpec,
        words: Sequence[str],
        labels: Sequence[str],
        weights: dict[str, Tensor],
        name: str = "bag",
    ) -> None:
        self.spec, self.words, self.labels, self.weights, self.name = (
            spec, tuple(words), tuple(labels), weights, name,
        )  # fmt: skip
        self._row = {word: i + 1 for i, word in enumerate(self.words)}

    @property
    def fingerprint(self) -> str:
        """Of weights and vocabulary."""
        module = torch.nn.ParameterDict({key: tensor.detach() for key, tensor in self.weights.items()})
        return fingerprint(self.name, module, sha256("\n".join(self.words).encode()).hexdigest())

    @property
    def parameters(self) -> int:
        """Numbers it is made of."""
        return sum(tensor.numel() for tensor in self.weights.values())

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Rows of each text's known words, 0 behind them; (N, T) int64 with T at least 1."""
        found = [[self._row[w] for w in pieces(text, self.spec.pairs) if w in self._row] for text in texts]
        width = max(1, max((len(row) for row in found), default=1))
        return torch.tensor([row + [0] * (width - len(row)) for row in found], dtype=torch.int64)

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> ClassLaws:
        """The law of every text; one without any known word gets the bias alone."""
        laws, means = [], []
        for start in range(0, len(texts), ROWS):
            mean = _mean(self.weights["rows"], self.encode(texts[start : start + ROWS]))
            laws.append(F.linear(mean, self.weights["head"], self.weights["bias"]).softmax(dim=-1))
            means.append(mean)
        return ClassLaws(torch.cat(laws), torch.cat(means))

    def trained(
        self,
        texts: Sequence[str],
        label: Sequence[int],
        *,
        class_weight: Tensor | None = None,
        **changed: object,
    ) -> "EmbeddingBag":
        """A copy, trained on from these weights.

        Args:
            texts, label: N texts and their classes.
            class_weight: (C,) float32.
            changed: fields of the spec that hold for this training alone.

        Raises:
            ModelError: labels that do not fit.
        """
        spec = replace(self.spec, **changed)  # type: ignore[arg-type]
        y = checked_labels(texts, label, self.labels)
        weights = train_rows(self.weights, self.encode(texts), y, spec, class_weight)
        return EmbeddingBag(self.spec, self.words, self.labels, weights, self.name)


def new_bag(spec: BagSpec, texts: Sequence[str], labels: Sequence[str], name: str = "bag") -> EmbeddingBag:
    """An untrained bag with the vocabulary of these texts; equally frequent words in alphabetical order."""
    counts = Counter(word for text in texts for word in pieces(text, spec.pairs))
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[: spec.vocabulary]
    generator = torch.Generator().manual_seed(spec.seed)
    rows = 0.1 * torch.randn(1 + len(ranked), spec.dimension, generator=generator)
    rows[0] = 0
    head = torch.randn(len(labels), spec.dimension, generator=generator) / spec.dimension**0.5
    weights = {"rows": rows, "head": head, "bias": torch.zeros(len(labels))}
    return EmbeddingBag(spec, [word for word, _ in ranked], labels, weights, name)


def pieces(text: str, pairs: bool) -> list[str]:
    """Words in lower case, at most 128; with `pairs` each two neighbours too."""
    words = _WORD.findall(text.lower())[:MAX_WORDS]
    return words + [f"{a} {b}" for a, b in pairwise(words)] if pairs else words


def train_rows(
    start: dict[str, Tensor], ids: Tensor, label: Tensor, spec: BagSpec, class_weight: Tensor | None = None
) -> dict[str, Tensor]:
    """Adam on cross-entropy from these weights.

    Only rows of words that occur are held: a word without a gradient stays where it is, and a client's share of the
    vocabulary is small.

    Args:
        start: of an `EmbeddingBag`; not changed.
        ids: (N, T) int64, 0 for padding.
        label: (N,) int64.

    Returns:
        New weights, of the same shapes.
    """
    used, local = torch.unique(
        torch.cat([torch.zeros(1, dtype=torch.int64), ids.flatten()]), return_inverse=True
    )
    places = local[1:].reshape(ids.shape)
    rows = start["rows"][used].clone().requires_grad_()
    head, bias = (start[key].clone().requires_grad_() for key in ("head", "bias"))
    optimizer = torch.optim.Adam([rows, head, bias], lr=spec.learning_rate)
    generator = torch.Generator().manual_seed(spec.seed)
    updates = spec.epochs * -(-len(label) // spec.batch_size)
    done = 0
    for _ in range(spec.epochs):
        for batch in torch.split(torch.randperm(len(label), generator=generator), spec.batch_size):
            if spec.decay:
                optimizer.param_groups[0]["lr"] = spec.learning_rate * (1 - done / updates)
            chosen = places[batch]
            if spec.word_dropout > 0:
                chosen = chosen * (torch.rand(chosen.shape, generator=generator) >= spec.word_dropout)
            loss = F.cross_entropy(
                F.linear(_mean(rows, chosen), head, bias), label[batch], weight=class_weight
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            done += 1
    whole = start["rows"].clone()
    whole[used] = rows.detach()
    return {"rows": whole, "head": head.detach(), "bias": bias.detach()}


def _mean(rows: Tensor, ids: Tensor) -> Tensor:
    """Mean of each text's rows, padding left out; (N, D), zeros for a text without words."""
    return F.embedding_bag(ids, rows, mode="mean", padding_idx=0)
