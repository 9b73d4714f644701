"""How well a model predicts given answers: one forward pass per text, in batches of like length."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from fedtandem.errors import ModelError
from fedtandem.models.encoded import Encoded
from fedtandem.models.language_model import LanguageModel, collate

Progress = Callable[[int, int], None]
MAX_LOGITS = 2**27
"""Logits made at once: 512 MiB in float32. Long answers over a large vocabulary get smaller batches."""


@torch.no_grad()
def read_answers(
    lm: LanguageModel,
    texts: Sequence[Encoded],
    *,
    want_hits: bool = False,
    batch_size: int = 32,
    on_progress: Progress | None = None,
) -> list[NDArray[np.float64]]:
    """What the model makes of every predictor position.

    Args:
        texts: N of them, in this model's tokenisation.
        want_hits: instead of the loss, whether the most likely token is the target.
        batch_size: texts per forward pass at most.
        on_progress: called with (texts done, N).

    Returns:
        Per text, in the order given, (P,) float64: -log p(target) in nats, or 1 and 0 (`want_hits`).

    Raises:
        ModelError: the model gave NaN.
    """
    results: list[NDArray[np.float64]] = [np.zeros(0)] * len(texts)
    was_training = lm.model.training
    lm.model.eval()
    done = 0
    try:
        for chosen in batches(texts, batch_size, lm.tokenizer.vocab_size):
            batch = collate([texts[i] for i in chosen], lm.tokenizer.pad_id)
            logits = lm.logits_at(batch).float()  # (P, V)
            targets = batch.targets.to(logits.device)
            if want_hits:
                # A NaN would win every argmax; as a sum over the row it is seen.
                bad = logits.sum(dim=-1).isnan()
                rows = (logits.argmax(dim=-1) == targets).double()
            else:
                rows = F.cross_entropy(logits, targets, reduction="none").double()
                bad = rows.isnan()
            if bool(bad.any()):
                raise ModelError(
                    f"{lm.name} gave NaN logits on a held-out sample. Its weights are damaged: lower the "
                    "learning "
                    'rate, or set dtype = "float32".'
                )
            values, splits = rows.cpu().numpy(), batch.splits.tolist()
            for i, first, last in zip(chosen, splits, splits[1:], strict=False):
                results[i] = values[first:last]
            done += len(chosen)
            if on_progress is not None:
                on_progress(done, len(texts))
    finally:
        lm.model.train(was_training)
    return results


def batches(texts: Sequence[Encoded], batch_size: int, vocab_size: int) -> Iterator[list[int]]:
    """Indices of texts to read together: like lengths, at most `batch_size`, at most `MAX_LOGITS` logits."""
    by_length = sorted(range(len(texts)), key=lambda i: (len(texts[i].input_ids), i))
    batch: list[int] = []
    rows = 0
    for i in by_length:
        more = len(texts[i].positions)
        if batch and (len(batch) == max(1, batch_size) or (rows + more) * vocab_size > MAX_LOGITS):
            yield batch
            batch, rows = [], 0
        batch.append(i)
        rows += more
    if batch:
        yield batch
