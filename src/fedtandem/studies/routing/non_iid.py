"""`non-iid`: three open questions about weighting under label skew, on recorded traces.

1. Which weights make one threshold out of many clients' own, and what do they lose (mean regret)?
2. What do they lose at the clients that are worst off, at Dirichlet 0.1?
3. How many rounds does averaging need, beside one round of histograms?
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fedtandem.data.traces import Trace
from fedtandem.inference.histogram import Histogram, best_bin, bootstrap_bins, mean_beta, threshold_of
from fedtandem.inference.routing import is_sent
from fedtandem.studies.bars import Bar, Table, bar, bars_table, shown, spread
from fedtandem.studies.routing.prices import (
    PRICES,
    Stream,
    cost,
    fedavg,
    hindsight,
    histogram_taus,
    learnt,
    other_half,
    stream_of,
    tuned_eta,
)

Floats = npt.NDArray[np.float64]

ROUNDS = (1, 2, 3, 10, 30)
WEIGHTINGS = ("equal", "n_k", "labelled", "inverse variance", "loss", "similarity", "shrinkage")
"""Means of the clients' own thresholds; `shrinkage` is the product's blend of tables instead."""
ENOUGH = 50
"""Test decisions of a client that counts among the worst decile."""
LUCK = "own other half"
"""Each half of a client's test decisions takes the threshold that is best on the other: what luck alone costs."""
SKEWED = "dirichlet-0.1"


def cell(calibration: Trace, test: Trace, seed: int) -> dict[str, Any]:
    """One seed and skew: per weighting its regret over prices, and the worst decile's; and FedAvg's by rounds."""
    names = sorted(set(calibration.client.tolist()))
    of = dict(zip(calibration.client.tolist(), calibration.cluster.tolist(), strict=True))
    edges = sorted(set(of.values()))
    number = {name: edges.index(of[name]) for name in names}
    seen = stream_of(calibration, names, number, "probabilities")
    kept = test.rows(np.flatnonzero(np.isin(test.client, names)))
    asked = stream_of(kept, names, number, "probabilities")
    table, edge = learnt(calibration, "probabilities", seed)
    near = _similarities(calibration, names)
    mean: dict[str, list[float]] = {}
    worst: dict[str, list[float]] = {}
    eta = tuned_eta(seen)
    rounds = {f"{kind}, {r}": fedavg(seen, PRICES, eta=step, rounds=r)[-1]
              for kind, step in (("preset", 0.05), ("tuned", eta)) for r in ROUNDS}  # fmt: skip
    for p, price in enumerate(PRICES):
        taus = weighted(table, edge, price, near, np.random.default_rng(seed)) | {
            k: v[p] for k, v in rounds.items()
        }
        taus["histogram of all"] = histogram_taus(table, edge, price)["global"]
        best, (own, halves) = hindsight(asked, price), _by_client(asked, price, seed)
        worst.setdefault(LUCK, []).append(_worst_decile(halves, own))
        for name, tau in taus.items():
            mean.setdefault(name, []).append(cost(asked, tau, price) / best - 1)
            worst.setdefault(name, []).append(_worst_decile(_paid(asked, tau, price), own))
    return {
        "mean": {name: float(np.mean(values)) for name, values in mean.items()},
        "worst": {name: float(np.mean(values)) for name, values in worst.items()},
        "eta": eta,
    }


def weighted(
    table: Histogram, edge: npt.NDArray[np.int64], price: float, near: Floats, generator: np.random.Generator
) -> dict[str, Floats]:
    """Thresholds of C clients by every weighting, (C,) each.

    Args:
        table: the clients' counts.
        near: cosine of the clients' mean embeddings, (C, C).

    Source: specification of FedHLM, section 15, open experiments; the forms of the weights are choices.
    """
    beta = mean_beta(table)[0]
    known = ~np.isnan(beta[:, 0])
    own = threshold_of(best_bin(table.tokens, np.nan_to_num(beta), price))
    tokens, labelled = table.tokens.sum(axis=-1), table.labelled
    variance = np.array([
        threshold_of(bootstrap_bins(table[k], price, generator, draws=50)).var() if known[k] else np.inf
        for k in range(len(own))
    ])  # fmt: skip
    lost = np.where(known, np.minimum(np.nan_to_num(beta), price) @ np.ones(beta.shape[1]), 0.0)
    forms = {
        "equal": known.astype(np.float64),
        "n_k": tokens * known,
        "labelled": labelled * known,
        # A bin's width squared: no bootstrap tells thresholds apart that lie in one bin.
        "inverse variance": known / (np.where(known, variance, 1.0) + 1 / 64**2),
        "loss": tokens * lost,
    }  # fmt: skip
    taus = {name: np.full(len(own), float((w * own).sum() / w.sum())) for name, w in forms.items()}
    like = np.maximum(near, 0) ** 8 * (tokens * known)
    taus["similarity"] = (like @ own) / like.sum(axis=1)
    taus["shrinkage"] = histogram_taus(table, edge, price)["histogram"]
    return taus


