"""Anything the program writes, in plain words; anything else is refused with a reason."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from fedtandem.errors import DataError, InvalidMessage
from fedtandem.exchange.frame import encode_frame
from fedtandem.exchange.messages import FetchRequest
from fedtandem.reports.inspect import inspect_command


def test_runs_and_studies(run_folder, study_folder):
    assert "at-1-step: exact match 0.0" in inspect_command(run_folder)
    assert "20 of 20 cells finished" in inspect_command(study_folder)


def test_an_envelope_and_a_bare_frame(tmp_path):
    message = tmp_path / "message"
    message.write_bytes(FetchRequest(3, np.array([4, 7], dtype=np.int32)).to_envelope().to_bytes())
    assert "round 3" in inspect_command(message)
    frame = tmp_path / "frame"
    frame.write_bytes(encode_frame({"note": "hello"}, {"x": np.arange(3)}))
    assert "note = hello" in inspect_command(frame)


def test_a_tampered_envelope_is_an_invalid_message_that_names_the_file(tmp_path):
    path = tmp_path / "message"
    data = bytearray(FetchRequest(3, np.array([4, 7], dtype=np.int32)).to_envelope().to_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(InvalidMessage, match=str(path)):
        inspect_command(path)


def test_an_adapter_folder(tmp_path):
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": "m",
        "r": 8,
        "lora_alpha": 16,
        "target_modules": ["q"],
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file({"w": np.zeros((2, 3), dtype=np.float32)}, tmp_path / "adapter_model.safetensors")
    text = inspect_command(tmp_path)
    assert "a PEFT adapter (LORA) for 'm': r 8, alpha 16, modules q" in text
    assert "1 tensors, 6 numbers" in text


@pytest.mark.parametrize("ending", ["npy", "json"])
def test_a_vocabulary_map(tmp_path, ending):
    path = tmp_path / f"map.{ending}"
    if ending == "npy":
        np.save(path, np.array([5, -1, 5, 2], dtype=np.int32))
    else:
        path.write_text(json.dumps({"0": 5, "1": -1, "2": 5, "3": 2}))
    text = inspect_command(path)
    assert "4 teacher tokens to 2 different base tokens" in text
    assert "75.0 %" in text


def test_what_is_not_ours_is_refused(tmp_path):
    (tmp_path / "x.txt").write_text("hello")
    for path in (tmp_path / "x.txt", tmp_path, tmp_path / "nothing"):
        with pytest.raises(DataError, match=str(path)):
            inspect_command(path)


def test_a_state_is_known_by_its_first_bytes(tmp_path):
    save_file({"w": np.zeros((2, 3), dtype=np.float32)}, tmp_path / "state")
    assert "w F32(2, 3)" in inspect_command(tmp_path / "state")


def test_a_cut_safetensors_file_is_named(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"\xff" * 20)
    with pytest.raises(DataError, match="cut short"):
        inspect_command(path)
