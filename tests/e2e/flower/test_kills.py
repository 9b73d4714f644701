"""A client's process killed (a real SIGKILL) in every phase, a disk that is full: the bits are those of a calm run."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message
from torch.optim.optimizer import register_optimizer_step_post_hook

from fedtandem.atomic import DRAFT, whole_folder
from fedtandem.config import RunConfig, load_config
from fedtandem.errors import DiskFull, QuorumError
from fedtandem.exchange.carrier import SCHEMA, Envelope
from fedtandem.federation import site, store
from fedtandem.federation.consent import exactly
from fedtandem.federation.events import EventLog, read_events
from fedtandem.federation.flower_messages import unpack_request
from fedtandem.federation.plan import PLAN_SCHEMA, site_of_client
from fedtandem.federation.runs import run_methods
from fedtandem.federation.site import Order
from fedtandem.federation.store import RoundStore

Tiny = Callable[..., RunConfig]
Client = Callable[[Message], Message]
CALM = ("federation.min_clients=2", "federation.num_rounds=2", "knowledge.exchange=one_phase")
B = 102


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before_loading() -> None:
    site.load_parts = die  # type: ignore[assignment]


def in_tuning() -> None:
    register_optimizer_step_post_hook(die)  # after the first step


def in_the_public_pass() -> None:
    emit = EventLog.emit

    def dying(self: EventLog, event: str, **fields: object) -> None:
        emit(self, event, **fields)
        if (event, fields.get("phase")) == ("phase", "private"):  # tuned; the pass comes next
            die()

    EventLog.emit = dying  # type: ignore[method-assign]


def before_the_commit() -> None:
    RoundStore.save = die  # type: ignore[method-assign]


def in_the_commit() -> None:
    def half(path: Path, files: dict[str, bytes]) -> None:
        with whole_folder(path) as draft:
            (draft / next(iter(files))).write_bytes(b"half")
            die()

    store.write_folder = half  # type: ignore[assignment]


def committed_and_not_sent() -> None:
    save = RoundStore.save

    def dying(*arguments: object) -> None:
        save(*arguments)  # type: ignore[arg-type]
        die()

    RoundStore.save = dying  # type: ignore[method-assign]


PHASES = {
    one.__name__: one
    for one in (
        before_loading,
        in_tuning,
        in_the_public_pass,
        before_the_commit,
        in_the_commit,
        committed_and_not_sent,
    )
}


def answer_and_die(folder: Path, file: str, overrides: list[str], phase: str) -> None:
    """What the killed process does: the client's part of a message, up to a phase."""
    config = load_config(file, overrides)
    order = Order(**json.loads((folder / "order.json").read_text()))
    allow = exactly(config, max_bytes_per_round=1 << 50)
    where = str(folder / "sites" / order.party)
    PHASES[phase]()
    site.Site(site_of_client(config, order.party, where, allow)).answer(
        order, (folder / "envelope").read_bytes()
    )


def killed(request: Message, folder: Path, file: Path, phase: str) -> list[Message]:
    """Handle a request in a process of its own that is killed in this phase; what a SuperLink says then."""
    order, data = unpack_request(request.content)
    (folder / "order.json").write_text(json.dumps(vars(order)))
    (folder / "envelope").write_bytes(data)
    command = [sys.executable, __file__, str(folder), str(file), phase, *CALM]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, f"{phase}: it was not killed\n{done.stderr[-3000:]}"
    return [Message(Error(5, "node unavailable"), reply_to=request)]


def calm(config: RunConfig, folder: Path) -> tuple[dict[str, bytes], list[dict[str, object]]]:
    summary = run_methods(config, ["fedmkt"], folder)
    weights = {p.parent.name: p.read_bytes() for p in folder.glob("adapters/fedmkt/*/*.safetensors")}
    return weights, summary["rows"]


def drafts(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if DRAFT.fullmatch(path.name)]


