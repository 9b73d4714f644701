"""What a client's scores and rows lose before they leave: clipped, and Gaussian noise added.

This makes what is sent blurrier. It is no differential privacy and no epsilon is claimed: which tokens stand in a
row is decided by the model itself, without noise, and one model answers for thousands of rows.
"""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fedtandem.exchange.knowledge import Knowledge
from fedtandem.knowledge.sparse_logits import SparseLogits
from fedtandem.tuning.secret_noise import SecretNoise


@dataclass(frozen=True)
class KnowledgeNoise:
    """How much; the defaults change nothing.

    Attributes:
        score_clip, row_clip: bounds, in nats (per byte, or per token in `mined`); None: none.
        score_noise, row_noise: standard deviations, same units.
        key: of the noise; secret.
    """

    score_clip: float | None = None
    score_noise: float = 0.0
    row_clip: float | None = None
    row_noise: float = 0.0
    key: bytes = b""

    def __call__(self, knowledge: Knowledge) -> Knowledge:
        """The knowledge as it may leave; the same knowledge gives the same noise."""
        noise = None
        if self.score_noise or self.row_noise:
            digest = hashlib.sha256(np.ascontiguousarray(knowledge.scores).tobytes())
            if knowledge.of_drafts is not None:
                digest.update(knowledge.of_drafts.tobytes())
            if knowledge.rows is not None:
                digest.update(knowledge.rows.token_ids.tobytes() + knowledge.rows.log_probs.tobytes())
            noise = SecretNoise(self.key, f"knowledge/{knowledge.round}/{digest.hexdigest()}")
        scores = noised_scores(knowledge.scores, self.score_clip, self.score_noise, noise)
        rows, of_drafts = knowledge.rows, knowledge.of_drafts
        if rows is not None:
            rows = noised_rows(rows, self.row_clip, self.row_noise, noise)
        if of_drafts is not None:
            of_drafts = noised_scores(of_drafts, self.score_clip, self.score_noise, noise)
        return replace(knowledge, scores=scores, rows=rows, of_drafts=of_drafts)


def noised_scores(
    scores: npt.NDArray[np.float32], clip: float | None, std: float, noise: SecretNoise | None
) -> npt.NDArray[np.float32]:
    """Scores cut to [0, clip] with noise; (N,) float32. A sample without a score (inf) stays without one."""
    known = np.isfinite(scores)
    values = scores.copy() if clip is None else np.where(known, scores.clip(0, clip), scores)
    if std and noise is not None:
        noisy = values + std * noise.gaussian(scores.shape).numpy()
        values = np.where(known, noisy.clip(min=0), values)  # no loss lies below 0
    return values.astype(np.float32)


def noised_rows(
    rows: SparseLogits, clip: float | None, std: float, noise: SecretNoise | None
) -> SparseLogits:
    """Log-probabilities raised to at least -clip, noised, and every row's mass (tail included) brought back to 1."""
    if clip is None and not std:
        return rows
    kept, tail = rows.log_probs.astype(np.float64), rows.tail_log_prob.astype(np.float64)
    if clip is not None:
        kept = np.maximum(kept, -clip)
        tail = np.where(np.isfinite(tail), np.maximum(tail, -clip), tail)
    if std and noise is not None:
        kept = kept + std * noise.gaussian(kept.shape).numpy()
        tail = tail + std * noise.gaussian(tail.shape).numpy()
    row = np.repeat(np.arange(rows.n_rows), np.diff(rows.row_splits))
    mass = np.exp(tail) + np.bincount(row, np.exp(kept), minlength=rows.n_rows)
    says = np.diff(rows.row_splits) > 0
    log_mass = np.log(np.where(says, mass, 1.0))
    return replace(
        rows,
        log_probs=(kept - log_mass[row]).clip(max=0).astype(np.float32),
        tail_log_prob=np.where(says, (tail - log_mass).clip(max=0), rows.tail_log_prob).astype(np.float32),
    )
