"""A lab of real processes: what `fedtandem deploy` writes, started as an operator starts it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from fedtandem.config import RunConfig, load_config
from fedtandem.federation.deploy import Place, deploy
from fedtandem.federation.events import read_events
from fedtandem.federation.runs import run_methods

ROOT = Path(__file__).resolve().parents[4]
HOOK = ROOT / "tests" / "e2e" / "watching"
SMALL = ("federation.num_rounds=1", "public.chains.n=20", "public.max_new_tokens=12", "report.enabled=false")


class Lab:
    """A deployed folder, and the processes started from it."""

    limit_s = 900
    """How long anything may take: on a busy machine; alone on two cores a fifth of it."""

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self.folder, self.port, self.config = folder, self.free_port(), config
        self.sites = tuple(client.name for client in config.clients)
        node_port = next(port for port in iter(self.free_port, None) if abs(port - self.port) > 10)
        deploy(self.config, folder, Place(port=self.port, node_port=node_port))
        self.started: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {
            **os.environ, "FEDTANDEM_BIN": str(Path(sys.executable).parent),
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(HOOK)]), "WATCHED": str(folder / "watched"),
            "OMP_NUM_THREADS": "1", "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5", "HOME": str(folder / "home"),
            "TMPDIR": str(folder / "tmp"),
        }  # fmt: skip
        # torch sets it in the process that runs the tests
        self.environment.pop("TORCHINDUCTOR_CACHE_DIR", None)
        for kept in ("home", "watched", "tmp"):
            (folder / kept).mkdir()

    @staticmethod
    def free_port() -> int:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            return int(one.getsockname()[1])

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.started[name] = process
        return process

    def superlink(self) -> None:
        """Start it and wait until it listens."""
        self.start("superlink", str(self.folder / "server" / "superlink.sh"))
        self.wait_for("the SuperLink listens", self.listens, "superlink")

    def register(self) -> None:
        assert subprocess.run([self.folder / "server" / "register.sh"], env=self.environment).returncode == 0

    def node(self, name: str) -> subprocess.Popen[bytes]:
        return self.start(name, str(self.folder / "sites" / name / "supernode.sh"))

    def run(self, *more: str) -> subprocess.Popen[bytes]:
        script = (
            f"cd server && . ./env.sh && exec python -m fedtandem run run.toml --connection lab --keys keys "
            f"--output run {' '.join(more)}"
        )
        return self.start("run", "sh", "-c", script)

    def listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    def wait_for(self, what: str, holds: Callable[[], bool], name: str = "run") -> None:
        end = time.monotonic() + self.limit_s
        while not holds():
            assert time.monotonic() < end, f"{what}: not within {self.limit_s} s\n{self.said(name)[-3000:]}"
            process = self.started[name]
            assert process.poll() is None or holds(), f"{what}: {name} ended\n{self.said(name)[-3000:]}"
            time.sleep(0.2)

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def events(self) -> list[str]:
        return [event["event"] for event in read_events(self.folder / "server" / "run" / "events.jsonl")]

    def kill_with_children(self, name: str) -> list[int]:
        """SIGKILL to a process and all that it has started; their ids."""
        doomed = [self.started[name].pid]
        for pid in doomed:
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                doomed += [int(child) for child in task.read_text().split()]
        for pid in doomed:
            os.kill(pid, signal.SIGKILL)
        self.started[name].wait()
        return doomed

    def stop(self) -> None:
        for process in reversed(self.started.values()):
            process.terminate()
        for process in self.started.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def adapters(self) -> dict[str, bytes]:
        """Final weights by party."""
        folders = {"server": self.folder / "server" / "run" / "adapters" / "fedmkt" / "server"}
        for name in self.sites:
            (folders[name],) = (self.folder / "sites" / name / "state" / "runs").glob("*/fedmkt/adapter")
        return {name: next(folder.glob("*.safetensors")).read_bytes() for name, folder in folders.items()}

    def of_one_process(self, folder: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
        """The same run in this process: final weights by party, and its summary."""
        summary = run_methods(self.config, ["fedmkt"], folder)
        found = {
            name: next((folder / "adapters" / "fedmkt" / name).glob("*.safetensors")).read_bytes()
            for name in ("server", *self.sites)
        }
        return found, summary


@pytest.fixture
def make_lab(tmp_path: Path) -> Iterator[Callable[..., Lab]]:
    """Deploy one, `make_lab(source="recipe:sites", overrides=())`; its processes end with the test."""
    made: list[Lab] = []

    def make(source: str = "recipe:sites", overrides: Sequence[str] = ()) -> Lab:
        made.append(Lab(tmp_path / f"lab{len(made) or ''}", load_config(source, [*SMALL, *overrides])))
        return made[-1]

    yield make
    for lab in made:
        lab.stop()
