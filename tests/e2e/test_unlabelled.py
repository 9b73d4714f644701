"""Public prompts without answers: producers write, receivers keep the surest, private text never leaves."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fedtandem.config import DataConfig, RunConfig
from fedtandem.errors import ConfigError
from fedtandem.exchange.carrier import Absence, Envelope
from fedtandem.exchange.frame import decode_frame
from fedtandem.federation.events import read_events
from fedtandem.federation.local import LocalCarrier
from fedtandem.federation.runs import run_methods

Tiny = Callable[..., RunConfig]

UNLABELLED = ("public.labelled=false", "public.max_new_tokens=24", "federation.num_rounds=2")


def test_paths_are_written_kept_and_learnt_both_ways(tiny: Tiny, tmp_path: Path) -> None:
    run_methods(tiny(*UNLABELLED), ["fedmkt", "standalone_public", "server_public"], tmp_path / "run")
    events = read_events(tmp_path / "run" / "events.jsonl")
    chosen = {(e["method"], e["party"], e["round"]): e for e in events if e["event"] == "selection"}
    assert {key[1] for key in chosen if key[0] == "fedmkt"} == {"server", "clinic-a", "clinic-b"}
    for event in chosen.values():
        assert 0 < event["n"] <= 12  # the surest 60 % of 20 prompts
        assert sum(event["teachers"].values()) == event["n"]
    # The controls make as many updates on as many prompts, with nothing exchanged.
    steps = {
        (e["method"], e["party"], e["round"]): e["steps"]
        for e in events
        if e["event"] == "phase" and e["phase"] == "public"
    }
    assert steps[("fedmkt", "server", 1)] == steps[("server_public", "server", 1)]
    assert steps[("fedmkt", "clinic-a", 1)] == steps[("standalone_public", "clinic-a", 1)]
    replayed = [e for e in events if e["event"] == "replay"]
    assert {e["source"] for e in replayed} == {"greedy answers of the untouched model"}


@pytest.mark.parametrize("rows", ["true", "false"])
def test_text_alone_or_text_with_rows(tiny: Tiny, tmp_path: Path, rows: str) -> None:
    run_methods(tiny(*UNLABELLED, f"public.send_rows={rows}"), ["fedmkt"], tmp_path / "run")
    taught = [
        e["active_positions"]
        for e in read_events(tmp_path / "run" / "events.jsonl")
        if e["event"] == "phase" and e["phase"] == "public"
    ]
    assert all((n > 0) == (rows == "true") for n in taught)


def test_mined_alignment_of_written_paths_is_refused_and_works_for_the_text_alone(
    tiny: Tiny, tmp_path: Path
) -> None:
    mined = (*UNLABELLED, "alignment.mode=mined")
    with pytest.raises(ConfigError, match=r"public\.send_rows = false"):
        run_methods(tiny(*mined), ["fedmkt"], tmp_path / "refused")
    run_methods(tiny(*mined, "public.send_rows=false"), ["fedmkt"], tmp_path / "text")


def test_no_envelope_of_any_kind_holds_private_text(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A canary in every private row of one client: no envelope holds 50 bytes of it."""
    canary = "the patient in bed seven is called Aurelia Quint and was born in May"
    data = tmp_path / "private.jsonl"
    data.write_text(
        "".join(f'{{"prompt": "Q 3 + {i % 10} A", "completion": "{canary}"}}\n' for i in range(24))
    )
    config = tiny(
        *UNLABELLED,
        "public.max_new_tokens=90",
        "clients.clinic-a.tuning.num_train_epochs=40",
        "clients.clinic-a.tuning.learning_rate=1e-2",
    )
    a, b = config.clients
    private = DataConfig(path=(str(data),))
    leaking = config.model_copy(update={"clients": (a.model_copy(update={"data": private}), b)})
    bodies: list[bytes] = []

    class Tapped(LocalCarrier):
        """The carrier, with somebody listening on the wire."""

        def _deliver(
            self, name: str, request: Envelope, down: bytes, deadline_s: float
        ) -> Envelope | Absence:
            reply = super()._deliver(name, request, down, deadline_s)
            bodies.append(request.body)
            if isinstance(reply, Envelope):
                bodies.append(reply.body)
            return reply

    monkeypatch.setattr("fedtandem.federation.runs.LocalCarrier", Tapped)
    run_methods(leaking, ["fedmkt"], tmp_path / "run")
    plain = [b"\0".join(array.tobytes() for array in decode_frame(body)[1].values()) for body in bodies]
    assert len(plain) > 8
    pieces = [canary[i : i + 50].encode() for i in range(len(canary) - 49)]
    assert not any(piece in text for piece in pieces for text in plain)
    paths = [e for e in read_events(tmp_path / "run" / "events.jsonl") if e["event"] == "paths"]
    # The client did learn its canary by heart and would have written it: without the check it would have leaked.
    assert sum(event["refused"] for event in paths if event["party"] == "clinic-a") > 0
