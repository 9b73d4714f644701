"""Selectors inside FedMKT: what travels, what is learnt, and that a resumed run selects the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedtandem.algorithms.contrast import Contrast, make_contrast
from fedtandem.algorithms.learner import Learner
from fedtandem.algorithms.sequence_scores import sequence_log_probs
from fedtandem.config import RunConfig
from fedtandem.errors import ConfigError
from fedtandem.exchange.carrier import Envelope
from fedtandem.exchange.messages import WorkReply, WorkRequest
from fedtandem.federation.events import read_events
from fedtandem.federation.local import Fault
from fedtandem.federation.runs import run_methods
from fedtandem.federation.store import RoundStore

Tiny = Callable[..., RunConfig]
UNLABELLED = ("public.labelled=false", "public.max_new_tokens=12")
PEER = ("selection.lada.reference=peer",)
CONTRAST = ("selection.selector=lada", "selection.lada.contrast_weight=0.5")
LADA = ("selection.selector=lada", "selection.budget=6", "selection.probe=0.15")


def weights(folder: Path, method: str = "fedmkt") -> dict[str, np.ndarray]:
    return {
        f"{path.parent.name}/{name}": value
        for path in sorted((folder / "adapters" / method).rglob("*.safetensors"))
        for name, value in load_file(path).items()
    }


def same(a: Path, b: Path, method_a: str = "fedmkt", method_b: str = "fedmkt") -> bool:
    left, right = weights(a, method_a), weights(b, method_b)
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


def items(folder: Path) -> list[dict[str, Any]]:
    return [e for e in read_events(folder / "events.jsonl") if e["event"] == "items"]


def total(summary: dict[str, Any], way: str) -> int:
    return sum(int(row[way]) for row in summary["bytes"])


def test_selecting_everything_is_fedmkt_bit_for_bit(tiny: Tiny, tmp_path: Path) -> None:
    plain = run_methods(tiny(), ["fedmkt"], tmp_path / "plain")
    # Through the whole machinery of selection, with a budget that happens to be the whole set.
    every = run_methods(
        tiny("selection.selector=gap", "selection.budget=1.0"), ["fedmkt"], tmp_path / "every"
    )
    named = run_methods(tiny("selection.selector=all", "selection.budget=3"), ["fedmkt"], tmp_path / "named")
    assert every["rows"] == plain["rows"] == named["rows"]
    assert same(tmp_path / "plain", tmp_path / "every")
    assert same(tmp_path / "plain", tmp_path / "named")
    assert named["bytes"] == plain["bytes"]


@pytest.mark.parametrize("labelled", [True, False], ids=["labelled", "unlabelled"])
def test_a_third_of_the_items_is_fewer_updates_and_far_fewer_bytes(
    tiny: Tiny, tmp_path: Path, labelled: bool
) -> None:
    base = () if labelled else UNLABELLED
    whole = run_methods(tiny(*base), ["fedmkt"], tmp_path / "whole")
    cut = run_methods(
        tiny(*base, "selection.selector=gap", "selection.budget=6"), ["fedmkt"], tmp_path / "cut"
    )
    assert total(cut, "down") < 0.6 * total(whole, "down")
    for event in items(tmp_path / "cut"):
        assert event["selected"] == 6
        assert event["trained"] <= 6
    steps = {
        run: sum(
            e["steps"]
            for e in read_events(tmp_path / run / "events.jsonl")
            if e["event"] == "phase" and e["phase"] == "public"
        )
        for run in ("whole", "cut")
    }
    # The server learns what either client named; without answers only 60 % of the paths were learnt anyway.
    assert steps["cut"] < (0.75 if labelled else 1.0) * steps["whole"]


@pytest.mark.parametrize("labelled", [True, False], ids=["labelled", "unlabelled"])
def test_requests_ride_on_the_messages_that_are_due(tiny: Tiny, tmp_path: Path, labelled: bool) -> None:
    """Items are named one message ahead: no message more than FedMKT's, and nothing else travels."""
    seen: list[tuple[str, Envelope]] = []

    def listen(party: str, envelope: Envelope) -> Fault | None:
        seen.append((party, envelope))
        return None

    base = () if labelled else UNLABELLED
    run_methods(tiny(*base), ["fedmkt"], tmp_path / "plain", faults=listen)
    plain = [(party, envelope.kind, envelope.round) for party, envelope in seen]
    seen.clear()
    run_methods(tiny(*base, *LADA), ["fedmkt"], tmp_path / "lada", faults=listen)
    ours = [(party, envelope.kind, envelope.round) for party, envelope in seen]
    # A fetch may fall away where a client won nothing that was kept; work and cards are the same.
    assert [m for m in ours if m[1] != "fetch"] == [m for m in plain if m[1] != "fetch"]
    assert set(ours) <= set(plain) | {m for m in ours if m[1] == "fetch"}
    asked: dict[str, np.ndarray] = {}
    for party, envelope in seen:
        if envelope.kind not in ("work", "finish"):
            continue
        request = WorkRequest.from_envelope(envelope)
        if envelope.kind == "work":
            assert request.wanted is not None
        if request.knowledge is None:
            continue
        replies = tmp_path / "lada" / "methods" / "fedmkt" / "state" / party
        for key in sorted(p for p in replies.iterdir() if p.name.startswith(f"{envelope.round - 1:04d}")):
            reply = WorkReply.from_envelope(Envelope.from_bytes((key / "reply").read_bytes()))
            assert reply.wanted is not None
            asked[party] = reply.wanted
            assert set(request.knowledge.sample_index) <= set(reply.wanted)
            if not labelled:
                told = {i for i, text in enumerate(request.knowledge.texts or ()) if text}
                assert told <= set(reply.wanted)
    assert asked


