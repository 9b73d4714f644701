"""Label and distillation losses of many rows, and their gradient, a few rows at a time.

The gradient of each row with respect to its logits z is known in closed form. With m = Σ_K p + r
(1 up to rounding):

    labels    q_v - [v = y]
    v ∈ K     (m q_v - p_v) / τ
    v ∉ K     q_v (m - r / q_tail) / τ          where q_tail lies on its floor, r is 0 in both lines

So value and gradient come from one logsumexp per temperature, and the only tensor as large as the
logits is the gradient itself.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fedtandem.distillation.targets import SparseTargets

TAIL_FLOOR = 1e-7
"""Below this the student's tail is rounding noise: its logarithm is cut there and has no slope."""

CHUNK_ELEMENTS = {"cpu": 1 << 19}
"""Logits worked on at a time, by device: 2 MiB of float32 stay in a core's cache."""

CHUNK_ELEMENTS_ELSEWHERE = 1 << 26
"""The same on accelerators, where few large kernels are faster: 256 MiB."""


@dataclass(frozen=True)
class RowLosses:
    """Losses of P rows.

    Attributes:
        total: Σ hard_weight · hard + Σ soft_weight · soft; (); carries the gradient.
        hard: cross-entropy on the labels, 0 where there is none; (P,), no gradient.
        soft: distillation loss without τ², 0 without targets; (P,), no gradient.
        hard_gradient, soft_gradient: norms of the two weighted gradients over all rows; None unless asked for.
    """

    total: Tensor
    hard: Tensor
    soft: Tensor
    hard_gradient: float | None
    soft_gradient: float | None


@dataclass(frozen=True)
class LossTerms:
    """What the logits of R rows are compared with.

    Attributes:
        labels: (R,) int64; negative = no label.
        hard_weight: (R,) weight of each row's label term; 0 where there is no label.
        targets: R rows, already at `temperature`; None: no distillation term.
        soft_weight: (R,) weight of each row's distillation term, τ² included.
        temperature: τ, divides the student's logits in the distillation term.
        label_smoothing: ε spread evenly over the vocabulary in the label term.
    """

    labels: Tensor
    hard_weight: Tensor
    targets: SparseTargets | None
    soft_weight: Tensor
    temperature: float
    label_smoothing: float = 0.0

    def rows(self, part: slice) -> "LossTerms":
        """The terms of some of the rows; no targets where none of these is taught."""
        soft_weight = self.soft_weight[part]
        targets = self.targets
        if targets is not None:
            is_used = bool(((soft_weight != 0) | targets.taught[part]).any())
            targets = SparseTargets(*(value[part] for value in vars(targets).values())) if is_used else None
        return LossTerms(
            self.labels[part],
            self.hard_weight[part],
            targets,
            soft_weight,
            self.temperature,
            self.label_smoothing,
        )


def row_losses(logits: Tensor, terms: LossTerms, *, with_gradient_norms: bool = False) -> RowLosses:
    """Weighted sums of the two losses over P rows, with their gradient; differentiable once.

    Args:
        logits: (P, V) float; sums are made in float32, or float64 for float64 logits.
        terms: of the same P rows.
        with_gradient_norms: also measure the two gradients' norms.
    """
    wants_gradient = torch.is_grad_enabled() and logits.requires_grad
    total, hard, soft, squares = _FusedLoss.apply(  # type: ignore[no-untyped-call]
        logits, terms, wants_gradient, with_gradient_norms
    )
    norms = squares.sqrt().tolist() if with_gradient_norms else (None, None)
    return RowLosses(total, hard, soft, norms[0], norms[1])


