"""Two processes on one run, as `torchrun` starts them: one record, the same result, and a kill that costs nothing."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedtandem.config import RunConfig

Tiny = Callable[..., RunConfig]

CLI = "import sys; from fedtandem.cli import main; sys.exit(main())"


def start(processes: int, file: Path, output: Path, *words: str) -> list[subprocess.Popen[bytes]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = []
    for rank in range(processes):
        group = {
            "RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        words_of_all = [
            "run",
            str(file),
            "--output",
            str(output),
            "-o",
            "server.tuning.peft.lora_dropout=0",
            *words,
        ]
        started.append(
            subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", CLI, *words_of_all],
                env=os.environ | (group if processes > 1 else {}),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
    return started


def finish(started: list[subprocess.Popen[bytes]]) -> list[bytes]:
    answers = [process.communicate(timeout=300) for process in started]
    for process, (_, errors) in zip(started, answers, strict=True):
        assert process.returncode == 0, errors.decode()
    return [out for out, _ in answers]


def weights(folder: Path) -> dict[str, np.ndarray]:
    return {
        f"{path.relative_to(folder)}/{name}": value
        for path in sorted((folder / "adapters").rglob("*.safetensors"))
        for name, value in load_file(path).items()
    }


def figures(folder: Path) -> dict[tuple[str, str], float]:
    rows = json.loads((folder / "summary.json").read_text())["rows"]
    return {(row["method"], row["party"]): row["value"] for row in rows}


@pytest.mark.slow
def test_two_processes_make_one_run(tiny: Tiny, tmp_path: Path) -> None:
    tiny()
    file = tmp_path / "tiny.toml"
    whole = ("-o", "controls=[]")
    halves = (*whole, "-o", "server.tuning.per_device_train_batch_size=4",
              "-o", "clients.*.tuning.per_device_train_batch_size=4")  # fmt: skip
    finish(start(1, file, tmp_path / "alone", *whole))
    spoken = finish(start(2, file, tmp_path / "two", *halves))
    assert b"held-out" in spoken[0]
    assert spoken[1] == b""
    # The same gradients summed in another order: not the same bits, but the same models to a hair.
    alone, together = figures(tmp_path / "alone"), figures(tmp_path / "two")
    assert together == pytest.approx(alone, abs=0.01)
    lines = (tmp_path / "two" / "events.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["event"] == "run_finished" for line in lines) == 1

    killed = start(2, file, tmp_path / "killed", *halves)
    until = time.monotonic() + 200
    while not list((tmp_path / "killed").glob("methods/fedmkt/state/server/0001")):
        assert time.monotonic() < until
        assert all(process.poll() is None for process in killed)
        time.sleep(0.02)
    for process in killed:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    finish(start(2, file, tmp_path / "killed", *halves, "--resume"))
    two, resumed = weights(tmp_path / "two"), weights(tmp_path / "killed")
    assert all(np.array_equal(two[name], resumed[name]) for name in two)
