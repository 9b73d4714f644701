"""Two processes with half batches are one process with the whole batch."""

import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fedtandem.tuning.distributed import World, join_world, sum_gradients, sum_numbers

HERE = Path(__file__).parent

PROGRAM = """
import importlib.util, pickle, sys
from dataclasses import replace
import torch
spec = importlib.util.spec_from_file_location("tiny", sys.argv[1])
tiny = importlib.util.module_from_spec(spec); sys.modules["tiny"] = tiny; spec.loader.exec_module(tiny)
from fedtandem.tuning.phase import PhaseSettings, train_phase
torch.set_num_threads(1)
examples = [tiny.example(i, taught=i % 3 != 0, labelled=i != 4) for i in range(13)]
settings = PhaseSettings(learning_rate=1e-2, batch_size=int(sys.argv[2]), warmup_ratio=0.0)
lm = tiny.TinyLM()
report = train_phase(lm, examples, settings, replay=examples[:3], replay_fraction=0.25, gradient_share_every=1)
numbers = {name: value for name, value in vars(report).items() if name not in ("optimizer_state", "cpu_seconds")}
pickle.dump((lm.weights(), numbers), open(sys.argv[3], "wb"))
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
"""


def run(
    processes: int, batch_size: int, folder: Path
) -> list[tuple[dict[str, torch.Tensor], dict[str, Any]]]:
    """Train in this many processes, as `torchrun` would start them; (weights, report) of each."""
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
        words = [
            sys.executable,
            "-c",
            PROGRAM,
            str(HERE / "conftest.py"),
            str(batch_size),
            str(folder / f"{rank}.pkl"),
        ]
        started.append(subprocess.Popen(words, env=os.environ | group, stderr=subprocess.PIPE))
    for process in started:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()
    # Written by the program above a moment ago.
    return [pickle.loads((folder / f"{rank}.pkl").read_bytes()) for rank in range(processes)]


@pytest.mark.slow
def test_two_halves_equal_the_whole(tmp_path: Path) -> None:
    ((whole, report),) = run(1, 8, tmp_path)
    halves = run(2, 4, tmp_path)
    for weights, numbers in halves:
        for name, value in whole.items():
            assert torch.allclose(value, weights[name], atol=1e-6), name
        assert numbers == pytest.approx(report, abs=1e-5)
    assert all(torch.equal(halves[0][0][name], halves[1][0][name]) for name in whole)


def test_alone_nothing_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    world = join_world(torch.device("cpu"))
    assert world == World(0, 1)
    assert sum_numbers([1.0, 2.0], world, torch.device("cpu")) == [1.0, 2.0]
    weight = torch.nn.Parameter(torch.ones(2))
    sum_gradients([weight], world)
    assert weight.grad is None
