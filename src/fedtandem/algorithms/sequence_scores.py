"""What one model makes of whole texts: their joint log-probability, and a small summary of its hidden states."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedtandem.models.encoded import ANSWER, Encoded
from fedtandem.models.language_model import LanguageModel, PaddingSide, collate
from fedtandem.selection.items import EMBEDDING, Floats


def batch_log_probs(
    lm: LanguageModel, texts: Sequence[Encoded], padding_side: PaddingSide = "right"
) -> Tensor:
    """log p(path | prompt) of each text, summed over the path's tokens, EOS included; (B,), with gradient.

    Source: specification of LaDa, section 3; prompt and padding take no part.
    """
    batch = collate(texts, lm.tokenizer.pad_id, padding_side).to(lm.device)
    logits = lm.logits_at(batch).float()
    losses = F.cross_entropy(logits, batch.targets, reduction="none")  # (P,)
    answer = np.concatenate([text.segment == ANSWER for text in texts])
    row = torch.repeat_interleave(torch.diff(batch.splits))
    zeros = losses.new_zeros(len(texts), dtype=torch.float64)
    return -zeros.index_add(0, row, losses.double() * torch.from_numpy(answer).to(losses.device))


@torch.no_grad()
def sequence_log_probs(lm: LanguageModel, texts: Sequence[Encoded], batch_size: int = 32) -> Floats:
    """The same without gradient; (n,) float64, NaN where the path did not fit into max_length. Evaluation mode."""
    lm.model.eval()
    found = np.full(len(texts), np.nan)
    for chosen in _batches(texts, batch_size):
        found[chosen] = batch_log_probs(lm, [texts[i] for i in chosen]).cpu().numpy()
    found[[not text.scored for text in texts]] = np.nan
    return found


def n_path_tokens(texts: Sequence[Encoded]) -> np.ndarray:
    """Tokens behind each log-probability, EOS included; (n,) int64."""
    return np.array([int((text.segment == ANSWER).sum()) for text in texts], np.int64)


@torch.no_grad()
def embed(
    lm: LanguageModel, token_ids: Sequence[np.ndarray], *, seed: int = 0, batch_size: int = 32
) -> np.ndarray:
    """Mean of the last hidden states over a text's tokens, through a fixed random projection; (n, 16) float32.

    Args:
        token_ids: n sequences.
        seed: draws the projection; the same for all rounds, so that contexts can be compared.
    """
    lm.model.eval()
    found = np.zeros((len(token_ids), EMBEDDING), np.float32)
    projection: np.ndarray | None = None
    order = sorted(range(len(token_ids)), key=lambda i: (len(token_ids[i]), i))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        hidden = lm.mean_hidden([token_ids[i] for i in chosen]).cpu().numpy()
        if projection is None:
            width = hidden.shape[1]
            projection = np.random.default_rng(seed).standard_normal((width, EMBEDDING)) / np.sqrt(width)
        found[chosen] = hidden @ projection
    return found


def _batches(texts: Sequence[Encoded], batch_size: int) -> Iterator[list[int]]:
    """Places of texts of like length together."""
    order = sorted(range(len(texts)), key=lambda i: (len(texts[i].input_ids), i))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def final_answer(path: str) -> str:
    """What a path ends in: its last word."""
    return path.split()[-1] if path.split() else ""
