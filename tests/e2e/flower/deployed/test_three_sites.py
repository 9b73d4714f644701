"""Real processes, TLS, registered P-384 keys: the numbers are those of one process, whatever is killed."""

import json
import os
import re
import shutil
import socket
import time
import tomllib
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fedtandem.federation.audit import read_audit
from fedtandem.federation.certificates import site_key

pytestmark = [pytest.mark.slow, pytest.mark.flower]
MakeLab = Callable[..., Any]


def watched(lab: Any, kind: str) -> set[str]:
    """What the hook saw in all processes; see `tests/e2e/watching`."""
    files = list((lab.folder / "watched").iterdir())
    assert len(files) > len(lab.started)
    lines = [line.split("\t", 1) for file in files for line in file.read_text().splitlines() if "\t" in line]
    return {what for found, what in lines if found == kind}


def stays_inside(lab: Any) -> None:
    """No process wrote outside the lab, nor anything in its home folder, or talked to another machine."""
    allowed = (str(lab.folder), "/dev/", "/proc/")
    caches = [path for path in watched(lab, "write") if "__pycache__" in path]
    assert {path for path in watched(lab, "write") if not path.startswith(allowed)} - set(caches) == set()
    assert list((lab.folder / "home").iterdir()) == []
    here = ("('127.0.0.1'", "('::1'", "('localhost'", "/", "b'")  # the last two: Unix sockets
    assert {where for where in watched(lab, "connect") if not where.startswith(here)} == set()
    assert watched(lab, "name") <= {"127.0.0.1", "localhost", "::1", "None", socket.gethostname()}


def test_three_sites_give_the_bits_of_one_process_though_a_node_is_killed(
    make_lab: MakeLab, tmp_path: Path
) -> None:
    """A stranger's key is not admitted; clinic-b's SuperNode is killed at work and started again until admitted."""
    lab = make_lab()
    lab.superlink()
    lab.register()
    stranger = lab.folder / "sites" / "stranger"
    shutil.copytree(lab.folder / "sites" / "clinic-a", stranger)
    (stranger / "key").write_bytes(site_key()[0])
    script = stranger / "supernode.sh"
    script.write_text(re.sub(r"--port \d+", f"--port {lab.free_port()}", script.read_text()))
    assert lab.node("stranger").wait(lab.limit_s) != 0
    assert "Failed to activate SuperNode" in lab.said("stranger")
    for name in lab.sites:
        lab.node(name)
    run = lab.run()
    lab.wait_for("round 1 begins", lambda: "round_started" in lab.events())
    lab.started["clinic-b"].kill()
    lab.started["clinic-b"].wait()
    while run.poll() is None:
        if lab.started["clinic-b"].poll() is not None:  # refused until its old session has ended
            time.sleep(5)
            lab.node("clinic-b")
        time.sleep(0.5)
    assert run.returncode == 0, lab.said("run")[-3000:]
    expected, summary = lab.of_one_process(tmp_path / "alone")
    assert lab.adapters() == expected
    deployed = json.loads((lab.folder / "server" / "run" / "summary.json").read_text())
    assert deployed["rows"] == summary["rows"]
    for name in lab.sites:
        log = read_audit(lab.folder / "sites" / name / "state" / "audit.jsonl")
        assert {entry["round"] for entry in log} == {0, 1, 2}
    stays_inside(lab)


@pytest.mark.skipif("FEDTANDEM_LONG" not in os.environ, reason="set FEDTANDEM_LONG=1: some minutes more")
def test_a_superlink_that_is_killed_is_started_again_and_the_run_resumed(
    make_lab: MakeLab, tmp_path: Path
) -> None:
    """One site; SIGKILL to the SuperLink and all it has started, in round 1; its database brings the site back."""
    document = tomllib.loads((files("fedtandem") / "recipes" / "sites.toml").read_text())
    document["clients"] = document["clients"][:1]
    (tmp_path / "one.toml").write_text(tomli_w.dumps(document))
    lab = make_lab(tmp_path / "one.toml", ["federation.min_clients=1"])
    lab.superlink()
    lab.register()
    lab.node("clinic-a")
    run = lab.run()
    lab.wait_for("round 1 begins", lambda: "round_started" in lab.events())
    killed = lab.kill_with_children("superlink")
    assert len(killed) >= 2
    assert run.wait(lab.limit_s) == 5, lab.said("run")[-3000:]
    assert "--resume" in lab.said("run")
    lab.superlink()
    assert lab.run("--resume").wait(lab.limit_s) == 0, lab.said("run")[-3000:]
    assert lab.adapters() == lab.of_one_process(tmp_path / "alone")[0]
