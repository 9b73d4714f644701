"""The command line: cheap to start, one line per fault, the right exit code."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fedtandem import cli, errors
from fedtandem.errors import FedtandemError, error_classes

HEAVY = ("torch", "transformers", "flwr", "numpy", "pydantic", "matplotlib", "rich", "datasets", "peft")

CODES = {
    "FedtandemError": 1,
    "ConfigError": 2,
    "PublicSetMismatch": 2,
    "ConsentError": 2,
    "DataError": 3,
    "ModelError": 4,
    "VocabularyMismatch": 4,
    "UnknownTokenId": 4,
    "NetworkError": 5,
    "QuorumError": 6,
    "PrivacyBudgetError": 7,
    "OutOfMemoryFailure": 8,
    "InvalidMessage": 9,
    "DiskFull": 10,
    "Interrupted": 130,
}


def loaded_by(program: str) -> set[str]:
    """Which heavy packages a program has loaded when it ends."""
    script = f"import sys\n{program}\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split()) if done.stdout.strip() else set()


HELP = (
    "from fedtandem.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
    "from fedtandem.cli import main\ntry: main(['run', '--help'])\nexcept SystemExit: pass",
    "from fedtandem.cli import main\ntry: main(['route', '--help'])\nexcept SystemExit: pass",
)


@pytest.mark.parametrize("program", ["import fedtandem", "import fedtandem.errors", *HELP])
def test_importing_and_helping_load_nothing_heavy(program: str) -> None:
    assert loaded_by(program) == set()


@pytest.mark.parametrize("program", ["import fedtandem.config", "from fedtandem import load_config"])
def test_a_config_knows_neither_torch_nor_an_engine(program: str) -> None:
    assert not loaded_by(program) & {"torch", "transformers", "flwr", "datasets", "peft"}


def test_help_takes_less_than_three_tenths_of_a_cpu_second() -> None:
    def cpu_seconds() -> float:
        before = os.times()
        subprocess.run([sys.executable, "-m", "fedtandem.cli", "--help"], capture_output=True, check=True)
        after = os.times()
        return after.children_user - before.children_user

    assert min(cpu_seconds() for _ in range(3)) < 0.3


def test_public_names_are_there() -> None:
    import fedtandem

    assert set(fedtandem.__all__) <= set(dir(fedtandem))
    for name in fedtandem.__all__:
        assert getattr(fedtandem, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = fedtandem.nonsense  # type: ignore[attr-defined]


def test_every_error_has_its_exit_code_and_its_place_in_the_drawing() -> None:
    tree = list(error_classes())
    assert {kind.__name__: kind.exit_code for kind in tree if kind.__module__ == errors.__name__} == CODES
    for kind in tree[1:]:
        assert kind.exit_code in (kind.__base__.exit_code, CODES.get(kind.__name__))  # type: ignore[union-attr]
    drawn = re.findall(r"^[ │├└─]*([A-Z]\w+) +(\d+) ", errors.__doc__ or "", re.MULTILINE)
    assert {name: int(code) for name, code in drawn} == CODES


def raising(fault: BaseException) -> cli.Command:
    def call(_: object) -> int:
        raise fault

    return cli.Command("fails", lambda parser: None, call)


@pytest.mark.parametrize(
    "kind", [kind for kind in error_classes() if "__init__" not in vars(kind)], ids=lambda kind: kind.__name__
)
def test_a_fault_is_one_clear_line_and_its_exit_code(
    kind: type[FedtandemError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cli.COMMANDS, "run", raising(kind("client 3, round 2: x is 7; use 1")))
    assert cli.main(["run"]) == kind.exit_code
    out = capsys.readouterr()
    assert (out.out, out.err) == ("", "fedtandem run: client 3, round 2: x is 7; use 1\n")


def test_an_interruption_ends_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cli.COMMANDS, "run", raising(KeyboardInterrupt()))
    assert cli.main(["run"]) == 130
    assert "--resume" in capsys.readouterr().err


def test_an_unknown_fault_is_short_and_shows_its_trace_only_when_debugging(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cli.COMMANDS, "run", raising(ZeroDivisionError("by zero")))
    assert cli.main(["run"]) == 1
    short = capsys.readouterr().err
    assert short.count("\n") == 1
    assert "ZeroDivisionError: by zero" in short
    assert cli.main(["run", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_no_command_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in cli.COMMANDS)


def test_an_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["rnu"])
    assert ended.value.code == 2


def test_a_missing_config_is_a_usage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for word in ("run", "check", "study"):
        assert cli.main([word, "nosuch.toml"]) == 2
        assert "nosuch.toml" in capsys.readouterr().err


def test_the_demo_names_the_controls_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--controls", "nosuch", "--output", str(tmp_path / "demo")]) == 2
    assert 'controls.0 = "nosuch"' in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_every_command_function_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lazy imports of the table name things that are there."""
    import ast
    import importlib

    files = [Path(cli.__file__), *(Path(cli.__file__).parent / "federation" / "flags").glob("*.py")]
    lazy = [
        (node.module, alias.name)
        for file in files
        for function in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert len(lazy) >= len(cli.COMMANDS)
    for module, name in lazy:
        assert hasattr(importlib.import_module(str(module)), name), (module, name)


def test_recipes_are_listed_and_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["recipes", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {"chains", "heterogeneous", "homogeneous", "one_to_one", "llm2slm", "mined"} <= set(listed)
    assert all(listed.values())
    assert cli.main(["recipes", "mined"]) == 0
    assert (tmp_path / "mined.toml").is_file()
    from fedtandem.config import load_config

    assert load_config(tmp_path / "mined.toml").resolved() == load_config("recipe:mined").resolved()
    assert cli.main(["recipes", "mined"]) == 2  # it would be written over
    assert cli.main(["recipes", "mind"]) == 2
    assert "mined" in capsys.readouterr().err
