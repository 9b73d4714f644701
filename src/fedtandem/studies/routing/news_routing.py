"""`news-routing`: what calls buy on AG News, by every router, rule and way of learning a threshold."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from fedtandem.evaluation.curves import bootstrap_means, middle
from fedtandem.studies.bars import Bar, Table, bar, bars_table, number, shown, spread
from fedtandem.studies.routing.prices import PRICES, price_costs
from fedtandem.studies.routing.routers import ROUTERS, Pair, by_name, curve_points, judged
from fedtandem.studies.routing.rules import outcomes
from fedtandem.studies.statistics import Items, PairedItems, compare, decide

Floats = npt.NDArray[np.float64]

MAIN = ("dirichlet-0.5", "federated")
"""The cell the bars are about; all others are reported."""
FULL = (MAIN, ("dirichlet-0.5", "weak"), ("dirichlet-0.5", "pooled"))
"""Cells with fitted routers and rules."""
LIGHT = ("expected", "entropy", "random")
METHOD = "expected"
FAMILY = tuple(name for name in ROUTERS if name != METHOD)
"""What the default uncertainty is compared with, at a tenth of calls in the main cell."""
FEEDBACK = ("probabilities", "agreement")


def cell(pair: Pair, seed: int, *, full: bool) -> tuple[dict[str, Any], dict[str, Floats]]:
    """One seed, skew and SLM.

    Returns:
        Figures as JSON values, and the test's answers of each router at a tenth of calls, for paired statistics.
    """
    found = by_name(pair, seed, ROUTERS if full else LIGHT)
    figures, items = {}, {}
    for name, rank in found.items():
        figures[name], right = judged(pair, rank)
        items[name] = right["10"]
    groups = np.unique(pair.test.client, return_inverse=True)[1]
    gap = pair.llm[1] - pair.slm[1]
    drawn = bootstrap_means(gap[:, None], groups, np.random.default_rng(seed))[:, 0]
    result: dict[str, Any] = {
        "slm": float(pair.slm[1].mean()), "llm": float(pair.llm[1].mean()), "gap": float(gap.mean()),
        "gap_interval": middle(drawn), "gap_calibration": float((pair.llm[0] - pair.slm[0]).mean()), "routers": figures,
        "prices": {kind: price_costs(*pair.traces, kind, seed) for kind in FEEDBACK},
    }  # fmt: skip
    if full:
        result["rules"] = {
            name: [calls, float(right.mean())] for name, (calls, right) in outcomes(pair, seed).items()
        }
        result["curves"] = {name: curve_points(pair, rank[1]) for name, rank in found.items()}
    return result, items


def summary(
    cells: Mapping[int, Mapping[str, Any]], items: Mapping[int, Mapping[str, Floats]], skews: Sequence[str],
    slms: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    """Tables, bars and comparisons over the seeds that are there.

    Args:
        cells: seed -> "skew|slm" -> what `cell` gave.
        items: seed -> router -> the main cell's answers.
    """
    seeds = sorted(cells)

    def of(skew: str, slm: str, read: Callable[[Mapping[str, Any]], float]) -> list[float]:
        return [read(cells[seed][f"{skew}|{slm}"]) for seed in seeds]

    main = (MAIN[0] if MAIN[0] in skews else skews[0], MAIN[1])
    bars = {slm: _bars(partial(of, main[0], slm)) for slm in (MAIN[1], "pooled")}
    tables = {
        "bars": bars_table(bars[MAIN[1]]),
        "bars_pooled": bars_table(bars["pooled"]),
        "cells": _cells(of, skews, slms),
        "routers": _routers(lambda read: of(*main, read), cells[seeds[0]][f"{main[0]}|{main[1]}"]),
        "rules": _rules(lambda read: of(*main, read), cells[seeds[0]][f"{main[0]}|{main[1]}"]),
        "prices": _prices(lambda read: of(*main, read)),
        "skews": _learning(of, skews, slms),
        "comparisons": _comparisons(items, seeds),
    }
    curves = {
        name: np.mean(
            [cells[seed][f"{main[0]}|{main[1]}"]["curves"][name] for seed in seeds], axis=0
        ).tolist()
        for name in cells[seeds[0]][f"{main[0]}|{main[1]}"]["curves"]
    }
    costs = {
        name: np.mean(
            [cells[seed][f"{main[0]}|{main[1]}"]["prices"]["probabilities"][name] for seed in seeds], 0
        ).tolist()
        for name in ("hindsight", "histogram", "fedavg", "fedavg_tuned", "fixed_best")
    }
    return {"bars": bars[MAIN[1]], "bars_pooled": bars["pooled"], "tables": tables, "curves": curves,
            "prices": list(PRICES), "costs": costs}  # fmt: skip


Read = Callable[[Callable[[Mapping[str, Any]], float]], list[float]]


def excess(costs: Mapping[str, Sequence[float]], scheme: str, over: str) -> Floats:
    """How much dearer a scheme is than another at each price, as a share."""
    return np.asarray(np.asarray(costs[scheme]) / np.asarray(costs[over]) - 1, dtype=np.float64)


def _above(cell: Mapping[str, Any], feedback: str, scheme: str) -> float:
    """Mean over prices of a scheme's cost above one threshold in hindsight."""
    return float(excess(cell["prices"][feedback], scheme, "hindsight").mean())


