"""What LaDa's filter is made of: contexts, rewards, two small networks, a cold start, and how many items are kept.

    u_i = f1(c_i) + explore_weight · f2(h_i)

f1 (exploit) predicts the reward of item i from its context c_i, f2 (explore) what f1 misses, from f1's own hidden
activations h_i. f2 is a learned residual, no confidence bound.

Source: LaDa, arXiv:2602.18749v1, the learnability-aware filter; the ideas' ancestors SamS (arXiv:2506.17252) and
EE-Net (arXiv:2110.03177); specification of LaDa, section 4, which says which of the choices are ours.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedtandem.selection.items import Feedback, Floats, Ids, Reason, ScoreRows, Selection, best

N_SCALARS = 9
BLOCK = 16
"""f2 sees the means of blocks of so many of f1's activations."""


# -- contexts ------------------------------------------------------------------------------------------------------


def contexts(rows: ScoreRows, times_selected: Floats, progress: float) -> Floats:
    """c_i: the embedding and nine scalars, unknown values at the round's median, standardised; (n, 25).

    The scalars: receiver's and producer's loss on y+, gap, receiver's loss on y- (nats per byte), log(1 + bytes),
    whether the answers agree, how often the item was selected, t / T, and whether a path is held.

    Args:
        times_selected: of each row; (n,).
        progress: t / T.
    """
    scalars = np.stack(
        [
            np.where(rows.has_path, rows.receiver_loss, np.nan),
            np.where(rows.has_path, rows.producer_loss, np.nan),
            np.where(rows.has_path, rows.gap, np.nan),
            -rows.receiver_neg / np.maximum(rows.neg_bytes, 1),
            np.where(rows.has_path, np.log1p(rows.n_bytes), np.nan),
            rows.agrees,
            times_selected,
            np.full(len(rows), progress),
            rows.has_path.astype(np.float64),
        ],
        axis=1,
    )
    return standardised(_filled(np.concatenate([rows.embedding.astype(np.float64), scalars], axis=1)))


def _filled(values: Floats) -> Floats:
    """NaN replaced by the column's median; 0 where a column is unknown throughout."""
    known = np.isfinite(values)
    middles = [np.median(column[is_known]) if is_known.any() else 0.0
               for column, is_known in zip(values.T, known.T, strict=True)]  # fmt: skip
    return np.where(known, values, np.array(middles))


def standardised(values: Floats) -> Floats:
    """Columns with mean 0 and deviation 1; a constant column becomes 0."""
    if len(values) == 0:
        return values
    spread = values.std(axis=0)
    scaled: Floats = (values - values.mean(axis=0)) / np.where(spread > 1e-9, spread, 1.0)
    return scaled


# -- rewards -------------------------------------------------------------------------------------------------------


def progress_reward(feedback: Feedback, cluster_of: npt.NDArray[np.int64]) -> Floats:
    """raw_i = 0.5 G_{c(i)} + 0.25 G_{b(i)} + 0.25 δ_i;  δ_i = q_i(after) - q_i(before); (m,).

    G_b is the mean of δ over the item's mini-batch, G_c over the probe items of its cluster (over the whole probe
    where a cluster has fewer than 3 of them).

    Args:
        cluster_of: cluster of every pool item; (N,) int64.

    Source: specification of LaDa, section 4 (choice: with one shared reward a round there is almost nothing to learn).
    """
    gain = feedback.q_after - feedback.q_before
    of_probe = feedback.probe_after - feedback.probe_before
    whole = float(of_probe.mean()) if len(of_probe) else 0.0
    probe_clusters = cluster_of[feedback.probe]
    of_cluster = {}
    for cluster in np.unique(cluster_of[feedback.ids]):
        members = of_probe[probe_clusters == cluster]
        of_cluster[int(cluster)] = float(members.mean()) if len(members) >= 3 else whole
    _, batch = np.unique(feedback.batch, return_inverse=True)
    of_batch = np.bincount(batch, gain) / np.maximum(np.bincount(batch), 1)
    by_cluster = np.array([of_cluster[int(c)] for c in cluster_of[feedback.ids]])
    raw: Floats = 0.5 * by_cluster + 0.25 * of_batch[batch] + 0.25 * gain
    return raw


