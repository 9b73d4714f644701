"""`byzantine`: 1 to f clients lie about their thresholds or counts; what it does to the honest ones."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fedtandem.algorithms.fedhlm import Settings
from fedtandem.data.traces import Trace
from fedtandem.inference.histogram import Histogram, count_feedback, stacked
from fedtandem.inference.threshold import Goal, learn_thresholds
from fedtandem.studies.bars import Bar, Table, bar, bars_table, number, shown, spread
from fedtandem.studies.routing.prices import PARITY_MEANS, Stream, cost, fedavg, stream_of

Floats = npt.NDArray[np.float64]

PRICE = 0.3
LIARS = (1, 2, 4, 6, 8)
LIMIT = 0.05
"""Shift of an honest client's threshold above which E13 sounds."""
ETA = 0.5
"""Of the gradient rows: the preset's step hardly moves in 30 rounds, so liars would look harmless."""
AVERAGES: dict[str, Settings] = {
    "gradient, mean": PARITY_MEANS,
    "gradient, trimmed mean": replace(PARITY_MEANS, edge="trimmed_mean", cloud="trimmed_mean"),
    "gradient, median": replace(PARITY_MEANS, edge="median", cloud="median"),
}
TABLES = ("histogram, clients' word", "histogram, cloud's ledger")
"""Who says what β was: the client; or the cloud, which computed it while verifying, so that lies are about u alone."""
LIES = ("high", "low")
"""Everything is fine, never call (τ = 1, β = 0); nothing is fine, always call (τ = 0, β = 1)."""


def cell(calibration: Trace, test: Trace, seed: int) -> dict[str, Any]:
    """One seed: per way of learning, lie and number of liars, the honest clients' mean shift and extra cost."""
    names = sorted(set(calibration.client.tolist()))
    of = dict(zip(calibration.client.tolist(), calibration.cluster.tolist(), strict=True))
    edges = sorted(set(of.values()))
    number_of = {name: edges.index(of[name]) for name in names}
    seen = stream_of(calibration, names, number_of, "probabilities")
    kept = test.rows(np.flatnonzero(np.isin(test.client, names)))
    asked = stream_of(kept, names, number_of, "probabilities")
    order = _turns(seen, np.random.default_rng(seed))
    found: dict[str, Any] = {}
    for way in (*AVERAGES, *TABLES):
        honest = _taus(way, seen, (), "high")
        for lie in LIES:
            for f in (f for f in LIARS if f < len(names) / 2):
                liars = order[:f]
                truthful = np.setdiff1d(np.arange(len(names)), liars)
                tau = _taus(way, seen, liars, lie)
                mine = np.isin(asked.client, truthful)
                theirs = Stream(asked.u[mine], asked.beta[mine], asked.client[mine], asked.edge, asked.names)
                found[f"{way}|{lie}|{f}"] = {
                    "shift": float(np.abs(tau - honest)[truthful].mean()),
                    "cost": cost(theirs, tau, PRICE) / cost(theirs, honest, PRICE) - 1,
                }
    return found


def _turns(stream: Stream, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """The order in which clients turn liars: by lot, one of each edge before the second of any."""
    lot = generator.permutation(len(stream.names))
    turn = np.empty(len(lot))
    for e in np.unique(stream.edge):
        mine = lot[stream.edge[lot] == e]
        turn[mine] = np.arange(len(mine))
    return np.asarray(lot[np.argsort(turn[lot], kind="stable")])


def _taus(way: str, stream: Stream, liars: Sequence[int] | npt.NDArray[np.int64], lie: str) -> Floats:
    """Every client's threshold when these clients lie."""
    if way in AVERAGES:
        said = {int(k): 1.0 if lie == "high" else 0.0 for k in liars}
        return np.asarray(fedavg(stream, [PRICE], eta=ETA, settings=AVERAGES[way], liars=said)[-1][0])
    tables: list[Histogram] = []
    for k in range(len(stream.names)):
        mine = stream.client == k
        u, beta = stream.u[mine], stream.beta[mine]
        if k in liars and way == TABLES[0]:
            # Ten times its tokens, all with the same verdict: what it claims is capped at two medians.
            u, beta = np.tile(u, 10), np.full(10 * len(u), 0.0 if lie == "high" else 1.0)
        elif k in liars:
            # β is the cloud's own; the worst it can do is to file its errors under the other end of u.
            u = np.sort(u)[
                np.argsort(np.argsort(-beta if lie == "high" else beta, kind="stable"), kind="stable")
            ]
        everything = np.ones(len(u), dtype=bool)
        tables.append(count_feedback(u, beta, everything, ~everything, 1.0))
    goal, none = Goal("price", PRICE), np.random.default_rng(0)
    return learn_thresholds(stacked(tables), stream.edge, goal, none, draws=0).client


def summary(cells: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Tables and bars; `cells` is seed -> what `cell` gave."""
    seeds = sorted(cells)
    counts = sorted({int(key.rpartition("|")[2]) for key in cells[seeds[0]]})

    def of(way: str, lie: str, f: int, what: str) -> list[float]:
        return [cells[seed][f"{way}|{lie}|{f}"][what] for seed in seeds]

    def worst(way: str, f: int, what: str) -> list[float]:
        return max((of(way, lie, f, what) for lie in LIES), key=lambda values: float(np.mean(values)))

    ways, head = (*AVERAGES, *TABLES), ("learnt by", *(f"{f} liars" for f in counts))
    shift = Table(
        "Shift of the honest clients' thresholds by the worse of the two lies", head,
        tuple((way, *(shown(spread(worst(way, f, "shift")), "plain") for f in counts)) for way in ways),
    )  # fmt: skip
    dear = Table(
        f"What it costs the honest clients on the test, at price {PRICE}", head,
        tuple((way, *(shown(spread(worst(way, f, "cost")), "excess") for f in counts)) for way in ways),
    )  # fmt: skip
    bars = _bars(worst, [f for f in counts if f <= 4])
    return {"bars": bars, "tables": {"bars": bars_table(bars), "shift": shift, "cost": dear}, "liars": counts}


def _bars(worst: Any, counts: Sequence[int]) -> list[Bar]:
    f = counts[-1]
    return [
        bar(f"{way}: {f} liars shift honest thresholds by at most {number(LIMIT, 'plain')} (E13)",
            worst(way, f, "shift"), at_most=LIMIT, kind="plain", why=why)
        for way, why in (
            ("gradient, mean", "a mean has no breakdown point: this is what medians are for"),
            ("gradient, median", "one liar in each edge of five, and the blend of a client's own τ"),
            (TABLES[0], "claims are limited in weight, not detected"),
            (TABLES[1], "a lie about u moves true errors to the wrong end"),
        )
    ]  # fmt: skip
