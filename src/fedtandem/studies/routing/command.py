"""One command per routing study: record what is missing, work out what is missing, write summary and page."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save

from fedtandem.atomic import write_bytes, write_text
from fedtandem.errors import DataError, FedtandemError
from fedtandem.federation.progress import Watch
from fedtandem.studies.routing import byzantine, news_routing, non_iid
from fedtandem.studies.routing.news import SKEWS, read_news
from fedtandem.studies.routing.page import study_page
from fedtandem.studies.routing.recorded import SLMS, TraceSettings, load_traces, record_seed
from fedtandem.studies.routing.routers import pair_of
from fedtandem.studies.routing.tables import plain, to_json

VERSION = 1
"""Of the figures; raised when the same traces would give others."""
RECORD_SECONDS = 110
"""CPU seconds that a seed's models and traces take, for the estimate."""
SMALL = TraceSettings(clients=8, edges=2, calibration=400, rounds=2, cloud_bags=1, most=1500)
"""What a test runs."""


@dataclass(frozen=True)
class Request:
    """What was asked.

    Attributes:
        study: `news-routing`, `non-iid` or `byzantine`.
        output: folder of `summary.json` and `report.html`.
        traces: folder the traces are recorded in, or found in.
        data: folder of AG News.
        seeds, skews: of the cells.
        settings: of models and traces.
    """

    study: str
    output: Path
    traces: Path
    data: Path
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    skews: tuple[str, ...] = tuple(SKEWS)
    settings: TraceSettings = field(default_factory=TraceSettings)


Items = dict[str, Any]
OneSeed = Callable[[Request, int, Callable[[str, int, int], None]], tuple[dict[str, Any], Items]]


def _news(
    request: Request, seed: int, progress: Callable[[str, int, int], None]
) -> tuple[dict[str, Any], Items]:
    news = read_news(request.data, seed, calibration=request.settings.calibration, most=request.settings.most)
    texts = {item.id: item.text for item in (*news.calibration, *news.test)}
    found: dict[str, Any] = {}
    kept: Items = {}
    cells = [(skew, slm) for skew in request.skews for slm in SLMS]
    for i, (skew, slm) in enumerate(cells):
        progress(f"seed {seed}: {skew}, {slm}", i, len(cells))
        pair = pair_of(*load_traces(request.traces, seed, skew, slm), texts)
        found[f"{skew}|{slm}"], items = news_routing.cell(pair, seed, full=(skew, slm) in news_routing.FULL)
        if (skew, slm) == news_routing.MAIN:
            kept = {name: right.astype(np.uint8) for name, right in items.items()}
    return found, kept


def _non_iid(
    request: Request, seed: int, progress: Callable[[str, int, int], None]
) -> tuple[dict[str, Any], Items]:
    found = {}
    for i, skew in enumerate(request.skews):
        progress(f"seed {seed}: {skew}", i, len(request.skews))
        found[skew] = non_iid.cell(*load_traces(request.traces, seed, skew, news_routing.MAIN[1]), seed)
    return found, {}


def _byzantine(
    request: Request, seed: int, progress: Callable[[str, int, int], None]
) -> tuple[dict[str, Any], Items]:
    progress(f"seed {seed}: liars", 0, 1)
    return byzantine.cell(*load_traces(request.traces, seed, *news_routing.MAIN), seed), {}


ONE_SEED: dict[str, OneSeed] = {"news-routing": _news, "non-iid": _non_iid, "byzantine": _byzantine}


def run(request: Request, *, quiet: bool = False) -> dict[str, Any]:
    """Do what is missing and write `summary.json` after each seed, `report.html` at the end.

    Returns:
        The summary.

    Raises:
        DataError: no data, or cells of other settings.
        ModelError: scikit-learn is not installed.
    """
    cells: dict[int, Any] = {}
    items: dict[int, Any] = {}
    made: dict[int, Any] = {}
    with Watch(quiet=quiet) as watch:
        missing = [s for s in request.seeds if not (request.traces / f"seed-{s}" / "made.json").is_file()]
        if missing and not quiet and request.settings.most is None:
            watch.console.print(
                f"estimated CPU time: {RECORD_SECONDS * len(missing) / 60:.0f} min to record {len(missing)} seeds; "
                "everything else takes a few minutes", highlight=False,
            )  # fmt: skip
        for seed in request.seeds:
            made[seed] = record_seed(
                request.traces, request.data, seed, request.skews, request.settings, watch
            )
            cells[seed], items[seed] = _one_seed(request, seed, made[seed], watch)
            summary = _summary(request, cells, items, made)
            write_text(request.output / "summary.json", to_json(summary))
    write_text(request.output / "report.html", study_page(plain(summary)))
    return summary