@pytest.mark.parametrize("labelled", [True, False], ids=["labelled", "unlabelled"])
@pytest.mark.parametrize("selector", ["lada", "confident_gap"])
def test_killed_and_resumed_it_selects_and_learns_the_same(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labelled: bool, selector: str
) -> None:
    base = () if labelled else (*UNLABELLED, "selection.lada.contrast_weight=0.5", *PEER)
    config = tiny(*base, *LADA, f"selection.selector={selector}", "federation.keep_models=false")
    run_methods(config, ["fedmkt"], tmp_path / "whole")
    save, saves = RoundStore.save, 0

    class Killed(BaseException):
        """Nothing catches it."""

    def fragile(self: RoundStore, key: str, files: dict[str, bytes]) -> None:
        nonlocal saves
        saves += 1
        if saves in (2, 4, 6):
            if saves == 4:
                save(self, key, files)
            raise Killed
        save(self, key, files)

    monkeypatch.setattr(RoundStore, "save", fragile)
    for attempt in range(4):
        try:
            run_methods(config, ["fedmkt"], tmp_path / "killed", resume=attempt > 0)
            break
        except Killed:
            continue
    assert saves > 6
    assert same(tmp_path / "whole", tmp_path / "killed")
    chosen = [
        {(e["party"], e["teacher"], e["round"]): e["ids"] for e in items(tmp_path / run)}
        for run in ("whole", "killed")
    ]
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) == 8


def test_an_absent_client_is_neither_asked_for_feedback_nor_missed(tiny: Tiny, tmp_path: Path) -> None:
    def lose_b(party: str, envelope: Envelope) -> Fault | None:
        return (
            Fault("lost") if party == "clinic-b" and envelope.kind == "work" and envelope.round == 1 else None
        )

    run_methods(tiny(*UNLABELLED, *LADA), ["fedmkt"], tmp_path / "run", faults=lose_b)
    done = {(e["party"], e["teacher"], e["round"]) for e in items(tmp_path / "run")}
    assert ("server", "clinic-b", 1) not in done
    assert ("server", "clinic-b", 2) in done
    assert ("clinic-b", "server", 2) in done


STRICT = """
def strict(prompt, path):
    if "@" in prompt:
        raise ValueError("cannot read this sign")
    return len(path) % 4 == 0, "for the sake of the test"
"""


