"""The GPU benchmark runs from end to end at a tiny size, and says so where there is no GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.py"


def run(*words: str) -> str:
    quiet = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(BENCHMARK), *words],
        env=quiet,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


@pytest.mark.slow
def test_both_arms_and_the_public_pass_run_at_a_tiny_size() -> None:
    report = json.loads(run("--tiny", "--device", "cpu", "--steps", "4", "--json"))
    assert [result["shape"] for result in report["results"]] == ["server", "client"]
    assert all(result["speed_ratio"] > 0 and result["pass_tokens_per_s"] > 0 for result in report["results"])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac's own accelerator cannot be hidden")
def test_without_a_gpu_it_says_so() -> None:
    assert run() == "no GPU here: not run\n"