def _similarities(trace: Trace, names: Sequence[str]) -> Floats:
    embedding = np.asarray(trace.embedding, dtype=np.float64)
    centre = embedding.mean(axis=0)  # without what all texts have in common
    means = np.stack([embedding[trace.client == name].mean(axis=0) - centre for name in names])
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    return np.asarray(means @ means.T)


def _by_client(stream: Stream, price: float, seed: int) -> tuple[Floats, Floats]:
    """Each client's least cost on its own test decisions, and that with the threshold of its other half; (C,).

    NaN for clients with too few decisions.
    """
    best, halves = np.full((2, len(stream.names)), np.nan)
    for k in range(len(best)):
        mine = stream.client == k
        if mine.sum() >= ENOUGH:
            own = replace(stream, u=stream.u[mine], beta=stream.beta[mine], client=stream.client[mine])
            best[k], halves[k] = hindsight(own, price), other_half(own, price, seed)
    return best, halves


def _paid(stream: Stream, tau: Floats, price: float) -> Floats:
    """Each client's mean cost, (C,); NaN without decisions."""
    paid = np.where(is_sent(stream.u, tau[stream.client]), price, stream.beta)
    n = np.bincount(stream.client, minlength=len(tau))
    total = np.bincount(stream.client, weights=paid, minlength=len(tau))
    return np.asarray(np.divide(total, n, out=np.full(len(tau), np.nan), where=n > 0))


def _worst_decile(paid: Floats, best: Floats) -> float:
    """Mean regret of the worst tenth of the clients, against each one's own best threshold."""
    enough = np.isfinite(best)
    regret = np.sort(paid[enough] / best[enough] - 1)[::-1]
    return float(regret[: max(1, round(len(regret) / 10))].mean())


def summary(cells: Mapping[int, Mapping[str, Any]], skews: Sequence[str]) -> dict[str, Any]:
    """Tables and bars; `cells` is seed -> skew -> what `cell` gave."""
    seeds = sorted(cells)

    def of(skew: str, kind: str, name: str) -> list[float]:
        return [cells[seed][skew][kind][name] for seed in seeds]

    hard = SKEWED if SKEWED in skews else skews[0]
    names = [*WEIGHTINGS, "histogram of all"]
    first = Table(
        "1. Mean regret by weighting (cost above the best single threshold in hindsight)", ("weights", *skews),
        tuple((name, *(shown(spread(of(skew, "mean", name)), "excess") for skew in skews)) for name in names),
    )  # fmt: skip
    second = Table(
        "2. Regret of the worst decile of clients (above each client's own best threshold in hindsight)",
        ("weights", *skews),
        tuple(
            (name, *(shown(spread(of(skew, "worst", name)), "excess") for skew in skews))
            for name in (*names, LUCK)
        ),
    )
    kinds: list[tuple[str, Callable[[int], str]]] = [
        ("preset", lambda r: f"preset, {r}"),
        ("tuned", lambda r: f"tuned, {r}"),
    ]
    third = Table(
        f"3. Mean regret of FedAvg by rounds, {hard}", ("step", *(f"{r} rounds" for r in ROUNDS)),
        tuple((kind, *(shown(spread(of(hard, "mean", name(r))), "excess") for r in ROUNDS)) for kind, name in kinds),
    )  # fmt: skip
    bars = _bars(lambda kind, name: of(hard, kind, name), hard)
    return {
        "bars": bars,
        "tables": {"bars": bars_table(bars), "regret": first, "worst": second, "rounds": third},
    }


def _bars(of: Callable[[str, str], list[float]], hard: str) -> list[Bar]:
    best = min(WEIGHTINGS, key=lambda name: float(np.mean(of("mean", name))))
    return [
        bar(f"{hard}: shrinkage (the product's) within 2 % mean regret, one round", of("mean", "shrinkage"),
            at_most=0.02, kind="excess", why="2,500 calibration decisions over 20 clients"),
        bar(f"{hard}: worst decile within 5 %, shrinkage", of("worst", "shrinkage"), at_most=0.05, kind="excess",
            why="hindsight is fitted to a client's few test decisions: the threshold of its own other half is "
                f"{shown(spread(of('worst', LUCK)), 'excess')} above it"),
        bar(f"(shown) least mean regret of all weightings: {best}", of("mean", best), kind="excess"),
        bar("tuned FedAvg within 2 % mean regret after 3 rounds", of("mean", "tuned, 3"), at_most=0.02, kind="excess",
            why="its step is chosen for 30 rounds; where that is a small one, 3 do not get there"),
    ]  # fmt: skip
