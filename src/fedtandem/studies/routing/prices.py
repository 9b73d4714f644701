"""What thresholds cost at many prices of a call: learnt in several ways, fixed, and in hindsight."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fedtandem.algorithms.fedhlm import Settings, two_levels
from fedtandem.data.traces import Trace
from fedtandem.evaluation.scored_trace import score_trace
from fedtandem.federation.calibrate import calibrate
from fedtandem.inference.gradient import ETA, KAPPA, LOCAL_STEPS, START
from fedtandem.inference.histogram import BINS, Histogram
from fedtandem.inference.routing import SMALLEST, is_sent
from fedtandem.inference.threshold import Goal, learn_thresholds

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

PRICES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
ETAS = (0.05, 0.2, 0.5, 1.0, 2.0)
"""Step sizes of which the tuned FedAvg takes the best on the calibration."""
ROUNDS = 30
PARITY_MEANS = Settings(learn="gradient", edge="mean", cloud="mean", robust=False)
"""FedAvg at both levels, as read: plain means, no limits."""


@dataclass(frozen=True, eq=False)
class Stream:
    """Decisions as thresholds see them: u and β, (N,), the client of each, and the edge of each client, (C,)."""

    u: Floats
    beta: Floats
    client: Ints
    edge: Ints
    names: tuple[str, ...]


def stream_of(trace: Trace, names: Sequence[str], edges: Mapping[str, int], feedback: str) -> Stream:
    """A trace's decisions, clients numbered as in `names`."""
    scored = score_trace(trace, "expected", feedback)  # type: ignore[arg-type]
    place = {name: i for i, name in enumerate(names)}
    return Stream(
        scored.u, scored.beta, np.array([place[str(name)] for name in trace.client]),
        np.array([edges[name] for name in names]), tuple(names),
    )  # fmt: skip


def cost(stream: Stream, tau: Floats | float, price: float) -> float:
    """Mean β kept + λ · calls: equation (4) with a hard threshold; τ for all, or of each client (C,)."""
    sent = is_sent(stream.u, tau if np.ndim(tau) == 0 else np.asarray(tau)[stream.client])
    return float(np.where(sent, price, stream.beta).mean())


def hindsight(stream: Stream, price: float, group: Ints | None = None) -> float:
    """The least cost of one threshold for all, or of one for each group of decisions, chosen on these decisions."""
    if group is None:
        return _least(stream.u, stream.beta, price)[1]
    parts = [group == g for g in np.unique(group)]
    return float(sum(_least(stream.u[p], stream.beta[p], price)[1] * p.mean() for p in parts))


def other_half(stream: Stream, price: float, seed: int) -> float:
    """The cost when each half of these decisions takes the threshold that is best on the other half.

    What the luck of some 2,500 decisions costs where nothing else differs: the least anybody can be above hindsight.
    """
    first = np.random.default_rng([seed, 11]).permutation(len(stream.u)) % 2 == 0
    paid = np.empty(len(stream.u))
    for here, there in ((first, ~first), (~first, first)):
        tau = _least(stream.u[there], stream.beta[there], price)[0]
        paid[here] = np.where(is_sent(stream.u[here], tau), price, stream.beta[here])
    return float(paid.mean())


def _least(u: Floats, beta: Floats, price: float) -> tuple[float, float]:
    """The best single threshold and its mean cost."""
    order = np.argsort(u, kind="stable")
    x, kept = np.maximum(u[order], SMALLEST), np.concatenate([[0.0], np.cumsum(beta[order])])
    total = kept + price * np.arange(len(u), -1, -1)
    # Between two equal uncertainties no threshold can cut.
    possible = np.concatenate([[True], x[1:] > x[:-1], [True]])
    cut = int(np.flatnonzero(possible)[np.argmin(total[possible])])
    return float(x[cut - 1]) if cut else 0.0, float(total[cut] / len(u))


def learnt(
    calibration: Trace, feedback: str, seed: int, audit_rate: float | None = None
) -> tuple[Histogram, Ints]:
    """One histogram round of the whole federation, as deployed: its table, and the edge of each client.

    Clients and edges are in the order of their names.
    """
    scored = score_trace(calibration, "expected", feedback)  # type: ignore[arg-type]
    settings = Settings(goal=Goal("price", 0.3), audit_rate=audit_rate, seed=seed, draws=0)
    without_peers = replace(calibration, context=None)
    done = calibrate(without_peers, scored, settings, measure="expected").calibration
    order = np.argsort(done.names)
    return done.table[order], done.group[order]


