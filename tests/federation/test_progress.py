"""What a person sees who waits without a terminal."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from fedtandem.federation import progress
from fedtandem.federation.progress import Watch
from fedtandem.federation.runs import where_it_stopped


def test_off_a_terminal_a_long_stage_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    with Watch(Console(file=said)) as watch:
        watch("server: pretraining", 1, 5)
        assert said.getvalue() == ""
        monkeypatch.setattr(progress, "HEARTBEAT_S", 0.0)
        watch("server: pretraining", 2, 5)
    assert said.getvalue() == "server: pretraining: 2 of 5\n"


def test_a_resumed_run_says_where_it_goes_on(tmp_path: Path) -> None:
    assert "the run starts over" in where_it_stopped(tmp_path)
    events = [{"event": "round_committed", "method": "fedmkt", "round": n} for n in (1, 2)]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    assert where_it_stopped(tmp_path).endswith("goes on after fedmkt, round 2.")
