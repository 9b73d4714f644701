"""The drawings of a report: small panels, one idea each, of the same size on a desk and on a phone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedtandem.reports.contrasts import Contrast
from fedtandem.reports.record import Lesson, Point, Traffic
from fedtandem.reports.svg import BAD, GOOD, GRID, INK, MUTED, PAPER, SERIES, panel, to_svg
from fedtandem.reports.wording import (
    SHARES,
    difference,
    figure,
    interval,
    method_name,
    metric_name,
    payload,
    unit,
)

LABELS = "labels"
"""In place of a teacher: samples that no peer knew better."""


@dataclass(frozen=True)
class Plot:
    """One panel.

    Attributes:
        title: what it shows.
        svg: the drawing.
    """

    title: str
    svg: str


def colours_of(parties: Sequence[str]) -> dict[str, int]:
    """Party -> number of its colour; the same in every figure. 0 is the first."""
    return {party: i % len(SERIES) for i, party in enumerate(parties)}


def learning_curves(
    points: Sequence[Point], main: str, controls: Sequence[str], others: Sequence[str] = ()
) -> list[Plot]:
    """A panel per party and test set: the method's line, its controls' dashed, others faint.

    Args:
        points: measurements by round; round 0 of the main method stands for every method's start.
        main: the method in colour.
        controls: dashed.
        others: thin, without a label.
    """
    plots = []
    for number, key in enumerate(dict.fromkeys((p.party, p.split, p.metric) for p in points)):
        lines = _lines(
            [p for p in points if (p.party, p.split, p.metric) == key], main, [main, *controls, *others]
        )
        if not any(len(values) > 1 for values in lines.values()):
            continue
        plots.append(_curve(number, key, lines, main, controls))
    return plots


def _lines(points: Sequence[Point], main: str, methods: Sequence[str]) -> dict[str, list[tuple[int, float]]]:
    start = [(p.round, p.value) for p in points if p.round == 0 and p.method == main]
    lines = {}
    for method in methods:
        values = sorted((p.round, p.value) for p in points if p.method == method)
        if values:
            lines[method] = values if values[0][0] == 0 else start + values
    return lines


def _curve(
    number: int,
    key: tuple[str, str, str],
    lines: Mapping[str, Sequence[tuple[int, float]]],
    main: str,
    controls: Sequence[str],
) -> Plot:
    party, split, metric = key
    scale = 100 if metric in SHARES else 1
    with panel(200) as (drawing, axes):
        for method in reversed(list(lines)):  # the method itself on top
            rounds, values = zip(*lines[method], strict=True)
            heights = [scale * value for value in values]
            if method == main:
                axes.plot(rounds, heights, color=SERIES[0], marker="o", markersize=4.5, zorder=3)
            elif method in controls:
                axes.plot(rounds, heights, color=INK, linestyle=(0, (4, 2.5)), linewidth=1.5, alpha=0.75)
            else:
                axes.plot(rounds, heights, color=MUTED, linewidth=1, alpha=0.5)
        _share_axis(axes, metric, [v for values in lines.values() for _, v in values])
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("round")
        said = "; ".join(
            f"{method_name(method)} {figure(values[0][1], metric)} to {figure(values[-1][1], metric)}"
            for method, values in lines.items()
        )
        title = f"{party} · {split}"
        return Plot(
            title, to_svg(drawing, f"curve{number}", f"{title}, {metric_name(metric)} by round: {said}")
        )


def _share_axis(axes: Any, metric: str, values: Sequence[float]) -> None:
    """Shares on the whole scale, or, where nothing moves far, on a tenth of it at least: a wobble stays a wobble."""
    if metric in SHARES:
        from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

        low, high = 100 * min(values), 100 * max(values)
        if high - low > 25:
            low, high = 0.0, 100.0
        elif high - low < 10:
            high = min(100.0, (low + high) / 2 + 5)
            low = max(0.0, high - 10)
        ticks = [
            tick
            for tick in MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
            if 0 <= tick <= 100
        ]
        axes.set_ylim(low - 0.03 * (high - low), high + 0.03 * (high - low))
        axes.yaxis.set_major_locator(FixedLocator(ticks))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
        return
    low, high = _wide_enough(min(values), max(values))
    axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    axes.yaxis.get_major_locator().set_params(nbins=5)


def _wide_enough(low: float, high: float) -> tuple[float, float]:
    """At least a fiftieth of the figure itself, so that a wobble stays a wobble."""
    missing = max(0.0, 0.02 * abs(high) - (high - low)) / 2
    return low - missing, high + missing


def who_taught(lessons: Sequence[Lesson], colours: Mapping[str, int]) -> list[Plot]:
    """A panel per learner: of all samples of a round, the share each teacher taught."""
    plots = []
    for number, learner in enumerate(dict.fromkeys(lesson.learner for lesson in lessons)):
        mine = sorted(
            (lesson for lesson in lessons if lesson.learner == learner), key=lambda lesson: lesson.round
        )
        teachers = sorted(
            {name for lesson in mine for name in lesson.teachers}, key=lambda name: colours.get(name, 99)
        )
        rounds = [lesson.round for lesson in mine]
        totals = [max(1, sum(lesson.teachers.values()) + lesson.skipped) for lesson in mine]
        with panel(190) as (drawing, axes):
            floor = [0.0] * len(mine)
            for name in [*teachers, LABELS]:
                counts = [
                    lesson.skipped if name == LABELS else lesson.teachers.get(name, 0) for lesson in mine
                ]
                shares = [100 * count / total for count, total in zip(counts, totals, strict=True)]
                colour = GRID if name == LABELS else SERIES[colours.get(name, 0)]
                axes.bar(rounds, shares, bottom=floor, color=colour, width=0.72, linewidth=0)
                floor = [below + share for below, share in zip(floor, shares, strict=True)]
            _percent_axis(axes, rounds)
            said = "; ".join(
                f"round {lesson.round}: "
                + ", ".join(f"{name} {count}" for name, count in lesson.teachers.items())
                + f", none {lesson.skipped}"
                for lesson in mine
            )
            plots.append(
                Plot(learner, to_svg(drawing, f"taught{number}", f"Who taught {learner}, in samples. {said}"))
            )
    return plots


def _percent_axis(axes: Any, rounds: Sequence[int]) -> None:
    axes.set_ylim(0, 100)
    axes.set_yticks([0, 50, 100], ["0 %", "50 %", "100 %"])
    axes.set_xticks(_few(rounds))
    axes.set_xlabel("round")


def _few(rounds: Sequence[int], at_most: int = 10) -> list[int]:
    step = max(1, -(-len(rounds) // at_most))
    return list(rounds)[::step]


def bytes_by_round(traffic: Sequence[Traffic], colours: Mapping[str, int]) -> list[Plot]:
    """A panel per direction: bytes of each round, stacked by client."""
    plots = []
    parties = sorted({t.party for t in traffic}, key=lambda name: colours.get(name, 99))
    rounds = sorted({t.round for t in traffic})
    totals = {
        way: [sum(getattr(t, way) for t in traffic if t.round == number) for number in rounds]
        for way in ("up", "down")
    }
    if not rounds or not max(*totals["up"], *totals["down"]):
        return []
    for way, title in (("up", "Up: clients to server"), ("down", "Down: server to clients")):
        with panel(190) as (drawing, axes):
            floor = [0.0] * len(rounds)
            for party in parties:
                sizes = [
                    float(sum(getattr(t, way) for t in traffic if (t.party, t.round) == (party, number)))
                    for number in rounds
                ]
                axes.bar(
                    rounds, sizes, bottom=floor, color=SERIES[colours.get(party, 0)], width=0.72, linewidth=0
                )
                floor = [below + size for below, size in zip(floor, sizes, strict=True)]
            _bytes_axis(axes, rounds, max(*totals["up"], *totals["down"]))
            said = ", ".join(
                f"round {n} {payload(size)}" for n, size in zip(rounds, totals[way], strict=True)
            )
            plots.append(Plot(title, to_svg(drawing, f"bytes-{way}", f"{title}: {said}")))
    return plots


def _bytes_axis(axes: Any, rounds: Sequence[int], highest: int) -> None:
    from matplotlib.ticker import FuncFormatter

    axes.set_ylim(0, 1.08 * highest)  # both directions on one scale
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: payload(value) if value else "0"))
    axes.yaxis.get_major_locator().set_params(nbins=4)
    axes.set_xticks(_few(rounds))
    axes.set_xlabel("round")


def forest(contrasts: Sequence[Contrast]) -> list[Plot]:
    """A panel per party and metric: each difference with both intervals and its seeds."""
    plots = []
    compared = [c for c in contrasts if c.difference is not None]
    for number, (party, metric) in enumerate(dict.fromkeys((c.party, c.metric) for c in compared)):
        mine = [c for c in compared if (c.party, c.metric) == (party, metric)]
        scale = 100 if metric in SHARES else 1
        with panel(46 + 42 * len(mine)) as (drawing, axes):
            axes.axvline(0, color=INK, linewidth=1)
            axes.grid(axis="y", visible=False)
            axes.grid(axis="x", visible=True)
            for row, contrast in enumerate(mine):
                _forest_row(axes, -row, contrast, scale)
            axes.set_ylim(-len(mine) + 0.55, 0.75)
            axes.set_yticks([])
            better = "more is better" if mine[0].higher_is_better else "less is better"
            axes.set_xlabel(f"difference in {unit(metric)} ({better})")
            axes.xaxis.get_major_locator().set_params(nbins=6)
            said = "; ".join(
                f"{_row_label(c)}: {difference(c.difference, metric)}, interval {interval(c.interval, metric)}"
                for c in mine
            )
            plots.append(Plot(f"{party} · {metric_name(metric)}", to_svg(drawing, f"forest{number}", said)))
    return plots


def _forest_row(axes: Any, height: int, c: Contrast, scale: int) -> None:
    colour = MUTED if not c.claim else GOOD if (c.gain or 0) > 0 else BAD
    if c.interval is not None:
        axes.plot([scale * x for x in c.interval], [height, height], color=colour, linewidth=3)
    if c.bootstrap is not None:
        below = height - 0.17
        axes.plot([scale * x for x in c.bootstrap], [below, below], color=colour, linewidth=1.2, alpha=0.8)
    axes.plot(
        [scale * x for x in c.per_seed],
        [height] * len(c.per_seed),
        "|",
        color=colour,
        markersize=8,
        alpha=0.55,
    )
    axes.plot([scale * (c.difference or 0)], [height], "o", color=colour, markersize=7, zorder=3)
    transform = axes.get_yaxis_transform()  # x in shares of the panel, y in data
    clear = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.5}  # no line runs through a word
    axes.text(0, height + 0.32, _row_label(c), transform=transform, fontsize=9.5, color=INK, bbox=clear)
    told = difference(c.difference, c.metric)
    axes.text(
        1,
        height + 0.32,
        told,
        transform=transform,
        fontsize=9.5,
        color=colour,
        ha="right",
        weight="bold",
        bbox=clear,
    )


def _row_label(c: Contrast) -> str:
    where = f"{c.split} · " if c.split else ""
    return f"{where}{method_name(c.method)} − {method_name(c.control or '')}"


def spark(
    before: float | None, control: float | None, value: float, low: float, high: float
) -> dict[str, float | None]:
    """Places of a row's three figures on a line from 0 to 100, for the drawing inside a table.

    Args:
        low, high: the ends of the line, the same for all rows of a metric.
    """
    room = (high - low) or 1.0

    def place(x: float | None) -> float | None:
        return None if x is None else round(4 + 92 * (x - low) / room, 2)

    return {"before": place(before), "control": place(control), "value": place(value)}


def scale_of(values: Sequence[float], metric: str) -> tuple[float, float]:
    """Ends of the line on which a metric's figures are drawn."""
    if metric in SHARES:
        return 0.0, 1.0
    return _wide_enough(min(values), max(values))