def test_a_client_killed_in_every_phase_gives_the_bits_of_a_calm_run(
    tiny: Tiny,
    tmp_path: Path,
    federation,  # type: ignore[no-untyped-def]
) -> None:
    config = tiny(*CALM)
    to_come = deque(PHASES)
    of_message: dict[int, int] = {}

    def meddle(request: Message, client: Client) -> list[Message]:
        if request.metadata.dst_node_id != B or request.metadata.message_type != "train" or not to_come:
            return [client(request)]
        body = request.content.array_records["envelope"]["body"].numpy().tobytes()
        number = Envelope.from_bytes(body).round
        of_message[number] = of_message.get(number, 0) + 1
        if of_message[number] > 2:  # after three in one deadline the client counts as lost
            return [client(request)]
        return killed(request, flower.folder, tmp_path / "tiny.toml", to_come.popleft())

    flower = federation(config, meddle=meddle)
    summary = flower.run()
    assert not to_come
    weights, rows = calm(config, tmp_path / "calm")
    assert flower.adapters() == weights
    assert summary["rows"] == rows
    assert drafts(flower.folder / "sites") == []


def test_a_full_disk_at_a_client_is_told_and_costs_nothing_once_it_has_room(
    tiny: Tiny,
    tmp_path: Path,
    federation,  # type: ignore[no-untyped-def]
) -> None:
    """No file may grow beyond some kB (RLIMIT_FSIZE): at first not even the record, then not the state."""
    config = tiny(*CALM)
    limits = deque([300, 6_000])

    def meddle(request: Message, client: Client) -> list[Message]:
        if request.metadata.dst_node_id != B or request.metadata.message_type != "train" or not limits:
            return [client(request)]
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limits.popleft(), hard))
        try:
            return [client(request)]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    flower = federation(config, meddle=meddle)
    flower.run()
    assert not limits
    events = read_events(flower.folder / "server" / "events.jsonl")
    absences = [(e["party"], e["reason"]) for e in events if e["event"] == "absence"]
    assert absences == [("clinic-b", "refused")] * 2
    assert all("the disk is full" in e["text"] for e in events if e["event"] == "absence")
    assert drafts(flower.folder / "sites") == []  # nothing half-written was left
    assert flower.adapters() == calm(config, tmp_path / "calm")[0]


def test_a_line_that_does_not_fit_leaves_a_whole_record(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.emit("first")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
    try:
        with pytest.raises(DiskFull, match=r"events\.jsonl"):
            log.emit("second", text="x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    log.emit("third")
    log.close()
    assert [event["event"] for event in read_events(tmp_path / "events.jsonl")] == ["first", "third"]


@pytest.mark.parametrize("step", [-1, 1], ids=["older", "newer"])
@pytest.mark.parametrize("where", ["plan", "envelope"])
def test_a_server_of_another_schema_is_refused_before_round_1(
    tiny: Tiny,
    federation,  # type: ignore[no-untyped-def]
    step: int,
    where: str,
) -> None:
    def other(request: Message, client: Client) -> list[Message]:
        if "order" not in request.content:  # who are you?
            return [client(request)]
        order = dict(request.content.config_records["order"])
        if where == "plan":
            order["plan"] = json.dumps({**json.loads(str(order["plan"])), "schema": PLAN_SCHEMA + step})
            request.content["order"] = ConfigRecord(order)  # type: ignore[arg-type]
        else:
            body = request.content.array_records["envelope"]["body"].numpy().tobytes()
            data = replace(Envelope.from_bytes(body), schema=SCHEMA + step).to_bytes()
            request.content["envelope"] = ArrayRecord({"body": Array(np.frombuffer(data, np.uint8))})
        return [client(request)]

    flower = federation(tiny(*CALM), meddle=other)
    with pytest.raises(QuorumError, match="Install the same fedtandem version") as fault:
        flower.run()
    assert f"schema {'=' if where == 'envelope' else ''}".strip() in str(fault.value)
    assert "clinic-a" in str(fault.value)
    assert not list(flower.folder.rglob("*-work"))


if __name__ == "__main__":
    folder, file, phase, *overrides = sys.argv[1:]
    answer_and_die(Path(folder), file, overrides, phase)
