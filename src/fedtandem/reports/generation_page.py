"""The study of generation as tables and one self-contained page."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedtandem.atomic import write_text
from fedtandem.reports.figures import Plot
from fedtandem.reports.html import render
from fedtandem.reports.svg import INK, SERIES, panel, to_svg
from fedtandem.reports.wording import figure

Rows = Sequence[Mapping[str, Any]]
Table = tuple[list[str], list[list[str]]]
"""Titles and lines."""


def write_page(summary: Mapping[str, Any], file: Path) -> None:
    """Write the page of a `summary.json`."""
    rows = summary["rows"]
    sections = [
        {"title": title, "says": says, "table": table(rows, kind)}
        for kind, (title, says) in _SECTIONS.items()
        if table(rows, kind)[1]
    ]
    values = {
        "title": "Two models write one answer: a study",
        "versions": {"fedtandem": version("fedtandem")},
        "size": summary["size"],
        "simulated": summary["simulated_ms"],
        "sections": sections,
        "plots": _plots(rows),
    }
    write_text(file, render("generation.html.j2", values))


_SECTIONS = {
    "exact": (
        "The LLM's own text, with fewer of its passes",
        "Mode exact, block 6. Same: answers with the ids of the LLM alone; after a tie: different only behind a place "
        "where its two best choices nearly tie; faults: everything else.",
    ),
    "blocks": ("Acceptance by block", "Mode exact, shared noise, full blocks."),
    "uplinks": ("Bytes by uplink", "Mode exact, block 6, a token of the answer."),
    "kept": (
        "Tokens that the LLM did not see first",
        "Scalar uplink, tau 0.5. Error: total variation summed over the kept tokens of an answer, all of them audited; "
        "bounded may spend 0.1.",
    ),
    "speed": (
        "Simulated speed",
        "From counted passes and round trips, one answer at a time, nothing overlapping; tokens a second.",
    ),
}


def table(rows: Rows, kind: str) -> Table:
    """One table of the study: "exact", "blocks", "uplinks", "kept" or "speed"."""
    return _TABLES[kind](rows)


def _exact(rows: Rows) -> Table:
    titles = [
        "text",
        "drafter",
        "bridge",
        "uplink",
        "saved (95 %)",
        "accepted (95 %)",
        "same",
        "after a tie",
        "faults",
    ]
    lines = [
        [*_who(row), row["uplink"], _share(row, "saved"), _share(row, "accepted"),
         f"{row['answers_equal']} of {row['compared']}", str(row["answers_tie"]), str(row["answers_fault"])]
        for row in rows
        if row["mode"] == "exact" and row["compared"] and row["block"] == 6
    ]  # fmt: skip
    return titles, lines


def _blocks(rows: Rows) -> Table:
    titles = ["text", "drafter", "bridge", "block", "accepted (95 %)", "saved (95 %)"]
    found = [row for row in rows if row["mode"] == "exact" and row["uplink"] == "shared_noise"]
    swept = {_who(row) for row in found if row["block"] != 6}
    found = sorted((row for row in found if _who(row) in swept), key=lambda row: (row["text"], row["block"]))
    lines = [[*_who(row), str(row["block"]), _share(row, "accepted"), _share(row, "saved")] for row in found]
    return titles, lines


def _uplinks(rows: Rows) -> Table:
    titles = ["text", "drafter", "bridge", "uplink", "B up", "B down", "accepted (95 %)", "saved (95 %)"]
    lines = [
        [*_who(row), row["uplink"], f"{row['up_bytes_per_token']:.1f}", f"{row['down_bytes_per_token']:.1f}",
         _share(row, "accepted"), _share(row, "saved")]
        for row in rows
        if row["mode"] == "exact" and row["block"] == 6
    ]  # fmt: skip
    return titles, lines


def _kept(rows: Rows) -> Table:
    titles = [
        "text",
        "drafter",
        "bridge",
        "mode",
        "kept unseen",
        "passes saved (95 %)",
        "error an answer (95 %)",
    ]
    lines = [
        [*_who(row), row["mode"], figure(row["kept"], "accuracy"), _share(row, "saved"), _error(row)]
        for row in rows
        if row["mode"] in ("fedhlm", "bounded")
    ]
    return titles, lines


def _speed(rows: Rows) -> Table:
    chosen = [row for row in rows if row["drafter"] and row["block"] == 6]
    times = list(chosen[0]["tokens_per_s"]) if chosen else []
    titles = [
        "text",
        "drafter",
        "bridge",
        "mode",
        "uplink",
        *(f"RTT {ms} ms: hybrid / streaming" for ms in times),
    ]
    lines = [
        [*_who(row), row["mode"], row["uplink"],
         *(f"{row['tokens_per_s'][ms]:.1f} / {row['streaming_tokens_per_s'][ms]:.1f}" for ms in times)]
        for row in chosen
    ]  # fmt: skip
    return titles, lines


_TABLES = {"exact": _exact, "blocks": _blocks, "uplinks": _uplinks, "kept": _kept, "speed": _speed}


def _who(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["text"], row["drafter"], row["bridge"]


def _share(row: Mapping[str, Any], name: str) -> str:
    bounds = row[f"{name}_ci"]
    shown = figure(row[name], "accuracy")
    return shown if bounds is None else f"{shown} ({100 * bounds[0]:.1f} to {100 * bounds[1]:.1f})"


def _error(row: Mapping[str, Any]) -> str:
    if row["error_per_answer"] is None:
        return "nothing was kept"
    low, high = row["error_ci"]
    return f"{row['error_per_answer']:.3f} ({low:.3f} to {high:.3f})"


def _plots(rows: Rows) -> list[Plot]:
    found = [row for row in rows if row["mode"] == "exact" and row["uplink"] == "shared_noise"]
    with panel(230) as (drawing, axes):
        said = []
        for i, text in enumerate(dict.fromkeys(row["text"] for row in found)):
            swept = {_who(row) for row in found if row["text"] == text and row["block"] != 6}
            line = sorted((row["block"], row["saved"]) for row in found if _who(row) in swept)
            axes.plot(
                *zip(*[(g, 100 * share) for g, share in line], strict=True), "o-", color=SERIES[i], label=text
            )
            said.append(f"{text}: " + ", ".join(f"{g} {100 * share:.0f} %" for g, share in line))
        axes.axhline(30, color=INK, linewidth=1)
        axes.set_xlabel("drafts a block")
        axes.set_ylabel("LLM passes saved, %")
        axes.legend(frameon=False)
        svg = to_svg(drawing, "blocks", f"Passes saved by block size. {'; '.join(said)}. The aim was 30 %.")
    return [Plot("Passes saved by block", svg)]
