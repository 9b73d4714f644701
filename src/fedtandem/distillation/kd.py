"""Distillation losses: a student's logits against labels and a teacher's sparse rows.

    lse = logsumexp(z/τ);  log q_v = z_v/τ - lse;  q_tail = 1 - Σ_{v∈K} q_v
    tail-aware cross-entropy:  ℓ = -Σ_{v∈K} p_v log q_v - r log q_tail          r = 1 - Σ_{v∈K} p_v

No dense target is ever built: the loss and its gradient, which is known in closed form, are made
together a few rows at a time, so the only vocabulary-wide memory is the one gradient buffer.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fedtandem.distillation.fused import LossTerms, row_losses
from fedtandem.distillation.targets import SparseTargets, renormalise, soften, target_entropy

__all__ = [
    "IGNORE_INDEX",
    "LossCounts",
    "LossParts",
    "SparseTargets",
    "combined_loss",
    "count_terms",
    "renormalised_kd_loss",
    "sparse_kd_loss",
]

IGNORE_INDEX = -100
"""The label of a position that carries no label term, as everywhere in torch and transformers."""

Untaught = Literal["labels", "paper"]
Loss = Literal["ce", "kl", "mined"]


@dataclass(frozen=True)
class LossCounts:
    """What the sums of a loss are divided by. With gradient accumulation: counts of the whole accumulated batch.

    Attributes:
        labels: positions that carry a label.
        taught: positions that carry a teacher's row.
        active: positions that carry either.
    """

    labels: int
    taught: int
    active: int

    def __add__(self, other: "LossCounts") -> "LossCounts":
        return LossCounts(self.labels + other.labels, self.taught + other.taught, self.active + other.active)


@dataclass(frozen=True)
class LossParts:
    """A loss, and what it consists of.

    Attributes:
        total: the value to call `.backward()` on; () float32.
        hard: mean cross-entropy on the labels, in nats; a plain number.
        soft: τ² times the mean distillation loss of the taught positions, in nats; 0 where nothing is taught.
        n_labels, n_taught: positions behind `hard` and `soft`.
        hard_gradient, soft_gradient: norms of the two weighted terms' gradients with respect to the logits;
            None unless asked for.
    """

    total: Tensor
    hard: float
    soft: float
    n_labels: int
    n_taught: int
    hard_gradient: float | None = None
    soft_gradient: float | None = None


def sparse_kd_loss(
    student_logits: Tensor,
    targets: SparseTargets,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    *,
    loss: Literal["ce", "kl"] = "ce",
) -> Tensor:
    """τ² · mean over kept positions of  -Σ_{v∈K} p_v log q_v - r log q_tail.

    Args:
        student_logits: (P, V) float; cut to the student's real vocabulary.
        targets: the teacher's P rows at temperature 1; softened here when `temperature` is not 1.
        mask: (P,) bool or {0, 1}; 0 leaves a position out. None: `targets.taught`.
        temperature: τ, softens teacher and student.
        loss: "ce", or "kl" = ce - H(p, r): the same gradient, 0 for a student equal to its teacher.

    Returns:
        () float32 (float64 for float64 logits), in nats. 0 where the mask is empty, never NaN. Supports one
        derivative.

    Raises:
        ValueError: shapes disagree, or the temperature is not positive.

    Source: FedMKT, arXiv:2406.02224v4, L_CE of section 3 on top-K logits; the tail term is our choice.
    """
    _check(student_logits, targets, temperature)
    keep = targets.taught if mask is None else mask.to(torch.bool)
    if keep.shape != targets.taught.shape:
        raise ValueError(
            f"mask has shape {tuple(keep.shape)}; expected ({targets.n_rows},), one entry per row."
        )
    soft_weight = keep * (temperature**2 / max(1, int(keep.sum())))
    softened = soften(targets, temperature)
    no_labels = torch.full_like(keep, IGNORE_INDEX, dtype=torch.int64)
    terms = LossTerms(no_labels, torch.zeros_like(soft_weight), softened, soft_weight, temperature)
    result = row_losses(student_logits, terms)
    if loss == "kl":
        return result.total - (soft_weight * target_entropy(softened)).sum()
    return result.total


def renormalised_kd_loss(
    student_logits: Tensor, targets: SparseTargets, mask: Tensor | None = None
) -> Tensor:
    """Mean over kept positions of -Σ_{v∈K} p'_v log q_v with p' = p / Σ_K p: the tail is dropped (`mined`).

    The same arguments and result as `sparse_kd_loss`; T = 1 and no T² factor.

    Source: FATE-LLM 2.2, fedmkt, "ce".
    """
    return sparse_kd_loss(student_logits, renormalise(targets), mask, 1.0)


def count_terms(labels: Tensor, targets: SparseTargets | None) -> LossCounts:
    """How many positions carry a label (not IGNORE_INDEX), a teacher's row, or either; labels (P,) int64."""
    is_labelled = labels != IGNORE_INDEX
    if targets is None:
        n_labels = int(is_labelled.sum())
        return LossCounts(labels=n_labels, taught=0, active=n_labels)
    return LossCounts(
        labels=int(is_labelled.sum()),
        taught=int(targets.taught.sum()),
        active=int((is_labelled | targets.taught).sum()),
    )