def squash(raw: Floats) -> Floats:
    """R_i = sigmoid((raw_i - median) / (1.4826 MAD + 1e-6)); 0.5 everywhere where MAD = 0; (m,) in (0, 1)."""
    if len(raw) == 0:
        return raw
    middle = np.median(raw)
    deviation = np.median(np.abs(raw - middle))
    if deviation == 0:
        return np.full(len(raw), 0.5)
    z = np.clip((raw - middle) / (1.4826 * deviation + 1e-6), -30, 30)
    reward: Floats = 1 / (1 + np.exp(-z))
    return reward


def round_sum(losses: Floats, losses_before: Floats) -> float:
    """R = Σ_{S_t} exp(-ℓ) - Σ_{S_{t-1}} exp(-ℓ): one number for all items of a round.

    For ablation only: the two sets differ in size, so R grows with |S_t| at constant quality.

    Source: specification of LaDa, section 4 (reading of the reported equations 5 and 6).
    """
    return float(np.exp(-losses).sum() - np.exp(-losses_before).sum())


# -- the networks --------------------------------------------------------------------------------------------------


@dataclass
class Buffer:
    """All that was learnt from so far, over all rounds of a pair: (M, d), (M,), (M,), (M,)."""

    contexts: npt.NDArray[np.float32]
    rewards: npt.NDArray[np.float32]
    rounds: npt.NDArray[np.int64]
    clusters: npt.NDArray[np.int64]

    @classmethod
    def empty(cls, width: int) -> "Buffer":
        return cls(np.zeros((0, width), "f4"), np.zeros(0, "f4"), np.zeros(0, "i8"), np.zeros(0, "i8"))

    def add(self, contexts: Floats, rewards: Floats, round_number: int, clusters: Ids) -> None:
        """Append one round's items."""
        self.contexts = np.concatenate([self.contexts, contexts.astype("f4")])
        self.rewards = np.concatenate([self.rewards, rewards.astype("f4")])
        self.rounds = np.concatenate([self.rounds, np.full(len(rewards), round_number, "i8")])
        self.clusters = np.concatenate([self.clusters, clusters])

    def weights(self, decay: float = 0.8) -> npt.NDArray[np.float32]:
        """decay^age, age in rounds behind the newest; (M,)."""
        if len(self.rounds) == 0:
            return np.zeros(0, "f4")
        return np.asarray(decay ** (self.rounds.max() - self.rounds), np.float32)


class ValueModel(Protocol):
    """Predicts an item's reward from its context, after having seen some."""

    @property
    def trained(self) -> bool: ...

    def score(self, contexts: Floats, clusters: Ids) -> Floats:
        """u of each row; (n,)."""

    def train(self, buffer: Buffer, generator: np.random.Generator) -> Mapping[str, float]:
        """Learn from the buffer; figures for the record."""

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


