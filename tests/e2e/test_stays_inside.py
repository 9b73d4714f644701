"""A run in one process writes into its folder and the caches it was given, and talks to nobody."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedtandem.config import RunConfig

HOOK = Path(__file__).parent / "watching"


def seen(watched: Path, kind: str) -> set[str]:
    """What all processes wrote down of one kind."""
    lines = [line.split("\t", 1) for file in watched.iterdir() for line in file.read_text().splitlines()]
    return {what for found, what in lines if found == kind}


@pytest.mark.slow
def test_nothing_is_written_elsewhere_and_nobody_is_reached(
    tiny: Callable[..., RunConfig], tmp_path: Path
) -> None:
    tiny()
    watched, home, run, cache = (tmp_path / name for name in ("watched", "home", "run", "cache"))
    for folder in (watched, home):
        folder.mkdir()
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join([str(HOOK), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "WATCHED": str(watched), "HOME": str(home), "FEDTANDEM_CACHE": str(cache), "TMPDIR": str(tmp_path / "tmp"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)  # torch sets it in the process that runs the tests
    (tmp_path / "tmp").mkdir()
    words = [
        "run",
        str(tmp_path / "tiny.toml"),
        "-o",
        "federation.num_rounds=1",
        "--output",
        str(run),
        "--json",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "fedtandem", *words], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    written = seen(watched, "write")
    assert str(run / "events.jsonl") in written  # the hook sees
    allowed = (str(run), str(cache), "/dev/", "/proc/", str(tmp_path / "tmp"))
    assert {path for path in written if not path.startswith(allowed)} == set()
    # torch makes this one when it is imported; it stays empty.
    assert [path for path in (tmp_path / "tmp").rglob("*") if not path.name.startswith("torchinductor")] == []
    assert list(home.iterdir()) == []
    assert seen(watched, "connect") | seen(watched, "name") == set()
