"""`fedtandem run` with a carrier: what is refused before anything starts, and the simulation."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedtandem.cli import main
from fedtandem.config import RunConfig, load_config
from fedtandem.errors import ConfigError, NetworkError, QuorumError
from fedtandem.federation.deployed import Connection
from fedtandem.federation.runs import run_methods
from fedtandem.federation.submission import (
    fault_of,
    note_end,
    read_end,
    read_submission,
    with_exchange,
    write_submission,
)

Tiny = Callable[..., RunConfig]
LAB = '[superlink]\n[superlink.lab]\naddress = "10.0.0.5:8000"\nroot-certificates = "/ca.pem"\n'


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "flwr").mkdir()
    (tmp_path / "flwr" / "config.toml").write_text(LAB)
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    return tmp_path


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--keys", "x"], "--keys: is for --carrier flower"),
        (["--carrier", "flower"], "needs --connection NAME"),
        (["--connection", "lab"], "needs --keys DIR"),
        (["--connection", "lab", "--keys", "x", "--insecure"], "needs --keys DIR"),
        (["--connection", "lap", "--keys", "x"], r"no connection [superlink.lap] (there is lab)"),
        (["--connection", "lab", "--insecure"], "leaves this machine"),
    ],
)
def test_flags_that_cannot_be_carried_out_are_refused(
    tiny: Tiny, home: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    tiny()
    assert main(["run", str(home / "tiny.toml"), "--output", str(home / "run"), *words]) == 2
    assert says in capsys.readouterr().err
    assert not (home / "run").exists()


def test_a_connection_needs_a_home_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLWR_HOME", raising=False)
    with pytest.raises(ConfigError, match="FLWR_HOME is not set"):
        Connection("lab")


def test_a_superlink_that_does_not_answer_ends_with_exit_code_5(
    tiny: Tiny, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "flwr" / "config.toml").write_text('[superlink.lab]\naddress = "127.0.0.1:1"\ninsecure = true\n')
    tiny()
    words = [
        "run",
        str(home / "tiny.toml"),
        "--connection",
        "lab",
        "--insecure",
        "--output",
        str(home / "run"),
    ]
    assert main(words) == NetworkError.exit_code
    assert "go on with --resume" in capsys.readouterr().err
    assert json.loads((home / "run" / "run.json").read_text())["status"] == "failed"


def test_methods_that_need_the_clients_data_here_are_refused(tiny: Tiny, federation) -> None:  # type: ignore[no-untyped-def]
    for method, says in (("centralised", "private data in one place"), ("zero_shot", "measured untouched")):
        config = tiny(f"algorithm={method}")
        with pytest.raises(ConfigError, match=says):
            federation(config).run()


def test_a_run_for_sites_is_not_taken_for_one_of_this_process(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--connection NAME"):
        run_methods(tiny("federation.carrier=flower"), ["fedmkt"], tmp_path / "run")


def test_the_carrier_changes_no_hash_and_no_run_folder_changes_its_carrier(
    tiny: Tiny,
    tmp_path: Path,
    federation,  # type: ignore[no-untyped-def]
) -> None:
    assert tiny("federation.carrier=flower").hash == tiny().hash
    config = tiny("federation.num_rounds=1")
    flower = federation(config)
    flower.run()
    with pytest.raises(ConfigError, match="begun with the carrier 'in-process grid', not 'local'"):
        run_methods(config, ["fedmkt"], flower.folder / "server", resume=True)


def test_a_submission_and_its_end_lie_in_the_run_folder(tiny: Tiny, tmp_path: Path) -> None:
    written = write_submission(tmp_path, tiny(), resume=True, carrier="flower", keys=tmp_path)
    assert read_submission(tmp_path) == written
    assert read_end(tmp_path, written.id) is None
    note_end(tmp_path, written.id, 6, "too few")
    assert read_end(tmp_path, written.id) == (6, "too few")
    assert read_end(tmp_path, "another") is None
    assert isinstance(fault_of(6, "too few"), QuorumError)
    with pytest.raises(ConfigError, match="on this machine"):
        read_submission(tmp_path / "elsewhere")


def test_small_uploads_go_in_one_message(tiny: Tiny) -> None:
    assert with_exchange(tiny()).knowledge.exchange == "one_phase"
    assert with_exchange(tiny("public.chains.n=5000")).knowledge.exchange == "two_phase"
    assert with_exchange(tiny("knowledge.exchange=two_phase")).knowledge.exchange == "two_phase"


@pytest.mark.slow
@pytest.mark.flower_sim
def test_a_simulation_gives_the_bits_of_one_process(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="the extra `flower-sim` is not installed")
    monkeypatch.delenv("FLWR_HOME", raising=False)
    tiny()
    file, run = str(tmp_path / "tiny.toml"), tmp_path / "sim"
    words = [
        sys.executable,
        "-m",
        "fedtandem",
        "run",
        file,
        "-o",
        "knowledge.exchange=one_phase",
        "--output",
        str(run),
    ]
    wrong = subprocess.run([*words, "--simulate", "3"], capture_output=True, text=True)
    assert (wrong.returncode, "the run has 2 clients" in wrong.stderr) == (2, True)
    done = subprocess.run([*words, "--simulate", "2"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    config = load_config(file, ["knowledge.exchange=one_phase"])
    alone = run_methods(config, ["fedmkt"], tmp_path / "alone")
    simulated = json.loads((run / "summary.json").read_text())
    assert simulated["rows"] == alone["rows"]
    assert simulated["bytes"] == alone["bytes"]
    for client in config.clients:
        (adapter,) = (run / "sites" / client.name / "runs").glob("*/fedmkt/adapter/*.safetensors")
        ours = tmp_path / "alone" / "adapters" / "fedmkt" / client.name / adapter.name
        assert adapter.read_bytes() == ours.read_bytes()
