"""A calibration written down as a policy."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from fedtandem.algorithms.fedhlm import Calibration, Settings
from fedtandem.inference.histogram import (
    BINS,
    Histogram,
    best_bin,
    mean_beta,
    threshold_of,
    upper_bounds,
)
from fedtandem.inference.policy import Entry, Policy
from fedtandem.inference.threshold import SOURCES

Floats = npt.NDArray[np.float64]
CURVE = 21
"""Prices at which a policy says its thresholds."""
OWN = ("client", "cluster")
"""Sources of thresholds that come from the scope's own table."""


def make_policy(
    calibration: Calibration, settings: Settings, *, measure: str, feedback: str,
    similarity: Mapping[str, object] | None = None, scorer: Mapping[str, object] | None = None,
) -> Policy:  # fmt: skip
    """The calibration as a policy that can be written down and used."""
    t, table = calibration.thresholds, calibration.table

    def interval(ends: Floats) -> tuple[float, float] | None:
        return None if np.isnan(ends).any() else (float(ends[0]), float(ends[1]))

    def entry(
        tau: float, ends: Floats, source: str, h: Histogram, members: Sequence[int], cluster: str = ""
    ) -> Entry:
        models = tuple(sorted({calibration.models[i] for i in members}))
        return Entry(
            float(tau), interval(ends), source, round(float(h.audits)), round(float(h.labelled)),
            round(float(h.tokens.sum())), models, cluster, _curve(h if source in OWN else table.sum()),
        )  # fmt: skip

    clients, clusters = {}, {}
    for i, name in enumerate(calibration.names):
        source = SOURCES[t.client_source[i]]
        cluster = calibration.clusters[calibration.group[i]]
        clients[name] = entry(t.client[i], t.client_interval[i], source, table[i], [i], cluster)
    for c, name in enumerate(calibration.clusters):
        members = np.flatnonzero(calibration.group == c)
        if len(members):
            source = SOURCES[t.cluster_source[c]]
            mine = table[members].sum()
            clusters[name] = entry(t.cluster[c], t.cluster_interval[c], source, mine, members.tolist())
    everyone = list(range(len(calibration.names)))
    return Policy(
        measure=measure, feedback=feedback, learn=settings.learn,
        goal={"kind": settings.goal.kind, "value": settings.goal.value}, price=t.price,
        audit_rate=calibration.audit_rate, share=t.share, error=t.error,
        overall=entry(t.overall, t.overall_interval, "global", table.sum(), everyone), clusters=clusters,
        clients=clients, similarity=similarity, scorer=scorer,
        bounds=None if feedback == "quality" else _bounds(table.sum()),
        history={name: tuple(calibration.history[:, c].tolist()) for c, name in enumerate(calibration.clusters)},
    )  # fmt: skip


def _curve(h: Histogram) -> tuple[float, ...]:
    """τ at λ = 0, 0.05, ... 1, non-decreasing; empty where nothing is labelled."""
    beta = mean_beta(h)[0]
    if np.isnan(beta).all():
        return ()
    return tuple(threshold_of(best_bin(h.tokens, beta, np.linspace(0, 1, CURVE))).tolist())


def _bounds(whole: Histogram) -> dict[str, list[float]]:
    """Upper bounds of β by uncertainty, one step for all bins that share one."""
    upper = np.minimum(np.ceil(1e6 * upper_bounds(whole)) / 1e6, 1.0)
    ends = [b for b in range(BINS) if b == BINS - 1 or upper[b] != upper[b + 1]]
    return {"u": [(b + 1) / BINS for b in ends], "beta_upper": [float(upper[b]) for b in ends]}
