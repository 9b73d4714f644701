"""One pass of a model over texts: how well it predicts each, and its sparse next-token distributions."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from fedtandem.algorithms.settings import KnowledgeSettings
from fedtandem.errors import InvalidMessage
from fedtandem.knowledge.score import bytes_score, token_score
from fedtandem.knowledge.sparse_logits import SparseLogits, sparsify
from fedtandem.models.encoded import Encoded
from fedtandem.models.language_model import LanguageModel, collate

Progress = Callable[[int, int], None]


def _silent(done: int, of: int) -> None:
    return None


@torch.no_grad()
def public_pass(
    lm: LanguageModel,
    encoded: Sequence[Encoded],
    settings: KnowledgeSettings,
    *,
    want_rows: bool,
    party: str,
    progress: Progress = _silent,
) -> tuple[np.ndarray, SparseLogits]:
    """Score a model on texts and keep its sparse next-token distributions.

    Args:
        lm: the model; put into evaluation mode, its weights untouched.
        encoded: the texts in this model's tokenisation; N of them.
        settings: what a row keeps and how a sample is scored.
        want_rows: false leaves the rows out (N samples of 0 rows).
        party: for error messages.
        progress: called with (samples done, N).

    Returns:
        The scores, (N,) float32: nats per answer byte in `bytes` mode, nats per token in `mined`; `inf` for a
        sample whose answer was truncated. And the rows: N samples, one row per predictor position.

    Raises:
        InvalidMessage: the model gave NaN.

    Source: specification of FedMKT, section 4; FedMKT, arXiv:2406.02224v4, steps 2 and 7.
    """
    lm.model.eval()
    by_length = sorted(range(len(encoded)), key=lambda i: (len(encoded[i].input_ids), i))
    scores = np.full(len(encoded), np.inf, dtype=np.float32)
    pieces: list[SparseLogits] = []
    for start in range(0, len(by_length), settings.batch_size):
        chosen = by_length[start : start + settings.batch_size]
        texts = [encoded[i] for i in chosen]
        batch = collate(texts, lm.tokenizer.pad_id)
        logits = lm.logits_at(batch).float()
        nll = F.cross_entropy(logits, batch.targets.to(logits.device), reduction="none").cpu().numpy()
        splits = np.concatenate([[0], np.cumsum([len(text.positions) for text in texts])])
        for i, text, first, last in zip(chosen, texts, splits, splits[1:], strict=False):
            if text.scored:
                scores[i] = _score(nll[first:last], text, settings, party)
        if want_rows:
            pieces.append(_rows(logits, texts, splits, settings))
        progress(min(start + settings.batch_size, len(by_length)), len(by_length))
    if not want_rows:
        return scores, SparseLogits.empty(len(encoded))
    rows = SparseLogits.concat(pieces) if pieces else SparseLogits.empty(0)
    back = np.argsort(np.asarray(by_length, dtype=np.int64), kind="stable")
    return scores, rows.take_samples(back)


def _score(nll: np.ndarray, text: Encoded, settings: KnowledgeSettings, party: str) -> float:
    answer = text.segment == 1
    try:
        if settings.mode == "mined":
            return float(token_score(nll[answer]))
        return float(bytes_score(nll[answer], text.is_eos[answer], text.n_answer_bytes))
    except ValueError as error:
        raise InvalidMessage(
            f"{party}: the model's loss on a public sample is not a number: {error}"
        ) from error


def _rows(
    logits: torch.Tensor, texts: Sequence[Encoded], splits: np.ndarray, settings: KnowledgeSettings
) -> SparseLogits:
    """The rows of one batch; a sample that is not scored keeps none."""
    scored = np.concatenate([np.full(len(text.positions), text.scored) for text in texts]).astype(bool)
    kept = torch.as_tensor(np.flatnonzero(scored), device=logits.device)
    ids, log_probs, counts, tail = sparsify(logits[kept], settings.top_k, settings.top_k_mass)
    lengths = [len(text.positions) if text.scored else 0 for text in texts]
    return SparseLogits(
        token_ids=ids,
        log_probs=log_probs,
        row_splits=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        tail_log_prob=tail,
        end_byte=np.concatenate([text.end_byte for text in texts])[scored],
        segment=np.concatenate([text.segment for text in texts])[scored],
        sample_splits=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )
