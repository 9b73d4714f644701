"""Whole runs over the local carrier: every message encoded, counted and decoded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedtandem.config import RunConfig
from fedtandem.errors import ConfigError
from fedtandem.exchange.carrier import Envelope
from fedtandem.federation.events import read_events
from fedtandem.federation.local import Fault
from fedtandem.federation.runs import run_methods

Tiny = Callable[..., RunConfig]


def weights(folder: Path, method: str = "fedmkt") -> dict[str, dict[str, np.ndarray]]:
    """party -> its final tensors."""
    return {
        party.name: {
            f"{file.name}/{name}": value
            for file in sorted(party.glob("*.safetensors"))
            for name, value in load_file(file).items()
        }
        for party in sorted((folder / "adapters" / method).iterdir())
    }  # fmt: skip


def assert_same(a: dict[str, dict[str, np.ndarray]], b: dict[str, dict[str, np.ndarray]]) -> None:
    assert a.keys() == b.keys()
    for party in a:
        assert a[party].keys() == b[party].keys()
        for name, value in a[party].items():
            assert np.array_equal(value, b[party][name]), f"{party}: {name} differs"


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(folder / "events.jsonl") if event["event"] == kind]


def values(summary: dict[str, Any], method: str) -> dict[str, float]:
    return {row["party"]: row["value"] for row in summary["rows"] if row["method"] == method}


def test_one_seed_twice_gives_the_same_record_and_bits(tiny: Tiny, tmp_path: Path) -> None:
    first = run_methods(tiny(), ["fedmkt", "standalone_public"], tmp_path / "one")
    second = run_methods(tiny(), ["fedmkt", "standalone_public"], tmp_path / "two")
    assert first["rows"] == second["rows"]
    assert first["bytes"] == second["bytes"]
    assert_same(weights(tmp_path / "one"), weights(tmp_path / "two"))
    assert values(first, "fedmkt").keys() == {"server", "clinic-a", "clinic-b"}
    assert values(first, "standalone_public").keys() == {"clinic-a", "clinic-b"}
    assert values(first, "zero_shot").keys() == {"server", "clinic-a", "clinic-b"}


def test_one_phase_two_phase_and_shared_downlink_end_in_the_same_bits(tiny: Tiny, tmp_path: Path) -> None:
    # u8 or fp16, sent at once or on demand: the winners and the targets are the same, only the bytes differ.
    summaries = {}
    for name, override in {
        "two": "knowledge.exchange=two_phase",
        "one": "knowledge.exchange=one_phase",
        "shared": "knowledge.downlink=shared",
    }.items():
        summaries[name] = run_methods(tiny(override), ["fedmkt"], tmp_path / name)
    for name in ("one", "shared"):
        assert_same(weights(tmp_path / "two"), weights(tmp_path / name))
    up = {name: sum(row["up"] for row in summary["bytes"]) for name, summary in summaries.items()}
    assert up["two"] < up["one"]


def test_an_undisturbed_run_and_one_with_duplicates_and_lost_messages_agree(
    tiny: Tiny, tmp_path: Path
) -> None:
    plain = run_methods(tiny("federation.min_clients=2"), ["fedmkt"], tmp_path / "plain")
    seen: dict[tuple[str, str, int], int] = {}

    def faults(party: str, envelope: Envelope) -> Fault | None:
        key = (party, envelope.kind, envelope.round)
        seen[key] = seen.get(key, 0) + 1
        if seen[key] > 1:
            return None
        return Fault("duplicate" if party == "clinic-a" else "lost")

    again = run_methods(tiny("federation.min_clients=2"), ["fedmkt"], tmp_path / "faulty", faults=faults)
    assert again["rows"] == plain["rows"]
    assert_same(weights(tmp_path / "plain"), weights(tmp_path / "faulty"))


def test_a_lost_client_equals_a_client_that_was_not_asked(tiny: Tiny, tmp_path: Path) -> None:
    def lose_b(party: str, envelope: Envelope) -> Fault | None:
        return Fault("lost") if party == "clinic-b" and envelope.kind != "card" else None

    run_methods(tiny(), ["fedmkt"], tmp_path / "lost", faults=lose_b)
    teachers = events(tmp_path / "lost", "selection")
    assert all("clinic-b" not in event["teachers"] for event in teachers if event["party"] == "server")
    assert {event["party"] for event in events(tmp_path / "lost", "absence")} == {"clinic-b"}


def test_hard_weight_one_is_the_control_bit_for_bit(tiny: Tiny, tmp_path: Path) -> None:
    # All weight on the labels: FedMKT's clients do what the same public labels do without any exchange.
    config = tiny("distillation.hard_weight=1.0", "distillation.hard_weight_up=1.0")
    run_methods(config, ["fedmkt", "standalone_public", "server_public"], tmp_path / "run")
    mutual = weights(tmp_path / "run")
    assert_same(
        {k: mutual[k] for k in ("clinic-a", "clinic-b")}, weights(tmp_path / "run", "standalone_public")
    )
    assert_same({"server": mutual["server"]}, weights(tmp_path / "run", "server_public"))


@pytest.mark.parametrize(
    "method", ["llm2slm", "fedmkt_mined", "fedmkt_no_selection", "centralised", "zero_shot"]
)
def test_every_method_runs_and_trains_whom_it_says(tiny: Tiny, tmp_path: Path, method: str) -> None:
    summary = run_methods(tiny("federation.num_rounds=1"), [method], tmp_path / "run")
    expected = {
        "llm2slm": {"clinic-a", "clinic-b"},
        "fedmkt_mined": {"server", "clinic-a", "clinic-b"},
        "fedmkt_no_selection": {"server", "clinic-a", "clinic-b"},
        "centralised": {"server"},
        "zero_shot": set(),
    }[method]
    folder = tmp_path / "run" / "adapters" / method
    assert ({p.name for p in folder.iterdir()} if folder.is_dir() else set()) == expected
    assert values(summary, method)


def test_a_single_client_works(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny()
    alone = config.model_copy(update={"clients": config.clients[:1]})
    summary = run_methods(alone, ["fedmkt"], tmp_path / "run")
    assert values(summary, "fedmkt").keys() == {"server", "clinic-a"}


def test_equal_clients_average_to_one_model(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny()
    a, b = config.clients
    twins = config.model_copy(update={"clients": (a, b.model_copy(update={
        "model": a.model, "scratch": a.scratch, "tuning": a.tuning})), "seed": 3})  # fmt: skip
    run_methods(twins, ["fedavg"], tmp_path / "run")
    final = weights(tmp_path / "run", "fedavg")
    assert_same({"x": final["clinic-a"]}, {"x": final["clinic-b"]})


def test_the_record_says_what_section_18_asks_for(tiny: Tiny, tmp_path: Path) -> None:
    summary = run_methods(tiny(), ["fedmkt"], tmp_path / "run")
    phases = events(tmp_path / "run", "phase")
    public = [event for event in phases if event["phase"] == "public"]
    assert {(event["party"], event["round"]) for event in public} == {
        (party, t) for party in ("server", "clinic-a", "clinic-b") for t in (1, 2)
    }
    assert all(
        {"hard", "soft", "kd_gradient_share", "active_positions", "steps"} <= event.keys() for event in public
    )
    # Alignment is made once: its cost from round 2 on is nothing.
    assert {event["round"] for event in phases if event["phase"] == "align"} == {0}
    assert {event["teacher"] for event in events(tmp_path / "run", "alignment")} == {
        "server",
        "clinic-a",
        "clinic-b",
    }
    for event in events(tmp_path / "run", "selection"):
        assert sum(event["teachers"].values()) + event["skipped"] == event["n"] == 20
    assert all(row["up"] > 0 and row["down"] > 0 for row in summary["bytes"])
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "finished"
    assert len(record["public_hash"]) == 64
    assert len({about["vocab_hash"] for about in record["models"].values()}) == 3


def test_a_folder_with_another_run_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    run_methods(tiny("federation.num_rounds=1"), ["zero_shot"], tmp_path / "run")
    with pytest.raises(ConfigError, match="--resume"):
        run_methods(tiny("federation.num_rounds=1"), ["zero_shot"], tmp_path / "run")
    with pytest.raises(ConfigError, match=r"num_rounds was 1, is 3"):
        run_methods(tiny("federation.num_rounds=3"), ["zero_shot"], tmp_path / "run", resume=True)


def test_a_private_phase_shared_by_methods_is_done_once_and_changes_no_bit(
    tiny: Tiny, tmp_path: Path
) -> None:
    config = tiny("federation.num_rounds=1")
    run_methods(config, ["fedmkt", "standalone_public"], tmp_path / "together")
    run_methods(config, ["standalone_public"], tmp_path / "alone")
    assert_same(
        weights(tmp_path / "together", "standalone_public"), weights(tmp_path / "alone", "standalone_public")
    )
    private = [e for e in events(tmp_path / "together", "phase") if e["phase"] == "private"]
    assert {e["method"]: e.get("remembered", False) for e in private} == {
        "fedmkt": False,
        "standalone_public": True,
    }


@pytest.mark.parametrize(
    ("override", "private", "public"),
    [
        ("distillation.reset_optimizer=false", [(0.0, 0.5), (0.5, 1.0)], [(0.0, 0.5), (0.5, 1.0)]),
        ("distillation.reset_optimizer=true", [(0.0, 1.0)] * 2, [(0.0, 1.0)] * 2),
        ("federation.private_rounds=1", [(0.0, 1.0)], [(0.0, 0.5), (0.5, 1.0)]),
    ],
)
def test_the_schedule_spans_all_rounds_of_a_kind_of_phase_or_begins_anew(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, private: Any, public: Any
) -> None:
    from fedtandem.algorithms import learner

    train, spans = learner.train_phase, []

    def spied(lm: Any, examples: Any, *args: Any, **more: Any) -> Any:
        spans.append((len(examples), more["progress_span"]))
        return train(lm, examples, *args, **more)

    monkeypatch.setattr(learner, "train_phase", spied)
    run_methods(tiny(override), ["standalone_public"], tmp_path / "run")
    # clinic-a has 24 private rows; the public set has 20.
    assert [span for n, span in spans if n == 24] == private
    assert [span for n, span in spans if n == 20] == [span for span in public for _ in range(2)]
