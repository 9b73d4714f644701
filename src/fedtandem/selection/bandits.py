"""Two plain bandits on LaDa's contexts and rewards, as controls of its networks: same inputs, same feedback.

Source: UCB1 and LinUCB (arXiv:1003.0146); specification of LaDa, section 6.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fedtandem.selection.items import Floats, Ids
from fedtandem.selection.learnability import Buffer


class ClusterUCB:
    """Mean reward of an item's cluster + √(2 ln t / n_c); t counts all rewards seen, n_c those of the cluster."""

    def __init__(self) -> None:
        self.means = np.zeros(0)
        self.counts = np.zeros(0)

    @property
    def trained(self) -> bool:
        return len(self.counts) > 0

    def score(self, contexts: Floats, clusters: Ids) -> Floats:
        """The bound of each row's cluster; infinite where nothing of it was tried."""
        size = max(int(clusters.max(initial=0)) + 1, len(self.counts))
        counts, means = np.zeros(size), np.zeros(size)
        counts[: len(self.counts)], means[: len(self.means)] = self.counts, self.means
        with np.errstate(divide="ignore"):
            bound = np.sqrt(2 * math.log(max(counts.sum(), 2)) / counts)
        found: Floats = np.minimum(means + bound, 1e9)[clusters]
        return found

    def train(self, buffer: Buffer, generator: np.random.Generator) -> Mapping[str, float]:
        """Means and counts over all rounds."""
        self.counts = np.bincount(buffer.clusters).astype(np.float64)
        self.means = np.bincount(buffer.clusters, buffer.rewards) / np.maximum(self.counts, 1)
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        return {"means": torch.from_numpy(self.means.copy()), "counts": torch.from_numpy(self.counts.copy())}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.means, self.counts = state["means"].numpy().copy(), state["counts"].numpy().copy()


class LinUCB:
    """Ridge mean + explore_weight · √(cᵀ A⁻¹ c), A = I + Σ w c cᵀ over the buffer; a constant joins the context."""

    def __init__(self, explore_weight: float = 0.1) -> None:
        self.explore_weight = explore_weight
        self.theta: Floats = np.zeros(0)
        self.inverse: Floats = np.zeros((0, 0))

    @property
    def trained(self) -> bool:
        return len(self.theta) > 0

    def score(self, contexts: Floats, clusters: Ids) -> Floats:
        c = _with_constant(contexts)
        spread = np.sqrt(np.maximum(np.einsum("nd,de,ne->n", c, self.inverse, c), 0))
        found: Floats = c @ self.theta + self.explore_weight * spread
        return found

    def train(self, buffer: Buffer, generator: np.random.Generator) -> Mapping[str, float]:
        """Solve for all rounds at once, newer ones weighing more."""
        c, w = _with_constant(buffer.contexts.astype(np.float64)), buffer.weights().astype(np.float64)
        self.inverse = np.asarray(np.linalg.inv(np.eye(c.shape[1]) + (c * w[:, None]).T @ c), np.float64)
        self.theta = self.inverse @ ((c * w[:, None]).T @ buffer.rewards.astype(np.float64))
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        return {
            "theta": torch.from_numpy(self.theta.copy()),
            "inverse": torch.from_numpy(self.inverse.copy()),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.theta, self.inverse = state["theta"].numpy().copy(), state["inverse"].numpy().copy()


def _with_constant(contexts: Floats) -> Floats:
    return np.concatenate([contexts, np.ones((len(contexts), 1))], axis=1)
