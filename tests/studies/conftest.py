"""A study in miniature: a config file, and a stand-in for a run that writes what a run writes."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from fedtandem.config import RunConfig, StudyConfig, load_study

STUDY = """
name = "miniature"
algorithm = "fedmkt"
[server]
model = "embedded:chains-server"
  [server.tuning]
  method = "full"
[[clients]]
name = "a"
model = "embedded:chains-client-a"
  [clients.data]
  path = "embedded:chains"
    [clients.data.chains]
    n = 10
[[clients]]
name = "b"
model = "embedded:chains-client-b"
  [clients.data]
  path = "embedded:chains"
    [clients.data.chains]
    n = 10
[public]
path = "embedded:chains"
  [public.chains]
  n = 10
[study]
methods = ["standalone_public", "server_public", "fedmkt"]
seeds = [0, 1, 2, 3, 4]
"""

SKILL = {"standalone_public": 0.5, "server_public": 0.6, "fedmkt": 0.8, "zero_shot": 0.2}
PARTIES = {"standalone_public": ("a", "b"), "server_public": ("server",), "fedmkt": ("server", "a", "b")}
N_ITEMS = 200


class FakeRun:
    """Stands in for `run_methods`: a party knows a share SKILL of 200 test chains, whatever it was taught.

    It proves the study's own arithmetic: every figure it should report can be read off SKILL.
    """

    def __init__(self, skill: dict[str, float] | None = None) -> None:
        self.skill = skill or SKILL
        self.calls: list[tuple[str, int, bool]] = []
        self.fails_at: tuple[str, int] | None = None
        self.memos: list[dict[str, Any]] = []
        self.error: Exception = KeyboardInterrupt()  # type: ignore[assignment]

    def __call__(
        self,
        config: RunConfig,
        methods: Sequence[str],
        output: Path,
        *,
        resume: bool,
        progress: Callable[[str, int, int], None],
        measure_untouched: bool,
        memo: dict[str, Any],
    ) -> None:
        assert not measure_untouched
        memo[config.algorithm] = config.seed
        self.memos.append(memo)
        (method,) = methods
        self.calls.append((method, config.seed, resume))
        output.mkdir(parents=True, exist_ok=True)
        record: dict[str, Any] = {
            "schema": 1, "config_hash": config.hash, "methods": list(methods), "status": "running",
            "public_hash": f"public-{config.seed}", "models": {"server": {"name": "tiny", "trainable": 10}},
            "versions": {"python": "3"},
        }  # fmt: skip
        (output / "run.json").write_text(json.dumps(record))
        if self.fails_at == (method, config.seed):
            raise self.error
        rng = np.random.default_rng([config.seed, len(method)])
        rows, items, events = [], {}, []
        for party in PARTIES[method]:
            known = (rng.random(N_ITEMS) < self.skill[method]).astype(np.float32)
            items[f"{party}|own|exact_match|value"] = known
            items[f"{party}|own|exact_match|weight"] = np.ones(N_ITEMS, dtype=np.float32)
            measured = {"method": method, "party": party, "split": "own", "metric": "exact_match",
                        "higher_is_better": True, "n": N_ITEMS}  # fmt: skip
            rows.append({**measured, "value": float(known.mean()), "seed": config.seed})
            rows.append({**measured, "method": "zero_shot", "value": 0.2, "seed": config.seed})
            events.append({"event": "phase", "method": method, "round": 1, "party": party, "phase": "public",
                           "cpu_seconds": 2.0, "steps": 30})  # fmt: skip
            events.append({"event": "metric", "round": 1, "value": float(known.mean()), **measured})
        summary = {
            "schema": 1,
            "rows": rows,
            "bytes": [{"method": method, "round": 1, "party": "a", "up": 100, "down": 900}],
            "cpu_seconds": [{"method": method, "round": 1, "party": p, "phase": "public", "value": 2.0}
                            for p in PARTIES[method]],
        }  # fmt: skip
        (output / "items").mkdir(exist_ok=True)
        save_file(items, output / "items" / f"{method}.safetensors")
        (output / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
        (output / "summary.json").write_text(json.dumps(summary))
        (output / "run.json").write_text(json.dumps({**record, "status": "finished"}))


@pytest.fixture
def fake_run() -> FakeRun:
    return FakeRun()


@pytest.fixture
def study(tmp_path: Path) -> Callable[..., StudyConfig]:
    """The study file above, with changes."""

    def load(extra: str = "", **overrides: Any) -> StudyConfig:
        file = tmp_path / "study.toml"
        file.write_text(STUDY + extra)
        return load_study(file, overrides)

    return load
