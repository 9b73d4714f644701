"""`fedtandem study`: rows x seeds, one run folder per cell, resumable, and one table at the end."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fedtandem.atomic import write_text
from fedtandem.config import RunConfig, StudyConfig, cell_config, load_study
from fedtandem.errors import ConfigError, FedtandemError
from fedtandem.studies.cells import Cell, cell_folder, is_finished, read_cell
from fedtandem.studies.summary import Pattern, Plan, Requirement, summarise

LONG_STUDY_S = 3 * 3600
"""CPU seconds above which the estimate says so: a study should fit a laptop's evening."""

Progress = Callable[[str, int, int], None]


def _silent(what: str, done: int, of: int) -> None:
    return None


def _mute(text: str) -> None:
    return None


class RunMethods(Protocol):
    """Runs methods into a run folder; `federation.runs.run_methods` is one."""

    def __call__(
        self,
        config: RunConfig,
        methods: Sequence[str],
        output: Path,
        *,
        resume: bool,
        progress: Progress,
        measure_untouched: bool,
        memo: dict[str, Any],
    ) -> object: ...


@dataclass(frozen=True)
class _Job:
    """A cell to make."""

    row: str
    seed: int
    config: RunConfig
    folder: Path

    @property
    def finished(self) -> bool:
        return is_finished(self.folder, self.config.hash)


def plan_of(config: StudyConfig) -> Plan:
    """What the study file compares, in plain values."""
    study = config.study
    return Plan(
        rows=study.rows,
        seeds=study.seeds,
        controls={row: study.controls_of(row) for row in study.rows},
        requirements=tuple(
            Requirement(need.method, need.party, need.split, need.metric, need.at_least, need.at_most)
            for need in study.require
        ),
        claims=tuple(
            Pattern(claim.method, claim.control, claim.party, claim.split, claim.metric)
            for claim in study.claims
        ),
    )


def run_study(
    config: StudyConfig,
    output: Path,
    *,
    run_methods: RunMethods,
    progress: Progress = _silent,
    say: Callable[[str], None] = _mute,
    preflight: Callable[[StudyConfig], float] | None = None,
) -> dict[str, Any]:
    """Run all cells that are not finished, then write the table.

    Seeds are the outer loop, so that a study that is stopped early has whole seeds; a summary is written after each.

    Args:
        config: the study.
        output: its folder: `summary.json` and `cells/ROW/seed-N/`. What it already holds is not repeated.
        run_methods: makes one cell.
        progress: told (what, done, of).
        say: told a line of text: the estimate, what is skipped.
        preflight: estimates the CPU seconds of all cells while none is finished to go by.

    Returns:
        The summary, as in `summary.json`.

    Raises:
        ConfigError: the folder holds cells of another study file.
        FedtandemError: a cell failed; the message names it, and the others are kept.
    """
    plan = plan_of(config)
    jobs = [_job(config, output, row, seed) for seed in plan.seeds for row in plan.rows]
    _refuse_foreign(jobs)
    waiting = [job for job in jobs if not job.finished]
    say(
        f"{len(jobs)} cells ({len(plan.rows)} rows x {len(plan.seeds)} seeds), {len(jobs) - len(waiting)} finished"
    )
    cells = {(job.row, job.seed): _read(job) for job in jobs if job.finished}
    if not cells and preflight is not None:
        say(f"estimated CPU time of all cells before any has run: {_long(preflight(config))}")
    else:
        say(_estimate(waiting, list(cells.values())))
    for seed in plan.seeds:
        todo = [job for job in waiting if job.seed == seed]
        memo: dict[str, Any] = {}  # rows of one seed that begin with the same private phase do it once
        for job in todo:
            progress(f"{job.row}, seed {seed}", len(cells), len(jobs))
            _make(job, run_methods, progress, memo)
            cells[job.row, job.seed] = _read(job)
            if len(cells) == 1:
                say(_estimate(waiting[1:], list(cells.values())))
        if todo and seed != plan.seeds[-1]:
            _write_summary(config, plan, cells.values(), output, draws=1000)
    return _write_summary(config, plan, cells.values(), output, draws=10_000)


def _job(config: StudyConfig, output: Path, row: str, seed: int) -> _Job:
    return _Job(row, seed, cell_config(config, row, seed), cell_folder(output, row, seed))


