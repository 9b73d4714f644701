"""The trackers are fed from the record, offline, under the names of the record."""

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedtandem.federation.events import EventLog, read_lines
from fedtandem.federation.trackers import PACKAGES, TRACKERS
from fedtandem.federation.tracking import Tracking, values_of

LINES: list[dict[str, Any]] = [
    {"event": "method_started", "says": ""},
    {
        "event": "metric",
        "round": 0,
        "party": "server",
        "split": "held-out",
        "metric": "accuracy",
        "value": 0.25,
    },
    {
        "event": "phase",
        "round": 1,
        "party": "clinic-a",
        "phase": "private",
        "cpu_seconds": 2.0,
        "loss_last": 1.5,
    },
    {"event": "bytes", "round": 1, "party": "clinic-a", "up": 1000, "down": 300},
    {
        "event": "metric",
        "round": 1,
        "party": "server",
        "split": "held-out",
        "metric": "accuracy",
        "value": 0.75,
    },
    {"event": "selection", "round": 1, "party": "server", "teachers": {"clinic-a": 7}, "skipped": 3},
    {"event": "phase", "round": 0, "party": "clinic-b", "phase": "evaluate", "cpu_seconds": 0.5},
    {"event": "absence", "round": 1, "party": "clinic-b", "reason": "late", "text": "…"},
    {"event": "method_finished"},
]
EXPECTED = {
    "eval/held-out_accuracy/server": {0: 0.25, 1: 0.75},
    "train/private_loss/clinic-a": {1: 1.5},
    "cpu_seconds/private/clinic-a": {1: 2.0},
    "cpu_seconds/evaluate/clinic-b": {0: 0.5},
    "bytes/up/clinic-a": {1: 1000.0},
    "bytes/down/clinic-a": {1: 300.0},
    "taught/server/clinic-a": {1: 7.0},
    "taught/server/labels": {1: 3.0},
    "absent/clinic-b": {1: 1.0},
}


def record(folder: Path, report_to: str) -> list[dict[str, Any]]:
    log = EventLog(folder / "events.jsonl", Tracking(report_to, folder, "two", {"seed": 1}))
    for line in LINES:
        log.emit(**{**line, "method": "fedmkt"})
    log.close()
    return read_lines(folder / "events.jsonl")


def tensorboard_values(folder: Path) -> dict[str, dict[int, float]]:
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="extra `track`"
    )
    found = reader.EventAccumulator(str(folder))
    found.Reload()
    return {tag: {one.step: one.value for one in found.Scalars(tag)} for tag in found.Tags()["scalars"]}


def test_what_a_record_measures() -> None:
    found: dict[str, dict[int, float]] = {}
    for line in LINES:
        for name, value in values_of(line).items():
            found.setdefault(name, {})[line["round"]] = value
    assert found == EXPECTED


def test_tensorboard_gets_what_the_record_says(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="extra `track`")
    assert len(record(tmp_path, "tensorboard")) == len(LINES)  # and no warning
    assert tensorboard_values(tmp_path / "tensorboard" / "fedmkt") == EXPECTED


def test_a_tracker_that_fails_is_told_of_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def __init__(self, *_: object) -> None: ...

        def log(self, step: int, values: object) -> None:
            raise OSError(28, "No space left on device")

        def close(self) -> None: ...

    monkeypatch.setitem(TRACKERS, "tensorboard", Full)
    monkeypatch.setattr("fedtandem.federation.trackers.PACKAGES", {**PACKAGES, "tensorboard": "json"})
    lines = record(tmp_path, "tensorboard")
    assert [line["event"] for line in lines if line["event"] == "warning"] == ["warning"]
    assert len(lines) == len(LINES) + 1
    assert "No space left" in next(line["text"] for line in lines if line["event"] == "warning")


OFFLINE = """
import json, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_tracking import record
lines = record(Path({folder!r}), {name!r})
assert [line for line in lines if line["event"] == "warning"] == []
"""


def tracked(folder: Path, name: str) -> None:
    """Track in a process of its own: these packages start threads and servers."""
    pytest.importorskip(PACKAGES[name], reason="extra `track`")
    script = OFFLINE.format(tests=str(Path(__file__).parent), folder=str(folder), name=name)
    home = folder / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        capture_output=True, text=True, env={**os.environ, "HOME": str(home)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert list(home.iterdir()) == []


@pytest.mark.filterwarnings("ignore")  # of mlflow's own use of SQLAlchemy
def test_mlflow_gets_what_the_record_says(tmp_path: Path) -> None:
    tracked(tmp_path, "mlflow")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("two")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    found = {
        name: {one.step: one.value for one in client.get_metric_history(run.info.run_id, name)}
        for name in run.data.metrics
    }
    assert found == EXPECTED


def test_wandb_gets_what_the_record_says_offline(tmp_path: Path) -> None:
    tracked(tmp_path, "wandb")
    (written,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    data = written.read_bytes()
    for name in EXPECTED:
        assert name.encode() in data


def test_trackio_gets_what_the_record_says(tmp_path: Path) -> None:
    tracked(tmp_path, "trackio")
    (database,) = (tmp_path / "trackio").glob("fedtandem*.db")
    with sqlite3.connect(database) as opened:
        rows = opened.execute("select step, metrics from metrics").fetchall()
    found: dict[str, dict[int, float]] = {}
    for step, metrics in rows:
        for name, value in json.loads(metrics).items():
            found.setdefault(name, {})[step] = value
    assert {name: found[name] for name in EXPECTED} == EXPECTED
