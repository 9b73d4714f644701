"""Thresholds for every client, cluster and all together, from one round of counted feedback.

A scope is trusted as far as it was audited; one that was not takes the next wider scope's threshold. What a client
gets is a blend of the three:

    τ_k ← w_k τ_k + (1 - w_k) [v_c τ_c + (1 - v_c) τ_G],   w_k = n_k/(n_k + 500),  v_c = N_c/(N_c + 500)

Source: specification of FedHLM, sections 5-7 (reading and choice).
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from fedtandem.errors import ConfigError
from fedtandem.inference.aggregation import capped, limited
from fedtandem.inference.histogram import (
    Histogram,
    best_bin,
    bootstrap_bins,
    error_kept,
    mean_beta,
    share_sent,
    threshold_of,
)

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MIN_AUDITS = 150
"""A scope with fewer audits takes the next wider scope's threshold."""
MIN_CLIENTS = 3
"""A cluster with fewer clients in a round keeps its last threshold."""
HALF_WEIGHT = 500.0
"""Labelled tokens at which a scope's own threshold weighs as much as the wider one's."""
PRICE_STEPS = 22
"""Halvings of the price's range: to a millionth, far below what 64 bins can tell apart."""
BUILT_IN = 0.5
"""τ where nothing was ever learnt."""

CLIENT, CLUSTER, GLOBAL, LAST = 0, 1, 2, 3
SOURCES = ("client", "cluster", "global", "last")
"""Whose table a threshold comes from; the codes above are indices into this."""


@dataclass(frozen=True)
class Goal:
    """What the thresholds are to achieve.

    Attributes:
        kind: `price`: least error + λ · calls; `share`: least error with at most this share of calls; `error`: fewest
            calls with at most this mean β let through.
        value: λ, the share, or the error.
    """

    kind: Literal["price", "share", "error"]
    value: float


@dataclass(frozen=True, eq=False)
class Thresholds:
    """One round's result for C clients in K clusters.

    Attributes:
        price: λ at which all were read off; what a `share` or an `error` goal amounts to.
        client, cluster, overall: published τ; (C,), (K,), ().
        own_client, own_cluster: τ of the scope's own table, before blending; NaN where nothing was labelled.
        client_source, cluster_source: index into `SOURCES`.
        client_interval, cluster_interval, overall_interval: 95 % bootstrap; (C, 2), (K, 2), (2,).
        share, error: at most this share of the counted tokens is sent, at most this mean β let through.
    """

    price: float
    client: Floats
    cluster: Floats
    overall: float
    own_client: Floats
    own_cluster: Floats
    client_source: Ints
    cluster_source: Ints
    client_interval: Floats
    cluster_interval: Floats
    overall_interval: Floats
    share: float
    error: float


@dataclass(frozen=True, eq=False)
class _Tables:
    """Everything of a round that does not depend on the price."""

    clients: Histogram
    clusters: Histogram
    overall: Histogram
    client_beta: Floats
    cluster_beta: Floats
    overall_beta: Floats
    group: Ints
    present: Ints


def learn_thresholds(
    clients: Histogram,
    group: Ints,
    goal: Goal,
    generator: np.random.Generator,
    *,
    n_clusters: int | None = None,
    last: Thresholds | None = None,
    draws: int = 200,
) -> Thresholds:
    """Solve one histogram round.

    Args:
        clients: a stack of C clients' counts, (C, 64).
        group: cluster of each, (C,) in [0, K).
        goal: price, share of calls, or error.
        generator: for the bootstrap.
        n_clusters: K, where the last cluster may be empty.
        last: the policy in force, for the same clients and clusters; thresholds move at most 0.1 away from it, and
            clusters with fewer than three clients keep it.
        draws: of the bootstrap; 0 leaves intervals NaN.

    Raises:
        ConfigError: nothing is labelled at all, or the goal cannot be met.
    """
    tables = _tables(clients, np.asarray(group, dtype=np.int64), n_clusters)
    if tables.overall.labelled < 1:
        raise ConfigError(
            "no token is labelled: nothing was sent to the cloud and nothing audited. Raise the audit rate."
        )
    price = goal.value if goal.kind == "price" else _price_for(tables, goal, last)
    result = _solve(tables, price, last)
    return _with_intervals(result, tables, generator, draws) if draws else result