def _refuse_foreign(jobs: Sequence[_Job]) -> None:
    """A changed study file must not be mixed with the cells of the old one."""
    foreign = []
    for job in jobs:
        path = job.folder / "run.json"
        if path.is_file() and json.loads(path.read_text(encoding="utf-8"))["config_hash"] != job.config.hash:
            foreign.append(str(job.folder))
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise ConfigError(
            f"{', '.join(foreign[:3])}{more} were made with other settings than the study file now states. Delete "
            "them to make them again, or give another --output."
        )


def _make(job: _Job, run_methods: RunMethods, progress: Progress, memo: dict[str, Any]) -> None:
    def told(what: str, done: int, of: int) -> None:
        progress(f"{job.row}, seed {job.seed} · {what}", done, of)

    begun = (job.folder / "run.json").is_file()
    try:
        run_methods(
            job.config,
            [job.config.algorithm],
            job.folder,
            resume=begun,
            progress=told,
            measure_untouched=False,  # the row `zero_shot` is there for that
            memo=memo,
        )
    except FedtandemError as error:
        raise type(error)(f"study cell {job.row}, seed {job.seed} ({job.folder}): {error}") from error


def _read(job: _Job) -> Cell:
    return read_cell(job.folder, job.row, job.seed, job.config.algorithm)


def _estimate(waiting: Sequence[_Job], cells: Sequence[Cell]) -> str:
    """What is left to do, from the finished cells: a row's own mean, else the mean of all."""
    if not waiting:
        return "nothing left to run"
    if not cells:
        return "estimated CPU time: known once the first cell is finished"
    overall = sum(cell.cpu_seconds for cell in cells) / len(cells)
    total = 0.0
    for job in waiting:
        own = [cell.cpu_seconds for cell in cells if cell.row == job.row]
        total += sum(own) / len(own) if own else overall
    return f"estimated CPU time of the {len(waiting)} cells left: {_long(total)}"


def _long(seconds: float) -> str:
    """A duration that says when it is too long for a study."""
    text = in_words(seconds)
    return f"{text} (more than {in_words(LONG_STUDY_S)})" if seconds > LONG_STUDY_S else text


def in_words(seconds: float) -> str:
    """A duration for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def _write_summary(
    config: StudyConfig, plan: Plan, cells: Any, output: Path, *, draws: int
) -> dict[str, Any]:
    summary = summarise(plan, cells, draws=draws)
    summary = {
        "schema": summary.pop("schema"),
        "name": config.name,
        "algorithm": config.algorithm,
        **summary,
        "config": _portable(config.resolved(), config.data.root),
        "config_hash": config.hash,
    }
    write_text(output / "summary.json", json.dumps(summary, indent=1))
    return summary


def _portable(value: Any, root: str | None) -> Any:
    """The config without the folders of this machine: a summary is committed and read elsewhere."""
    if isinstance(value, dict):
        return {key: _portable(inner, root) for key, inner in value.items()}
    if isinstance(value, list):
        return [_portable(inner, root) for inner in value]
    if isinstance(value, str) and value.startswith("/"):
        if root and Path(value).is_relative_to(root):
            return str(Path("{data.root}") / Path(value).relative_to(root))
        return os.path.relpath(value)
    return value


def study_command(
    file: str | Path, *, output: Path | None = None, overrides: Sequence[str] = (), json_output: bool = False
) -> int:
    """`fedtandem study FILE`: run what is missing, print the table, write the report."""
    from fedtandem.federation.preflight import check
    from fedtandem.federation.progress import Watch
    from fedtandem.federation.runs import run_methods
    from fedtandem.reports.html import report_command
    from fedtandem.reports.tables import print_study

    config = load_study(file, overrides)
    folder = output or Path("studies") / config.name
    with Watch(quiet=json_output) as watch:
        say = (
            (lambda text: None) if json_output else (lambda text: watch.console.print(text, highlight=False))
        )

        def estimate(study: StudyConfig) -> float:
            return check(study).total_seconds

        summary = run_study(
            config, folder, run_methods=run_methods, progress=watch, say=say, preflight=estimate
        )
    if json_output:
        print(json.dumps({"output": str(folder), **summary}))
    else:
        print_study(folder)
    if config.report.enabled:
        page = report_command(folder)
        if not json_output:
            print(f"report: {page}")
    return 0