def _layer(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """torch's own initialisation, from a generator of ours."""
    layer = nn.Linear(inputs, outputs)
    bound = 1 / math.sqrt(inputs)
    with torch.no_grad():
        for tensor in (layer.weight, layer.bias):
            tensor.copy_((torch.rand(tensor.shape, generator=generator) * 2 - 1) * bound)
    return layer


class ExploitExplore:
    """The two networks: f1 d-64-64-1 and f2 8-32-1 on f1's 128 activations in blocks of 16.

    Args:
        width: d of the contexts.
        explore_weight: of f2 in u.
        seed: of the initial weights.
        epochs: over the buffer, each time new rewards come.
        batch_size: large, for rewards are noisy: small batches learn the noise, and cost more.

    Source: specification of LaDa, section 4; sizes are ours (SamS's serve 7B models).
    """

    def __init__(
        self,
        width: int,
        *,
        explore_weight: float = 0.1,
        seed: int = 0,
        epochs: int = 10,
        batch_size: int = 256,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.explore_weight = explore_weight
        self.epochs = epochs
        self.batch_size = batch_size
        self.trained = False
        self.exploit = nn.ModuleList(
            [_layer(width, 64, generator), _layer(64, 64, generator), _layer(64, 1, generator)]
        )
        self.explore = nn.ModuleList([_layer(128 // BLOCK, 32, generator), _layer(32, 1, generator)])

    def _exploit(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """f1 and its activations in blocks: (n,), (n, 8)."""
        first = torch.relu(self.exploit[0](c))
        second = torch.relu(self.exploit[1](first))
        activations = torch.cat([first, second], dim=1)  # (n, 128)
        return self.exploit[2](second)[:, 0], activations.reshape(len(c), -1, BLOCK).mean(dim=2)

    def _explore(self, h: Tensor) -> Tensor:
        predicted: Tensor = self.explore[1](torch.relu(self.explore[0](h)))[:, 0]
        return predicted

    @torch.no_grad()
    def score(self, contexts: Floats, clusters: Ids) -> Floats:
        """u_i = f1(c_i) + explore_weight · f2(h_i); (n,)."""
        f1, h = self._exploit(torch.from_numpy(contexts.astype("f4")))
        return (f1 + self.explore_weight * self._explore(h)).double().numpy()

    def train(self, buffer: Buffer, generator: np.random.Generator) -> Mapping[str, float]:
        """Ten epochs of f2 on what f1 missed so far, then ten of f1 on the rewards.

        f2 goes first, so that its residual and its input are those of f1 *before* this update.
        """
        c, r = torch.from_numpy(buffer.contexts), torch.from_numpy(buffer.rewards)
        w = torch.from_numpy(buffer.weights())
        with torch.no_grad():
            f1, h = self._exploit(c)
        figures = {
            "f2_loss": self._fit(self.explore, lambda rows: self._explore(h[rows]), r - f1, w, generator),
            "f1_loss": self._fit(self.exploit, lambda rows: self._exploit(c[rows])[0], r, w, generator),
        }
        self.trained = True
        return figures

    def _fit(
        self,
        network: nn.ModuleList,
        predict: Callable[[Tensor], Tensor],
        target: Tensor,
        weight: Tensor,
        generator: np.random.Generator,
    ) -> float:
        """Weighted MSE by Adam; the mean loss of the last epoch."""
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, weight_decay=1e-5)
        total = 0.0
        for _ in range(self.epochs):
            order = torch.from_numpy(generator.permutation(len(target)))
            total = 0.0
            for rows in torch.split(order, self.batch_size):
                loss = (weight[rows] * (predict(rows) - target[rows]).square()).mean()
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                total += float(loss.detach()) * len(rows)
        return total / max(1, len(target))

    def state_dict(self) -> dict[str, Tensor]:
        named = {"exploit": self.exploit, "explore": self.explore}
        state = {f"{net}.{name}": value.clone() for net, layers in named.items()
                 for name, value in layers.state_dict().items()}  # fmt: skip
        return {**state, "trained": torch.tensor([self.trained])}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for net, layers in {"exploit": self.exploit, "explore": self.explore}.items():
            layers.load_state_dict(
                {key.removeprefix(f"{net}."): value for key, value in state.items() if key.startswith(net)}
            )
        self.trained = bool(state["trained"])


# -- the cold start ------------------------------------------------------------------------------------------------


def n_clusters(n_items: int) -> int:
    """C = clamp(round(√(N / 10)), 4, 16)."""
    return min(16, max(4, round(math.sqrt(n_items / 10))))


def k_means(points: Floats, k: int, generator: np.random.Generator) -> tuple[Floats, Ids]:
    """Lloyd's algorithm from k-means++ seeds: centroids (k, d) and each point's cluster (n,)."""
    k = min(k, len(points))
    centroids = points[generator.integers(len(points))][None]
    while len(centroids) < k:
        distance = ((points[:, None] - centroids) ** 2).sum(-1).min(1)
        total = distance.sum()
        chance = distance / total if total > 0 else None
        centroids = np.concatenate([centroids, points[generator.choice(len(points), p=chance)][None]])
    cluster = nearest(points, centroids)
    for _ in range(50):
        means = [points[cluster == c].mean(0) if (cluster == c).any() else centroids[c] for c in range(k)]
        centroids = np.stack(means)
        moved = nearest(points, centroids)
        if np.array_equal(moved, cluster):
            break
        cluster = moved
    return centroids, cluster


def nearest(points: Floats, centroids: Floats) -> Ids:
    """The closest centroid of each point; (n,) int64."""
    squares = (centroids**2).sum(1) - 2 * points @ centroids.T
    return np.asarray(squares.argmin(1), np.int64)


def cold_selection(
    ids: Ids, points: Floats, clusters: Ids, centroids: Floats, k: int, generator: np.random.Generator
) -> Selection:
    """Round 1: an equal quota from every cluster, half of it nearest the centroid, half at random.

    Returns:
        Exactly min(k, n) items; small clusters leave their share to the others.
    """
    k = min(k, len(ids))
    quota = _quotas(np.bincount(clusters, minlength=len(centroids)), k)
    chosen: dict[int, float] = {}
    for c, q in enumerate(quota):
        members = np.flatnonzero(clusters == c)
        near = (q + 1) // 2
        order = members[np.argsort(((points[members] - centroids[c]) ** 2).sum(1), kind="stable")]
        drawn = generator.choice(order[near:], q - near, replace=False) if q > near else order[:0]
        chosen |= {int(at): 1.0 for at in order[:near]}
        chosen |= {int(at): (q - near) / (len(members) - near) for at in drawn}
    at = np.array(sorted(chosen), np.int64)
    reasons: tuple[Reason, ...] = tuple("cold_cluster" for _ in at)
    return Selection(ids[at], np.zeros(len(at)), np.array([chosen[int(i)] for i in at]), reasons)


def _quotas(sizes: Ids, k: int) -> list[int]:
    """k shared out evenly, no cluster above its size."""
    quota = np.zeros(len(sizes), np.int64)
    while quota.sum() < k:
        open_ = np.flatnonzero(quota < sizes)
        share, left = divmod(k - int(quota.sum()), len(open_))
        extra = np.full(len(open_), share)
        extra[:left] += 1
        quota[open_] = np.minimum(quota[open_] + extra, sizes[open_])
    return [int(q) for q in quota]


# -- how many are kept ---------------------------------------------------------------------------------------------


def keep_budget(
    ids: Ids, u: Floats, k: int, random_floor: float, generator: np.random.Generator
) -> Selection:
    """The k - r highest u, ties drawn, and r = round(random_floor · k) uniform from the rest."""
    k = min(k, len(ids))
    r = min(round(random_floor * k), len(ids) - k) if len(ids) > k else 0
    top = best(u, k - r, generator)
    rest = np.setdiff1d(np.arange(len(ids)), top)
    floor = generator.choice(rest, r, replace=False) if r else rest[:0]
    at = np.sort(np.concatenate([top, floor]))
    is_floor = np.isin(at, floor)
    reasons: tuple[Reason, ...] = tuple("random_floor" if f else "exploit_explore" for f in is_floor)
    return Selection(ids[at], u[at], np.where(is_floor, r / max(1, len(rest)), 1.0), reasons)


def keep_threshold(
    ids: Ids, u: Floats, cap: int, n_pool: int, generator: np.random.Generator
) -> tuple[Selection, float]:
    """Items with u > 0.5, at least 5 % of the pool, at most `cap`; and the share above the threshold."""
    share = float((u > 0.5).mean()) if len(u) else 0.0
    k = min(max(int((u > 0.5).sum()), math.ceil(0.05 * n_pool)), cap)
    return keep_budget(ids, u, k, 0.0, generator), share
