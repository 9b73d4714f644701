"""The page of a study of trials: bars, curves, tables; complete in itself."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from fedtandem.reports.figures import Plot
from fedtandem.reports.html import render
from fedtandem.reports.svg import INK, MUTED, SERIES, panel, to_svg
from fedtandem.studies.bars import SHOWN

_LINES = ("expected", "scorer", "query", "random", "oracle")
_COSTS = ("histogram", "fedavg", "fedavg_tuned", "fixed_best")


def study_page(summary: Mapping[str, Any]) -> str:
    """The whole page as HTML; `summary` is what `summary.json` holds."""
    plots = []
    if "curves" in summary:
        plots = [_bought(summary["curves"]), _dearer(summary["prices"], summary["costs"])]
    asked = [bar for bar in summary["bars"] if not bar["asked"].startswith(SHOWN)]
    met = sum(bool(bar["met"]) for bar in asked)
    return render(
        "study_bars.html.j2",
        {
            "title": f"{summary['name']}: a study",
            "versions": {"fedtandem": version("fedtandem")},
            "summary": summary,
            "met": met,
            "n_asked": len(asked),
            "plots": plots,
            "tables": [table for name, table in summary["tables"].items() if name != "bars"],
        },
    )


def _bought(curves: Mapping[str, Sequence[float]]) -> Plot:
    with panel(260) as (drawing, axes):
        told = []
        for i, name in enumerate(name for name in _LINES if name in curves):
            values = [100 * value for value in curves[name]]
            shares = [100 * j / (len(values) - 1) for j in range(len(values))]
            colour = {"random": INK, "oracle": MUTED}.get(name, SERIES[i % len(SERIES)])
            style: Any = (0, (4, 2.5)) if name == "random" else "-"
            axes.plot(shares, values, color=colour, linestyle=style, label=name)
            told.append(
                f"{name} {values[0]:.1f} to {values[-1]:.1f}, at a tenth {values[len(values) // 10]:.1f}"
            )
        axes.set_xlabel("calls, % of decisions")
        axes.set_ylabel("right answers, %")
        axes.legend(frameon=False, fontsize=9)
        return Plot(
            "What calls buy, mean over seeds", to_svg(drawing, "bought", "Right answers: " + "; ".join(told))
        )


def _dearer(prices: Sequence[float], costs: Mapping[str, Sequence[float]]) -> Plot:
    with panel(260) as (drawing, axes):
        told = []
        for i, name in enumerate(_COSTS):
            above = [100 * (c / h - 1) for c, h in zip(costs[name], costs["hindsight"], strict=True)]
            axes.plot(prices, above, color=SERIES[i], marker="o", markersize=4, label=name)
            told.append(f"{name} " + ", ".join(f"{value:.1f}" for value in above))
        axes.set_xlabel("price of a call over an error")
        axes.set_ylabel("cost above hindsight, %")
        axes.legend(frameon=False, fontsize=9)
        return Plot(
            "Thresholds by price", to_svg(drawing, "prices", "Cost above hindsight in %: " + "; ".join(told))
        )
