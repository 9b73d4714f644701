"""FedHLM: clients learn together when to ask for help, through edges and a cloud.

The algorithm box, as we read it:

 1. each client drafts, and measures how unsure it is of every token;
 2. above its threshold a token goes to peers or to the LLM, whose answer says how likely the draft was refused (β);
    below it a token is kept, and a few are audited all the same, or nobody would ever hear of confident mistakes;
 3. clients tell their edge what they saw: histograms of (u, β), once; or, `gradient`, their own stepped threshold;
 4. edges sum (or average) over their clients and tell the cloud;
 5. the cloud solves for every scope and sends thresholds back through the edges.

`histogram` needs one such round, and from one table serves every price of a call. `gradient` repeats steps 3-5, by
default 30 times. A first calibration begins with a survey, which sets the audit rate.

Source: FedHLM, arXiv:2507.00082 (two-level averaging, personalised thresholds); specification of FedHLM, sections 5-7.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from fedtandem.algorithms.threshold_parties import COUNT_NAMES, together
from fedtandem.errors import ConfigError, InvalidMessage, QuorumError
from fedtandem.exchange.calibration import CalibrationReply, CalibrationRequest, Job
from fedtandem.exchange.carrier import Carrier
from fedtandem.inference.aggregation import AGGREGATORS, capped, clipped, limited
from fedtandem.inference.audit import first_rate
from fedtandem.inference.gradient import START
from fedtandem.inference.histogram import Histogram
from fedtandem.inference.line import MIN_R2, LineSums, fit_line, line_sums, line_threshold
from fedtandem.inference.policy import Policy
from fedtandem.inference.threshold import (
    HALF_WEIGHT,
    Goal,
    Thresholds,
    fixed_thresholds,
    learn_thresholds,
)

Floats = npt.NDArray[np.float64]


PARITY = Goal("price", 0.3)
"""λ of the published reading."""


@dataclass(frozen=True)
class Settings:
    """What a calibration is.

    Attributes:
        learn: how thresholds are learnt.
        goal: what they are to achieve; `gradient`, `line` and `fixed` know a price only.
        start: τ before the first round; the threshold itself with `fixed`.
        audit_rate: None lets the survey decide.
        rounds: of `gradient`.
        edge, cloud: how averages are taken, a name in `AGGREGATORS`; `gradient` only. Means are the parity preset.
        robust: limit each step to 0.1 and each client's weight to two medians; `gradient` only.
        deadline_s: for each reply.
        seed: of the bootstrap.
        draws: of the bootstrap.
    """

    learn: Literal["histogram", "line", "gradient", "fixed"] = "histogram"
    goal: Goal = PARITY
    start: float = START
    audit_rate: float | None = None
    rounds: int = 30
    edge: str = "median"
    cloud: str = "median"
    robust: bool = True
    deadline_s: float = 60.0
    seed: int = 0
    draws: int = 200


@dataclass(frozen=True, eq=False)
class Calibration:
    """What a calibration came to.

    Attributes:
        names, clusters, group: C clients, K clusters, and the cluster of each client.
        models: of each client.
        thresholds: the result.
        table: the clients' histograms, as a stack.
        audit_rate: that was used.
        history: cluster thresholds after each round, (R, K).
    """

    names: tuple[str, ...]
    clusters: tuple[str, ...]
    group: npt.NDArray[np.int64]
    models: tuple[tuple[str, str], ...]
    thresholds: Thresholds
    table: Histogram
    audit_rate: float
    history: Floats


def run_fedhlm(edges: Carrier, settings: Settings, last: Policy | None = None) -> Calibration:
    """Learn thresholds for all clients behind these edges.

    Args:
        edges: carries to the edges; each is a cluster.
        settings: how.
        last: the policy in force; thresholds start there and, with `histogram`, move at most 0.1 away from it.

    Raises:
        QuorumError: no client answered.
        ConfigError: the goal cannot be met, or not in this way.
    """
    if settings.learn != "histogram" and settings.goal.kind != "price":
        raise ConfigError(
            f"learn = {settings.learn} knows a price only, not a {settings.goal.kind}; use learn = histogram, whose "
            "table answers both, or give --price."
        )
    cloud = _Cloud(edges, settings)
    seen = cloud.ask("survey", 1, 1.0, settings.start)
    rate = _audit_rate(seen, settings)
    # Gradient rounds look at the audits too; the table at the end tells what they achieved.
    history = [np.full(len(seen.clusters), settings.start)]
    tau = _start(seen, settings, last)
    if settings.learn == "gradient":
        tau = _gradient_rounds(cloud, seen, tau, rate, settings, history)
    counted = cloud.ask("count", settings.rounds + 2, rate, settings.start, seen.names)
    table = Histogram(
        **dict(zip(COUNT_NAMES, counted.reply.counts.transpose(1, 0, 2), strict=True)), audit_rate=rate
    )
    learnt = dict(zip(seen.names, tau.tolist(), strict=True))
    thresholds = _solve(counted, table, learnt, history[-1], settings, last)
    if settings.learn in ("histogram", "line"):
        history.append(thresholds.cluster)
    cloud.ask("publish", settings.rounds + 3, rate, thresholds.client, counted.names)
    return Calibration(
        counted.names, counted.clusters, counted.group, counted.reply.models, thresholds, table, rate,
        np.stack(history),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Round:
    """Who answered, in the cloud's order."""

    names: tuple[str, ...]
    clusters: tuple[str, ...]
    group: npt.NDArray[np.int64]
    reply: CalibrationReply


