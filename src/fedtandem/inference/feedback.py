"""What the LLM's answer says about a draft: the probability that it would have refused it."""

import torch
from torch import Tensor


def rejection_probability(q_draft: Tensor, p_draft: Tensor) -> Tensor:
    """β = max(0, 1 - p(d)/q(d)) of a draft d ~ q; its mean over drafts is TV(q, p).

    Args:
        q_draft: the SLM's probability of the draft, (...,). A draft of probability 0 is never drawn; it gives 0.
        p_draft: the LLM's probability of the same token, (...,).

    Returns:
        (...,) in [0, 1], the dtype of the inputs.

    Source: speculative sampling's rejection rule; FedHLM, arXiv:2507.00082, as reported.
    """
    _same(q_draft, p_draft)
    ratio = p_draft / torch.where(q_draft > 0, q_draft, 1.0)
    return torch.where(q_draft > 0, (1 - ratio).clamp(0, 1), torch.zeros_like(q_draft))


def greedy_rejection_probability(p_draft: Tensor) -> Tensor:
    """β = 1 - p(d) of a greedy draft: its law is one-hot, so q(d) = 1, whatever the SLM's softmax says."""
    return (1 - p_draft).clamp(0, 1)


def disagreement(draft: Tensor, answer: Tensor) -> Tensor:
    """β of an LLM without probabilities: 1 where its answer is another than the draft; float32."""
    _same(draft, answer)
    return (draft != answer).float()


def total_variation(q: Tensor, p: Tensor) -> Tensor:
    """TV(q, p) = Σ_v (q(v) - p(v))⁺ = E_{d~q} β_d; (..., V) laws to (...,)."""
    _same(q, p)
    return (q - p).clamp_min(0).sum(dim=-1)


def _same(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(
            f"the SLM's side has the shape {tuple(a.shape)}, the LLM's {tuple(b.shape)}; give both for the same "
            "tokens, in the same order."
        )