def _bars(of: Read) -> list[Bar]:
    """The bars of one SLM; each names what a miss may come from."""

    def router(key: str) -> list[float]:
        return of(lambda c: c["routers"][METHOD][key])

    alarms = sum(value <= 0 for value in of(lambda c: c["gap_interval"][0]))
    gap = bar("the cloud is better than the SLM (E1): interval of the gap above 0 at every seed",
              of(lambda c: c["gap"]), at_least=0.0, kind="points")  # fmt: skip
    if alarms:
        gap = replace(
            gap, met=False,
            why=f"at {alarms} of {len(gap.values.per_seed)} seeds it reaches 0: no savings are claimed there",
        )  # fmt: skip
    there, here = (float(np.mean(of(lambda c, key=key: c[key]))) for key in ("gap_calibration", "gap"))  # type: ignore[misc]
    apart = (
        f"the cloud leads by {number(there, 'points', unit=True)} on the calibration, {number(here, 'points')} on the "
        "test: with 2,500 decisions half a point is 12 of them"
    )
    return [
        gap,
        bar("APGR at least 0.88", router("apgr"), at_least=0.88, kind="plain",
            why="part of the cloud's lead lies in decisions the SLM is sure of"),
        bar("calls that lose 0.5 points, threshold from the calibration: at most 18 %", router("calls-0.5"),
            at_most=0.18, why=apart),
        bar("… and what they lose on the test: at most 0.5 points", router("loss-0.5"), at_most=0.005, kind="points",
            why=apart),
        *_price_bars(of, "probabilities", "β = 1 − p(d), the default"),
        *_price_bars(of, "agreement", "β = disagreement, 0 or 1"),
        _published(router, of(lambda c: c["llm"] - c["routers"][METHOD]["accuracy@5"]),
                   everywhere=alarms == len(gap.values.per_seed)),
    ]  # fmt: skip