def fixed_thresholds(
    clients: Histogram,
    group: Ints,
    tau: Floats,
    price: float,
    *,
    cluster: Floats | None = None,
    n_clusters: int | None = None,
    generator: np.random.Generator | None = None,
    draws: int = 0,
) -> Thresholds:
    """Thresholds that were found otherwise, with the share and the error this table gives them.

    Their intervals are the bootstrap's of the best thresholds by this table, stretched to τ where it lies outside:
    what was found otherwise has no draws of its own.

    Args:
        tau: of each client, (C,).
        generator, draws: for the bootstrap; without them intervals are NaN.
        price: λ they are meant for.
        cluster: of each cluster, (K,); the median of its clients' by default, as it is for all together.
    """
    t = _tables(clients, np.asarray(group, dtype=np.int64), n_clusters if cluster is None else len(cluster))
    k = len(t.present)
    overall = float(np.median(tau))
    if cluster is None:
        cluster = np.array(
            [np.median(tau[t.group == c]) if (t.group == c).any() else overall for c in range(k)]
        )
    c = len(tau)
    found = Thresholds(
        price, tau, cluster, overall, tau, cluster, np.full(c, CLIENT), np.full(k, CLUSTER), np.full((c, 2), np.nan),
        np.full((k, 2), np.nan), np.full(2, np.nan), _share(t, tau), _error(t, tau),
    )  # fmt: skip
    return _with_intervals(found, t, generator, draws) if draws and generator is not None else found


def _tables(clients: Histogram, group: Ints, n_clusters: int | None) -> _Tables:
    c = len(clients.tokens)
    if group.shape != (c,) or c == 0:
        raise ValueError(
            f"{c} clients with clusters of the shape {group.shape}; expected at least one, and (C,)."
        )
    k = int(group.max()) + 1 if n_clusters is None else n_clusters
    volume = clients.tokens.sum(axis=-1)
    # Counts of a client that claims too much are scaled down as a whole; its rates stay what they are.
    factor = np.divide(capped(volume), volume, out=np.zeros_like(volume), where=volume > 0)
    fair = clients.scaled(factor)
    member = (group == np.arange(k)[:, None]).astype(np.float64)  # (K, C)
    clusters = Histogram(
        **{name: member @ array for name, array in fair.arrays().items()}, audit_rate=clients.audit_rate
    )
    overall = clusters.sum()
    beta = mean_beta(overall)[0]
    present = np.bincount(group, weights=volume > 0, minlength=k).astype(np.int64)
    return _Tables(
        clients, clusters, overall, mean_beta(clients)[0], mean_beta(clusters)[0], beta, group, present
    )


def _solve(t: _Tables, price: float, last: Thresholds | None) -> Thresholds:
    overall = float(threshold_of(best_bin(t.overall.tokens, t.overall_beta, price)))
    own_cluster = _own(t.clusters, t.cluster_beta, price)
    own_client = _own(t.clients, t.client_beta, price)
    v, w = _trust(t.clusters), _trust(t.clients)
    cluster = np.where(v > 0, v * np.nan_to_num(own_cluster) + (1 - v) * overall, overall)
    cluster_source = np.where(v > 0, CLUSTER, GLOBAL)
    if last is not None:
        short = t.present < MIN_CLIENTS
        overall = float(limited(overall, last.overall))
        cluster = np.where(short, last.cluster, limited(cluster, last.cluster))
        cluster_source = np.where(short, LAST, cluster_source)
    wider = cluster[t.group]
    client = np.where(w > 0, w * np.nan_to_num(own_client) + (1 - w) * wider, wider)
    client_source = np.where(w > 0, CLIENT, cluster_source[t.group])
    if last is not None:
        client = limited(client, last.client)
        # Too few clients to check each other: none of them may move.
        kept = cluster_source[t.group] == LAST
        client, client_source = np.where(kept, last.client, client), np.where(kept, LAST, client_source)
    share, error = _share(t, client), _error(t, client)
    nothing = np.full((len(client), 2), np.nan)
    return Thresholds(
        price, client, cluster, overall, own_client, own_cluster, client_source, cluster_source,
        nothing, np.full((len(cluster), 2), np.nan), np.full(2, np.nan), share, error,
    )  # fmt: skip