def test_refused_paths_are_not_learnt_and_a_failing_checker_is_said(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_checkers.py").write_text(STRICT)
    monkeypatch.syspath_prepend(tmp_path)
    config = tiny(*UNLABELLED, *LADA, "public.check=my_checkers:strict", "selection.budget=12")
    run_methods(config, ["fedmkt"], tmp_path / "run")
    events = read_events(tmp_path / "run" / "events.jsonl")
    said = {e["signature"]: e["text"] for e in events if e["event"] == "warning"}
    assert "wrong teachers" in said
    assert "chain-" in said["the checker failed"]
    assert "cannot read this sign" in said["the checker failed"]
    used = sum(e["used"] for e in events if e["event"] == "check")
    assert 0 < used < sum(e["written"] for e in events if e["event"] == "check")
    assert sum(e["trained"] for e in items(tmp_path / "run")) <= used


def test_the_producer_says_how_likely_it_finds_both_paths(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drafts travel with the request, their scores with the paths; at the pair both are the producer's, not its own."""
    seen: list[tuple[str, float, float]] = []

    def watched(learner: Learner, *args: Any, **told: Any) -> Contrast:
        contrast = make_contrast(learner, *args, **told)
        for pair in contrast.pairs.values():
            own = sequence_log_probs(learner.lm, [pair.pos, pair.neg])
            seen.append((learner.name, abs(pair.ref_pos - own[0]), abs(pair.ref_neg - own[1])))
        return contrast

    monkeypatch.setattr("fedtandem.algorithms.selecting.make_contrast", watched)
    sent: list[tuple[str, Envelope]] = []
    config = tiny(*UNLABELLED, *LADA, *CONTRAST, *PEER, "selection.budget=14")
    run_methods(
        config, ["fedmkt"], tmp_path / "run", faults=lambda party, envelope: sent.append((party, envelope))
    )
    assert {name for name, _, _ in seen} == {"server", "clinic-a", "clinic-b"}
    assert all(pos > 1e-3 and neg > 1e-3 for _, pos, neg in seen)  # another model's numbers
    requests = [WorkRequest.from_envelope(e) for _, e in sent if e.kind in ("work", "finish")]
    assert any(r.drafts and any(r.drafts) for r in requests)
    told = [r.knowledge for r in requests if r.knowledge is not None]
    assert any(k.of_drafts is not None and np.isfinite(k.of_drafts).any() for k in told)


def test_of_several_offers_the_surest_of_those_that_kept_the_item_teaches(tiny: Tiny, tmp_path: Path) -> None:
    run_methods(
        tiny(*UNLABELLED, "selection.selector=random", "selection.budget=14"), ["fedmkt"], tmp_path / "run"
    )
    up = [e for e in items(tmp_path / "run") if e["party"] == "server" and e["round"] == 1]
    assert len(up) == 2
    both = set(up[0]["ids"]) & set(up[1]["ids"])
    assert len(both) >= 8  # 14 and 14 of 20
    assert sum(e["trained"] for e in up) <= len(set(up[0]["ids"]) | set(up[1]["ids"]))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("selection.selector=verified_gap",), "name one in public.check"),
        (CONTRAST, "compares written paths"),
        ((*UNLABELLED, *CONTRAST, *PEER, "selection.context=fresh"), 'Use "cached"'),
        ((*UNLABELLED, *CONTRAST, *PEER, "selection.lada.negative=first_wrong_step"), "not one step of it"),
        ((*UNLABELLED, "selection.selector=no_module:f"), "cannot be imported"),
        ((*UNLABELLED, "public.check=no_module:f", "selection.selector=gap"), "no_module"),
    ],
)  # fmt: skip
def test_what_cannot_be_carried_out_is_refused_before_round_1(
    tiny: Tiny, tmp_path: Path, overrides: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        run_methods(tiny(*overrides), ["fedmkt"], tmp_path / "run")


@pytest.mark.parametrize(
    "selector", ["all_matched", "rho_holdout", "ifd", "linucb", "cluster_ucb", "lada_shuffled"]
)
def test_every_other_selector_runs_both_ways(tiny: Tiny, tmp_path: Path, selector: str) -> None:
    config = tiny(*UNLABELLED, *LADA, f"selection.selector={selector}")
    run_methods(config, ["fedmkt"], tmp_path / "run")
    assert {e["direction"] for e in items(tmp_path / "run")} == {"up", "down"}


def test_lada_is_a_method_of_its_own_beside_its_controls(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny("selection.budget=6", "federation.num_rounds=1")
    run_methods(config, ["lada", "fedmkt_random", "fedmkt_all"], tmp_path / "run")
    used = {(e["method"], e["selector"]) for e in items(tmp_path / "run")}
    assert used == {("lada", "lada"), ("fedmkt_random", "random")}
    trained = {e["trained"] for e in items(tmp_path / "run")}
    assert trained == {6}  # equal budgets


def test_the_contrastive_loss_reaches_fedmkt(tiny: Tiny, tmp_path: Path) -> None:
    base = (*UNLABELLED, *LADA, "federation.num_rounds=1")
    for name, weight in {"off": "0.0", "on": "0.5"}.items():
        run_methods(tiny(*base, f"selection.lada.contrast_weight={weight}"), ["fedmkt"], tmp_path / name)
    assert not same(tmp_path / "off", tmp_path / "on")
