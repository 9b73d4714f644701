"""A sequence-classification model of `transformers`: texts in, a law over classes and an embedding out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fedtandem.errors import ModelError
from fedtandem.models.adapters import without_bars
from fedtandem.models.classifier import ClassLaws
from fedtandem.models.fingerprint import fingerprint
from fedtandem.models.load import choose_device, choose_dtype, locate


class SequenceClassifier:
    """A model with a classification head, in evaluation mode, with its tokenizer.

    Attributes:
        name: for messages.
        labels: names of the C classes.
        fingerprint: of weights and vocabulary.

    Its embedding of a text is the last hidden states' mean over the text's tokens.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str, max_length: int = 512) -> None:
        model.eval()
        self.name = name
        self.model, self.tokenizer = model, tokenizer
        limit = getattr(model.config, "max_position_embeddings", None)
        self._max_length = max_length if limit is None else min(max_length, int(limit))
        names = model.config.id2label
        self.labels = tuple(str(names[i]) for i in range(int(model.config.num_labels)))
        self.fingerprint = fingerprint(name, model, repr(sorted(tokenizer.get_vocab().items())))

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> ClassLaws:
        """The law of every text; what is beyond the model's context is cut off.

        Raises:
            ModelError: NaN logits; says of which text.
        """
        encoded = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self._max_length, return_tensors="pt"
        ).to(self.model.device)
        output = self.model(**encoded, output_hidden_states=True)
        logits = output.logits.float()
        bad = ~logits.isfinite().all(dim=-1)
        if bad.any():
            raise ModelError(
                f"{self.name} gave NaN or infinite logits for the text {texts[int(bad.int().argmax())][:60]!r}; load "
                "weights in float32, or look at its training."
            )
        mask = encoded["attention_mask"].unsqueeze(-1).float()
        last = output.hidden_states[-1].float()  # (B, T, D)
        mean = (last * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1)
        return ClassLaws(logits.softmax(dim=-1).cpu(), mean.cpu())


def load_classifier(name: str, *, max_length: int = 512) -> SequenceClassifier:
    """Load a folder or a hub name that has a classification head.

    Args:
        max_length: tokens of a text at most.

    Raises:
        ModelError: not found, no classification head, or fewer than two classes.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    source = locate(name)
    if not has_classification_head(source):
        raise ModelError(
            f"{name} has no classification head (its config names no ...ForSequenceClassification). For causal "
            "models use --kind tokens or --kind answers."
        )
    device = choose_device("auto")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source), use_fast=True)
        with without_bars():
            model: Any = AutoModelForSequenceClassification.from_pretrained(
                str(source), dtype=choose_dtype("auto", device)
            )
    except (OSError, ValueError) as error:
        raise ModelError(f"{name} could not be loaded: {str(error).strip().splitlines()[0]}") from error
    if model.config.num_labels < 2:
        raise ModelError(f"{name} has {model.config.num_labels} class; routing needs at least two.")
    if tokenizer.pad_token_id is None:
        raise ModelError(f"{name}: its tokenizer has no padding token; name one in tokenizer_config.json.")
    return SequenceClassifier(model.to(device), tokenizer, name, max_length)


def has_classification_head(source: Path | str) -> bool:
    """Whether the model's config names one.

    Raises:
        ModelError: there is no config.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(source))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{source} could not be loaded: {str(error).strip().splitlines()[0]} Give a folder with config.json, "
            "or a name on the Hugging Face hub (with network access)."
        ) from error
    return any("ForSequenceClassification" in kind for kind in config.architectures or ())
