"""`fedtandem calibrate`: learn thresholds on a recorded trace, in a federation of its clients, and write the policy."""

from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedtandem.algorithms.fedhlm import Calibration, Settings, run_fedhlm
from fedtandem.algorithms.threshold_parties import Edge, ThresholdClient
from fedtandem.algorithms.threshold_policy import make_policy
from fedtandem.data.traces import Trace, read_trace
from fedtandem.errors import ConfigError
from fedtandem.evaluation.replay import has_peers, try_peers
from fedtandem.evaluation.scored_trace import (
    LEARNED,
    Feedback,
    Scored,
    default_measure,
    fit_on,
    score_trace,
    truth_is_known,
)
from fedtandem.federation.calibration_result import CalibrationResult
from fedtandem.federation.local import LocalCarrier
from fedtandem.inference.clusters import balanced_clusters
from fedtandem.inference.policy import Policy, read_policy
from fedtandem.inference.routing import is_sent
from fedtandem.inference.scorer import LearnedScorer
from fedtandem.inference.similarity import calibrate_similarity
from fedtandem.inference.threshold import Goal

AUDIT_KEY = b"fedtandem calibrate"
"""A replay hides its draw from nobody; a deployment has a secret of its own."""


@dataclass(frozen=True)
class CalibrateRequest:
    """What `fedtandem calibrate` was asked; exactly one of the three goals is given.

    Attributes:
        trace: recorded decisions of all clients; None: each client has its own at its site.
        budget: as typed: "10%" or 0.1.
        max_loss: in points.
        price: λ.
        clusters: group the clients anew by their mean embeddings; None keeps the trace's edges.
        measure: "learned" fits the uncertainty itself on half of the sessions and the thresholds on the others.
        last: the policy in force; None starts from nothing.
        audit: "all" uses every recorded answer; "auto" or a rate shows the learner only what a deployment would see.
    """

    trace: Path | None
    output: Path
    budget: str | None = None
    max_loss: float | None = None
    price: float | None = None
    measure: str | None = None
    feedback: Feedback = "auto"
    learn: str = "histogram"
    audit: str = "all"
    rounds: int = 30
    tau: float = 0.5
    clusters: int | None = None
    last: Path | None = None
    seed: int = 0
    masked: bool = False


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A policy with what it cost to learn.

    Attributes:
        bytes_up, bytes_down: frames between clients and edges; edges and cloud.
    """

    policy: Policy
    calibration: Calibration
    bytes_up: dict[str, int]
    bytes_down: dict[str, int]


def calibrate_command(request: CalibrateRequest, *, json_output: bool = False) -> str:
    """Calibrate, write the policy, and say what came out.

    Raises:
        ConfigError: no goal or several, a goal that cannot be met, a measure the trace does not allow.
        DataError: the trace cannot be used.
    """
    settings = settings_of(request)
    if request.trace is None:
        raise ConfigError(
            "no trace: name the file that `fedtandem trace` recorded, or give --connection NAME to ask sites for "
            "counts of their own."
        )
    trace = read_trace(request.trace)
    if request.clusters is not None:
        trace = clustered(trace, request.clusters, np.random.default_rng(request.seed))
    feedback = request.feedback
    # A loss in points is about right answers; where the truth is recorded, β may say just that.
    if feedback == "auto" and request.max_loss is not None and truth_is_known(trace):
        feedback = "quality"
    measure = request.measure or default_measure(trace)
    scorer = None
    if measure == LEARNED:
        if settings.audit_rate != 1.0:
            raise ConfigError(
                "--measure learned looks at every recorded answer; it goes with --audit all only."
            )
        fitted, trace = halves(trace, np.random.default_rng(request.seed))
        scorer = fit_on(fitted, feedback, request.seed)
    last = None if request.last is None else read_policy(request.last)
    check_last(request, last, measure)
    if last is not None and measure == LEARNED:
        raise ConfigError(
            "--from cannot go with --measure learned: a newly fitted measure has another scale."
        )
    scored = score_trace(trace, measure, feedback, scorer)
    done = calibrate(
        trace, scored, settings, measure=measure, last=last, scorer=scorer, masked=request.masked
    )
    result = CalibrationResult(done.policy, done.calibration.names, done.bytes_up, done.bytes_down)
    return result.put(request.output, json_output=json_output)


def check_last(request: CalibrateRequest, last: Policy | None, measure: str) -> None:
    """Refuse to go on from thresholds on another scale.

    Raises:
        ConfigError: the policy in force is on another measure.
    """
    if last is not None and last.measure != measure:
        raise ConfigError(
            f"--from {request.last}: its thresholds are on {last.measure}, these are to be on {measure}; give "
            f"--measure {last.measure}, or start without it."
        )


def halves(trace: Trace, generator: np.random.Generator) -> tuple[Trace, Trace]:
    """Two halves by session: what a measure is fitted on must not set its thresholds.

    Raises:
        ConfigError: fewer than two sessions.
    """
    names, place = np.unique(trace.session, return_inverse=True)
    if len(names) < 2:
        raise ConfigError(
            "--measure learned needs at least two sessions: one to fit on, one to set thresholds on."
        )
    first = (generator.permutation(len(names)) % 2 == 0)[place]
    return trace.rows(np.flatnonzero(first)), trace.rows(np.flatnonzero(~first))


def settings_of(request: CalibrateRequest) -> Settings:
    """The settings behind the options, checked."""
    given = [name for name in ("budget", "max_loss", "price") if getattr(request, name) is not None]
    if request.learn == "fixed" and not given:
        goal = Goal("price", 0.3)
    elif len(given) != 1:
        raise ConfigError(
            f"{' and '.join('--' + name.replace('_', '-') for name in given) or 'no goal'} given; say one "
            "of --budget 10%, --max-loss 0.5 (points) or --price 0.05 (a call over an error)."
        )
    elif request.budget is not None:
        goal = Goal("share", share_of(request.budget))
    elif request.max_loss is not None:
        if not 0 <= request.max_loss <= 100:
            raise ConfigError(f"--max-loss {request.max_loss:g}; expected points from 0 to 100.")
        goal = Goal("error", request.max_loss / 100)
    else:
        price = float(request.price or 0.0)
        if not 0 <= price <= 1:
            raise ConfigError(
                f"--price {price:g}; expected the price of a call over the price of an error, 0 to 1."
            )
        goal = Goal("price", price)
    if request.learn not in ("histogram", "line", "gradient", "fixed"):
        raise ConfigError(f"--learn {request.learn}; choose histogram, line, gradient or fixed.")
    if request.rounds < 1:
        raise ConfigError(f"--rounds {request.rounds}; expected at least 1.")
    if not 0 <= request.tau <= 1:
        raise ConfigError(f"--tau {request.tau:g}; expected a threshold in [0, 1].")
    return Settings(
        learn=request.learn, goal=goal, start=request.tau, audit_rate=_audit_rate(request.audit),  # type: ignore[arg-type]
        rounds=request.rounds, seed=request.seed,
    )  # fmt: skip


def share_of(text: str) -> float:
    """ "10%" or "0.1" as a share.

    Raises:
        ConfigError: neither.
    """
    try:
        value = float(text.strip().removesuffix("%")) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        raise ConfigError(f"--budget {text}; expected a share of calls such as 10% or 0.1.")
    return value


def _audit_rate(text: str) -> float | None:
    if text in ("all", "auto"):
        return 1.0 if text == "all" else None
    try:
        rate = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        rate = -1.0
    if not 0 < rate <= 1:
        raise ConfigError(f"--audit {text}; expected all, auto, or a rate such as 1%.")
    return rate


def clustered(trace: Trace, k: int, generator: np.random.Generator) -> Trace:
    """The same decisions behind k edges of like clients: balanced k-means on one mean embedding per client.

    Raises:
        ConfigError: no embeddings, or fewer clients than clusters.
    """
    names, place = np.unique(trace.client, return_inverse=True)
    if trace.embedding is None:
        raise ConfigError("--clusters needs the trace's column `embedding`.")
    if not 1 <= k <= len(names):
        raise ConfigError(f"--clusters {k}; expected 1 to {len(names)}, the number of clients.")
    counts = np.bincount(place)[:, None]
    sums = np.zeros((len(names), trace.embedding.shape[1]))
    np.add.at(sums, place, trace.embedding.astype(np.float64))
    group = balanced_clusters(sums / counts, k, generator)
    return replace(trace, cluster=np.array([f"cluster-{c}" for c in group])[place])


def calibrate(
    trace: Trace,
    scored: Scored,
    settings: Settings,
    *,
    measure: str,
    last: Policy | None = None,
    scorer: LearnedScorer | None = None,
    masked: bool = False,
) -> Calibrated:
    """Run the federation that a trace recorded: its clients behind their edges, every message encoded and counted.

    Args:
        masked: edges see sums of their clients alone; then each edge stands for all of its clients.
    """
    up: Counter[str] = Counter()
    down: Counter[str] = Counter()

    def counting(level: str) -> Any:
        def count(_party: str, _round: int, n_up: int, n_down: int) -> None:
            up[level] += n_up
            down[level] += n_down

        return count

    edges: dict[str, Any] = {}
    for cluster in np.unique(trace.cluster):
        clients = {}
        for name in map(str, np.unique(trace.client[trace.cluster == cluster])):
            mine = np.flatnonzero(trace.client == name)
            clients[name] = client_of(name, trace.rows(mine), scored.rows(mine), AUDIT_KEY)
        if masked:
            from fedtandem.federation.masked_edges import MaskedEdge, masked_clients  # needs cryptography

            masking, known = masked_clients(clients)
            edges[str(cluster) or "all"] = MaskedEdge(
                str(cluster) or "all",
                LocalCarrier(masking, count=counting("clients and edges")),
                known,
                "calibrate",
                settings.deadline_s,
            )
            continue
        edges[str(cluster) or "all"] = Edge(
            str(cluster) or "all",
            LocalCarrier(clients, count=counting("clients and edges")),
            settings.deadline_s,
        )
    done = run_fedhlm(LocalCarrier(edges, count=counting("edges and cloud")), settings, last)
    similarity = None
    if has_peers(trace):
        tau = dict(zip(done.names, done.thresholds.client.tolist(), strict=True))
        whose = np.where(trace.cluster == "", "all", trace.cluster) if masked else trace.client
        sent = is_sent(scored.u, np.array([tau[str(name)] for name in whose]))
        tries = try_peers(trace, sent, delta_sim=-1.0)
        found = calibrate_similarity(tries.similarity, tries.answer == trace.answer[tries.index])
        hits = int((tries.similarity >= found.delta).sum())
        similarity = {**asdict(found), "hit_rate": hits / max(1, int(sent.sum()))}
    policy = make_policy(
        done, settings, measure=measure, feedback=scored.feedback, similarity=similarity,
        scorer=None if scorer is None else scorer.as_dict(),
    )  # fmt: skip
    if masked:
        policy = replace(policy, clients={})  # the edges in their clients' place
    return Calibrated(policy, done, dict(up), dict(down))


def client_of(name: str, trace: Trace, scored: Scored, key: bytes) -> ThresholdClient:
    """A client with these decisions, all of them its own."""
    models = Counter(trace.models()).most_common(1)[0][0]
    return ThresholdClient(name, models, scored.u, scored.beta, trace.session.tolist(), trace.position, key)