def _one_seed(
    request: Request, seed: int, made: Mapping[str, Any], progress: Callable[[str, int, int], None]
) -> tuple[dict[str, Any], Items]:
    """From the folder where it is there, else worked out and kept."""
    file = request.output / "cells" / f"seed-{seed}.json"
    arrays = file.with_suffix(".safetensors")
    key = json.loads(json.dumps({"version": VERSION, "study": request.study, "made": made["key"]}))
    if file.is_file():
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["key"] != key:
            raise DataError(
                f"{file} was made with other settings, data or an older version; delete {file.parent} to work it out "
                "again, or give another --output."
            )
        return found["cell"], load_file(arrays) if arrays.is_file() else {}
    cell, items = ONE_SEED[request.study](request, seed, progress)
    if items:
        write_bytes(arrays, save(items))
    write_text(file, json.dumps({"key": key, "cell": plain(cell)}))
    return json.loads(json.dumps(plain(cell))), items


def _summary(
    request: Request,
    cells: Mapping[int, Any],
    items: Mapping[int, Any],
    made: Mapping[int, Any],
) -> dict[str, Any]:
    if request.study == "news-routing":
        body = news_routing.summary(cells, items, request.skews, SLMS)
    elif request.study == "non-iid":
        body = non_iid.summary(cells, request.skews)
    else:
        body = byzantine.summary(cells)
    first = made[min(made)]
    return {
        "schema": 1, "kind": "routing", "name": request.study, "seeds": sorted(cells),
        "seeds_wanted": list(request.seeds),
        **body,
        "made": {"key": first["key"], "parameters": first["parameters"], "fit": first["fit"],
                 "calibration": first["calibration"], "test": first["test"],
                 "cpu_seconds_of_traces": [round(made[seed]["cpu_seconds"]) for seed in sorted(made)]},
        "cells": {seed: cells[seed] for seed in sorted(cells)},
    }  # fmt: skip


def main(study: str, folder: Path, argv: Sequence[str] | None = None) -> int:
    """The script of a study.

    Args:
        study: its name.
        folder: where its results lie by default; the traces lie beside `news-routing`'s.
        argv: words of the command line.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description=f"the study {study}; goes on where it was stopped")
    shared = Path(os.environ.get("FEDTANDEM_SHARED") or "../shared")
    parser.add_argument("--output", type=Path, default=folder, help="folder of summary.json and report.html")
    parser.add_argument(
        "--traces", type=Path, help="folder of the recorded traces (default: cells/traces of news-routing)"
    )
    parser.add_argument("--data", type=Path, default=shared / "data" / "ag_news", help="folder of AG News")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="as 0,1,2")
    parser.add_argument(
        "--small", action="store_true", help="a miniature that shows it runs; its figures mean nothing"
    )
    arguments = parser.parse_args(argv)
    traces = arguments.traces or (
        arguments.output if arguments.output != folder else folder.parent / "news-routing"
    ) / "cells" / "traces"  # fmt: skip
    request = Request(study, arguments.output, traces, arguments.data)
    try:
        request = replace(request, seeds=tuple(int(seed) for seed in arguments.seeds.split(",")))
        if arguments.small:
            request = replace(request, settings=SMALL, skews=("dirichlet-0.5", "dirichlet-0.1"))
        summary = run(request)
    except ValueError as error:
        print(f"--seeds {arguments.seeds}: {error}; give whole numbers as 0,1,2.", file=sys.stderr)
        return 2
    except FedtandemError as fault:
        print(f"{study}: {fault}", file=sys.stderr)
        return fault.exit_code
    for b in summary["bars"]:
        print(f"{'met   ' if b.met else 'MISSED'}  {b.asked}: {b.measured}{' · ' + b.why if b.why else ''}")
    print(f"{request.output / 'summary.json'}, {request.output / 'report.html'}")
    return 0
