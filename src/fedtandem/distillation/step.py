"""One update's gradient: every part of a batch goes forward, is compared, and goes back."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from fedtandem.distillation.kd import Loss, LossCounts, SparseTargets, Untaught, combined_loss

Inputs = TypeVar("Inputs")


@dataclass(frozen=True)
class LossSettings:
    """Which loss; see `combined_loss` for each field."""

    hard_weight: float = 0.1
    temperature: float = 1.0
    untaught: Untaught = "labels"
    loss: Loss = "ce"
    label_smoothing: float = 0.0


@dataclass(frozen=True)
class BatchPart(Generic[Inputs]):
    """What fits into memory at a time.

    Attributes:
        inputs: whatever the model takes.
        labels: (P,) int64 on the logits' device; IGNORE_INDEX = no label.
        targets: P rows on the same device, or None.
    """

    inputs: Inputs
    labels: Tensor
    targets: SparseTargets | None


@dataclass(frozen=True)
class StepLosses:
    """One update in plain numbers; `hard` and `soft` as in `LossParts`, over the whole batch.

    `hard_gradient` and `soft_gradient` are norms with respect to the logits, None where not measured.
    """

    total: float
    hard: float
    soft: float
    n_labels: int
    n_taught: int
    hard_gradient: float | None = None
    soft_gradient: float | None = None


def accumulate_gradients(
    logits_of: Callable[[Inputs], Tensor],
    parts: Iterable[BatchPart[Inputs]],
    settings: LossSettings,
    counts: LossCounts,
    *,
    with_gradient_norms: bool = False,
) -> StepLosses:
    """Add the gradient of the whole batch's loss to the weights behind `logits_of`.

    Every sum is divided by the counts of the whole batch, so how a batch is cut into parts changes nothing
    but rounding: a part with few positions weighs little.

    Args:
        logits_of: inputs -> (P, V) logits at the predictor positions.
        parts: made one at a time, if the caller likes.
        settings: which loss.
        counts: of all parts together (and of all processes that share the batch).
        with_gradient_norms: also measure how strong either term pulls.
    """
    total = hard = soft = 0.0
    n_labels = n_taught = 0
    hard_square = soft_square = 0.0
    for part in parts:
        if part.labels.numel() == 0:
            continue
        # Not kept in a variable: the logits may be freed before the backward pass.
        loss = combined_loss(
            logits_of(part.inputs),
            part.labels,
            part.targets,
            hard_weight=settings.hard_weight,
            temperature=settings.temperature,
            untaught=settings.untaught,
            loss=settings.loss,
            label_smoothing=settings.label_smoothing,
            counts=counts,
            with_gradient_norms=with_gradient_norms,
        )
        loss.total.backward()  # type: ignore[no-untyped-call]
        total += float(loss.total.detach())
        hard, soft = hard + loss.hard, soft + loss.soft
        n_labels, n_taught = n_labels + loss.n_labels, n_taught + loss.n_taught
        hard_square += (loss.hard_gradient or 0.0) ** 2
        soft_square += (loss.soft_gradient or 0.0) ** 2
    norms = (hard_square**0.5, soft_square**0.5) if with_gradient_norms else (None, None)
    return StepLosses(total, hard, soft, n_labels, n_taught, *norms)
