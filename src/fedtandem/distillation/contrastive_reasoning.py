"""The contrastive loss over whole reasoning paths: one path is to become likelier than another.

Source: LaDa, arXiv:2602.18749v1, distillation of reasoning paths (DARD); its public text states no reference model,
so the forms below are ours: DPO (arXiv:2305.18290) and, without a reference, SimPO (arXiv:2405.14734).
"""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Reference = Literal["self", "peer", "none"]
Prefer = Literal["role", "verified"]
Negative = Literal["whole", "first_wrong_step"]


def contrastive_loss(
    logp_pos: Tensor, logp_neg: Tensor, ref_pos: Tensor, ref_neg: Tensor, beta: float = 0.1
) -> Tensor:
    """ℓ = -log σ(β m),  m = [log p(y+) - log p_ref(y+)] - [log p(y-) - log p_ref(y-)].

    Args:
        logp_pos, logp_neg: the student's log-probabilities of the two paths, sums over tokens; (n,).
        ref_pos, ref_neg: the reference's; (n,), no gradient flows into them.
        beta: how soon a margin is enough; at 0.1 a margin of 3, 10 and 30 nats gives σ = 0.57, 0.73 and 0.95.

    Returns:
        (n,), ln 2 at margin 0.

    Source: specification of LaDa, section 3.
    """
    margin = (logp_pos - ref_pos.detach()) - (logp_neg - ref_neg.detach())  # (n,)
    return -F.logsigmoid(beta * margin)


def reference_free_loss(
    logp_pos: Tensor, logp_neg: Tensor, n_pos: Tensor, n_neg: Tensor, beta: float = 2.0, gamma: float = 0.5
) -> Tensor:
    """ℓ = -log σ(β (log p(y+) / |y+| - log p(y-) / |y-|) - γ): per token, without a reference.

    Args:
        n_pos, n_neg: tokens of the two paths; (n,).
        beta: on means, so larger than the one on sums.
        gamma: the margin to reach.
    """
    return -F.logsigmoid(beta * (logp_pos / n_pos - logp_neg / n_neg) - gamma)


def prefer(producer_verdict: int, receiver_verdict: int, rule: Prefer) -> int:
    """Which of the producer's and the receiver's path is preferred: 1 the producer's, -1 the receiver's, 0 neither.

    Args:
        producer_verdict, receiver_verdict: 1 right, 0 wrong, -1 not known.
        rule: "role" always prefers the producer's; "verified" drops an item where both are known to be wrong and
            turns it round where only the receiver's is right.
    """
    if rule == "role":
        return 1
    if producer_verdict == 0:
        return -1 if receiver_verdict == 1 else 0 if receiver_verdict == 0 else 1
    return 1


@dataclass(frozen=True)
class ContrastiveTerm:
    """The loss as a host adds it: weight · mean over the items whose two paths differ.

    Attributes:
        weight: of the mean; the project's default is 0, the parity recipe's 0.5.
        reference: "self", the student at the round's start; "peer", the producer; "none".
        prefer: "role" or "verified".
        negative: what of the worse path counts: all of it, or its first wrong step alone, given what stands before it,
            so that the right steps around it are not made unlikelier (arXiv:2406.18629 does so for human reasoning).
        beta, gamma: None takes the form's own.
    """

    weight: float
    reference: Reference = "self"
    prefer: Prefer = "role"
    beta: float | None = None
    gamma: float = 0.5
    negative: Negative = "whole"

    def __call__(
        self,
        logp_pos: Tensor,
        logp_neg: Tensor,
        ref_pos: Tensor,
        ref_neg: Tensor,
        n_pos: Tensor,
        n_neg: Tensor,
        /,
    ) -> Tensor:
        """Loss of each item; (n,)."""
        if self.reference == "none":
            beta = 2.0 if self.beta is None else self.beta
            return reference_free_loss(logp_pos, logp_neg, n_pos, n_neg, beta, self.gamma)
        return contrastive_loss(logp_pos, logp_neg, ref_pos, ref_neg, 0.1 if self.beta is None else self.beta)
