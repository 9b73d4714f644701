"""The page of a routed trace: what calls bought, who answered, which thresholds, what failed."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version

from fedtandem.federation.route import Quality, Route
from fedtandem.inference.policy import Policy
from fedtandem.reports.figures import Plot
from fedtandem.reports.html import render
from fedtandem.reports.svg import GRID, INK, MUTED, SERIES, panel, to_svg

_TIER_COLOURS = {"local": GRID, "peer": SERIES[1], "cloud": SERIES[0]}


def routing_page(result: Route, policy: Policy, name: str) -> str:
    """The whole page as HTML.

    Args:
        result: of `route`.
        policy: that was applied.
        name: of the trace.
    """
    plots = [] if result.quality is None else [_bought(result.quality, result.answered["cloud"])]
    plots += [_who_answered(result.by_uncertainty), _thresholds(policy)]
    if any(len(taus) > 2 for taus in policy.history.values()):
        plots.append(_over_rounds(policy.history))
    return render(
        "routing.html.j2",
        {
            "title": f"{name}: who answered",
            "versions": {"fedtandem": version("fedtandem")},
            "result": result,
            "policy": policy,
            "name": name,
            "plots": plots,
            "claims": not result.signs[0].alarm,
        },
    )


def _bought(q: Quality, calls: float) -> Plot:
    share = list(range(101))
    lots = [100 * (q.slm + (q.llm - q.slm) * s / 100) for s in share]
    single, oracle = ([100 * value for value in curve] for curve in (q.curve, q.oracle_curve))
    with panel(230) as (drawing, axes):
        axes.plot(share, oracle, color=MUTED, linewidth=1.2)
        axes.plot(share, lots, color=INK, linestyle=(0, (4, 2.5)), linewidth=1.4)
        axes.plot(share, single, color=SERIES[0])
        axes.plot([100 * calls], [100 * q.routed], "o", color=SERIES[2], markersize=8, zorder=4)
        axes.set_xlabel("calls, % of decisions")
        axes.set_ylabel("right answers, %")
        said = (
            f"Right answers against calls: SLM {100 * q.slm:.1f} %, LLM {100 * q.llm:.1f} %, routed "
            f"{100 * q.routed:.1f} % at {100 * calls:.1f} % of calls; by lot "
            f"{100 * q.random:.1f} %, oracle {100 * q.oracle:.1f} %."
        )
        return Plot("What calls buy", to_svg(drawing, "bought", said))


def _who_answered(tenths: Sequence[Mapping[str, float]]) -> Plot:
    places = list(range(1, len(tenths) + 1))
    with panel(230) as (drawing, axes):
        floor = [0.0] * len(tenths)
        for tier, colour in _TIER_COLOURS.items():
            heights = [100 * tenth[tier] for tenth in tenths]
            axes.bar(places, heights, bottom=floor, color=colour, width=0.8, linewidth=0)
            floor = [below + height for below, height in zip(floor, heights, strict=True)]
        axes.set_xticks(places)
        axes.set_yticks([0, 50, 100], ["0 %", "50 %", "100 %"])
        axes.set_xlabel("tenths of the decisions, the surest first")
        said = "; ".join(
            f"tenth {i}: " + ", ".join(f"{tier} {100 * share:.0f} %" for tier, share in tenth.items())
            for i, tenth in enumerate(tenths, 1)
        )
        return Plot("Who answered", to_svg(drawing, "answered", f"Who answered, by uncertainty. {said}"))


def _thresholds(policy: Policy) -> Plot:
    names = list(policy.clusters)
    with panel(230) as (drawing, axes):
        for row, name in enumerate(names):
            entry = policy.clusters[name]
            mine = [e.tau for e in policy.clients.values() if e.cluster == name]
            if entry.interval is not None:
                axes.plot(entry.interval, [-row, -row], color=MUTED, linewidth=3)
            axes.plot(mine, [-row - 0.25] * len(mine), "|", color=SERIES[row % len(SERIES)], markersize=8)
            axes.plot([entry.tau], [-row], "o", color=SERIES[row % len(SERIES)], markersize=7, zorder=3)
        axes.axvline(policy.overall.tau, color=INK, linewidth=1)
        axes.set_yticks([-row for row in range(len(names))], names)
        axes.set_xlabel("threshold τ")
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", visible=True)
        said = "; ".join(f"{name} {policy.clusters[name].tau:.3f}" for name in names)
        return Plot("Thresholds", to_svg(drawing, "tau", f"Thresholds: all {policy.overall.tau:.3f}; {said}"))


def _over_rounds(history: Mapping[str, Sequence[float]]) -> Plot:
    with panel(230) as (drawing, axes):
        for row, taus in enumerate(history.values()):
            axes.plot(range(len(taus)), taus, color=SERIES[row % len(SERIES)])
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("round")
        axes.set_ylabel("cluster's τ")
        said = "; ".join(f"{name} {taus[0]:.3f} to {taus[-1]:.3f}" for name, taus in history.items())
        return Plot("Thresholds over rounds", to_svg(drawing, "rounds", f"Thresholds by round: {said}"))
