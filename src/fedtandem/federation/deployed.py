"""A run at a SuperLink: write the shell of an app, submit it, follow the run folder until it ends.

Nothing here imports Flower: its command line does the talking.
"""

import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedtandem.atomic import write_text
from fedtandem.config import RunConfig
from fedtandem.errors import ConfigError, NetworkError
from fedtandem.federation.alone import alone
from fedtandem.federation.calibrate_sites import POLICY, RESULT, SitesRequest
from fedtandem.federation.calibration_result import CalibrationResult
from fedtandem.federation.events import read_events
from fedtandem.federation.progress import Watch
from fedtandem.federation.runs import open_record
from fedtandem.federation.submission import (
    Submission,
    fault_of,
    note_end,
    read_end,
    with_exchange,
    write_submission,
)
from fedtandem.inference.policy import read_policy

_LOG = logging.getLogger(__name__)
LOOK_S = 0.5
ASK_SUPERLINK_S = 30.0
PATIENCE = 3
"""So often in a row the SuperLink may fail to answer before the run counts as lost."""
GRACE_S = 10.0
"""Between Flower's word that a run ended and the end in the run folder."""
OFF = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Environment of every Flower process: no telemetry, no update check, no downloads."""

_PROJECT = f"""# The shell of an app: fedtandem itself is installed at the server and at every site.
[project]
name = "fedtandem-run"
version = "{version("fedtandem")}"
description = "Hands over to fedtandem"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedtandem"

[tool.flwr.app.components]
serverapp = "server:app"
clientapp = "client:app"

