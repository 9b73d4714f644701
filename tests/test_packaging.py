"""What is shipped: built, installed elsewhere, run from an empty folder, and free of what may not be passed on."""

import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NON_COMMERCIAL = ("ag_news", "wic", "dialogsum")
"""Sets whose licence forbids passing them on, beside everything else that is shared."""


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist of this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def members(archive: Path) -> dict[str, bytes]:
    """Every file of a wheel or an sdist; of an sdist without its top folder."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return {name: wheel.read(name) for name in wheel.namelist() if not name.endswith("/")}
    with tarfile.open(archive) as sdist:
        files = [entry for entry in sdist.getmembers() if entry.isfile()]
        return {
            entry.name.split("/", 1)[1]: handle.read()
            for entry in files
            if (handle := sdist.extractfile(entry)) is not None
        }


def archives(built: Path) -> list[Path]:
    found = [*built.glob("*.whl"), *built.glob("*.tar.gz")]
    assert len(found) == 2
    return found


@pytest.mark.slow
def test_wheel_and_sdist_hold_what_they_must(built: Path) -> None:
    wheel, sdist = (members(archive) for archive in archives(built))
    for name in ("py.typed", "cli.py", "recipes/chains.toml"):
        assert f"fedtandem/{name}" in wheel
    assert any(name.endswith("licenses/LICENSE") for name in wheel)
    assert any(name.endswith("licenses/NOTICE") for name in wheel)
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "Makefile", "tests/conftest.py"):
        assert name in sdist
    assert not [name for name in (*wheel, *sdist) if "__pycache__" in name or ".venv" in name]
    checkpoints = [len(data) for name, data in wheel.items() if "models/embedded/" in name]
    assert sum(checkpoints) <= 3 * 2**20


@pytest.mark.slow
def test_nothing_that_may_not_be_passed_on_is_inside(built: Path, shared: Path) -> None:
    kept = [
        file
        for room in ("data", "tokenizers", "models")
        for file in (shared / room).rglob("*")
        if file.is_file()
    ]
    forbidden = {
        hashlib.sha256(file.read_bytes()).hexdigest(): file
        for file in kept
        # generation_config.json holds transformers' defaults: any two small models have the same.
        if not file.name.startswith(("README", "LICENSE", "generation_config"))
    }
    texts = [text.encode() for name in NON_COMMERCIAL for text in rows_of(shared / "data" / name)]
    assert len(texts) > 100
    for archive in archives(built):
        for name, data in members(archive).items():
            assert hashlib.sha256(data).hexdigest() not in forbidden, f"{archive.name}: {name}"
            assert not [text for text in texts if text in data], (
                f"{archive.name}: {name} holds a row of a data set"
            )


def rows_of(folder: Path) -> list[str]:
    """A piece of the longest text of some rows of every split."""
    pieces = []
    for file in sorted(folder.glob("*.jsonl.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            for _, line in zip(range(100), lines, strict=False):
                longest = max(
                    (value for value in json.loads(line).values() if isinstance(value, str)), key=len
                )
                pieces.append(longest[:60])
    return pieces


@pytest.mark.slow
def test_the_wheel_runs_the_demo_from_an_empty_folder_without_the_repository(
    built: Path, tmp_path: Path
) -> None:
    home, work = tmp_path / "venv", tmp_path / "empty"
    work.mkdir()
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    # The heavy dependencies come from this environment: a .pth line adds its folder but none of the .pth files in
    # it, so the checkout is not on the path.
    site = Path(subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
                               capture_output=True, text=True, check=True).stdout.strip())  # fmt: skip
    (site / "heavy.pth").write_text(sysconfig.get_path("purelib") + "\n")
    wheel = next(built.glob("*.whl"))
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "--quiet",
               "--force-reinstall", "--target", str(site), str(wheel)]  # fmt: skip
    subprocess.run(install, check=True, capture_output=True)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "FEDTANDEM_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "1",
    }
    where = subprocess.run([python, "-c", "import fedtandem; print(fedtandem.__file__)"], capture_output=True,
                           text=True, check=True, cwd=work, env=environment)  # fmt: skip
    assert Path(where.stdout.strip()).is_relative_to(site)
    demo = subprocess.run([python, "-m", "fedtandem.cli", "demo", "--output", "X"], capture_output=True, text=True,
                          cwd=work, env=environment)  # fmt: skip
    assert demo.returncode == 0, demo.stderr
    assert sorted(path.name for path in work.iterdir()) == ["X"]
    summary = json.loads((work / "X" / "summary.json").read_text())
    assert {"method", "party", "split", "metric", "higher_is_better", "value", "n", "seed"} <= set(
        summary["rows"][0]
    )
    assert (work / "X" / "report.html").stat().st_size > 10_000
    assert "report.html" in demo.stdout


def test_the_lock_pins_every_dependency_and_names_no_host() -> None:
    lock = (ROOT / "requirements-dev.lock").read_text()
    assert "://" not in lock
    pinned = {}
    for line in lock.splitlines():
        if line and not line.startswith("#"):
            name, equals, version = line.partition("==")
            assert equals, line
            pinned[canonical(name)] = version
    assert pinned["torch"] == "2.13.0"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert {canonical(re.split(r"[<>=\[; ]", line)[0]) for line in needed} <= set(pinned)


def test_dependencies_of_users_have_lower_bounds_only() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in project["dependencies"]:
        assert re.fullmatch(r"[A-Za-z0-9_-]+>=[\d.]+", line), line


def test_the_version_is_the_same_everywhere() -> None:
    import fedtandem

    assert f"version: {fedtandem.__version__}" in (ROOT / "CITATION.cff").read_text()


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
