"""`fedtandem route`: what a policy would have done on a recorded trace, beside what could refute it."""

import json
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedtandem.data.traces import Trace, read_trace
from fedtandem.errors import ConfigError
from fedtandem.evaluation.curves import (
    apgr,
    at_share,
    bootstrap_means,
    calls_for,
    calls_for_pgr,
    middle,
    oracle_curve,
    pgr,
    quality_curve,
    random_curve,
    worst_decile,
)
from fedtandem.evaluation.replay import Replay, replay
from fedtandem.evaluation.scored_trace import Scored, score_trace
from fedtandem.evaluation.signatures import Case, Sign, signs
from fedtandem.inference.policy import Policy, read_policy
from fedtandem.inference.routing import CLOUD, PEER_COST, TIERS
from fedtandem.inference.scorer import LearnedScorer

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Quality:
    """How good the answers are, in [0, 1]; intervals are 95 %, clients and then decisions redrawn.

    Attributes:
        slm, llm, routed: means.
        routed_interval: of `routed`.
        loss, loss_interval: LLM minus routed.
        gap_interval: LLM minus SLM.
        worst_decile, worst_decile_slm: mean of the worst tenth of the clients.
        random, oracle: at the same share of calls, by lot and by one who knows the answers.
        single: the best single threshold at the same share of calls.
        pgr, apgr: share of the gap recovered here, and on average over all shares of calls.
        cpt: share of calls that recovers 50, 80 and 95 % of the gap.
        calls_for_half_point: share of calls that stays within half a point of the LLM.
        curve, oracle_curve: quality at 0, 1, ... 100 % of calls, by uncertainty and by one who knows the answers.
    """

    slm: float
    llm: float
    routed: float
    routed_interval: tuple[float, float]
    loss: float
    loss_interval: tuple[float, float]
    gap_interval: tuple[float, float]
    worst_decile: float
    worst_decile_slm: float
    random: float
    oracle: float
    single: float
    pgr: float
    apgr: float
    cpt: dict[str, float]
    calls_for_half_point: float
    curve: tuple[float, ...]
    oracle_curve: tuple[float, ...]


@dataclass(frozen=True)
class Route:
    """The outcome.

    Attributes:
        decisions, clients: counted.
        answered: share of decisions by tier.
        by_uncertainty: the same for each tenth of the decisions, the surest first.
        calls_interval: of the share that goes to the cloud.
        error: mean β that was kept.
        price_cost: mean β kept + λ · calls, equation (4).
        quality: None where the truth is unknown.
        request_bytes: that calls would have sent; None where it is not recorded.
        fallbacks: client -> why its own threshold does not hold.
        signs: E1 to E14.
        sentence: what may be said.
    """

    decisions: int
    clients: int
    answered: dict[str, float]
    by_uncertainty: tuple[dict[str, float], ...]
    calls_interval: tuple[float, float]
    error: float
    price_cost: float
    quality: Quality | None
    request_bytes: int | None
    fallbacks: dict[str, str]
    signs: tuple[Sign, ...]
    sentence: str


def route_command(
    trace: Path,
    policy: Path,
    *,
    report: Path | None = None,
    json_output: bool = False,
    seed: int = 0,
    peer_cost: float = PEER_COST,
) -> str:
    """Replay, write the page if one is asked for, and say what came out.

    Raises:
        ConfigError: the policy cannot be read, or needs what the trace does not hold.
        DataError: the trace cannot be used.
    """
    recorded = read_trace(trace)
    rules = read_policy(policy)
    result = route(recorded, rules, seed=seed, peer_cost=peer_cost)
    if report is not None:
        from fedtandem.atomic import write_text
        from fedtandem.reports.routing_page import routing_page

        write_text(report, routing_page(result, rules, recorded.info.name))
    return json.dumps(_plain(asdict(result))) if json_output else _in_words(result, recorded, rules)