class _FusedLoss(torch.autograd.Function):
    """Makes the gradient on the way forward and hands it out on the way back."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, terms: LossTerms, wants_gradient: bool, norms: bool
    ) -> tuple[Tensor, ...]:
        n_rows, vocab_size = logits.shape
        wide = torch.promote_types(logits.dtype, torch.float32)
        hard, soft = logits.new_zeros(n_rows, dtype=wide), logits.new_zeros(n_rows, dtype=wide)
        squares = logits.new_zeros(2, dtype=wide)
        gradient = torch.empty_like(logits) if wants_gradient else None
        budget = CHUNK_ELEMENTS.get(logits.device.type, CHUNK_ELEMENTS_ELSEWHERE)
        step = max(1, budget // max(1, vocab_size))
        for start in range(0, n_rows, step):
            part = slice(start, start + step)
            into = None if gradient is None else gradient[part]
            hard[part], soft[part], more = _chunk(logits[part].to(wide), terms.rows(part), into, norms)
            squares += more
        total = (terms.hard_weight.to(wide) * hard).sum() + (terms.soft_weight.to(wide) * soft).sum()
        ctx.mark_non_differentiable(hard, soft, squares)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total, hard, soft, squares

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, *_: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        # `loss.backward()` comes with scale 1: no second buffer then.
        return gradient if float(scale) == 1 else gradient * scale.to(gradient.dtype), None, None, None


def _chunk(
    z: Tensor, terms: LossTerms, gradient: Tensor | None, norms: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of R rows of logits z (R, V); writes their gradient into `gradient` (R, V).

    Returns:
        hard (R,), soft (R,), squared norms of the two gradients (2,).
    """
    if terms.temperature == 1:
        return _at_one(z, terms, terms.targets, gradient, norms)
    if bool((terms.labels >= 0).any()):
        hard, soft, squares = _at_one(z, terms, None, gradient, norms)
    else:
        hard, soft, squares = z.new_zeros(len(z)), z.new_zeros(len(z)), z.new_zeros(2)
        if gradient is not None:
            gradient.zero_()
    if terms.targets is not None:
        soft, squares[1] = _softened(z, terms, terms.targets, gradient, norms)
    return hard, soft, squares


