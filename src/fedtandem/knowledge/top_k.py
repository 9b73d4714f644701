"""From dense logits to the few that matter."""

import numpy as np
import numpy.typing as npt
import torch

from fedtandem.errors import ModelError

CHUNK_ELEMENTS = 1 << 22
"""`sparsify` works on as many rows at a time as hold this many logits, so its scratch stays near 100 MiB."""

TAIL_FLOOR = 1e-12
"""A tail that exists is never smaller than this: 1 - Σp ends in rounding, and its logarithm must stay finite."""

Arrays = tuple[
    npt.NDArray[np.int32], npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.float32]
]  # ids (ΣK,), log_probs (ΣK,), counts (P,), tail_log_prob (P,)


def sparsify(
    logits: torch.Tensor, top_k: int, top_k_mass: float = 1.0, *, where: str = "the model"
) -> Arrays:
    """Keep, of each row, the smallest number of tokens that reaches `top_k_mass`, at most `top_k`.

    Equal logits: the lower id is kept. Tokens of probability 0 (logit -inf) are never kept. Works in float32,
    a few rows at a time, so no second (P, V) tensor is made.

    Args:
        logits: raw, over the real vocabulary (a padded head cut off); (P, V) floating point.
        top_k: kept tokens per row at most.
        top_k_mass: probability mass to reach; 1.0 keeps `top_k` tokens of every row.
        where: names the model and party in an error.

    Returns:
        token ids, ascending inside a row, (ΣK,) int32; log-probabilities over all of V in nats, (ΣK,)
        float32; kept tokens per row, (P,) int64; log of the mass left out in nats, (P,) float32, -inf when
        nothing was left out.

    Raises:
        ValueError: a bad shape, top_k < 1 or top_k_mass outside (0, 1].
        ModelError: a row holds NaN or +inf.

    Source: FedMKT, arXiv:2406.02224v4, section 3; the mass rule is our choice.
    """
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits has shape {tuple(logits.shape)}; expected (P, V) with V > 0")
    if top_k < 1 or not 0 < top_k_mass <= 1:
        raise ValueError(
            f"top_k = {top_k}, top_k_mass = {top_k_mass}; expected top_k >= 1 and a mass in (0, 1]"
        )
    n_rows, vocab_size = logits.shape
    step = max(1, CHUNK_ELEMENTS // vocab_size)
    chunks = []
    for start in range(0, n_rows, step):
        chunk = logits[start : start + step].detach().float()
        chunks.append(_sparsify_chunk(chunk, min(top_k, vocab_size), top_k_mass, where, start))
    if not chunks:
        return np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32)
    ids, log_probs, counts, tails = (np.concatenate(column) for column in zip(*chunks, strict=True))
    return ids, log_probs, counts, tails


def _sparsify_chunk(
    logits: torch.Tensor, top_k: int, top_k_mass: float, where: str, first_row: int
) -> Arrays:
    top, ids = _top_k_lower_id_first(logits, top_k)  # (P, K), best first
    # Relative to the row's maximum: log-sum-exp of large logits would lose the last digits of the tail.
    highest = top[:, :1]
    normaliser = (logits - highest).exp_().sum(dim=-1, keepdim=True, dtype=torch.float64).log_()  # (P, 1)
    bad = ~torch.isfinite(normaliser[:, 0])
    if bool(bad.any()):
        row = first_row + int(bad.nonzero()[0, 0])
        raise ModelError(
            f"{where}, row {row}: the logits hold NaN or +inf. Training has probably diverged: "
            "lower the learning rate, or load the model in float32."
        )
    log_probs = ((top - highest).double() - normaliser).clamp_max_(0)  # (P, K)
    probs = log_probs.exp()
    if top_k_mass < 1:
        reached_before = probs.cumsum(dim=-1) - probs >= top_k_mass
        keep = ~reached_before & torch.isfinite(top)
    else:
        keep = torch.isfinite(top)
    counts = keep.sum(dim=-1)  # (P,)
    # What was not kept; counted tokens of probability 0 leave nothing behind.
    left = 1 - (probs * keep).sum(dim=-1)
    everything = counts == torch.isfinite(logits).sum(dim=-1)
    tails = torch.where(everything, -torch.inf, left.clamp_min(TAIL_FLOOR).log())
    order = torch.where(keep, ids, logits.shape[1]).argsort(dim=-1)
    ids, log_probs, keep = (column.gather(-1, order) for column in (ids, log_probs, keep))
    return (
        ids[keep].to(torch.int32).cpu().numpy(),
        log_probs[keep].float().cpu().numpy(),
        counts.cpu().numpy().astype(np.int64),
        tails.float().cpu().numpy(),
    )


def _top_k_lower_id_first(logits: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Top-k values and ids, (P, K), best first; among equal logits the lower id first.

    `torch.topk` promises no order among equals, and coarse logits (bfloat16) are full of them.
    """
    top, ids = logits.topk(top_k, dim=-1)
    lowest = top[:, -1:]
    tied = (logits == lowest).sum(dim=-1) > (top == lowest).sum(dim=-1)
    if bool(tied.any()):
        rows = tied.nonzero()[:, 0]
        equal = logits[rows] == lowest[rows]  # (R, V)
        wanted = (top[rows] == lowest[rows]).sum(dim=-1, keepdim=True)
        first = equal & (equal.cumsum(dim=-1, dtype=torch.int32) <= wanted)
        mended = ids[rows]
        mended[top[rows] == lowest[rows]] = first.nonzero()[:, 1]
        ids[rows] = mended
    by_id = ids.argsort(dim=-1)
    top, ids = top.gather(-1, by_id), ids.gather(-1, by_id)
    best_first = top.argsort(dim=-1, descending=True, stable=True)
    return top.gather(-1, best_first), ids.gather(-1, best_first)
