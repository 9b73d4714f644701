"""What was selected, and what the finished record says against it.

Source: specification of LaDa, section 11: the signatures that only the whole run shows. Those of a round are
warnings of the run itself.
"""

from collections import defaultdict
from typing import Any

from fedtandem.reports.record import SERVER, Items, RunRecord
from fedtandem.reports.verdicts import Verdict
from fedtandem.reports.wording import SHARES, difference, listed, method_name, unit

OVERHEAD = ("score", "choose", "reward", "filter")
"""Phases that exist only because somebody selects."""
MAX_OVERHEAD = 0.5
MAX_UNEQUAL = 0.01


def selection_verdicts(run: RunRecord) -> tuple[Verdict, ...]:
    """Hidden cost, unequal budgets, and a server that lost what it knew."""
    return (*_hidden_cost(run), *_unequal_budgets(run), *_server_damaged(run))


def selection_rows(run: RunRecord) -> list[dict[str, Any]]:
    """Of the run's method, per round and pair: how many items were chosen and learnt, why, and what it brought."""
    mine = [of for of in run.items if of.method in (run.main, "")]
    return [
        {
            "of": of,
            "share": of.selected / of.pool if of.pool else 0.0,
            "why": _why(of),
            "strata": ", ".join(f"{name}: {chosen} of {pool}" for name, (chosen, pool) in of.strata.items()),
        }
        for of in sorted(mine, key=lambda of: (of.round, of.learner != SERVER, of.learner, of.producer))
    ]


def _why(of: Items) -> str:
    words = {"score": "by score", "cold": "at random, nothing known yet", "cold_cluster": "by cluster",
             "exploit_explore": "by the filter", "random_floor": "at random"}  # fmt: skip
    return listed([f"{n} {words.get(reason, reason)}" for reason, n in of.reasons.items()])


def _hidden_cost(run: RunRecord) -> list[Verdict]:
    spent: dict[bool, float] = defaultdict(float)
    for phase in run.phases:
        if phase.method == run.main and (phase.phase in OVERHEAD or phase.phase == "public"):
            spent[phase.phase in OVERHEAD] += phase.cpu_seconds
    if not run.items or spent[True] <= MAX_OVERHEAD * spent[False]:
        return []
    share = spent[True] / spent[False] if spent[False] else float("inf")
    return [Verdict(
        "hidden cost", "note",
        f"Scoring, measuring and filtering took {share:.0%} of the CPU time of the training they chose for; count it "
        "in every figure of efficiency.",
    )]  # fmt: skip


def _unequal_budgets(run: RunRecord) -> list[Verdict]:
    trained: dict[str, int] = defaultdict(int)
    for of in run.items:
        trained[of.method] += of.trained
    if len(trained) < 2 or max(trained.values()) <= (1 + MAX_UNEQUAL) * min(trained.values()):
        return []
    said = listed([f"{method_name(name)} {count}" for name, count in trained.items()])
    return [Verdict(
        "equal-budget violation", "bad",
        f"The methods with a selector did not train on equally many items ({said}), so they must not be compared: give "
        "them one budget, and no checker to one alone.",
    )]  # fmt: skip


def _server_damaged(run: RunRecord) -> list[Verdict]:
    if not any(of.direction == "up" and of.method in (run.main, "") for of in run.items):
        return []
    points = [p for p in run.points if p.party == SERVER and p.method == run.main and p.metric in SHARES]
    lost = []
    for split, metric in dict.fromkeys((p.split, p.metric) for p in points):
        values = {p.round: p.value for p in points if (p.split, p.metric) == (split, metric)}
        if 0 in values and values[max(values)] < values[0] - 0.01:
            lost.append(f"{split} ({difference(values[max(values)] - values[0], metric)} {unit(metric)})")
    if not lost:
        return []
    return [Verdict(
        "server damaged", "bad",
        f"The server lost what it knew on {listed(lost)} while it learnt from clients: replay more of its own data, "
        'check the paths, or set selection.direction = "down" and federation.send_up = false.',
    )]  # fmt: skip