def _at_one(
    z: Tensor, terms: LossTerms, targets: SparseTargets | None, gradient: Tensor | None, norms: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The label term, and with `targets` the teacher's as well, from one logsumexp; overwrites `gradient`."""
    hard_weight, soft_weight = terms.hard_weight.to(z.dtype), terms.soft_weight.to(z.dtype)
    log_q = z.log_softmax(dim=-1)  # (R, V)
    hard, log_q_label = _label_loss(log_q, terms)  # (R,)
    teacher = None if targets is None else _compare(log_q, targets)
    q = log_q.exp_()
    squares = z.new_zeros(2)
    if norms:
        q_square = torch.linalg.vector_norm(q, dim=-1).square()
        label_square = _label_gradient_square(q_square, log_q_label.exp(), q.shape[1], terms)
        squares[0] = hard_weight.square() @ label_square
        if teacher is not None:
            squares[1] = soft_weight.square() @ teacher.gradient_square(q_square)
    if gradient is not None:
        if teacher is None:
            torch.mul(q, hard_weight[:, None], out=gradient)
        else:
            torch.mul(q, (hard_weight + soft_weight * teacher.outside)[:, None], out=gradient)
            inside = hard_weight[:, None] * q.gather(-1, teacher.ids) + soft_weight[:, None] * teacher.inside
            gradient.scatter_(-1, teacher.ids, inside.to(gradient.dtype))
        _subtract_label(gradient, hard_weight, terms)
    return hard, z.new_zeros(len(z)) if teacher is None else teacher.loss, squares


def _softened(
    z: Tensor, terms: LossTerms, targets: SparseTargets, gradient: Tensor | None, norms: bool
) -> tuple[Tensor, Tensor]:
    """The teacher's term at another temperature: its loss (R,) and squared gradient norm (); adds to `gradient`."""
    tau, weight = terms.temperature, terms.soft_weight.to(z.dtype)
    log_q = torch.div(z, tau).log_softmax(dim=-1)  # (R, V)
    teacher = _compare(log_q, targets)
    q = log_q.exp_()
    square = z.new_zeros(())
    if norms:
        q_square = torch.linalg.vector_norm(q, dim=-1).square()
        square = (weight / tau).square() @ teacher.gradient_square(q_square)
    if gradient is not None:
        # d/dz = d/d(z/τ) / τ
        q.mul_((weight / tau * teacher.outside)[:, None])
        q.scatter_(-1, teacher.ids, (weight / tau)[:, None] * teacher.inside)
        gradient.add_(q)
    return teacher.loss, square


def _label_loss(log_q: Tensor, terms: LossTerms) -> tuple[Tensor, Tensor]:
    """(1 - ε)(-log q_y) + ε · mean_v(-log q_v), 0 where there is no label; and log q_y; both (R,)."""
    log_q_label = log_q.gather(-1, terms.labels.clamp_min(0)[:, None])[:, 0]
    loss = -log_q_label
    if terms.label_smoothing:
        loss = (1 - terms.label_smoothing) * loss - terms.label_smoothing * log_q.mean(dim=-1)
    return torch.where(terms.labels >= 0, loss, 0.0), log_q_label


def _subtract_label(gradient: Tensor, hard_weight: Tensor, terms: LossTerms) -> None:
    """Take the label's own share, (1 - ε)[v = y] + ε/V, from the gradient."""
    at_label = (terms.label_smoothing - 1) * hard_weight
    gradient.scatter_add_(-1, terms.labels.clamp_min(0)[:, None], at_label[:, None].to(gradient.dtype))
    if terms.label_smoothing:
        gradient.sub_((hard_weight * (terms.label_smoothing / gradient.shape[1]))[:, None])


def _label_gradient_square(q_square: Tensor, q_label: Tensor, vocab_size: int, terms: LossTerms) -> Tensor:
    """‖q - t‖² of each row for the smoothed label t, from Σ_v q_v² (R,) and q_y (R,)."""
    keep, spread = 1 - terms.label_smoothing, terms.label_smoothing / vocab_size
    return q_square - 2 * (keep * q_label + spread) + keep**2 + 2 * keep * spread + vocab_size * spread**2


@dataclass(frozen=True)
class _Comparison:
    """R rows of a student held against a teacher.

    Attributes:
        loss: -Σ_{v∈K} p_v log q_v - r log q_tail; (R,).
        ids: the kept ids; padding repeats the row's first one; (R, K).
        inside: gradient with respect to z/τ at `ids`; padding repeats likewise; (R, K).
        outside: what multiplies q_v in the gradient everywhere else; (R,).
        q_kept_square, inside_square: Σ over the kept ids of q_v² and of the gradient squared; (R,).
    """

    loss: Tensor
    ids: Tensor
    inside: Tensor
    outside: Tensor
    q_kept_square: Tensor
    inside_square: Tensor

    def gradient_square(self, q_square: Tensor) -> Tensor:
        """Squared norm of each row's gradient, from Σ_v q_v² (R,)."""
        return self.inside_square + self.outside.square() * (q_square - self.q_kept_square).clamp_min(0)


def _compare(log_q: Tensor, targets: SparseTargets) -> _Comparison:
    """Hold the student's log_q (R, V) against R teacher rows."""
    is_kept = ~targets.log_probs.isneginf()  # (R, K)
    # Padding takes the row's first kept id and its value, so that writing it twice changes nothing.
    first = is_kept.to(torch.uint8).argmax(dim=-1, keepdim=True)  # (R, 1)
    ids = torch.where(is_kept, targets.token_ids, targets.token_ids.gather(-1, first))
    log_q_kept = log_q.gather(-1, ids)  # (R, K)
    p = targets.log_probs.to(log_q.dtype).exp()  # (R, K), 0 in padding
    r = targets.tail_log_prob.to(log_q.dtype).exp()  # (R,)
    q_kept = log_q_kept.exp() * is_kept

    exact_tail = -torch.expm1(log_q_kept.masked_fill(~is_kept, -torch.inf).logsumexp(dim=-1))  # (R,)
    q_tail = exact_tail.clamp_min(TAIL_FLOOR)
    r_sloped = torch.where(exact_tail > TAIL_FLOOR, r, 0.0)
    mass = p.sum(dim=-1) + r_sloped

    inside = mass[:, None] * q_kept - p
    outside = mass - r_sloped / q_tail
    spare = torch.where(
        is_kept.any(dim=-1, keepdim=True), inside.gather(-1, first), outside[:, None] * log_q_kept.exp()
    )
    return _Comparison(
        loss=-(p * log_q_kept).sum(dim=-1) - r * q_tail.log(),
        ids=ids,
        inside=torch.where(is_kept, inside, spare),
        outside=outside,
        q_kept_square=q_kept.square().sum(dim=-1),
        inside_square=(inside * is_kept).square().sum(dim=-1),
    )