def _price_bars(of: Read, feedback: str, named: str) -> list[Bar]:
    """Learnt thresholds against hindsight, the best fixed one and FedAvg, with one kind of feedback."""

    def over(other: str) -> list[float]:
        return of(lambda c: float(excess(c["prices"][feedback], "histogram", other).mean()))

    fixed = [of(lambda c, p=p: float(excess(c["prices"][feedback], "histogram", "fixed_best")[p]))  # type: ignore[misc]
             for p in range(len(PRICES))]  # fmt: skip
    worst = int(np.mean(fixed, axis=1).argmax())
    luck = of(lambda c: _above(c, feedback, "other_half"))
    least = (
        f"the best threshold on one half of the test is {number(float(np.mean(luck)), 'excess', unit=True)} above "
        "hindsight on the whole: the luck of 2,500 decisions"
    )
    return [
        bar(f"learnt thresholds within 2 % of hindsight, mean over prices ({named})", over("hindsight"), at_most=0.02,
            kind="excess", why=least),
        bar(f"never more than 1 % dearer than the best fixed threshold at any price ({named})", fixed[worst],
            at_most=0.01, kind="excess", why=f"dearest at price {PRICES[worst]:g}"),
        bar(f"one histogram round within 0.5 % of 30 rounds of FedAvg as preset ({named})", over("fedavg"),
            at_most=0.005, kind="excess", why="FedAvg's sigmoid averages over bins; 0/1 feedback is noisy"),
        bar(f"(shown) the same against FedAvg with the step tuned on the calibration ({named})", over("fedavg_tuned"),
            kind="excess"),
    ]  # fmt: skip


def _published(router: Callable[[str], list[float]], lost: list[float], *, everywhere: bool) -> Bar:
    """The published claim, as stated, at a threshold chosen on the calibration for 5 % of calls.

    Args:
        lost: points below the cloud there, as shares.
        everywhere: E1 sounds at every seed, so that keeping the claim takes no routing.
    """
    calls = float(np.mean(router("calls@5")))
    told = (
        f"{shown(spread(lost), 'points')} lost at {number(calls, 'share', unit=True)} of calls; for 0.3 points the "
        f"calibration asks {shown(spread(router('calls-0.3')), 'share')} of calls, which lose "
        f"{shown(spread(router('loss-0.3')), 'points')}"
    )
    holds = float(np.mean(lost)) < 0.003 and round(calls, 2) <= 0.05
    empty = "and empty: the SLM alone loses no more (E1)" if everywhere else ""
    why = empty if holds else "it does not hold with this gap between SLM and cloud"
    return Bar(
        "published: more than 95 % fewer calls at less than 0.3 points lost", told, spread(lost), holds, why
    )


def _cells(of: Callable[..., list[float]], skews: Sequence[str], slms: Sequence[str]) -> Table:
    rows = []
    for slm in slms:
        for skew in skews:
            alarms = sum(value <= 0 for value in of(skew, slm, lambda c: c["gap_interval"][0]))
            told = {
                key: of(skew, slm, lambda c, key=key: c["routers"][METHOD][key])
                for key in ("apgr", "calls-0.5", "loss-0.5", "worst@10")
            }
            rows.append((
                slm, skew, shown(spread(of(skew, slm, lambda c: c["slm"])), "accuracy"),
                shown(spread(of(skew, slm, lambda c: c["gap"])), "points"), str(alarms),
                shown(spread(told["apgr"]), "plain"), shown(spread(told["calls-0.5"]), "share"),
                shown(spread(told["loss-0.5"]), "points"), number(float(np.mean(told["worst@10"])), "accuracy"),
            ))  # fmt: skip
    head = ("SLM", "skew", "SLM alone", "cloud − SLM", "E1 alarms", "APGR", "calls for −0.5", "then lost",
            "worst decile at 10 %")  # fmt: skip
    return Table("Every SLM under every skew", head, tuple(rows))


def _routers(of: Read, one: Mapping[str, Any]) -> Table:
    def mean(name: str, key: str, kind: str) -> str:
        return number(float(np.mean(of(lambda c: c["routers"][name][key]))), kind)

    rows = tuple(
        (name, shown(spread(of(lambda c, n=name: c["routers"][n]["apgr"])), "plain"),  # type: ignore[misc]
         *(f"{mean(name, f'accuracy@{b}', 'accuracy')} at {mean(name, f'calls@{b}', 'share')}"
           for b in ("5", "10", "20")),
         mean(name, "calls-0.5", "share"), mean(name, "loss-0.5", "points"), mean(name, "hindsight-0.5", "share"))
        for name in one["routers"]
    )  # fmt: skip
    head = ("router", "APGR", "% right for 5 % of calls", "for 10 %", "for 20 %", "calls for −0.5, %", "then lost",
            "in hindsight, %")  # fmt: skip
    return Table("Routers", head, rows)


