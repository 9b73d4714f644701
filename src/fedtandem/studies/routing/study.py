"""`news-routing`, `non-iid`, `byzantine`: three studies of routing on the same recorded traces of AG News."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fedtandem.studies.routing import byzantine, news_routing, non_iid
from fedtandem.studies.routing.news import SKEWS, files_hash, read_news
from fedtandem.studies.routing.recorded import SLMS, TraceSettings, load_traces, record_seed
from fedtandem.studies.routing.routers import pair_of
from fedtandem.studies.trials import WHOLE, Cell, Outcome, Progress, figures_by_seed, whole_seeds

RECORD_SECONDS = 110
"""CPU seconds that a seed's models and traces take; everything else takes a few minutes."""


@dataclass(frozen=True)
class RoutingSettings:
    """What the figures of a study depend on.

    Attributes:
        data: hash of the files.
        models: of models and traces.
        skews: of the clients' labels.
    """

    data: str
    models: TraceSettings = field(default_factory=TraceSettings)
    skews: tuple[str, ...] = tuple(SKEWS)


@dataclass(frozen=True)
class RoutingStudy:
    """See the module; a trial is a whole seed.

    Attributes:
        name: `news-routing`, `non-iid` or `byzantine`.
        data: folder of AG News.
        traces: folder the traces are recorded in, or found in.
        models, skews: see `RoutingSettings`.
    """

    name: str
    data: Path
    traces: Path
    models: TraceSettings = field(default_factory=TraceSettings)
    skews: tuple[str, ...] = tuple(SKEWS)
    version: int = 2

    @cached_property
    def settings(self) -> RoutingSettings:
        """With the hash of the data.

        Raises:
            DataError: no data.
        """
        return RoutingSettings(files_hash(self.data), self.models, self.skews)

    def missing(self, seeds: Sequence[int], done: Mapping[Cell, Outcome]) -> list[Cell]:
        """Every seed."""
        return whole_seeds(seeds, done)

    def seconds(self, cells: Sequence[Cell]) -> float:
        """As measured on one shared core; nothing for a seed whose traces lie there."""
        return float(sum(RECORD_SECONDS for seed, _ in cells if not (self.traces / f"seed-{seed}").is_dir()))

    def run(self, cell: Cell, progress: Progress) -> Outcome:
        """One seed.

        Raises:
            DataError: no data, or the folder holds traces of other settings.
            ModelError: scikit-learn is not installed.
        """
        seed, _ = cell
        made = record_seed(self.traces, self.data, seed, self.skews, self.models, progress)
        found, items = ONE_SEED[self.name](self, seed, progress)
        kept = {key: made[key] for key in ("parameters", "fit", "calibration", "test", "cpu_seconds")}
        return Outcome({"made": kept, "found": found}, items)

    def summary(self, seeds: Sequence[int], done: Mapping[Cell, Outcome]) -> dict[str, Any]:
        """Tables and bars."""
        figures = figures_by_seed(seeds, done)
        cells = {seed: figures[seed]["found"] for seed in figures}
        if self.name == "news-routing":
            items = {seed: done[seed, WHOLE].items for seed in figures}
            body = news_routing.summary(cells, items, self.skews, SLMS)
        else:
            body = non_iid.summary(cells, self.skews) if self.name == "non-iid" else byzantine.summary(cells)
        made = [figures[seed]["made"] for seed in figures]
        return {**body, "rests_on": _rests_on(made, self.settings.data)}


def _rests_on(made: Sequence[Mapping[str, Any]], data: str) -> str:
    sizes = made[0]
    seconds = ", ".join(f"{one['cpu_seconds']:.0f}" for one in made)
    return (
        f"AG News, {sizes['fit']:,} texts to train on, {sizes['calibration']:,} to calibrate, {sizes['test']:,} to "
        f"test; hash of the files {data[:16]}. Thresholds and settings were chosen on the calibration part. CPU "
        f"seconds of models and traces per seed: {seconds}."
    )


Items = dict[str, np.ndarray]
OneSeed = Callable[[RoutingStudy, int, Progress], tuple[dict[str, Any], Items]]


def _news(study: RoutingStudy, seed: int, progress: Progress) -> tuple[dict[str, Any], Items]:
    news = read_news(study.data, seed, calibration=study.models.calibration, most=study.models.most)
    texts = {item.id: item.text for item in (*news.calibration, *news.test)}
    found: dict[str, Any] = {}
    kept: Items = {}
    cells = [(skew, slm) for skew in study.skews for slm in SLMS]
    for i, (skew, slm) in enumerate(cells):
        progress(f"seed {seed}: {skew}, {slm}", i, len(cells))
        pair = pair_of(*load_traces(study.traces, seed, skew, slm), texts)
        found[f"{skew}|{slm}"], items = news_routing.cell(pair, seed, full=(skew, slm) in news_routing.FULL)
        if (skew, slm) == news_routing.MAIN:
            kept = {name: right.astype(np.uint8) for name, right in items.items()}
    return found, kept


def _non_iid(study: RoutingStudy, seed: int, progress: Progress) -> tuple[dict[str, Any], Items]:
    found = {}
    for i, skew in enumerate(study.skews):
        progress(f"seed {seed}: {skew}", i, len(study.skews))
        found[skew] = non_iid.cell(*load_traces(study.traces, seed, skew, news_routing.MAIN[1]), seed)
    return found, {}


def _byzantine(study: RoutingStudy, seed: int, progress: Progress) -> tuple[dict[str, Any], Items]:
    progress(f"seed {seed}: liars", 0, 1)
    return byzantine.cell(*load_traces(study.traces, seed, *news_routing.MAIN), seed), {}


ONE_SEED: dict[str, OneSeed] = {"news-routing": _news, "non-iid": _non_iid, "byzantine": _byzantine}
SMALL = TraceSettings(clients=8, edges=2, calibration=400, rounds=2, cloud_bags=1, most=1500)
SMALL_SKEWS = ("dirichlet-0.5", "dirichlet-0.1")
"""What a test runs."""


def routing_study(name: str, data: Path, output: Path, *, small: bool) -> RoutingStudy:
    """The study as its script asks for it.

    Args:
        data: folder of the shared data sets.
        output: of this study's results; the traces lie beside those of `news-routing`.
    """
    traces = output.parent / "news-routing" / "cells" / "traces"
    sizes = (SMALL, SMALL_SKEWS) if small else (TraceSettings(), tuple(SKEWS))
    return RoutingStudy(name, data / "ag_news", traces, *sizes)