def _own(h: Histogram, beta: Floats, price: float) -> Floats:
    unlabelled = np.isnan(beta[:, 0])
    tau = threshold_of(best_bin(h.tokens, np.nan_to_num(beta), price))
    return np.where(unlabelled, np.nan, tau)


def _trust(h: Histogram) -> Floats:
    """n / (n + 500), and 0 for a scope that was audited too little to be believed at all."""
    # Where everything is labelled there is nothing left to audit.
    everything = h.labelled >= h.tokens.sum(axis=-1) - 0.5
    enough = (h.audits >= MIN_AUDITS) | (everything & (h.labelled >= MIN_AUDITS))
    return np.where(enough, h.labelled / (h.labelled + HALF_WEIGHT), 0.0)


def _share(t: _Tables, client: Floats) -> float:
    volume = t.clients.tokens.sum(axis=-1)
    return float((share_sent(t.clients.tokens, client) * volume).sum() / volume.sum())


def _error(t: _Tables, client: Floats) -> float:
    # By the cluster's β̄, or where it has none by everybody's: a single client's would have been fitted to itself.
    beta = np.where(np.isnan(t.cluster_beta), t.overall_beta, t.cluster_beta)[t.group]
    volume = t.clients.tokens.sum(axis=-1)
    return float((error_kept(t.clients.tokens, beta, client) * volume).sum() / volume.sum())


def _price_for(t: _Tables, goal: Goal, last: Thresholds | None) -> float:
    """The λ whose thresholds meet the goal; calls fall and errors rise with λ."""
    low, high = -1.01, 1.01  # outside β's range: everything is sent, nothing is sent
    bound = " when thresholds move at most 0.1 a round" if last is not None else ""
    if goal.kind == "share":
        least = _solve(t, high, last).share
        if least > goal.value:
            raise ConfigError(
                f"at most {goal.value:.2%} of calls cannot be had{bound}: even the highest thresholds send "
                f"{least:.2%}. Ask for more calls."
            )
        if _solve(t, low, last).share <= goal.value:
            return low
        for _ in range(PRICE_STEPS):
            middle = (low + high) / 2
            low, high = (low, middle) if _solve(t, middle, last).share <= goal.value else (middle, high)
        return high
    least = _solve(t, low, last).error
    if least > goal.value:
        raise ConfigError(
            f"an error of at most {goal.value:.4f} cannot be had{bound}: with the lowest thresholds it is still "
            f"{least:.4f}. Allow more, or use the cloud alone."
        )
    if _solve(t, high, last).error <= goal.value:
        return high
    for _ in range(PRICE_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if _solve(t, middle, last).error <= goal.value else (low, middle)
    return low


def _with_intervals(result: Thresholds, t: _Tables, generator: np.random.Generator, draws: int) -> Thresholds:
    """Every scope's bins redrawn, then blended as the thresholds were."""

    def own(h: Histogram) -> Floats:
        if h.labelled < 1:
            return np.array([0.0, 1.0])
        tau = threshold_of(bootstrap_bins(h, result.price, generator, draws=draws))
        return np.quantile(tau, [0.025, 0.975])

    overall = own(t.overall)
    v, w = _trust(t.clusters), _trust(t.clients)
    cluster = np.stack(
        [v[c] * own(t.clusters[c]) + (1 - v[c]) * overall if v[c] > 0 else overall for c in range(len(v))]
    )
    client = np.stack([
        w[k] * own(t.clients[k]) + (1 - w[k]) * cluster[t.group[k]] if w[k] > 0 else cluster[t.group[k]]
        for k in range(len(w))
    ])  # fmt: skip

    def around(interval: Floats, tau: Floats) -> Floats:
        # A kept or limited τ may lie outside what this round alone says; the interval then reaches to it.
        return np.stack([np.minimum(interval[..., 0], tau), np.maximum(interval[..., 1], tau)], axis=-1)

    return replace(
        result,
        client_interval=around(client, result.client),
        cluster_interval=around(cluster, result.cluster),
        overall_interval=around(overall, np.asarray(result.overall)),
    )
