"""The share's parts are what the record says, and add up to the window from the first commit to the end."""

import importlib.util
import json
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "framework_share.py"


def test_the_parts_of_a_window_add_up(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("framework_share", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def phase(name: str, round_number: int, seconds: float) -> dict[str, object]:
        return {"event": "phase", "method": "m", "party": "a", "phase": name, "round": round_number,
                "cpu_seconds": seconds}  # fmt: skip

    commit = {"event": "round_committed", "method": "m"}
    events = [
        phase("align", 0, 9.0),
        phase("private", 1, 50.0),
        {**commit, "round": 1, "cpu_seconds": 60.0},
        phase("transport", 1, 1.0),  # clients learn round 1's lesson after its commit
        phase("public", 1, 20.0),
        phase("private", 2, 30.0),
        {**commit, "round": 2, "cpu_seconds": 112.5},
        phase("evaluate", 2, 5.0),
        {"event": "method_finished", "method": "m", "cpu_seconds": 118.0},
    ]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (share,) = module.shares(tmp_path)
    assert (share["models"], share["evaluation"], share["transport"]) == (50.0, 5.0, 1.0)
    assert share["coding_and_io"] == pytest.approx(118.0 - 60.0 - 56.0)
    assert share["share"] == pytest.approx(3.0 / 53.0)