class _Cloud:
    """The cloud's questions."""

    def __init__(self, edges: Carrier, settings: Settings) -> None:
        self._edges, self._settings = edges, settings
        self._clusters = tuple(sorted(party.name for party in edges.parties()))
        self._of: dict[str, str] = {}

    def ask(
        self, job: Job, round_number: int, rate: float, tau: float | Floats, names: Sequence[str] = ()
    ) -> _Round:
        requests = {}
        values = np.broadcast_to(np.asarray(tau, dtype=np.float64), (max(1, len(names)),))
        for cluster in self._clusters:
            mine = [i for i, name in enumerate(names) if self._of.get(name, cluster) == cluster]
            if names and not mine:
                continue
            requests[cluster] = CalibrationRequest(
                round_number, job, rate, float(np.clip(self._settings.goal.value, -2, 2)),
                tuple(names[i] for i in mine), values[mine] if names else values,
            ).to_envelope()  # fmt: skip
        answers = self._edges.ask(requests, deadline_s=self._settings.deadline_s)
        replies = {}
        for cluster, envelope in sorted(answers.replies.items()):
            try:
                replies[cluster] = CalibrationReply.from_envelope(envelope)
            except InvalidMessage:
                continue
        whole = together("cloud", round_number, list(replies.values()))
        if not whole.names:
            told = "; ".join(f"{name}: {absence.text}" for name, absence in sorted(answers.absences.items()))
            raise QuorumError(
                f"calibration round {round_number}: no client answered. {told or 'The edges have none.'}"
            )
        for cluster, reply in replies.items():
            self._of |= dict.fromkeys(reply.names, cluster)
        group = [self._clusters.index(self._of[name]) for name in whole.names]
        return _Round(whole.names, self._clusters, np.array(group), whole)


def _audit_rate(seen: _Round, settings: Settings) -> float:
    """The smallest scope that is to be trusted decides: one round has one rate."""
    if settings.audit_rate is not None:
        return settings.audit_rate
    skipped = np.bincount(seen.group, weights=seen.reply.skipped, minlength=len(seen.clusters))
    return max(first_rate(float(n)) for n in skipped[np.unique(seen.group)])


def _gradient_rounds(
    cloud: _Cloud, seen: _Round, tau: Floats, rate: float, settings: Settings, history: list[Floats]
) -> Floats:
    """FedAvg of thresholds at two levels; what goes back to a client is a blend of its own, its edge's and all.

    τ_c = Σ n_k τ_k / Σ n_k,  τ_G = Σ N_c τ_c / Σ N_c, over labelled tokens.
    """
    names, k = seen.names, len(seen.clusters)
    for round_number in range(2, settings.rounds + 2):
        came = cloud.ask("descend", round_number, rate, tau, names)
        stepped = dict(zip(came.names, came.reply.tau.tolist(), strict=True))
        # Who is absent keeps what it has and weighs nothing.
        reports = np.array([stepped.get(name, before) for name, before in zip(names, tau, strict=True)])
        labelled = dict(zip(came.names, came.reply.labelled.tolist(), strict=True))
        n = np.array([labelled.get(name, 0.0) for name in names])
        if settings.robust:
            reports, weights = limited(clipped(reports), tau), capped(n)
        else:
            weights = n
        tau, edges = two_levels(reports, weights, seen.group, k, settings)
        history.append(edges)
    return np.asarray(tau)


