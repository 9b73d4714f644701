"""Studies whose cells are figures in memory, not runs on disk: routing on recorded answers, caches."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedtandem.atomic import write_text
from fedtandem.studies.cells import Cell, Figure, Measured
from fedtandem.studies.summary import Plan, summarise

Figures = Mapping[tuple[str, int], Mapping[Measured, Figure]]
"""(row, seed) -> its measurements."""


@dataclass(frozen=True)
class About:
    """What a study rests on.

    Attributes:
        name: of the study.
        main: the row it is about.
        command: that makes it again.
        data_hash: of the rows.
        config: settings, as JSON values.
        packages: whose versions matter.
        what: what a "seed" is: a fold, a draw.
    """

    name: str
    main: str
    command: str
    data_hash: str
    config: Mapping[str, Any]
    packages: tuple[str, ...] = ("fedtandem", "numpy")
    what: str = "seed"


def write_study(output: Path, about: About, plan: Plan, figures: Figures) -> dict[str, Any]:
    """Summarise, write `summary.json` and the page; the summary.

    Args:
        output: the study's folder.
        figures: of every row and seed of the plan.
    """
    from fedtandem.reports.html import report_command

    record = {
        "public_hash": about.data_hash,
        "versions": {name: version(name) for name in about.packages},
    }
    cells = [
        Cell(row, seed, measured, {}, {}, {}, 0.0, {}, record) for (row, seed), measured in figures.items()
    ]
    summary = summarise(plan, cells)
    summary = {
        "schema": summary.pop("schema"), "name": about.name, "algorithm": about.main, **summary,
        "seeds_are": about.what, "command": about.command, "config": dict(about.config),
        "cpu_seconds": round(time.process_time(), 1),
    }  # fmt: skip
    write_text(output / "summary.json", json.dumps(summary, indent=1) + "\n")
    report_command(output)
    return summary
