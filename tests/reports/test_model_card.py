"""The card of an exported model."""

import json
import shutil

import pytest
import yaml

from fedtandem.errors import ConfigError
from fedtandem.reports.model_card import model_card


def front_matter(card):
    return yaml.safe_load(card.split("---")[1])


def test_a_card_says_what_the_convention_asks(run_folder):
    card = model_card(run_folder, "fedmkt", "server")
    for fact in ("embedded:chains-server", "2 clients and a server", "**Rounds:** 5", "dual_min_ce", "550",
                 "| at-1-step (n = 1000) | exact match | 0.0", "num_rounds = 5", "e3b0" * 16):  # fmt: skip
        assert fact in card


def test_an_adapter_names_peft_and_its_hub_base(run_folder, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    about = json.loads((folder / "run.json").read_text())
    about["models"]["clinic-a"] |= {"name": "facebook/opt-1.3b", "trainable": 10}
    about["config"]["clients"] = [
        {"name": "clinic-a", "data": {"path": ["/home/somebody/secret/notes.jsonl"]}}
    ]
    (folder / "run.json").write_text(json.dumps(about))
    card = model_card(folder, "fedmkt", "clinic-a")
    assert front_matter(card)["library_name"] == "peft"
    assert front_matter(card)["base_model"] == "facebook/opt-1.3b"
    assert (
        front_matter(model_card(folder, "fedmkt", "clinic-a", merged=True))["library_name"] == "transformers"
    )
    assert "/home/somebody" not in card  # where private files lie is nobody's business


def test_a_control_has_a_card_without_a_comparison(run_folder):
    assert "| 0.4" in model_card(run_folder, "server_public", "server")


def test_an_unknown_party_is_refused(run_folder):
    with pytest.raises(ConfigError, match="clinic-a"):
        model_card(run_folder, "fedmkt", "clinic-z")
