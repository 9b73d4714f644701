"""What the page of a study shows, as plain values for its template."""

from typing import Any

from fedtandem.reports.contrasts import study_contrasts
from fedtandem.reports.costs import study_costs, study_payload
from fedtandem.reports.figures import forest, learning_curves
from fedtandem.reports.record import Point, StudyRecord
from fedtandem.reports.run_page import config_text
from fedtandem.reports.verdicts import signatures, study_headline


def study_page(study: StudyRecord) -> dict[str, Any]:
    """Everything `study.html.j2` needs."""
    summary = study.summary
    contrasts = study_contrasts(study)
    main = summary.get("algorithm", "")
    compared = list(dict.fromkeys(c.method for c in contrasts))
    shown = main if main in compared or not compared else compared[0]
    controls = list(dict.fromkeys(c.control for c in contrasts if c.control))
    rows = list(dict.fromkeys(row["method"] for row in study.rows))
    points = [
        Point(p["method"], p["party"], p["split"], p["metric"], p["round"], p["mean"])
        for p in summary.get("curves", ())
    ]
    finished = sorted({b["seed"] for b in summary.get("budgets", ())})
    return {
        "study": study,
        "summary": summary,
        "title": f"{study.name}: a study",
        "headline": study_headline(
            contrasts,
            not_valid=summary.get("not_valid_because", ()),
            seeds=len(finished),
            needed=summary.get("seeds_for_a_claim", 5),
        ),
        "contrasts": contrasts,
        "forest": forest([c for c in contrasts if c.in_family] or contrasts),
        "verdicts": signatures([c for c in contrasts if c.in_family], study_payload(study)),
        "groups": _groups(study),
        "curves": learning_curves(points, shown, controls, [r for r in rows if r not in (shown, *controls)]),
        "shown": shown,
        "controls": controls,
        "costs": study_costs(study),
        "finished": finished,
        "models": summary.get("models", {}),
        "versions": summary.get("versions", {}),
        "hashes": summary.get("public_hashes", {}),
        "config": config_text(dict(summary.get("config", {}))),
    }


def _groups(study: StudyRecord) -> list[dict[str, Any]]:
    """The table of means: a block per party and test set, each row of the study once."""
    blocks: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in study.rows:
        key = (row["party"], row.get("split", ""), row["metric"])
        block = blocks.setdefault(key, {"party": key[0], "split": key[1], "metric": key[2], "rows": {}})
        block["rows"].setdefault(row["method"], row)
    order = {"server": 0, "clients": 1}
    groups = [{**block, "rows": list(block["rows"].values())} for block in blocks.values()]
    return sorted(groups, key=lambda group: (order.get(group["party"], 2), group["party"]))
