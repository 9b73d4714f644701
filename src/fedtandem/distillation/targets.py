"""A teacher's sparse rows as padded tensors, ready to be compared with a student's logits."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedtandem.knowledge.sparse_logits import SparseLogits


@dataclass(frozen=True)
class SparseTargets:
    """What the teacher says at P positions of the student, in the student's own vocabulary.

    Attributes:
        token_ids: (P, K) int64; padding holds 0. The ids of a row are distinct.
        log_probs: (P, K) float32, log p over the full vocabulary, not renormalised; padding holds -inf.
        tail_log_prob: (P,) float32, log of the mass outside the kept ids; -inf = nothing left.
        taught: (P,) bool: the row is selected *and* aligned. Other rows exert no pull.
    """

    token_ids: Tensor
    log_probs: Tensor
    tail_log_prob: Tensor
    taught: Tensor

    @classmethod
    def from_sparse(
        cls, rows: SparseLogits, taught: NDArray[np.bool_], device: torch.device
    ) -> "SparseTargets":
        """Pad the ragged `rows` (P of them) to the longest one and put them on `device`.

        A row without entries is never taught: it is a position without a partner.

        Raises:
            ValueError: `taught` does not have one entry per row.
        """
        if taught.shape != (rows.n_rows,):
            raise ValueError(
                f"taught has shape {taught.shape} but there are {rows.n_rows} rows; expected (P,)."
            )
        return cls.from_ragged(
            rows.token_ids, rows.log_probs, rows.row_splits, rows.tail_log_prob, taught, device=device
        )

    @classmethod
    def from_ragged(
        cls,
        token_ids: NDArray[np.int32],
        log_probs: NDArray[np.float32],
        row_splits: NDArray[np.int64],
        tail_log_prob: NDArray[np.float32],
        taught: NDArray[np.bool_],
        *,
        device: torch.device,
    ) -> "SparseTargets":
        """As `from_sparse`, from the bare arrays (ΣK,), (ΣK,), (P+1,), (P,), (P,)."""
        counts = np.diff(row_splits)
        width = int(counts.max(initial=1))
        row = np.repeat(np.arange(len(counts)), counts)
        column = np.arange(len(token_ids)) - np.repeat(row_splits[:-1], counts)
        padded_ids = np.zeros((len(counts), width), np.int64)
        padded_log_probs = np.full((len(counts), width), -np.inf, np.float32)
        padded_ids[row, column] = token_ids
        padded_log_probs[row, column] = log_probs
        return cls(
            token_ids=torch.from_numpy(padded_ids).to(device),
            log_probs=torch.from_numpy(padded_log_probs).to(device),
            tail_log_prob=torch.from_numpy(np.array(tail_log_prob, np.float32)).to(device),
            taught=torch.from_numpy(np.array(taught, np.bool_) & (counts > 0)).to(device),
        )

    @property
    def n_rows(self) -> int:
        """P, the number of student positions covered."""
        return self.token_ids.shape[0]


def soften(targets: SparseTargets, temperature: float) -> SparseTargets:
    """The same rows at temperature τ: p_v^(1/τ) and r^(1/τ), renormalised to sum to 1.

    The tail is softened as one single event, since its spread inside is unknown here. With K = V,
    or r = 0, that is exactly softmax(z/τ) over the kept ids; else it is a choice of ours that gives
    the tail less mass than softening each of its tokens would. Log-probs travel at τ = 1, and
    softening comes *after* the vocabulary map: before it, mass of unlikely long tokens would move
    onto short prefixes.
    """
    if temperature == 1:
        return targets
    kept = targets.log_probs / temperature  # (P, K)
    tail = targets.tail_log_prob / temperature  # (P,)
    total = torch.logaddexp(kept.logsumexp(dim=-1), tail)  # (P,)
    total = torch.where(total.isneginf(), 0.0, total)  # a row without any mass stays empty, not NaN
    return replace(targets, log_probs=kept - total[:, None], tail_log_prob=tail - total)


def renormalise(targets: SparseTargets) -> SparseTargets:
    """The same rows with the tail dropped and the kept mass scaled to 1: softmax of the kept logits.

    Source: FATE-LLM 2.2, fedmkt ("ce" with T = 1).
    """
    total = targets.log_probs.logsumexp(dim=-1)  # (P,)
    total = torch.where(total.isneginf(), 0.0, total)
    return replace(
        targets,
        log_probs=targets.log_probs - total[:, None],
        tail_log_prob=torch.full_like(targets.tail_log_prob, -torch.inf),
    )


def target_entropy(targets: SparseTargets) -> Tensor:
    """H(p, r) = -Σ_v p_v log p_v - r log r of each row, in nats; (P,) float32. 0 log 0 is 0."""
    kept: Tensor = torch.special.entr(targets.log_probs.exp()).sum(dim=-1)  # (P,)
    tail: Tensor = torch.special.entr(targets.tail_log_prob.exp())  # (P,)
    return kept + tail
