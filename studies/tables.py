"""Write the tables of docs/evidence.md from the studies' summaries; a test keeps the two equal.

    python studies/tables.py

A table stands between `<!-- table FILE METHOD CONTROL PARTY,... SPLIT,... -->` and `<!-- end -->`; `*` takes every
method, control, party or test set. Bold: a claim by the study's statistics. `<!-- generation FILE KIND -->` takes a
table of the study of generation, `<!-- routing FILE NAME -->` one that a routing study made itself.
"""

import json
import re
from pathlib import Path
from typing import Any

from fedtandem.reports.generation_page import table as generation_table
from fedtandem.reports.wording import THIN, difference, figure, interval, metric_name
from fedtandem.studies.bars import markdown

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "evidence.md"
ROUTING = re.compile(r"(<!-- routing (\S+) (\S+) -->\n).*?(<!-- end -->)", re.S)
TABLE = re.compile(r"(<!-- table (\S+) (\S+) (\S+) (\S+) (\S+) -->\n).*?(<!-- end -->)", re.S)
GENERATION = re.compile(r"(<!-- generation (\S+) (\S+) -->\n).*?(<!-- end -->)", re.S)


def filled(page: str) -> str:
    """The page with every table made anew."""
    page = ROUTING.sub(lambda found: found[1] + routing_table(*found.group(2, 3)) + found[4], page)
    page = GENERATION.sub(lambda found: found[1] + of_generation(*found.group(2, 3)) + found[4], page)
    return TABLE.sub(lambda found: found[1] + table(*found.group(2, 3, 4, 5, 6)) + found[7], page)


def routing_table(file: str, name: str) -> str:
    """A routing study's own table."""
    return markdown(json.loads((ROOT / file).read_text(encoding="utf-8"))["tables"][name])


def of_generation(file: str, kind: str) -> str:
    """One table of the study of generation."""
    titles, lines = generation_table(json.loads((ROOT / file).read_text(encoding="utf-8"))["rows"], kind)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (titles, ["---"] * len(titles), *lines))


def table(file: str, method: str, control: str, parties: str, split: str) -> str:
    """One table: a row per party, test set and control."""
    rows = json.loads((ROOT / file).read_text(encoding="utf-8"))["rows"]
    means = {(r["method"], r["party"], r["split"], r["metric"]): r for r in rows}
    several = len({r["metric"] for r in rows}) > 1
    titles = [
        "party",
        "test set",
        "per seed",
        "mean",
        "control",
        "its mean",
        "difference, 95 % t (bootstrap)",
    ]
    if method == "*":
        titles.insert(0, "method")
    else:
        titles[2] = f"{method}, per seed"
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in rows:
        wanted = (
            method in ("*", row["method"]) and row["control"] is not None and control in ("*", row["control"])
        )
        wanted = wanted and (split == "*" or row["split"] in split.split(","))
        if wanted and (parties == "*" or row["party"] in parties.split(",")):
            other = means[row["control"], row["party"], row["split"], row["metric"]]
            cells = ([row["method"]] if method == "*" else []) + _cells(row, other, several)
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any], other: dict[str, Any], several: bool) -> list[str]:
    metric = row["metric"]
    gain = difference(row["difference"], metric)
    shown = f"**{gain}**" if row["claim"] else gain
    per_seed = ", ".join(figure(value, metric).removesuffix(f"{THIN}%") for value in row["per_seed"])
    split = f"{row['split']}, {metric_name(metric)}" if several else row["split"]
    return [
        row["party"], split, per_seed, figure(row["mean"], metric), row["control"], figure(other["mean"], metric),
        f"{shown} ({interval(row['difference_ci'], metric)}; {interval(row['bootstrap_ci'], metric)})",
    ]  # fmt: skip


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