def route(trace: Trace, policy: Policy, *, seed: int = 0, peer_cost: float = PEER_COST) -> Route:
    """Replay a trace under a policy and measure everything.

    Args:
        trace: best another one than the policy was calibrated on.
        policy: as read.
        seed: of the bootstrap.
        peer_cost: of asking peers, in units of a call.

    Raises:
        ConfigError: a cost below 0, or the trace lacks what the policy needs.
    """
    if not peer_cost >= 0:
        raise ConfigError(
            f"--peer-cost {peer_cost:g}; expected the price of asking peers over that of a call, e.g. 0.05."
        )
    started = time.process_time()
    scored = score_trace(trace, policy.measure, policy.feedback, _scorer(policy))  # type: ignore[arg-type]
    took_ms = 1000 * (time.process_time() - started) / len(trace)
    played = replay(trace, scored, policy, peer_cost)
    groups = np.unique(trace.client, return_inverse=True)[1]
    generator = np.random.default_rng(seed)
    called = (played.tier == CLOUD).astype(np.float64)
    quality = _quality(scored, played, groups, generator)
    low, high = middle(bootstrap_means(called[:, None], groups, generator)[:, 0])
    gap = quality.gap_interval if quality else None
    found = signs(Case(trace, scored, policy, played, gap, took_ms))
    kept_beta = np.where(played.sent, 0.0, scored.beta)
    return Route(
        decisions=len(trace), clients=len(np.unique(trace.client)),
        answered={name: float((played.tier == t).mean()) for t, name in enumerate(TIERS)},
        by_uncertainty=_by_uncertainty(scored.u, played.tier), calls_interval=(low, high),
        error=float(kept_beta.mean()), price_cost=float(kept_beta.mean() + policy.price * played.sent.mean()),
        quality=quality,
        request_bytes=None if trace.request_bytes is None else int(trace.request_bytes[called > 0].sum()),
        fallbacks={name: f"{r.scope}: {r.reason}" for name, r in sorted(played.resolved.items()) if r.reason},
        signs=tuple(found), sentence=_sentence(quality, played.calls, (low, high), found),
    )  # fmt: skip


def _scorer(policy: Policy) -> LearnedScorer | None:
    try:
        return None if policy.scorer is None else LearnedScorer.from_dict(policy.scorer)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the policy's scorer cannot be read: {error}. Calibrate again.") from error


def _by_uncertainty(u: Floats, tier: npt.NDArray[np.int64]) -> tuple[dict[str, float], ...]:
    tenths = np.array_split(np.argsort(u, kind="stable"), min(10, len(u)))
    return tuple({name: float((tier[rows] == t).mean()) for t, name in enumerate(TIERS)} for rows in tenths)


def _quality(
    scored: Scored, played: Replay, groups: npt.NDArray[np.int64], generator: np.random.Generator
) -> Quality | None:
    if scored.slm_score is None or scored.llm_score is None or played.score is None:
        return None
    known = scored.known
    slm, llm, routed, u = (
        scored.slm_score[known],
        scored.llm_score[known],
        played.score[known],
        scored.u[known],
    )
    groups = np.unique(groups[known], return_inverse=True)[1]
    figures = np.stack([routed, llm - routed, llm - slm], axis=1)
    drawn = bootstrap_means(figures, groups, generator)
    calls = float((played.tier[known] == CLOUD).mean())
    curve = quality_curve(u, slm, llm)
    return Quality(
        slm=float(slm.mean()), llm=float(llm.mean()), routed=float(routed.mean()),
        routed_interval=middle(drawn[:, 0]), loss=float((llm - routed).mean()), loss_interval=middle(drawn[:, 1]),
        gap_interval=middle(drawn[:, 2]), worst_decile=worst_decile(routed, groups),
        worst_decile_slm=worst_decile(slm, groups), random=at_share(random_curve(slm, llm), calls),
        oracle=at_share(oracle_curve(slm, llm), calls), single=at_share(curve, calls),
        pgr=pgr(float(routed.mean()), float(slm.mean()), float(llm.mean())), apgr=apgr(curve),
        cpt={f"{share}%": calls_for_pgr(curve, share / 100) for share in (50, 80, 95)},
        calls_for_half_point=calls_for(curve, float(llm.mean()) - 0.005),
        curve=tuple(at_share(curve, share / 100) for share in range(101)),
        oracle_curve=tuple(at_share(oracle_curve(slm, llm), share / 100) for share in range(101)),
    )  # fmt: skip