def histogram_taus(table: Histogram, edge: Ints, price: float) -> dict[str, Floats]:
    """One table read at a price: the blend that clients get, and each level alone; (C,) each."""
    t = learn_thresholds(table, edge, Goal("price", price), np.random.default_rng(0), draws=0)
    own = np.where(np.isnan(t.own_client), t.overall, t.own_client)
    return {
        "histogram": t.client,
        "cluster": t.cluster[edge],
        "global": np.full(len(edge), t.overall),
        "local": own,
    }


def fedavg(
    stream: Stream,
    prices: Sequence[float],
    *,
    eta: float = ETA,
    rounds: int = ROUNDS,
    settings: Settings = PARITY_MEANS,
    liars: Mapping[int, float] | None = None,
) -> list[Floats]:
    """Thresholds by gradient steps and two-level averages, every decision labelled; all prices at once.

    The same steps as `inference.gradient.descend` and `algorithms.fedhlm.two_levels`, for all clients in one array.

    Args:
        liars: client -> the τ it reports, whatever it saw.

    Returns:
        Per round the clients' thresholds, (P, C).
    """
    order = np.argsort(stream.client, kind="stable")
    u, beta, client = stream.u[order], stream.beta[order], stream.client[order]
    c = len(stream.names)
    count = np.bincount(client, minlength=c).astype(np.float64)
    present = np.flatnonzero(count)
    starts = np.concatenate([[0], np.cumsum(count[present])[:-1]]).astype(np.int64)
    excess = beta - np.asarray(prices, dtype=np.float64)[:, None]  # (P, N)
    tau, history = np.full((len(prices), c), START), []
    for _ in range(rounds):
        for _ in range(LOCAL_STEPS):
            s = 0.5 * (1 + np.tanh(0.5 * KAPPA * (u - tau[:, client])))
            slope = np.add.reduceat(KAPPA * s * (1 - s) * excess, starts, axis=1) / count[present]
            tau[:, present] = np.clip(tau[:, present] - eta * slope, 0, 1)
        for k, lie in (liars or {}).items():
            tau[:, k] = lie
        tau = np.stack([
            two_levels(row, count, stream.edge, int(stream.edge.max()) + 1, settings)[0] for row in tau
        ])  # fmt: skip
        history.append(tau.copy())
    return history


def tuned_eta(stream: Stream) -> float:
    """The step size with the least mean cost over prices on these decisions."""

    def mean_cost(eta: float) -> float:
        taus = fedavg(stream, PRICES, eta=eta)[-1]
        return float(np.mean([cost(stream, tau, price) for tau, price in zip(taus, PRICES, strict=True)]))

    return min(ETAS, key=mean_cost)


def best_fixed(stream: Stream) -> float:
    """One τ for all prices, a bin's edge, with the least mean cost on these decisions."""
    grid = [j / BINS for j in range(BINS + 1)]
    return min(grid, key=lambda tau: float(np.mean([cost(stream, tau, price) for price in PRICES])))


def price_costs(calibration: Trace, test: Trace, feedback: str, seed: int) -> dict[str, list[float]]:
    """Scheme -> its test cost at each of `PRICES`; thresholds from the calibration, but for hindsight."""
    names = sorted(set(calibration.client.tolist()) | set(test.client.tolist()))
    of = dict(zip(calibration.client.tolist(), calibration.cluster.tolist(), strict=True))
    edges = sorted(set(of.values()))
    names = [name for name in names if name in of]
    number = {name: edges.index(of[name]) for name in names}
    seen = stream_of(calibration, names, number, feedback)
    known = np.isin(test.client, names)
    asked = stream_of(test.rows(np.flatnonzero(known)), names, number, feedback)
    table, edge = learnt(calibration, feedback, seed)
    fixed, eta = best_fixed(seen), tuned_eta(seen)
    preset, tuned = fedavg(seen, PRICES)[-1], fedavg(seen, PRICES, eta=eta)[-1]
    costs: dict[str, list[float]] = {}
    for p, price in enumerate(PRICES):
        taus: dict[str, Floats | float] = {
            **histogram_taus(table, edge, price), "fedavg": preset[p], "fedavg_tuned": tuned[p],
            "fixed_best": fixed, "fixed_0.5": 0.5, "never": 1.0, "always": 0.0,
        }  # fmt: skip
        found = {name: cost(asked, tau, price) for name, tau in taus.items()}
        found["hindsight"] = hindsight(asked, price)
        found["other_half"] = other_half(asked, price, seed)
        found["hindsight_cluster"] = hindsight(asked, price, asked.edge[asked.client])
        found["hindsight_client"] = hindsight(asked, price, asked.client)
        for name, value in found.items():
            costs.setdefault(name, []).append(value)
    return costs | {"chosen": [fixed, eta]}
