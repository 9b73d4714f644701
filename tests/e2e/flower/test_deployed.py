"""Real processes, TLS, registered P-384 keys: what `fedtandem deploy` writes, started as an operator starts it."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedtandem.config import load_config
from fedtandem.federation.audit import read_audit
from fedtandem.federation.certificates import site_key
from fedtandem.federation.deploy import Place, deploy
from fedtandem.federation.events import read_events
from fedtandem.federation.runs import run_methods

ROOT = Path(__file__).resolve().parents[3]
SITES = ("clinic-a", "clinic-b", "clinic-c")
SMALL = ("federation.num_rounds=1", "public.chains.n=20", "public.max_new_tokens=12", "report.enabled=false")
LIMIT_S = 900
"""On a busy machine; alone on two cores the test takes a fifth of it."""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Lab:
    """A deployed folder, and the processes started from it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        node_port = next(port for port in iter(free_port, None) if abs(port - self.port) > 10)
        self.config = load_config("recipe:sites", SMALL)
        deploy(self.config, folder, Place(port=self.port, node_port=node_port))
        self.started: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {
            **os.environ, "FEDTANDEM_BIN": str(Path(sys.executable).parent), "PYTHONPATH": str(ROOT / "src"),
            "OMP_NUM_THREADS": "1", "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1", "HOME": str(folder / "home"),
        }  # fmt: skip
        (folder / "home").mkdir()

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

    def node(self, name: str) -> subprocess.Popen[bytes]:
        return self.start(name, str(self.folder / "sites" / name / "supernode.sh"))

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def events(self) -> list[str]:
        return [event["event"] for event in read_events(self.folder / "server" / "run" / "events.jsonl")]

    def run(self, *more: str) -> subprocess.Popen[bytes]:
        script = (
            f"cd server && . ./env.sh && exec python -m fedtandem run run.toml --connection lab --keys keys "
            f"--output run {' '.join(more)}"
        )
        return self.start("run", "sh", "-c", script)

    def stop(self) -> None:
        for process in reversed(self.started.values()):
            process.terminate()
        for process in self.started.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for(what: str, holds, lab: Lab, name: str = "run") -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < end, f"{what}: not within {LIMIT_S} s\n{lab.said(name)[-3000:]}"
        process = lab.started[name]
        assert process.poll() is None or holds(), f"{what}: {name} ended\n{lab.said(name)[-3000:]}"
        time.sleep(0.2)


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path / "lab")
    try:
        yield made
    finally:
        made.stop()


def adapters(lab: Lab) -> dict[str, bytes]:
    folders = {"server": lab.folder / "server" / "run" / "adapters" / "fedmkt" / "server"}
    for name in SITES:
        (folders[name],) = (lab.folder / "sites" / name / "state" / "runs").glob("*/fedmkt/adapter")
    return {name: next(folder.glob("*.safetensors")).read_bytes() for name, folder in folders.items()}


def of_one_process(lab: Lab, folder: Path) -> tuple[dict[str, bytes], dict[str, object]]:
    summary = run_methods(lab.config, ["fedmkt"], folder)
    found = {
        name: next((folder / "adapters" / "fedmkt" / name).glob("*.safetensors")).read_bytes()
        for name in ("server", *SITES)
    }
    return found, summary


@pytest.mark.slow
@pytest.mark.flower
def test_three_sites_give_the_bits_of_one_process_though_a_node_is_killed(lab: Lab, tmp_path: Path) -> None:
    """A stranger's key is not admitted; clinic-b's SuperNode is killed at work and started again until admitted."""
    lab.start("superlink", str(lab.folder / "server" / "superlink.sh"))
    wait_for("the SuperLink listens", lambda: answers(lab.port), lab, "superlink")
    assert subprocess.run([lab.folder / "server" / "register.sh"], env=lab.environment).returncode == 0
    stranger = lab.folder / "sites" / "stranger"
    shutil.copytree(lab.folder / "sites" / "clinic-a", stranger)
    (stranger / "key").write_bytes(site_key()[0])
    script = stranger / "supernode.sh"
    script.write_text(re.sub(r"--port \d+", f"--port {free_port()}", script.read_text()))
    assert lab.node("stranger").wait(LIMIT_S) != 0
    assert "Failed to activate SuperNode" in lab.said("stranger")
    for name in SITES:
        lab.node(name)
    run = lab.run()
    wait_for("round 1 begins", lambda: "round_started" in lab.events(), lab)
    lab.started["clinic-b"].kill()
    lab.started["clinic-b"].wait()
    while run.poll() is None:
        if lab.started["clinic-b"].poll() is not None:  # refused until its old session has ended
            time.sleep(5)
            lab.node("clinic-b")
        time.sleep(0.5)
    assert run.returncode == 0, lab.said("run")[-3000:]
    expected, summary = of_one_process(lab, tmp_path / "alone")
    assert adapters(lab) == expected
    deployed = json.loads((lab.folder / "server" / "run" / "summary.json").read_text())
    assert deployed["rows"] == summary["rows"]
    for name in SITES:
        log = read_audit(lab.folder / "sites" / name / "state" / "audit.jsonl")
        assert {entry["round"] for entry in log} == {0, 1, 2}
    assert list((lab.folder / "home").iterdir()) == []
