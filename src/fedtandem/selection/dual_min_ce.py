"""DualMinCE: for each public sample, the one peer worth learning from."""

import torch
from torch import Tensor

NO_TEACHER = -1
"""The learner was already the best on this sample and keeps to its own view."""


def choose_teacher(own_loss: Tensor, peer_losses: Tensor, margin: float = 0.0) -> Tensor:
    """Pick, for each public sample, the one peer worth learning from (DualMinCE).

    Equal peers: the lowest index. Hand the peers over in the order of their names, and
    permuting the parties changes nothing.

    Args:
        own_loss: the learner's cross-entropy per sample, in nats per byte (`mined`: per token);
            (N,) float32. `inf` marks a sample the learner could not score.
        peer_losses: the same for C peers, as each scored its own tokenisation of the same text;
            (C, N) float32. `inf` marks a sample the peer did not score.
        margin: by how many nats a peer must be better; 0 is the paper's.

    Returns:
        Index of the chosen peer; (N,) int64 in [-1, C). -1 (NO_TEACHER) means no peer was
        better and the learner keeps its own view.

    Raises:
        ValueError: the two tensors do not cover the same N samples, one holds NaN, or the
            margin is negative.

    Source: FedMKT, arXiv:2406.02224v4, algorithm DualMinCE (margin: ours).
    """
    if peer_losses.shape[1:] != own_loss.shape or peer_losses.dim() != 2:
        raise ValueError(
            f"peer_losses has shape {tuple(peer_losses.shape)} but own_loss has "
            f"{tuple(own_loss.shape)}; expected (C, N) and (N,). Score every peer on the "
            "same public samples, in the same order."
        )
    if bool(own_loss.isnan().any()) or bool(peer_losses.isnan().any()):
        raise ValueError("a loss is NaN: drop the party that sent it, or mark the sample unscored with inf.")
    if not margin >= 0:
        raise ValueError(f"margin is {margin}; a teacher must be at least as good, so use 0 or more.")
    if peer_losses.shape[0] == 0:
        return torch.full_like(own_loss, NO_TEACHER, dtype=torch.int64)
    best_loss = peer_losses.amin(dim=0)
    # argmax of booleans is the first True, so equal peers resolve to the lowest index on every device.
    best_peer = (peer_losses == best_loss).to(torch.uint8).argmax(dim=0)
    # Strict: on a tie the learner keeps its own view.
    return torch.where(best_loss < own_loss - margin, best_peer, NO_TEACHER)
