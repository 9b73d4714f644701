"""Killed anywhere and resumed, a run ends in the bits of a run that was never disturbed."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedtandem.config import RunConfig
from fedtandem.federation.runs import run_methods
from fedtandem.federation.store import RoundStore

Tiny = Callable[..., RunConfig]
ROUNDS = ("federation.num_rounds=2", "federation.keep_models=false")


class Killed(BaseException):
    """What a kill looks like from inside: nothing catches it, nothing cleans up after it."""


def final(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted((folder / "adapters").rglob("*.safetensors"))
    }


def same_weights(a: Path, b: Path) -> None:
    left, right = final(a), final(b)
    assert left.keys() == right.keys()
    for name in left:
        one, two = load_file(a / name), load_file(b / name)
        assert all(np.array_equal(one[key], two[key]) for key in one), f"{name} differs"


@pytest.mark.parametrize(
    ("method", "labelled"), [("fedmkt", "true"), ("fedmkt", "false"), ("llm2slm", "true")]
)
def test_killed_around_every_commit(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, labelled: str
) -> None:
    config = tiny(*ROUNDS, f"public.labelled={labelled}", "public.max_new_tokens=16")
    whole = run_methods(config, [method], tmp_path / "whole")
    save, saves, kill_at = RoundStore.save, 0, -1

    def fragile(self: RoundStore, key: str, files: dict[str, bytes]) -> None:
        nonlocal saves
        saves += 1
        if saves == kill_at:
            if kill_at % 2:
                save(self, key, files)  # killed just after the commit; else just before
            raise Killed
        save(self, key, files)

    monkeypatch.setattr(RoundStore, "save", fragile)
    resumed, kills = None, 0
    for kill in range(1, 40):
        saves, kill_at = 0, 1 + kill % 2
        try:
            resumed = run_methods(
                config, [method], tmp_path / "killed", resume=(tmp_path / "killed" / "run.json").is_file()
            )
        except Killed:
            kills += 1
            continue
        break
    assert kills >= 5
    assert resumed is not None
    assert resumed["rows"] == whole["rows"]
    same_weights(tmp_path / "whole", tmp_path / "killed")


SCRIPT = """
import sys
from pathlib import Path
from fedtandem.config import load_config
from fedtandem.federation.runs import run_methods
folder = Path(sys.argv[2])
run_methods(load_config(sys.argv[1], sys.argv[3:]), ["fedmkt"], folder, resume=(folder / "run.json").is_file())
"""


@pytest.mark.slow
def test_kill_9_at_random_instants(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(*ROUNDS)
    run_methods(config, ["fedmkt"], tmp_path / "whole")
    instants = np.random.default_rng(0).uniform(0.2, 3.0, size=5)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "tiny.toml"), str(tmp_path / "killed"), *ROUNDS]
    kills = 0
    for instant in [*instants, None]:
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            if instant is None:
                assert process.wait(timeout=300) == 0
                break
            while not (tmp_path / "killed" / "run.json").is_file() and process.poll() is None:
                time.sleep(0.05)
            time.sleep(float(instant))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
        finally:
            process.kill() if process.poll() is None else None
            process.wait()
    assert kills >= 2
    same_weights(tmp_path / "whole", tmp_path / "killed")
