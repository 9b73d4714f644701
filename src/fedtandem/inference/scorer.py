"""A small learned uncertainty: from the shape of the logits to the chance that the LLM would refuse the draft."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from fedtandem.inference.uncertainty import entropy, margin

N_TOP = 5
N_FEATURES = N_TOP + 3
HIDDEN = 16


@dataclass(frozen=True, eq=False)
class LearnedScorer:
    """Two layers over eight features; (…, V) logits and positions to (…,) in [0, 1].

    Attributes:
        mean, scale: of the features in the data it was fitted on; (8,).
        w1, b1: (8, 16), (16,).
        w2, b2: (16,), ().
    """

    mean: Tensor
    scale: Tensor
    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor

    def __call__(self, logits: Tensor, position: Tensor) -> Tensor:
        """The predicted rejection probability."""
        return torch.sigmoid(self.logit(scorer_features(logits, position)))

    def as_dict(self) -> dict[str, object]:
        """The weights as nested lists, for a policy file."""
        return {field.name: getattr(self, field.name).tolist() for field in fields(self)}

    @staticmethod
    def from_dict(weights: Mapping[str, object]) -> "LearnedScorer":
        """What `as_dict` wrote.

        Raises:
            ValueError: other names or shapes, or a number that is not finite.
        """
        names = tuple(field.name for field in fields(LearnedScorer))
        shapes = ((N_FEATURES,), (N_FEATURES,), (N_FEATURES, HIDDEN), (HIDDEN,), (HIDDEN,), ())
        found = [torch.tensor(weights[name], dtype=torch.float32) for name in names if name in weights]
        if tuple(tuple(one.shape) for one in found) != shapes or not all(
            bool(w.isfinite().all()) for w in found
        ):
            raise ValueError(f"a scorer needs finite {', '.join(names)} of the shapes {shapes}")
        return LearnedScorer(*found)

    def logit(self, features: Tensor) -> Tensor:
        """Before the sigmoid; features (..., 8)."""
        hidden = torch.tanh((features - self.mean) / self.scale @ self.w1 + self.b1)
        return hidden @ self.w2 + self.b2


def scorer_features(logits: Tensor, position: Tensor) -> Tensor:
    """The five largest log-probabilities, entropy, margin, log position.

    Args:
        logits: (..., V); where V < 5 the missing ones count as probability e^-20.
        position: tokens since the answer began, (...,).

    Returns:
        (..., 8) float32.
    """
    log_q = logits.float().log_softmax(dim=-1).clamp_min(-20)
    top = log_q.topk(min(N_TOP, log_q.shape[-1]), dim=-1).values
    top = F.pad(top, (0, N_TOP - top.shape[-1]), value=-20.0)
    shape = [entropy(logits), margin(logits), torch.log1p(position.float())]
    return torch.cat([top, torch.stack(shape, dim=-1)], dim=-1)


def fit_scorer(
    logits: Tensor,
    position: Tensor,
    beta: Tensor,
    generator: torch.Generator,
    *,
    weight: Tensor | None = None,
    steps: int = 300,
    learning_rate: float = 0.03,
    decay: float = 1e-3,
) -> LearnedScorer:
    """Fit to observed rejections by weighted cross-entropy (soft labels).

    Args:
        logits: (N, V).
        position: (N,).
        beta: observed rejection probability, (N,) in [0, 1].
        generator: draws the first weights.
        weight: (N,); 1 / audit rate for audited tokens, since the skipped ones are rarely seen.

    Raises:
        ValueError: no rows, or beta outside [0, 1].
    """
    if len(beta) == 0 or not bool(((beta >= 0) & (beta <= 1)).all()):
        raise ValueError(
            f"{len(beta)} rejection probabilities in [{float(beta.min()) if len(beta) else 0:g}, "
            f"{float(beta.max()) if len(beta) else 0:g}]; expected at least one, all in [0, 1]."
        )
    features = scorer_features(logits, position)  # (N, 8)
    w = torch.ones_like(beta, dtype=torch.float32) if weight is None else weight.float()
    w = w / w.sum()
    # A feature that never moves is left alone, not blown up.
    spread = features.std(dim=0, correction=0)
    start = LearnedScorer(
        mean=features.mean(dim=0),
        scale=torch.where(spread > 1e-6, spread, 1.0),
        w1=torch.randn(N_FEATURES, HIDDEN, generator=generator) / N_FEATURES**0.5,
        b1=torch.zeros(HIDDEN),
        w2=torch.randn(HIDDEN, generator=generator) / HIDDEN**0.5,
        b2=torch.zeros(()),
    )
    learnt = [start.w1, start.b1, start.w2, start.b2]
    for tensor in learnt:
        tensor.requires_grad_()
    optimizer = torch.optim.Adam(learnt, lr=learning_rate)
    for _ in range(steps):
        loss = F.binary_cross_entropy_with_logits(
            start.logit(features), beta.float(), weight=w, reduction="sum"
        )
        loss = loss + decay * (start.w1.square().sum() + start.w2.square().sum())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    w1, b1, w2, b2 = (tensor.detach() for tensor in learnt)
    return LearnedScorer(start.mean, start.scale, w1, b1, w2, b2)
