"""Whole runs under DP: what is told of them, budgets that outlive a kill, exit code 7, and private text that stays."""

import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedtandem.config import RunConfig, load_resolved
from fedtandem.errors import PrivacyBudgetError
from fedtandem.exchange.carrier import Envelope
from fedtandem.exchange.frame import decode_frame
from fedtandem.federation.events import read_events
from fedtandem.federation.privacy_ledger import PrivacyLedger, noise_key
from fedtandem.federation.runs import run_methods
from fedtandem.federation.store import RoundStore
from fedtandem.models.load import ModelSpec, load_model
from fedtandem.tuning.accountant import epsilon_of

Tiny = Callable[..., RunConfig]
DP = (
    "privacy.dp.target_epsilon=8",
    "privacy.dp.target_delta=1e-3",
    "federation.num_rounds=2",
    "federation.keep_models=false",
)


class Killed(BaseException):
    """Nothing catches it, nothing cleans up after it."""


def ledgers(folder: Path) -> dict[str, list[Any]]:
    state = folder / "methods" / "standalone" / "state"
    return {name: PrivacyLedger(state / name).read() for name in ("clinic-a", "clinic-b")}


def weights(folder: Path) -> dict[str, bytes]:
    return {p.parent.name: p.read_bytes() for p in sorted((folder / "adapters").rglob("*.safetensors"))}


def test_a_run_under_dp_tells_its_epsilon_and_a_kill_gives_nothing_back(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(*DP)
    monkeypatch.setattr(secrets, "token_bytes", lambda n: bytes(range(n)))  # else no two runs are alike
    run_methods(config, ["standalone"], tmp_path / "whole")
    events = read_events(tmp_path / "whole" / "events.jsonl")
    told = [event for event in events if event["event"] == "privacy"]
    assert [(e["party"], e["round"]) for e in told] == [
        (c, r) for r in (1, 2) for c in ("clinic-a", "clinic-b")
    ]
    for name, spent in ledgers(tmp_path / "whole").items():
        mine = [event["epsilon"] for event in told if event["party"] == name]
        assert mine == [epsilon_of(spent[:1], 1e-3), epsilon_of(spent, 1e-3)]
        assert mine[0] < mine[1] <= 8.0
        assert mine[1] > 7.9
    private = [e for e in events if e["event"] == "phase" and e["phase"] == "private"]
    assert len(private) == 4
    assert all(
        e[key] is None for e in private for key in ("loss_first", "loss_last", "hard", "label_positions")
    )

    save, saves = RoundStore.save, 0

    def fragile(self: RoundStore, key: str, files: dict[str, bytes]) -> None:
        nonlocal saves
        saves += 1
        if saves in (2, 5):  # after a client's tuning, before it is committed
            raise Killed
        save(self, key, files)

    monkeypatch.setattr(RoundStore, "save", fragile)
    for _ in range(2):
        with pytest.raises(Killed):
            run_methods(config, ["standalone"], tmp_path / "killed", resume=(tmp_path / "killed").is_dir())
    run_methods(config, ["standalone"], tmp_path / "killed", resume=True)
    assert ledgers(tmp_path / "killed") == ledgers(tmp_path / "whole")
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


def test_a_spent_budget_ends_the_run_with_exit_code_7(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(*DP, "privacy.dp.noise_multiplier=1.0", "privacy.dp.target_epsilon=3")
    with pytest.raises(
        PrivacyBudgetError, match=r"clinic-a, round \d: the privacy budget is spent. \d+ private"
    ) as e:
        run_methods(config, ["standalone"], tmp_path / "run")
    assert e.value.exit_code == 7
    before = ledgers(tmp_path / "run")
    with pytest.raises(PrivacyBudgetError):
        run_methods(config, ["standalone"], tmp_path / "run", resume=True)
    assert ledgers(tmp_path / "run") == before


def test_the_noise_has_a_key_of_its_own_that_others_cannot_read(tmp_path: Path) -> None:
    key = noise_key(tmp_path / "a")
    assert key == noise_key(tmp_path / "a") != noise_key(tmp_path / "b")
    assert (tmp_path / "a" / "privacy.key").stat().st_mode & 0o077 == 0


CANARY = "the badge of nurse Quillfeather opens ward 7319 at dusk"


@pytest.mark.parametrize("labelled", ["true", "false"])
def test_marked_private_text_is_in_nothing_a_run_sends_or_writes(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labelled: str
) -> None:
    """Searched raw, decompressed, and as the client's token ids in any integer type."""
    private = tmp_path / "private.jsonl"
    rows = [{"prompt": f"note {i}:", "answer": f" {CANARY}"} for i in range(8)]
    private.write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = tiny(
        "federation.num_rounds=1", f"public.labelled={labelled}", "public.max_new_tokens=12", "report.enabled=false"
    ).resolved()  # fmt: skip
    whole["clients"][0]["data"] = {"path": str(private)}
    sent: list[bytes] = []
    to_bytes = Envelope.to_bytes

    def recorded(self: Envelope) -> bytes:
        data = to_bytes(self)
        sent.append(data)
        header, arrays = decode_frame(self.body)
        sent.append(json.dumps(header).encode())
        sent.extend(np.ascontiguousarray(array).tobytes() for array in arrays.values())
        return data

    monkeypatch.setattr(Envelope, "to_bytes", recorded)
    run = tmp_path / "run"
    run_methods(load_resolved(whole), ["fedmkt"], run)
    from fedtandem.reports.html import report_command

    report_command(run)
    adapter = run / "adapters" / "fedmkt" / "clinic-a"
    lm = load_model(ModelSpec(str(adapter), tuning_method="none"))
    ids = lm.tokenizer.encode_many([("", f" {CANARY}")])[0].targets[2:-2]
    marks = [CANARY.encode(), CANARY[10:35].encode()]
    marks += [ids.astype(kind).tobytes() for kind in (np.uint8, np.int32, np.int64, np.uint16)]
    files = [path for path in run.rglob("*") if path.is_file()]
    assert len(sent) > 10
    assert len(files) > 10
    assert marks[0] in private.read_bytes()  # the search finds what is there
    for name, data in [(str(i), data) for i, data in enumerate(sent)] + [
        (p.name, p.read_bytes()) for p in files
    ]:
        assert not [mark for mark in marks if mark in data], name