def two_levels(
    reports: Floats, weights: Floats, group: npt.NDArray[np.int64], k: int, settings: Settings
) -> tuple[Floats, Floats]:
    """Average reports at the edges, then in the cloud, and blend what each client gets back.

    Args:
        reports, weights: τ_k and n_k of each client, (C,).
        group: its cluster, (C,) in [0, k).
        settings: how averages are taken.

    Returns:
        What goes back to each client, (C,), and the edges' averages, (k,).
    """
    volume = np.asarray(np.bincount(group, weights=weights, minlength=k), dtype=np.float64)
    full = np.flatnonzero(volume > 0)
    if not len(full):
        return reports, np.full(k, float(reports.mean()))
    edges = np.full(k, np.nan)
    for c in full:
        edges[c] = AGGREGATORS[settings.edge](reports[group == c], weights[group == c])
    overall = AGGREGATORS[settings.cloud](edges[full], volume[full])
    edges = np.where(np.isnan(edges), overall, edges)
    v = volume / (volume + HALF_WEIGHT)
    w = weights / (weights + HALF_WEIGHT)
    wider = v * edges + (1 - v) * overall
    return w * reports + (1 - w) * wider[group], edges


def _solve(
    counted: _Round,
    table: Histogram,
    learnt: Mapping[str, float],
    edges: Floats,
    settings: Settings,
    last: Policy | None,
) -> Thresholds:
    generator = np.random.default_rng(settings.seed)
    k = len(counted.clusters)
    if settings.learn == "line" and line_fit(table) < MIN_R2:
        raise ConfigError(
            f"learn = line, but a line explains only {line_fit(table):.0%} of how rejections rise with uncertainty "
            f"({MIN_R2:.0%} needed); use learn = histogram, which needs no shape."
        )
    if settings.learn == "histogram":
        return learn_thresholds(
            table, counted.group, settings.goal, generator, n_clusters=k,
            last=None if last is None else last.thresholds(counted.names, counted.clusters), draws=settings.draws,
        )  # fmt: skip
    if settings.learn == "line":
        tau = _line_thresholds(counted, table, settings)
        return fixed_thresholds(
            table,
            counted.group,
            tau,
            settings.goal.value,
            n_clusters=k,
            generator=generator,
            draws=settings.draws,
        )
    tau = clipped([learnt[name] for name in counted.names])
    return fixed_thresholds(
        table,
        counted.group,
        tau,
        settings.goal.value,
        cluster=edges,
        generator=generator,
        draws=settings.draws,
    )


def _start(seen: _Round, settings: Settings, last: Policy | None) -> Floats:
    """Where each client's threshold is before the first round."""
    if last is None or settings.learn == "fixed":
        return np.full(len(seen.names), settings.start)
    return clipped(last.thresholds(seen.names, seen.clusters).client)


def _line_thresholds(counted: _Round, table: Histogram, settings: Settings) -> Floats:
    """Every scope's line where it explains enough, blended as histogram thresholds are."""
    sums = [LineSums(*row) for row in counted.reply.sums.tolist()]
    price = settings.goal.value

    def of(members: Sequence[int]) -> float | None:
        total = LineSums(0, 0, 0, 0, 0, 0)
        for i in members:
            total = total + sums[i]
        return line_threshold(fit_line(total), price) if total.n > 0 else None

    overall = of(range(len(sums)))
    if overall is None:
        raise ConfigError("no token is labelled: nothing was sent to the cloud and nothing audited.")
    tau = np.empty(len(sums))
    for c in range(len(counted.clusters)):
        members = np.flatnonzero(counted.group == c)
        n = float(table.labelled[members].sum())
        own = of(members.tolist())
        v = n / (n + HALF_WEIGHT)
        wider = overall if own is None else v * own + (1 - v) * overall
        for i in members:
            mine, w = of([int(i)]), float(table.labelled[i] / (table.labelled[i] + HALF_WEIGHT))
            tau[i] = wider if mine is None else w * mine + (1 - w) * wider
    return clipped(tau)


def line_fit(table: Histogram) -> float:
    """R² of a line through β̄ per bin, weighted; over single tokens 0/1 feedback would hide a true line."""
    whole = table.sum()
    weight = whole.sent + whole.audited / whole.audit_rate
    total = whole.sent_beta + whole.audited_beta / whole.audit_rate
    seen = weight > 0
    middle = (np.arange(len(weight)) + 0.5) / len(weight)
    return (
        fit_line(line_sums(middle[seen], total[seen] / weight[seen], weight[seen])).r2 if seen.any() else 0.0
    )
