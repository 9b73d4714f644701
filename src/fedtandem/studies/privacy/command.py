"""One command per study: work out the seeds that are missing, write summary and page."""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from fedtandem.atomic import write_text
from fedtandem.errors import FedtandemError
from fedtandem.studies.privacy import byzantine, membership
from fedtandem.studies.routing.page import study_page
from fedtandem.studies.routing.tables import plain, to_json

SEEDS = (0, 1, 2, 3, 4)


def _byzantine(seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return byzantine.cell(seed, Path(folder))


OneSeed = Callable[[int], dict[str, Any]]
Summarise = Callable[[Mapping[int, Any]], dict[str, Any]]
STUDIES: dict[str, tuple[OneSeed, Summarise, str]] = {
    "membership": (membership.cell, membership.summary, membership.RESTS_ON),
    "co-tuning-byzantine": (_byzantine, byzantine.summary, byzantine.RESTS_ON),
}


def main(name: str, output: Path, seeds: tuple[int, ...] = SEEDS) -> int:
    """Go on where the study was stopped; the exit code.

    Args:
        output: folder of `summary.json` (written after every seed) and `report.html`.
    """
    one_seed, summarise, rests_on = STUDIES[name]
    path = output / "summary.json"
    old: dict[str, Any] = {"cells": {}, "cpu_seconds": 0.0}
    if path.is_file():
        old = json.loads(path.read_text(encoding="utf-8"))
    cells: dict[int, Any] = {int(seed): cell for seed, cell in old["cells"].items()}
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        for seed in seeds:
            if seed in cells:
                continue
            started = time.process_time()
            cells[seed] = plain(one_seed(seed))
            old["cpu_seconds"] += time.process_time() - started
            whole = {
                "name": name, "kind": "privacy", "seeds": sorted(cells), "seeds_wanted": list(seeds),
                "rests_on": rests_on, "command": f"python studies/{name}/run.py",
                "versions": {package: version(package) for package in ("fedtandem", "torch", "opacus")},
                "cpu_seconds": round(old["cpu_seconds"], 1), **summarise(cells), "cells": cells,
            }  # fmt: skip
            write_text(path, to_json(whole))
            print(f"{name}: seed {seed}, {time.process_time() - started:.0f} CPU seconds", flush=True)
    except FedtandemError as fault:
        print(fault, file=sys.stderr)
        return fault.exit_code
    write_text(output / "report.html", study_page(json.loads(path.read_text(encoding="utf-8"))))
    return 0
