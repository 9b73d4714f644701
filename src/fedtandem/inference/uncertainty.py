"""How unsure a small model is of its next token or class: logits in, a number in [0, 1] out.

All functions take raw logits (..., V) in any float dtype, work in float32 and give (...,) float32. The largest 64
logits of a vocabulary (`top_logits`) order tokens almost as the whole does, but their values are lower: what is left
out counts as impossible. Calibrate a threshold on what it will cut.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

TOP = 64
"""Logits that are kept of a vocabulary."""
CHUNK = 64
"""Logits whose maximum is looked at first, where a vocabulary is large."""
N_TEMPERATURES = 16
N_SAMPLES = 20
HIGHEST_TEMPERATURE = 2.0

_INVERSES: dict[torch.device, Tensor] = {}


def top_logits(logits: Tensor, k: int = TOP) -> tuple[Tensor, Tensor]:
    """The k largest logits, best first, and their ids; all of them where V <= k.

    Returns:
        (..., min(k, V)) values and int64 ids. The greedy draft is at index 0.
    """
    vocab_size = logits.shape[-1]
    whole = vocab_size // CHUNK * CHUNK
    if whole <= 4 * k * CHUNK:
        top = logits.topk(min(k, vocab_size), dim=-1)
        return top.values, top.indices
    # What is among the k largest lies in a chunk that is: the maxima of chunks are read much faster than sorted.
    chunks = logits[..., :whole].reshape(*logits.shape[:-1], -1, CHUNK)  # (..., V / CHUNK, CHUNK)
    chosen = chunks.amax(dim=-1).topk(k, dim=-1).indices  # (..., k)
    ids = (chosen.unsqueeze(-1) * CHUNK + torch.arange(CHUNK, device=logits.device)).flatten(-2)
    rest = torch.arange(whole, vocab_size, device=logits.device).expand(*ids.shape[:-1], -1)
    ids = torch.cat([ids, rest], dim=-1)
    top = logits.gather(-1, ids).topk(k, dim=-1)
    return top.values, ids.gather(-1, top.indices)


def entropy(logits: Tensor) -> Tensor:
    """H(q) / log V: 0 for a certain law, 1 for a flat one. A vocabulary of one token has no doubt.

    Source: FedHLM, arXiv:2507.00082 (high entropy escalates); normalised so that thresholds of different
    vocabularies may be averaged (choice).
    """
    _need_tokens(logits)
    if logits.shape[-1] == 1:
        return _checked(logits[..., 0].float() * 0, logits)
    log_q = logits.float().log_softmax(dim=-1)  # (..., V)
    # 0 log 0 is 0: a logit of -inf is a token that cannot come.
    nats = -torch.where(log_q == -torch.inf, 0.0, log_q.exp() * log_q).sum(dim=-1)
    return _checked((nats / math.log(logits.shape[-1])).clamp(0, 1), logits)


def margin(logits: Tensor) -> Tensor:
    """1 - (q_(1) - q_(2)): how close the second choice comes to the first."""
    _need_tokens(logits)
    q = logits.float().softmax(dim=-1)
    if q.shape[-1] == 1:
        return _checked(1 - q[..., 0], logits)
    best = q.topk(2, dim=-1).values
    return _checked((1 - (best[..., 0] - best[..., 1])).clamp(0, 1), logits)


def max_prob(logits: Tensor) -> Tensor:
    """1 - q_(1)."""
    _need_tokens(logits)
    return _checked((1 - logits.float().softmax(dim=-1).amax(dim=-1)).clamp(0, 1), logits)


def expected(logits: Tensor, draft: Tensor | None = None, *, temperatures: Tensor | None = None) -> Tensor:
    """The mean of `perturbation` in closed form: no random numbers, so no token is routed by chance. The default.

    Args:
        logits: (..., V).
        draft: index of the drafted token, (...,) int64; None averages over drafts d ~ q instead.
        temperatures: θ_m, (M,); by default the M = 16 midpoints of (0, 2].

    Returns:
        1 - mean_m softmax(z/θ_m)[d], or 1 - Σ_d q(d) mean_m softmax(z/θ_m)[d]; (...,) float32.

    Source: specification of FedHLM, section 2 (choice); the perturbation is that of U-HLM, arXiv:2412.12687.
    """
    _need_tokens(logits)
    z = logits.float()
    inverse = (
        _midpoints(z.device) if temperatures is None else temperatures.float().reciprocal().unsqueeze(-1)
    )  # (M, 1)
    if draft is not None:
        # softmax[d] = 1 / Σ_j exp((z_j - z_d)/θ): one exp per logit, no second pass to normalise.
        z = z - z.gather(-1, draft.unsqueeze(-1))
        scaled = z.unsqueeze(-2) * inverse  # (..., M, V)
        # An unlikely draft overflows to inf, and 1 / inf is the 0 that was meant. -inf stays impossible.
        kept = scaled.exp_().sum(dim=-1).reciprocal_()  # (..., M)
        return _checked((1 - kept.mean(dim=-1)).clamp_(0, 1), logits)
    z = z - z.amax(dim=-1, keepdim=True)
    q = z.softmax(dim=-1)  # (..., V)
    scaled = (z.unsqueeze(-2) * inverse).exp_()  # (..., M, V)
    both = scaled @ torch.stack([q, torch.ones_like(q)], dim=-1)  # (..., M, 2)
    return _checked((1 - (both[..., 0] / both[..., 1]).mean(dim=-1)).clamp_(0, 1), logits)


def expected_of_best(values: Tensor) -> Tensor:
    """`expected` of the likeliest token, from logits (..., K) with the largest first, as `top_logits` gives them."""
    _need_tokens(values)
    # In NumPy, and by its ufuncs: on 64 numbers every call of torch costs more than the arithmetic.
    z = values.float().cpu().numpy()
    scaled = (z - z[..., :1])[..., None, :] * _INVERSES_ON_CPU  # (..., M, K)
    kept = np.reciprocal(np.add.reduce(np.exp(scaled, out=scaled), axis=-1))  # (..., M)
    mean = np.add.reduce(kept, axis=-1) / np.float32(N_TEMPERATURES)
    return _checked(torch.from_numpy(np.asarray(1 - mean)), values)


def perturbation(
    logits: Tensor,
    generator: torch.Generator,
    draft: Tensor | None = None,
    *,
    samples: int = N_SAMPLES,
    temperatures: Tensor | None = None,
) -> Tensor:
    """The share of M draws at random temperatures that differ from the draft.

    Args:
        logits: (..., V).
        generator: where all randomness comes from.
        draft: (...,) int64; the most likely token by default.
        samples: M; 20 as published has a standard deviation of up to 0.11.
        temperatures: θ_m, (M,), instead of draws from U(0, 2].

    Source: U-HLM, arXiv:2412.12687; θ ~ U(0, 2] and M = 20 as reported.
    """
    _need_tokens(logits)
    z = logits.float()
    chosen = z.argmax(dim=-1) if draft is None else draft
    if temperatures is None:
        uniform = torch.rand((*z.shape[:-1], samples), generator=generator, device=z.device)
        theta = HIGHEST_TEMPERATURE * (1 - uniform)  # in (0, 2]: `rand` may give 0, never 1
    else:
        theta = temperatures.float().expand(*z.shape[:-1], -1)
    q = (z.unsqueeze(-2) / theta.unsqueeze(-1)).softmax(dim=-1)  # (..., M, V)
    drawn = torch.multinomial(q.reshape(-1, q.shape[-1]), 1, generator=generator).reshape(theta.shape)
    return (drawn != chosen.unsqueeze(-1)).float().mean(dim=-1)


MEASURES: dict[str, Callable[[Tensor], Tensor]] = {
    "expected": lambda logits: expected(logits, logits.argmax(dim=-1)),
    "entropy": entropy,
    "margin": margin,
    "max_prob": max_prob,
}
"""Measures that need the logits alone; of a greedy draft."""


def _midpoints(device: torch.device) -> Tensor:
    """1/θ_m for θ_m = 2 (m - ½) / M, (M, 1); kept, since making it costs as much as using it."""
    if device not in _INVERSES:
        theta = HIGHEST_TEMPERATURE * (torch.arange(N_TEMPERATURES, device=device) + 0.5) / N_TEMPERATURES
        _INVERSES[device] = theta.reciprocal().unsqueeze(-1)
    return _INVERSES[device]


_INVERSES_ON_CPU = _midpoints(torch.device("cpu")).numpy()


def _need_tokens(logits: Tensor) -> None:
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits have the shape {tuple(logits.shape)}; expected (..., V) with V >= 1.")


def _checked(u: Tensor, logits: Tensor) -> Tensor:
    """Refuse broken logits by what they made of the result: reading them once more would cost a third of the time."""
    if not math.isnan(u.item() if u.numel() == 1 else u.sum().item()):
        return u
    row = int(u.detach().reshape(-1).isnan().nonzero()[0, 0])
    highest = float(logits.detach().reshape(-1, logits.shape[-1])[row].amax())
    raise ValueError(
        f"row {row} of the logits has the maximum {highest}; an uncertainty needs finite logits (-inf may mark "
        "impossible tokens). Load the model in float32, or look at its weights."
    )