[tool.flwr.app.config]
folder = ""
"""
_SERVER = "from fedtandem.federation.server_app import make_server_app\n\napp = make_server_app()\n"
_CLIENT = "from fedtandem.federation.client_app import make_client_app\n\napp = make_client_app()\n"


def require_flower(*, simulation: bool = False) -> None:
    """Refuse early where Flower (or Ray) is not installed.

    Raises:
        ConfigError: names what to install.
    """
    extra = "flower-sim" if simulation else "flower"
    for module in ("flwr", "cryptography", *(["ray"] if simulation else [])):
        if importlib.util.find_spec(module) is None:
            raise ConfigError(
                f"this needs {module}, which is not installed: pip install 'fedtandem[{extra}]'."
            )


@dataclass(frozen=True)
class Connection:
    """A SuperLink, as Flower's command line knows it.

    Raises:
        ConfigError: there is no such connection.
    """

    name: str

    def __post_init__(self) -> None:
        home = os.environ.get("FLWR_HOME")
        if home is None:
            raise ConfigError(
                "FLWR_HOME is not set: Flower would write into your home folder. Set it to the folder that holds the "
                "connection's config.toml, e.g. `. lab/server/env.sh` as `fedtandem deploy` wrote it."
            )
        file = Path(home) / "config.toml"
        known = tomllib.loads(file.read_text()).get("superlink", {}) if file.is_file() else {}
        if not isinstance(known.get(self.name), dict):
            names = ", ".join(name for name, value in known.items() if isinstance(value, dict)) or "none"
            raise ConfigError(
                f"{file} has no connection [superlink.{self.name}] (there is {names}). Name one of them with "
                "--connection, or write it with `fedtandem deploy`."
            )

    @property
    def is_loopback(self) -> bool:
        """Whether the SuperLink is reached on this machine alone."""
        file = Path(os.environ["FLWR_HOME"]) / "config.toml"
        address = str(tomllib.loads(file.read_text())["superlink"][self.name].get("address", ""))
        return address.rpartition(":")[0].strip("[]") in ("127.0.0.1", "localhost", "::1")

    def flwr(self, *words: str) -> dict[str, Any]:
        """One command of Flower, its answer as JSON.

        Raises:
            NetworkError: it failed; says what Flower said.
        """
        binary = Path(sys.executable).with_name("flwr")
        command = [str(binary) if binary.is_file() else shutil.which("flwr") or "flwr", *words]
        done = subprocess.run(
            [*command, "--format", "json"], capture_output=True, text=True, env={**os.environ, **OFF}
        )
        try:
            told = json.loads(done.stdout[done.stdout.index("{") :])
        except ValueError:
            told = {"success": False, "error-message": (done.stderr or done.stdout).strip()[-1000:]}
        if done.returncode or not told.get("success"):
            said = str(told.get("error-message") or done.stderr.strip()[-1000:]).strip()
            raise NetworkError(
                f"`flwr {words[0]}` at the connection {self.name!r} failed: {said} Check that the SuperLink runs and "
                "that address and certificate in $FLWR_HOME/config.toml are its own."
            )
        return dict(told)


def run_deployed(
    config: RunConfig, folder: Path, *, connection: str, keys: Path | None, resume: bool, watch: Watch
) -> dict[str, Any]:
    """Run a config's methods with the clients at their sites.

    Args:
        folder: the run folder, on the machine of the SuperLink.
        connection: of `$FLWR_HOME/config.toml`.
        keys: the clients' public keys; None: clients say themselves who they are.

    Returns:
        The summary, as in `summary.json`.

    Raises:
        FedtandemError: what ended the run, with its exit code.
    """
    superlink = reachable(connection, keys)
    config = with_exchange(config)
    folder = folder.resolve()
    open_record(config, list(config.methods), folder, resume, "flower")
    # The record is open: the server's process takes it up.
    submission = write_submission(folder, config, resume=True, carrier="flower", keys=keys)
    submit(superlink, folder, submission, watch)
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


def calibrate_deployed(
    asked: SitesRequest, folder: Path, *, connection: str, keys: Path | None, watch: Watch
) -> CalibrationResult:
    """Learn thresholds from the sites at a SuperLink.

    Args:
        folder: for the server's process, on the machine of the SuperLink; keeps the record of the newest calibration.
        connection, keys: as `run_deployed`.

    Raises:
        FedtandemError: what ended the calibration, with its exit code.
    """
    superlink = reachable(connection, keys)
    folder = folder.resolve()
    with alone(folder):
        for old in ("events.jsonl", RESULT, POLICY):
            (folder / old).unlink(missing_ok=True)
        submission = write_submission(folder, asked, resume=False, carrier="flower", keys=keys)
    submit(superlink, folder, submission, watch)
    return CalibrationResult.from_json((folder / RESULT).read_text(), read_policy(folder / POLICY))


def reachable(connection: str, keys: Path | None) -> Connection:
    """The connection, where names can be told on it.

    Raises:
        ConfigError: Flower is missing, there is no such connection, or it leaves this machine without keys.
    """
    require_flower()
    superlink = Connection(connection)
    if keys is None:
        if not superlink.is_loopback:
            raise ConfigError(
                f"--insecure: the connection {connection!r} leaves this machine, and any client could claim another's "
                "name. Give --keys DIR."
            )
        _LOG.warning("clients say themselves who they are: for trials on this machine only")
    return superlink


def submit(superlink: Connection, folder: Path, submission: Submission, watch: Watch) -> None:
    """Hand the folder to the SuperLink and follow it to its end.

    Raises:
        FedtandemError: what ended it, with its exit code.
    """
    app = folder / "app"
    for name, text in {"pyproject.toml": _PROJECT, "server.py": _SERVER, "client.py": _CLIENT}.items():
        write_text(app / name, text)
    try:
        told = superlink.flwr(
            "run", str(app), superlink.name, "--run-config", f"folder={json.dumps(str(folder))}"
        )
        run_id = str(told["run-id"])
    except NetworkError as fault:
        note_end(folder, submission.id, fault.exit_code, str(fault))
        raise NetworkError(f"{fault} Then {submission.again}.") from fault
    try:
        follow(superlink, run_id, folder, submission, watch)
    except KeyboardInterrupt:
        superlink.flwr("stop", run_id, superlink.name)
        note_end(folder, submission.id, 130, "interrupted")
        raise


def follow(superlink: Connection, run_id: str, folder: Path, submission: Submission, watch: Watch) -> None:
    """Show what the record says until the run ends.

    Raises:
        FedtandemError: it ended with a fault, or the SuperLink lost it.
    """
    shown = len(read_events(folder / "events.jsonl"))
    asked, failures, over_since = time.monotonic(), 0, None
    while (end := read_end(folder, submission.id)) is None:
        time.sleep(LOOK_S)
        events = read_events(folder / "events.jsonl")
        for line in _lines(events[shown:]):
            if not watch.quiet:
                watch.console.print(line, highlight=False, markup=False)
        shown = max(shown, len(events))
        if time.monotonic() - asked < ASK_SUPERLINK_S and over_since is None:
            continue
        asked = time.monotonic()
        try:
            over = _is_over(superlink, run_id)
            failures = 0
        except NetworkError as fault:
            over, failures = None, failures + 1
            if failures >= PATIENCE:
                safe = "The run's rounds so far are safe: s" if submission.task == "run" else "S"
                lost = f"{fault} {safe}tart the SuperLink and {submission.again}."
                note_end(folder, submission.id, NetworkError.exit_code, lost)
        if over is None:
            over_since = None
        elif over_since is None:
            over_since = time.monotonic()
        elif time.monotonic() - over_since > GRACE_S:
            text = (
                f"the server's process ended without a word (Flower says {over!r}). See `flwr log {run_id} "
                f"{superlink.name} --show`; {submission.again}."
            )
            note_end(folder, submission.id, NetworkError.exit_code, text)
    code, text = end
    if code:
        raise fault_of(code, text)


def _is_over(superlink: Connection, run_id: str) -> str | None:
    told = superlink.flwr("list", superlink.name, "--run-id", run_id)
    for run in told.get("runs", []):
        if str(run.get("run-id")) == run_id and str(run.get("status", "")).startswith("finished"):
            return str(run["status"])
    return None


def _lines(events: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for event in events:
        method = event.get("method", "")
        if event["event"] == "round_committed":
            yield f"{method}: round {event['round']} committed" + (" (skipped)" if event["skipped"] else "")
        elif event["event"] == "edges":
            told = "; ".join(f"{edge} with {', '.join(names)}" for edge, names in event["edges"].items())
            yield f"{method}: {event['measure']}, {event['feedback']}; edges: {told}"
        elif event["event"] == "absence":
            yield f"{method}, round {event['round']}: {event['party']} is absent ({event['reason']}): {event['text']}"
        elif event["event"] == "connected":
            yield f"{method}: connected: {', '.join(event['parties']) or 'nobody'}"
        elif event["event"] == "late_reply":
            yield f"{method}, round {event['round']}: {event['party']}: {event['text']}"
