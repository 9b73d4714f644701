"""Which clients share an edge: balanced k-means on one mean embedding per client."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def balanced_clusters(
    points: npt.ArrayLike, k: int, generator: np.random.Generator, *, restarts: int = 8, rounds: int = 30
) -> Ints:
    """Groups of equal size (to one) with little spread inside.

    Args:
        points: one per client, (C, D): mean embeddings, noised by the clients.
        k: number of clusters, at most C.
        generator: for the starts.
        restarts, rounds: the best of so many starts, each improved at most so often.

    Returns:
        (C,) in [0, k), numbered in the order in which they first occur.

    Source: specification of FedHLM, section 7 (choice).
    """
    x = np.asarray(points, dtype=np.float64)
    if x.ndim != 2 or not 1 <= k <= len(x) or not np.isfinite(x).all():
        raise ValueError(
            f"points of the shape {x.shape} in {k} clusters; expected finite (C, D) and 1 <= k <= C."
        )
    best, least = np.zeros(len(x), dtype=np.int64), np.inf
    for _ in range(restarts):
        centres = _spread_start(x, k, generator)
        groups = np.full(len(x), -1)
        for _ in range(rounds):
            again = _balanced(_distances(x, centres))
            if (again == groups).all():
                break
            groups = again
            centres = np.stack([x[groups == c].mean(axis=0) for c in range(k)])
        spread = float(((x - centres[groups]) ** 2).sum())
        if spread < least - 1e-12:
            best, least = groups, spread
    return renumbered(best)


def random_clusters(n: int, k: int, generator: np.random.Generator) -> Ints:
    """Groups of equal size by lot: what learnt clusters must beat."""
    return renumbered(generator.permutation(np.arange(n) % k))


def renumbered(groups: Ints) -> Ints:
    """The same groups, numbered in the order in which they first occur."""
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))
    return np.asarray(rank[inverse], dtype=np.int64)


def _distances(x: Floats, centres: Floats) -> Floats:
    return np.asarray(((x[:, None, :] - centres[None]) ** 2).sum(axis=-1))


def _spread_start(x: Floats, k: int, generator: np.random.Generator) -> Floats:
    """k-means++: each next centre drawn by its squared distance from those before."""
    chosen = [int(generator.integers(len(x)))]
    while len(chosen) < k:
        far = _distances(x, x[chosen]).min(axis=1)
        far[chosen] = 0
        weights = far / far.sum() if far.sum() > 0 else None
        if weights is None:  # all the same point: any that is left
            weights = np.ones(len(x))
            weights[chosen] = 0
            weights /= weights.sum()
        chosen.append(int(generator.choice(len(x), p=weights)))
    return x[chosen]


def _balanced(cost: Floats) -> Ints:
    """Everyone to a centre with room, those with most to lose first; then swaps while one of them pays."""
    n, k = cost.shape
    room = np.full(k, n // k)
    room[: n % k] += 1
    near = np.sort(cost, axis=1)
    loss = near[:, min(1, k - 1)] - near[:, 0]
    groups = np.full(n, -1, dtype=np.int64)
    for i in np.argsort(-loss, kind="stable"):
        open_cost = np.where(room > 0, cost[i], np.inf)
        groups[i] = int(np.argmin(open_cost))
        room[groups[i]] -= 1
    for _ in range(n * k):
        own = cost[np.arange(n), groups]
        # Gain of exchanging the groups of i and j.
        gain = own[:, None] + own[None] - cost[:, groups] - cost[:, groups].T
        i, j = np.unravel_index(int(np.argmax(gain)), gain.shape)
        if gain[i, j] <= 1e-12:
            break
        groups[i], groups[j] = groups[j], groups[i]
    return groups