def _rules(of: Read, one: Mapping[str, Any]) -> Table:
    rows = tuple(
        (name, shown(spread(of(lambda c, n=name: c["rules"][n][0])), "share"),  # type: ignore[misc]
         shown(spread(of(lambda c, n=name: c["rules"][n][1])), "accuracy"))  # type: ignore[misc]
        for name in one["rules"]
    )  # fmt: skip
    return Table("Rules", ("rule", "calls", "right"), rows)


def _prices(of: Read) -> Table:
    names = ("hindsight", "hindsight_cluster", "hindsight_client", "other_half", "histogram", "global", "cluster",
             "local", "fedavg", "fedavg_tuned", "fixed_best", "fixed_0.5", "never", "always")  # fmt: skip
    rows = []
    for name in names:
        row = [name]
        for kind in FEEDBACK:
            costs = of(lambda c, n=name, k=kind: float(np.mean(c["prices"][k][n])))  # type: ignore[misc]
            above = of(lambda c, n=name, k=kind: _above(c, k, n))  # type: ignore[misc]
            row += [number(float(np.mean(costs)), "cost"), shown(spread(above), "excess")]
        rows.append(tuple(row))
    head = (
        "thresholds",
        "cost, β = 1 − p(d)",
        "above hindsight",
        "cost, β = disagreement",
        "above hindsight",
    )
    return Table("Mean cost over prices " + ", ".join(f"{p:g}" for p in PRICES), head, tuple(rows))


def _learning(of: Callable[..., list[float]], skews: Sequence[str], slms: Sequence[str]) -> Table:
    rows = []
    for slm in slms:
        for skew in skews:
            told = [
                shown(spread(of(skew, slm, lambda c, n=n: _above(c, "probabilities", n))), "excess")
                for n in ("histogram", "global", "fedavg", "fixed_best")
            ]  # fmt: skip
            rows.append((slm, skew, *told))
    return Table("Cost above hindsight, mean over prices", ("SLM", "skew", "histogram", "one for all", "FedAvg, preset",
                 "best fixed"), tuple(rows))  # fmt: skip


def _comparisons(items: Mapping[int, Mapping[str, Floats]], seeds: Sequence[int]) -> Table:
    """The default uncertainty against each other router at a tenth of calls, by the house's rule for claims."""
    ones = {seed: np.ones(len(items[seed][METHOD])) for seed in seeds}
    made = []
    for name in FAMILY:
        pairs = [
            [PairedItems(Items(items[s][METHOD], ones[s]), Items(items[s][name], ones[s]))] for s in seeds
        ]
        mine, theirs = ([float(items[s][n].mean()) for s in seeds] for n in (METHOD, name))
        made.append(compare(mine, theirs, pairs, np.random.default_rng(0)))
    rows = []
    for name, found, decision in zip(FAMILY, made, decide(made), strict=True):
        bold = "**" if decision.claim else ""
        t, b = (
            "–" if ends is None else f"{number(ends[0], 'points')} to {number(ends[1], 'points')}"
            for ends in (found.interval, found.bootstrap_interval)
        )
        verdict = "claim" if decision.claim else f"no claim: {decision.why_not}"
        rows.append((f"{METHOD} − {name}", f"{bold}{number(found.mean, 'points')}{bold}", t, b, verdict))
    head = ("at 10 % of calls", "points", "95 % t", "95 % bootstrap", "after Holm's correction")
    return Table("The default uncertainty against the other routers", head, tuple(rows))