def combined_loss(
    logits: Tensor,
    labels: Tensor,
    targets: SparseTargets | None,
    *,
    hard_weight: float,
    temperature: float = 1.0,
    untaught: Untaught = "labels",
    loss: Loss = "ce",
    label_smoothing: float = 0.0,
    counts: LossCounts | None = None,
    with_gradient_norms: bool = False,
) -> LossParts:
    """Labels and teacher together, for P positions.

        untaught = "labels": total = Σ_i [w_i · ce_i + (1 - w_i) · τ² ℓ_i] / n
                             w_i = hard_weight where position i is taught, 1 elsewhere
        untaught = "paper":  total = hard_weight · mean(ce) + (1 - hard_weight) · τ² · mean over taught(ℓ)

    n counts the label positions. A position without a label (IGNORE_INDEX) has no label term: where it is taught,
    w_i = 0 and it counts towards n; elsewhere it is dropped.

    Args:
        logits: (P, V) float, the student's, cut to its real vocabulary.
        labels: (P,) int64 in [0, V), or IGNORE_INDEX.
        targets: the teacher's P rows at temperature 1; None: plain fine-tuning, the labels with full weight.
        hard_weight: weight of the *labels*, in [0, 1]; the paper's λ = 0.9.
        temperature: τ of the distillation term; must be 1 for "mined".
        loss: "ce", "kl" (ce minus the teacher's entropy), or "mined" (tail dropped, no τ²).
        label_smoothing: ε spread evenly over the vocabulary in the label term.
        counts: divisors, when this is one part of a larger batch; None: this batch's own.
        with_gradient_norms: also measure both terms' gradient norms (one more pass over the logits).

    Returns:
        Parts whose `hard` and `soft`, summed over the parts of a batch, are the means over the batch.

    Raises:
        ValueError: shapes disagree or a number is out of its range.

    Source: FedMKT, arXiv:2406.02224v4, L2 and L3 ("paper"); "labels" is our choice: with a low
    hard_weight the paper's form stops training the positions that have no partner.
    """
    _check(logits, targets, temperature)
    if labels.shape != logits.shape[:1]:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)} but logits {tuple(logits.shape)}; expected (P,)."
        )
    if not 0 <= hard_weight <= 1:
        raise ValueError(f"hard_weight is {hard_weight}; expected a number from 0 to 1.")
    if loss == "mined" and temperature != 1:
        raise ValueError(
            f'loss "mined" is defined at temperature 1, not {temperature}; use loss "ce" to soften.'
        )
    counts = count_terms(labels, targets) if counts is None else counts
    shaped = targets
    if shaped is not None:
        shaped = renormalise(shaped) if loss == "mined" else soften(shaped, temperature)

    is_labelled = labels != IGNORE_INDEX
    is_taught = torch.zeros_like(is_labelled) if targets is None else targets.taught
    if untaught == "labels":
        per_label = torch.where(is_taught, hard_weight, 1.0) * is_labelled / max(1, counts.active)
        per_taught = torch.where(is_labelled, 1 - hard_weight, 1.0) * is_taught
        per_taught = per_taught * (temperature**2 / max(1, counts.active))
    else:
        label_share = 1.0 if targets is None else hard_weight
        per_label = is_labelled * (label_share / max(1, counts.labels))
        per_taught = is_taught * ((1 - hard_weight) * temperature**2 / max(1, counts.taught))

    terms = LossTerms(labels, per_label, shaped, per_taught, temperature, label_smoothing)
    result = row_losses(logits, terms, with_gradient_norms=with_gradient_norms)
    total, soft_rows = result.total, result.soft
    if loss == "kl" and shaped is not None:
        entropy = target_entropy(shaped)
        total = total - (per_taught * entropy).sum()
        soft_rows = soft_rows - entropy
    return LossParts(
        total=total,
        hard=float(result.hard[is_labelled].sum()) / max(1, counts.labels),
        soft=float(soft_rows[is_taught].sum()) * temperature**2 / max(1, counts.taught),
        n_labels=int(is_labelled.sum()),
        n_taught=int(is_taught.sum()),
        hard_gradient=result.hard_gradient,
        soft_gradient=result.soft_gradient,
    )


def _check(logits: Tensor, targets: SparseTargets | None, temperature: float) -> None:
    """Refuse logits and targets that do not belong together."""
    if logits.dim() != 2:
        raise ValueError(f"logits have shape {tuple(logits.shape)}; expected (P, V), one row per position.")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; expected a positive number.")
    if targets is None:
        return
    shapes: dict[str, Any] = {name: tuple(value.shape) for name, value in vars(targets).items()}
    rows = logits.shape[0]
    if shapes["tail_log_prob"] != (rows,) or shapes["taught"] != (rows,) or shapes["token_ids"][0] != rows:
        raise ValueError(
            f"targets cover {shapes} but there are {rows} rows of logits; expected one target per row."
        )
    if rows and targets.token_ids.numel() and not 0 <= int(targets.token_ids.max()) < logits.shape[1]:
        raise ValueError(
            f"targets hold token id {int(targets.token_ids.max())}, but the student's vocabulary ends at "
            f"{logits.shape[1] - 1}: they are in another vocabulary. Carry them over with alignment.transport first."
        )
