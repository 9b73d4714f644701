"""A finished run's SLMs draft for its LLM: the text is the LLM's own, and a better SLM spares it more."""

import json
import shutil
from pathlib import Path

import pytest

from fedtandem.cli import main
from fedtandem.config import load_config
from fedtandem.models.embedded import embedded_folder

CONFIG = """
name = "two"
[server]
model = "embedded:chains-server"
[[clients]]
name = "a"
model = "embedded:chains-client-a"
data = { path = "embedded:chains", chains = { n = 4 } }
[public]
path = "embedded:chains"
labelled = false
max_new_tokens = 24
chains = { n = 4 }
[[evaluation.sets]]
name = "chains"
metric = "exact_match"
data = { path = "embedded:chains", chains = { n = 40, steps = [1] } }
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder whose clients ended as the server: the best drafter there can be."""
    folder = tmp_path / "run"
    folder.mkdir()
    (tmp_path / "two.toml").write_text(CONFIG)
    config = load_config(tmp_path / "two.toml")
    record = {"methods": ["fedmkt"], "status": "finished", "config": config.resolved()}
    (folder / "run.json").write_text(json.dumps(record))
    for party in ("server", "a"):
        shutil.copytree(embedded_folder("embedded:chains-server"), folder / "adapters" / "fedmkt" / party)
    return folder


def test_the_text_is_the_llms_and_a_perfect_slm_spares_all_that_can_be(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["joint", str(run), "--prompts", "12", "--json"]) == 0
    alone, untouched, tuned = json.loads(capsys.readouterr().out)
    assert json.loads((run / "joint.json").read_text()) == [alone, untouched, tuned]
    assert [row["slm"] for row in (alone, untouched, tuned)] == ["none", "untouched", "co-tuned"]
    assert all(row["equal"] + row["tied"] == row["answers"] == 12 for row in (alone, untouched, tuned))
    assert alone["saved"] == 0
    assert tuned["accepted"] == 1
    assert tuned["llm_passes"] <= untouched["llm_passes"] < alone["llm_passes"]
    assert main(["joint", str(run), "--prompts", "3"]) == 0
    assert "co-tuned" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda run: (run / "run.json").unlink(), "no run folder"),
        (lambda run: shutil.rmtree(run / "adapters" / "fedmkt" / "a"), "trained no client"),
        (lambda run: (run / "run.json").write_text(
            (run / "run.json").read_text().replace("finished", "running")), "--resume"),
    ],
)  # fmt: skip
def test_what_is_no_finished_run_is_refused(
    run: Path, change, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change(run)
    assert main(["joint", str(run)]) == 2
    assert says in capsys.readouterr().err
    assert not (run / "joint.json").exists()
