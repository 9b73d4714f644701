"""Accept or resample: a draft from one law becomes an exact sample of another. Two small formulas."""

import torch
from torch import Tensor


def accept_probability(q: Tensor, p: Tensor) -> Tensor:
    """Chance that a draft of the law q may stand under the law p: min(1, p/q).

    Args:
        q: the law the draft was really drawn from; (..., V), any float dtype.
        p: the law the output must have; (..., V), the same dtype.

    Returns:
        (..., V) in [0, 1], the inputs' dtype; 0 where q = 0, since such a token is never drafted.

    Raises:
        ValueError: the laws are not over the same tokens.

    Source: Leviathan et al. 2023, "Fast inference from transformers via speculative decoding", algorithm 1.
    """
    _same(q, p)
    is_drafted = q > 0
    # An overflow of p/q is an infinity, and min(1, inf) is right.
    ratio = p / torch.where(is_drafted, q, torch.ones_like(q))
    return torch.where(is_drafted, ratio.clamp(0, 1), torch.zeros_like(q))


def residual_law(q: Tensor, p: Tensor) -> Tensor:
    """What to draw from after a refusal: norm((p - q)⁺); (..., V), the inputs' dtype.

    All zeros where p = q: nothing is refused there, and nothing may be drawn.

    Raises:
        ValueError: the laws are not over the same tokens.

    Source: as `accept_probability`.
    """
    _same(q, p)
    # In float16 the surplus of two near laws is subnormal and its sum has no digits left: divide in float64.
    surplus = (p.double() - q.double()).clamp_min(0)
    total = surplus.sum(dim=-1, keepdim=True)
    return torch.where(total > 0, surplus / torch.where(total > 0, total, 1.0), 0.0).to(p.dtype)


def _same(q: Tensor, p: Tensor) -> None:
    if q.shape != p.shape or q.dtype != p.dtype:
        raise ValueError(
            f"the draft law is {tuple(q.shape)} {q.dtype}, the target law {tuple(p.shape)} {p.dtype}; both must be "
            "(..., V) over the same tokens, in one float dtype."
        )