def _sentence(quality: Quality | None, calls: float, interval: tuple[float, float], found: list[Sign]) -> str:
    most = f"At most {interval[1]:.1%} of calls go to the cloud (measured {calls:.1%})"
    if quality is None:
        return f"{most}; what that loses cannot be told, since the trace records no truth."
    if found[0].alarm:
        low, high = quality.gap_interval
        return (
            "No savings are claimed: the cloud is not reliably better than the SLM here "
            f"({100 * (quality.llm - quality.slm):+.2f} points, {100 * low:+.2f} to {100 * high:+.2f}), so "
            "calls buy nothing and leaving them out saves nothing."
        )
    low, high = quality.loss_interval
    return f"{most} and you lose {100 * quality.loss:.2f} points ({100 * low:+.2f} to {100 * high:+.2f})."


def _plain(value: Any) -> Any:
    """JSON has no NaN: what cannot be told is null."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def _in_words(result: Route, trace: Trace, policy: Policy) -> str:
    q = result.quality
    lines = [
        f"{trace.info.name}: {result.decisions:,} decisions of {result.clients} clients, {policy.learn} thresholds on "
        f"{policy.measure}, made for {_goal(policy)}",
        "answered by " + ", ".join(f"{name} {share:.1%}" for name, share in result.answered.items()),
        f"error kept {result.error:.4f} ({policy.feedback}), cost at price {policy.price:.3f}: {result.price_cost:.4f}",
    ]
    if q is not None:
        low, high = q.routed_interval
        lines += [
            f"{'answers':<34}{'calls':>8}{'accuracy':>10}",
            _row("SLM only", 0.0, q.slm),
            _row("routed", result.answered["cloud"], q.routed, f"  {100 * low:.2f} to {100 * high:.2f}"),
            _row("random at equal calls", result.answered["cloud"], q.random),
            _row("one threshold at equal calls", result.answered["cloud"], q.single),
            _row("oracle at equal calls", result.answered["cloud"], q.oracle),
            _row("LLM only", 1.0, q.llm),
            f"worst tenth of the clients {100 * q.worst_decile:.2f} (SLM only {100 * q.worst_decile_slm:.2f})",
        ]
        if not result.signs[0].alarm:
            cpt = ", ".join(f"{share} at {_share(calls)}" for share, calls in q.cpt.items())
            lines += [
                f"gap recovered {q.pgr:.1%}, on average over calls (APGR) {q.apgr:.3f}; by calls (CPT): {cpt}",
                f"calls to stay within 0.5 points of the LLM: {_share(q.calls_for_half_point)}",
            ]
    if result.request_bytes is not None:
        lines.append(f"calls send {result.request_bytes:,} bytes")
    reasons = Counter(result.fallbacks.values())
    for name, reason in list(result.fallbacks.items())[:3]:
        lines.append(f"{name} falls back to the {reason}")
    if len(result.fallbacks) > 3:
        lines.append(f"... {len(result.fallbacks)} clients fall back, for {len(reasons)} reasons")
    fired = [sign for sign in result.signs if sign.alarm]
    lines += [f"WARNING {sign.code}: {sign.text}" for sign in fired]
    silent = ", ".join(sign.code for sign in result.signs if sign.value is None)
    if silent:
        lines.append(f"cannot be told from this trace: {silent} (--json says why)")
    return "\n".join([*lines, result.sentence])


def _row(name: str, calls: float, accuracy: float, more: str = "") -> str:
    return f"{name:<34}{100 * calls:>7.1f}%{100 * accuracy:>10.2f}{more}"


def _share(value: float) -> str:
    return "never" if np.isnan(value) else f"{value:.1%}"


def _goal(policy: Policy) -> str:
    kind, value = policy.goal["kind"], float(policy.goal["value"])
    return {
        "share": f"at most {value:.1%} of calls",
        "error": f"a loss of at most {100 * value:g} points",
    }.get(kind, f"a price of {value:g}")
