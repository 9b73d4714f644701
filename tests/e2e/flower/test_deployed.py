"""Real processes, TLS, registered P-384 keys: what `fedtandem deploy` writes, started as an operator starts it."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import tomli_w

from fedtandem.cli import main
from fedtandem.config import RunConfig, load_config
from fedtandem.data.traces import Trace, TraceInfo, joined, make_trace, write_trace
from fedtandem.federation.audit import read_audit
from fedtandem.federation.certificates import site_key
from fedtandem.federation.deploy import Place, deploy
from fedtandem.federation.events import read_events
from fedtandem.federation.runs import run_methods

ROOT = Path(__file__).resolve().parents[3]
HOOK = ROOT / "tests" / "e2e" / "watching"
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

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self.folder, self.port, self.config = folder, free_port(), config
        node_port = next(port for port in iter(free_port, None) if abs(port - self.port) > 10)
        deploy(self.config, folder, Place(port=self.port, node_port=node_port))
        self.started: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {
            **os.environ, "FEDTANDEM_BIN": str(Path(sys.executable).parent),
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(HOOK)]), "WATCHED": str(folder / "watched"),
            "OMP_NUM_THREADS": "1", "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1", "HOME": str(folder / "home"),
            "TMPDIR": str(folder / "tmp"),
        }  # fmt: skip
        self.environment.pop(
            "TORCHINDUCTOR_CACHE_DIR", None
        )  # torch sets it in the process that runs the tests
        for kept in ("home", "watched", "tmp"):
            (folder / kept).mkdir()

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
    made = Lab(tmp_path / "lab", load_config("recipe:sites", SMALL))
    try:
        yield made
    finally:
        made.stop()


def watched(lab: Lab, kind: str) -> set[str]:
    """What the hook saw in all processes; see `tests/e2e/watching`."""
    files = list((lab.folder / "watched").iterdir())
    assert len(files) > len(lab.started)
    lines = [line.split("\t", 1) for file in files for line in file.read_text().splitlines() if "\t" in line]
    return {what for found, what in lines if found == kind}


def stays_inside(lab: Lab) -> None:
    """No process wrote outside the lab, nor anything in its home folder, or talked to another machine."""
    allowed = (str(lab.folder), "/dev/", "/proc/")
    caches = [path for path in watched(lab, "write") if "__pycache__" in path]
    assert {path for path in watched(lab, "write") if not path.startswith(allowed)} - set(caches) == set()
    assert list((lab.folder / "home").iterdir()) == []
    here = ("('127.0.0.1'", "('::1'", "('localhost'", "/", "b'")  # the last two: Unix sockets
    assert {where for where in watched(lab, "connect") if not where.startswith(here)} == set()
    assert watched(lab, "name") <= {"127.0.0.1", "localhost", "::1", "None", socket.gethostname()}


def adapters(lab: Lab) -> dict[str, bytes]:
    folders = {"server": lab.folder / "server" / "run" / "adapters" / "fedmkt" / "server"}
    for name in (client.name for client in lab.config.clients):
        (folders[name],) = (lab.folder / "sites" / name / "state" / "runs").glob("*/fedmkt/adapter")
    return {name: next(folder.glob("*.safetensors")).read_bytes() for name, folder in folders.items()}


def of_one_process(lab: Lab, folder: Path) -> tuple[dict[str, bytes], dict[str, object]]:
    summary = run_methods(lab.config, ["fedmkt"], folder)
    found = {
        name: next((folder / "adapters" / "fedmkt" / name).glob("*.safetensors")).read_bytes()
        for name in ("server", *(client.name for client in lab.config.clients))
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
    stays_inside(lab)


@pytest.mark.slow
@pytest.mark.flower
@pytest.mark.skipif("FEDTANDEM_LONG" not in os.environ, reason="set FEDTANDEM_LONG=1: some minutes more")
def test_a_superlink_that_is_killed_is_started_again_and_the_run_resumed(tmp_path: Path) -> None:
    """One site; SIGKILL to the SuperLink and all it has started, in round 1; its database brings the site back."""
    document = tomllib.loads((files("fedtandem") / "recipes" / "sites.toml").read_text())
    document["clients"] = document["clients"][:1]
    (tmp_path / "one.toml").write_text(tomli_w.dumps(document))
    lab = Lab(tmp_path / "lab", load_config(tmp_path / "one.toml", [*SMALL, "federation.min_clients=1"]))
    try:
        lab.start("superlink", str(lab.folder / "server" / "superlink.sh"))
        wait_for("the SuperLink listens", lambda: answers(lab.port), lab, "superlink")
        assert subprocess.run([lab.folder / "server" / "register.sh"], env=lab.environment).returncode == 0
        lab.node("clinic-a")
        run = lab.run()
        wait_for("round 1 begins", lambda: "round_started" in lab.events(), lab)
        killed = lab.kill_with_children("superlink")
        assert len(killed) >= 2
        assert run.wait(LIMIT_S) == 5, lab.said("run")[-3000:]
        assert "--resume" in lab.said("run")
        lab.start("superlink", str(lab.folder / "server" / "superlink.sh"))
        wait_for("the SuperLink listens again", lambda: answers(lab.port), lab, "superlink")
        assert lab.run("--resume").wait(LIMIT_S) == 0, lab.said("run")[-3000:]
        assert adapters(lab) == of_one_process(lab, tmp_path / "alone")[0]
    finally:
        lab.stop()


@pytest.mark.slow
@pytest.mark.flower
@pytest.mark.skipif("FEDTANDEM_LONG" not in os.environ, reason="set FEDTANDEM_LONG=1: some minutes more")
def test_three_sites_calibrate_as_one_process_does_plain_and_under_masks(lab: Lab, tmp_path: Path) -> None:
    """`loopback.sh calibrate` as its user starts it; every site's process is new for every message."""
    traces = []
    for at, name in enumerate(SITES):
        traces.append(made_up_trace(name, at))
        own = lab.folder / "sites" / name
        write_trace(own / "calibration.parquet", traces[-1])
        text = (own / "site.toml").read_text().replace("# [calibration]\n# trace", "[calibration]\ntrace")
        (own / "site.toml").write_text(text.replace('"card"', '"card", "counts", "masked_counts"'))
    write_trace(tmp_path / "all.parquet", joined(traces))
    for more in ((), ("--masked",)):
        goal = ("--price", "0.2", *more)
        assert (
            main(["calibrate", str(tmp_path / "all.parquet"), *goal, "--output", str(tmp_path / "one.json")])
            == 0
        )
        across = lab.start("calibrate", str(lab.folder / "loopback.sh"), "calibrate", *goal)
        assert across.wait(LIMIT_S) == 0, lab.said("calibrate")[-3000:]
        assert (lab.folder / "server" / "policy.json").read_text() == (tmp_path / "one.json").read_text()
    for name in SITES:
        home = lab.folder / "sites" / name / "state"
        kinds = [entry["kind"] for entry in read_audit(home / "audit.jsonl")]
        assert kinds == ["card", *3 * ["calibrate"], "card", *6 * ["calibrate"]]
        assert not list(home.rglob("*.key"))
    stays_inside(lab)


def made_up_trace(client: str, seed: int) -> Trace:
    """300 decisions over four classes; the less sure the SLM, the more often the LLM says something else."""
    rng = np.random.default_rng(seed)
    q = rng.dirichlet(np.ones(4), 300).astype(np.float32)
    draft = q.argmax(axis=1)
    columns = {
        "client": [client] * 300, "cluster": [""] * 300, "session": [str(i) for i in range(300)],
        "position": np.zeros(300, int), "draft": draft, "slm_ids": np.tile(np.arange(4), (300, 1)), "slm_probs": q,
        "answer": np.where(rng.random(300) < q.max(axis=1), draft, (draft + 1) % 4),
    }  # fmt: skip
    return make_trace(TraceInfo("slm", "llm", 4), columns)
