"""What one process holds does not grow with the rounds."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedtandem.config import RunConfig
from fedtandem.federation.events import EventLog
from fedtandem.federation.runs import run_methods


def held_bytes() -> int:
    gc.collect()
    tensors = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
    return sum(one.numel() * one.element_size() for one in tensors)


def test_later_rounds_hold_no_more_tensors(
    tiny: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []
    emit = EventLog.emit

    def counting(self: EventLog, event: str, **fields: Any) -> None:
        if event == "round_committed":
            held.append(held_bytes())
        emit(self, event, **fields)

    monkeypatch.setattr(EventLog, "emit", counting)
    run_methods(tiny("federation.num_rounds=5"), ["fedmkt"], tmp_path / "run")
    _, _, third, fourth, fifth = held
    assert third == fourth == fifth
