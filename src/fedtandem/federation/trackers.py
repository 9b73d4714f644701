"""Experiment trackers that `report.report_to` names: each is given values by step, and writes into the run folder.

None of them reaches the network unless the user's environment says so (WANDB_MODE, MLFLOW_TRACKING_URI,
TRACKIO_SPACE_ID), and what they would tell their makers is switched off.
"""

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, get_args

from fedtandem.config.report import TrackerName
from fedtandem.errors import ConfigError

PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb", "trackio": "trackio"}
"""Tracker -> the package it needs."""
OFF = {
    "WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "GRADIO_ANALYTICS_ENABLED": "False",
}  # fmt: skip
"""Environment of the trackers, where the user has not set another value."""


class Tracker(Protocol):
    """One method of one run, in one tracker."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add values; a step may come more than once, and after a later one."""

    def close(self) -> None:
        """All is written."""


class TensorBoard:
    """Event files under RUN/tensorboard/METHOD."""

    def __init__(self, folder: Path, run: str, method: str, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard" / method))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class MLflow:
    """A run RUN-METHOD of the experiment RUN, under RUN/mlflow unless MLFLOW_TRACKING_URI says where."""

    def __init__(self, folder: Path, run: str, method: str, config: Mapping[str, Any]) -> None:
        from mlflow.tracking import MlflowClient

        own = f"sqlite:///{(folder / 'mlflow.db').resolve()}"
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", own))
        found = self._client.get_experiment_by_name(run)
        where = None if "MLFLOW_TRACKING_URI" in os.environ else (folder / "mlflow").resolve().as_uri()
        experiment = found.experiment_id if found else self._client.create_experiment(run, where)
        name = f"{run}-{method}"
        same = self._client.search_runs([experiment], f"attributes.run_name = '{name}'", max_results=1)
        started = same[0] if same else self._client.create_run(experiment, run_name=name)
        self._id = started.info.run_id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._client.log_metric(self._id, name, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._id)


class Wandb:
    """A run METHOD of the group RUN in the project `fedtandem` (or WANDB_PROJECT), under RUN/wandb.

    wandb wants steps in order, and clients report a round while the next one runs: so the round is an axis of its own.
    """

    def __init__(self, folder: Path, run: str, method: str, config: Mapping[str, Any]) -> None:
        for what in ("CACHE", "CONFIG", "DATA"):  # else below the user's home
            os.environ.setdefault(f"WANDB_{what}_DIR", str((folder / "wandb" / what.lower()).resolve()))
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "fedtandem"), group=run, name=f"{run}-{method}", dir=str(folder),
            config=dict(config), reinit="create_new",
        )  # fmt: skip
        self._run.define_metric("*", step_metric="round")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"round": step, **values})

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A run RUN-METHOD of the project `fedtandem`, under RUN/trackio unless TRACKIO_DIR says where."""

    def __init__(self, folder: Path, run: str, method: str, config: Mapping[str, Any]) -> None:
        os.environ.setdefault("TRACKIO_DIR", str((folder / "trackio").resolve()))
        import trackio

        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", "fedtandem"), name=f"{run}-{method}", config=dict(config),
            resume="allow", embed=False,
        )  # fmt: skip

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, Any] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": Wandb,
    "trackio": Trackio,
}
"""Name in `report.report_to` -> its adapter."""


def trackers_of(report_to: str | Sequence[str]) -> tuple[str, ...]:
    """The trackers that a config names: none, all that are installed, one, or several.

    Raises:
        ConfigError: one of them is not installed.
    """
    if report_to == "none":
        return ()
    if report_to == "all":
        return tuple(name for name in get_args(TrackerName) if importlib.util.find_spec(PACKAGES[name]))
    names = (report_to,) if isinstance(report_to, str) else tuple(dict.fromkeys(report_to))
    for name in names:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise ConfigError(
                f'report.report_to = "{name}" needs {PACKAGES[name]}, which is not installed: '
                "pip install 'fedtandem[track]', or leave it out."
            )
    return names
