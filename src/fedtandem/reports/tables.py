"""The tables a terminal shows when a run or a study ends."""

from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedtandem.federation.joint import Saved
from fedtandem.reports.contrasts import Contrast, run_contrasts, study_contrasts
from fedtandem.reports.costs import run_costs, run_payload
from fedtandem.reports.record import read_run, read_study
from fedtandem.reports.verdicts import Headline, run_headline, signatures, study_headline
from fedtandem.reports.wording import (
    difference,
    figure,
    interval,
    is_visible,
    listed,
    method_name,
    metric_name,
    p_value,
    payload,
    seconds,
)

_STYLES = {"good": "green", "bad": "red", "note": "yellow"}


def print_summary(folder: Path, console: Console | None = None) -> None:
    """Before, after and control per party, what to mind, and what it cost.

    Args:
        folder: of a run, finished or not.
        console: standard output by default.
    """
    shown = console or Console()
    run = read_run(folder)
    contrasts = run_contrasts(run)
    controls = list(dict.fromkeys(method_name(c.control) for c in contrasts if c.control))
    shown.print()
    shown.print(_before_and_after(contrasts, method_name(run.main)))
    if controls:
        shown.print(f"control: {listed(controls)}", style="dim", highlight=False)
    _print_headline(
        shown, run_headline(contrasts, controls_to_come=not run.finished and len(run.methods) > 1)
    )
    for verdict in signatures(contrasts, run_payload(run)):
        shown.print(f"[{_STYLES[verdict.level]}]{verdict.signature}:[/] {verdict.text}", highlight=False)
    mine = [checked for checked in run.checked if checked.method == run.main]
    if mine:
        used, written = sum(c.used for c in mine), sum(c.written for c in mine)
        shown.print(f"check {mine[0].checker}: {used:,} of {written:,} written paths used", highlight=False)
    costs = run_costs(run)
    for cost in costs[:1]:
        up_down = (
            f"{payload(cost.up)} up, {payload(cost.down)} down" if cost.up + cost.down else "no exchange"
        )
        others = sum(c.total for c in costs[1:])
        rest = f"; controls {seconds(others)}" if others else ""
        shown.print(
            f"{method_name(cost.method)}: {cost.updates:,.0f} updates, {seconds(cost.total)} CPU, {up_down}{rest}",
            highlight=False,
        )


def _before_and_after(contrasts: tuple[Contrast, ...], main: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("party")
    table.add_column("test set")
    for title in ("before", main, "control", "difference"):
        table.add_column(title, justify="right", no_wrap=True)
    previous = ""
    for c in contrasts:
        style = "green" if (c.gain or 0) > 0 else "red"
        table.add_row(
            "" if c.party == previous else c.party,
            Text.assemble(c.split, " ", (metric_name(c.metric), "dim")),
            figure(c.before, c.metric),
            Text(figure(c.value, c.metric), "bold"),
            figure(c.control_value, c.metric),
            Text(difference(c.difference, c.metric), style if is_visible(c.difference, c.metric) else ""),
        )
        previous = c.party
    return table


def print_study(folder: Path, console: Console | None = None) -> None:
    """Every comparison of a study with its intervals, and the headline.

    Args:
        folder: of a study.
        console: standard output by default.
    """
    shown = console or Console()
    study = read_study(folder)
    contrasts = study_contrasts(study)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in ("comparison", "where"):
        table.add_column(title)
    for title in ("difference", "95 % (t)", "p (Holm)"):
        table.add_column(title, justify="right", no_wrap=True)
    family = [c for c in contrasts if c.in_family] or list(contrasts)
    for c in family:
        style = "" if not c.claim else "bold green" if (c.gain or 0) > 0 else "bold red"
        table.add_row(
            f"{method_name(c.method)} − {method_name(c.control or '')}",
            f"{c.party}, {c.split}" if c.split else c.party,
            Text(difference(c.difference, c.metric), style),
            interval(c.interval, c.metric),
            p_value(c.p_holm),
        )
    shown.print()
    if family:
        shown.print(table)
    if len(family) < len(contrasts):
        shown.print(
            f"{len(contrasts) - len(family)} more, shown without a claim, in the report",
            style="dim",
            highlight=False,
        )
    seeds = len({b["seed"] for b in study.summary.get("budgets", ())})
    headline = study_headline(
        contrasts,
        not_valid=study.summary.get("not_valid_because", ()),
        seeds=seeds,
        needed=study.summary.get("seeds_for_a_claim", 5),
    )
    _print_headline(shown, headline)


def print_joint(rows: Sequence[Saved], console: Console | None = None) -> None:
    """What each SLM spared the LLM.

    Args:
        rows: of `joint_command`.
        console: standard output by default.
    """
    shown = console or Console()
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in ("drafts", "SLM"):
        table.add_column(title, no_wrap=True)
    for title in ("LLM passes", "spared", "accepted", "same text"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        alone = row.slm == "none"
        table.add_row(
            row.client or "(LLM alone)",
            "" if alone else row.slm,
            f"{row.llm_passes:.1f}",
            "" if alone else Text(figure(row.saved, "accuracy"), "bold" if row.slm == "co-tuned" else ""),
            "" if alone else figure(row.accepted, "accuracy"),
            f"{row.equal + row.tied}/{row.answers}",
        )
    shown.print()
    shown.print(table)
    shown.print(
        "passes an answer; mode exact, greedy: the text is the co-tuned LLM's own, whoever drafts",
        style="dim",
        highlight=False,
    )


def _print_headline(console: Console, headline: Headline) -> None:
    console.print(Text(headline.title, "bold"))
    lines = Table.grid(padding=(0, 1))
    for line in headline.lines:
        lines.add_row(Text("•", _STYLES[line.level]), line.text)
    if headline.lines:
        console.print(lines)
