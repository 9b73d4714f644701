"""What the page of one run shows, as plain values for its template."""

from collections.abc import Sequence
from typing import Any

import tomli_w

from fedtandem.federation.methods import METHODS
from fedtandem.reports.checked import forgotten, share_by_stratum
from fedtandem.reports.contrasts import Contrast, run_contrasts
from fedtandem.reports.costs import run_costs, run_payload, seconds_by_phase
from fedtandem.reports.figures import (
    bytes_by_round,
    colours_of,
    learning_curves,
    scale_of,
    spark,
    who_taught,
)
from fedtandem.reports.record import SERVER, UNTOUCHED, Note, RunRecord, Score
from fedtandem.reports.selection import selection_rows, selection_verdicts
from fedtandem.reports.verdicts import run_headline, signatures
from fedtandem.reports.wording import is_visible, method_name


def run_page(run: RunRecord) -> dict[str, Any]:
    """Everything `run.html.j2` needs."""
    contrasts = run_contrasts(run)
    controls = list(dict.fromkeys(c.control for c in contrasts if c.control))
    # A method measures parties it does not train, too; their flat lines are no control.
    drawn = {(method, c.party) for c in contrasts for method in (c.method, c.control)}
    colours = colours_of(run.parties)
    main_lessons = [lesson for lesson in run.lessons if lesson.method in (run.main, "")]
    main_traffic = [t for t in run.traffic if t.method in (run.main, "")]
    checked = [of for of in run.checked if of.method in (run.main, "")]
    return {
        "run": run,
        "title": f"{run.name}: {method_name(run.main)}",
        "headline": run_headline(contrasts, controls_to_come=not run.finished and len(run.methods) > 1),
        "parties": _by_party(contrasts),
        "controls": controls,
        "control_notes": [(name, METHODS[name].says) for name in controls if name in METHODS],
        "verdicts": (*signatures(contrasts, run_payload(run)), *selection_verdicts(run)),
        "warnings": merged_notes(run.warnings),
        "absences": merged_notes(run.absences),
        "curves": learning_curves(
            [p for p in run.points if (p.method, p.party) in drawn], run.main, controls
        ),
        "taught": who_taught(main_lessons, colours),
        "checked": checked,
        "by_stratum": share_by_stratum(checked),
        "forgotten": forgotten(run),
        "traffic": bytes_by_round(main_traffic, colours),
        "colours": [(party, colours[party] + 1) for party in run.parties],
        "clients": [(party, colours[party] + 1) for party in run.parties if party != SERVER],
        "costs": run_costs(run),
        "phases": seconds_by_phase(run, run.main),
        "selected": selection_rows(run),
        "spent": [of for of in run.spent if of.method in (run.main, "")],
        "rounds": _rounds(run),
        "matrix": _matrix(run),
        "models": run.about.get("models", {}),
        "versions": run.about.get("versions", {}),
        "config": config_text(run.about.get("config", {})),
    }


def _by_party(contrasts: Sequence[Contrast]) -> list[dict[str, Any]]:
    """The main table: parties with their test sets, each with its little drawing."""
    ends = {
        (c.party, c.metric): scale_of(
            [
                x
                for other in contrasts
                if (other.party, other.metric) == (c.party, c.metric)
                for x in (other.value, other.before, other.control_value)
                if x is not None
            ],
            c.metric,
        )
        for c in contrasts
    }
    parties = []
    for party in dict.fromkeys(c.party for c in contrasts):
        mine = [c for c in contrasts if c.party == party]
        rows = [
            {
                "c": c,
                "spark": spark(c.before, c.control_value, c.value, *ends[c.party, c.metric]),
                "good": _good(c),
            }
            for c in mine
        ]
        controls = list(dict.fromkeys(c.control for c in mine if c.control))
        parties.append({"party": party, "rows": rows, "controls": controls, "n": sorted({c.n for c in mine})})
    return parties


def _good(c: Contrast) -> str:
    if c.gain is None or not is_visible(c.difference, c.metric):
        return ""
    return "up" if c.gain > 0 else "down"


def merged_notes(notes: Sequence[Note]) -> list[dict[str, Any]]:
    """Equal kinds of one party and method together: the rounds they came up in, and the newest words."""
    merged: dict[tuple[str, str, str], dict[str, Any]] = {}
    for note in notes:
        entry = merged.setdefault(
            (note.kind, note.party, note.method),
            {"kind": note.kind, "party": note.party, "method": note.method, "rounds": [], "text": ""},
        )
        if note.round not in entry["rounds"]:
            entry["rounds"].append(note.round)
        entry["text"] = note.text
    return list(merged.values())


def _rounds(run: RunRecord) -> list[dict[str, Any]]:
    """Per round and learner: what section 18 of the specification lists."""
    aligned: dict[str, list[float]] = {}
    for crossing in run.crossings:
        if crossing.method in (run.main, ""):
            aligned.setdefault(crossing.learner, []).append(crossing.aligned_share)
    share = {
        (p.round, p.party): p.kd_gradient_share
        for p in run.phases
        if p.method == run.main and p.phase == "public" and p.kd_gradient_share is not None
    }
    rows = []
    for lesson in sorted(
        run.lessons, key=lambda lesson: (lesson.round, lesson.learner != SERVER, lesson.learner)
    ):
        if lesson.method not in (run.main, ""):
            continue
        total = sum(lesson.teachers.values()) + lesson.skipped
        mass = list(lesson.kept_mass.values())
        shares = aligned.get(lesson.learner, [])
        rows.append(
            {
                "round": lesson.round,
                "learner": lesson.learner,
                "taught": sum(lesson.teachers.values()),
                "skip_rate": lesson.skipped / total if total else 0.0,
                "unscored": lesson.unscored,
                "kept_mass": sum(mass) / len(mass) if mass else None,
                "aligned": sum(shares) / len(shares) if shares else None,
                "kd_share": share.get((lesson.round, lesson.learner)),
            }
        )
    return rows


def _matrix(run: RunRecord) -> dict[str, Any]:
    """Every method's final figure for every party and test set."""
    methods = list(
        dict.fromkeys((*[m for m in (UNTOUCHED,) if any(s.method == m for s in run.scores)], *run.methods))
    )
    cells: dict[tuple[str, str, str], dict[str, Score]] = {}
    for score in run.scores:
        cells.setdefault((score.party, score.split, score.metric), {})[score.method] = score
    order = list(run.parties)
    rows = [
        {"party": key[0], "split": key[1], "metric": key[2], "values": [found.get(m) for m in methods]}
        for key, found in sorted(cells.items(), key=lambda item: order.index(item[0][0]))
    ]
    return {"methods": methods, "rows": rows}


def config_text(config: dict[str, Any]) -> str:
    """The resolved config as TOML; nothing stands for None."""
    return tomli_w.dumps(_without_none(config)).strip()


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [_without_none(inner) for inner in value if inner is not None]
    return value
