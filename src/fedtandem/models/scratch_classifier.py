"""A BERT-style classifier from nothing: tokenizer, encoder and head from the same labelled texts, in a minute."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fedtandem.atomic import whole_folder
from fedtandem.models.classifier import checked_labels
from fedtandem.models.scratch_tokenizer import train_tokenizer
from fedtandem.models.sequence_classifier import SequenceClassifier


@dataclass(frozen=True)
class EncoderSpec:
    """Shape and training. The same spec and texts give the same weights.

    Attributes:
        hidden_size, layers, heads: of the encoder; the feed-forward part is four times as wide.
        vocabulary: of a byte-level BPE trained on the texts.
        max_length: tokens of a text that are read.
        epochs, batch_size, learning_rate: AdamW, 30 updates of warm-up, then linear decay to 0.
        seed: of first weights, order and dropout.
    """

    hidden_size: int = 64
    layers: int = 2
    heads: int = 4
    vocabulary: int = 4000
    max_length: int = 64
    epochs: int = 3
    batch_size: int = 32
    learning_rate: float = 1e-3
    dropout: float = 0.1
    seed: int = 0


def train_encoder(
    spec: EncoderSpec,
    texts: Sequence[str],
    label: Sequence[int],
    labels: Sequence[str],
    *,
    name: str = "bert",
    class_weight: Tensor | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> SequenceClassifier:
    """Train on N texts.

    Args:
        class_weight: (C,) float32.
        on_step: called with (updates done, all updates).

    Raises:
        ModelError: labels that do not fit.
    """
    from transformers import BertConfig, BertForSequenceClassification

    y = checked_labels(texts, label, labels)
    tokenizer: Any = train_tokenizer("bpe", texts, spec.vocabulary).hf
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=spec.hidden_size, num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads, intermediate_size=4 * spec.hidden_size,
        max_position_embeddings=spec.max_length, pad_token_id=tokenizer.pad_token_id,
        hidden_dropout_prob=spec.dropout, attention_probs_dropout_prob=spec.dropout,
        id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)},
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        model = BertForSequenceClassification(config)
        encoded = tokenizer(
            list(texts), padding=True, truncation=True, max_length=spec.max_length, return_tensors="pt"
        )
        _train(model, encoded, y, spec, class_weight, on_step)
    return SequenceClassifier(model, tokenizer, name, spec.max_length)


def save_classifier(classifier: SequenceClassifier, folder: Path) -> None:
    """Write a folder that `fedtandem trace` and transformers load; wholly or not at all."""
    with whole_folder(folder) as draft:
        classifier.model.save_pretrained(draft)
        classifier.tokenizer.save_pretrained(draft)


def _train(
    model: Any,
    encoded: Any,
    y: Tensor,
    spec: EncoderSpec,
    class_weight: Tensor | None,
    on_step: Callable[[int, int], None] | None,
) -> None:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.learning_rate, weight_decay=0.01)
    updates = spec.epochs * -(-len(y) // spec.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: min((done + 1) / 30, (updates - done) / max(1, updates - 30))
    )
    done = 0
    for _ in range(spec.epochs):
        for batch in torch.split(torch.randperm(len(y)), spec.batch_size):
            mask = encoded["attention_mask"][batch]
            width = int(mask.sum(dim=1).max())
            logits = model(
                input_ids=encoded["input_ids"][batch, :width], attention_mask=mask[:, :width]
            ).logits
            loss = F.cross_entropy(logits, y[batch], weight=class_weight)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            done += 1
            if on_step is not None:
                on_step(done, updates)
