"""Whatever the network does: nothing is counted twice, and where the rules say so the bits are those of a calm run."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message

from fedtandem.config import RunConfig
from fedtandem.errors import QuorumError
from fedtandem.exchange.carrier import Envelope
from fedtandem.federation import flower as flower_carrier
from fedtandem.federation.events import read_events
from fedtandem.federation.flower import MIN_TTL_S
from fedtandem.federation.flower_messages import unpack_request
from fedtandem.federation.local import Fault
from fedtandem.federation.runs import run_methods
from fedtandem.federation.store import RoundStore

Tiny = Callable[..., RunConfig]
Client = Callable[[Message], Message]
BOTH = ("federation.min_clients=2", "federation.num_rounds=2", "knowledge.exchange=one_phase")
A, B = 101, 102


def weights_of(folder: Path) -> dict[str, bytes]:
    return {
        path.parent.name: path.read_bytes() for path in sorted(folder.glob("adapters/fedmkt/*/*.safetensors"))
    }


_CALM: dict[str, dict[str, bytes]] = {}


def calm(config: RunConfig, folder: Path) -> dict[str, bytes]:
    """The weights of a run in one process that nothing disturbs; made once."""
    if config.hash not in _CALM:
        run_methods(config, ["fedmkt"], folder)
        _CALM[config.hash] = weights_of(folder)
    return _CALM[config.hash]


def body(message: Message) -> bytes:
    return message.content.array_records["envelope"]["body"].numpy().tobytes()


def with_body(reply: Message, data: bytes) -> Message:
    reply.content["envelope"] = ArrayRecord({"body": Array(np.frombuffer(data, np.uint8))})
    return reply


def hit(node: int, round_number: int, fault: Callable[[Message, Client], list[Message]]):  # type: ignore[no-untyped-def]
    """A network that does wrong once: to the first work message of one round to one node."""
    done: list[bool] = []

    def meddle(request: Message, client: Client) -> list[Message]:
        here = request.metadata.message_type == "train" and request.metadata.dst_node_id == node
        if here and not done and Envelope.from_bytes(body(request)).round == round_number:
            done.append(True)
            return fault(request, client)
        return [client(request)]

    return meddle


def twice(request: Message, client: Client) -> list[Message]:
    first, second = client(request), client(request)
    assert body(first) == body(second)
    return [first, second]


def truncated(request: Message, client: Client) -> list[Message]:
    reply = client(request)
    return [with_body(reply, body(reply)[:-7])]


def tampered(request: Message, client: Client) -> list[Message]:
    reply = client(request)
    data = bytearray(body(reply))
    data[len(data) // 2] ^= 1
    return [with_body(reply, bytes(data))]


def of_another_round(request: Message, client: Client) -> list[Message]:
    reply = client(request)
    envelope = Envelope.from_bytes(body(reply))
    return [with_body(reply, Envelope(envelope.kind, 1, envelope.schema, envelope.body).to_bytes())]


def no_envelope(request: Message, client: Client) -> list[Message]:
    reply = client(request)
    del reply.content["envelope"]
    return [reply]


def died_before(request: Message, client: Client) -> list[Message]:
    return [Message(Error(5, "node unavailable"), reply_to=request)]


def died_after(request: Message, client: Client) -> list[Message]:
    client(request)
    return [Message(Error(5, "node unavailable"), reply_to=request)]


FAULTS = (twice, truncated, tampered, of_another_round, no_envelope, died_before, died_after)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_disturbed_message_leaves_the_bits_as_they_were(
    tiny: Tiny,
    tmp_path: Path,
    federation,
    fault,  # type: ignore[no-untyped-def]
) -> None:
    config = tiny(*BOTH)
    flower = federation(config, meddle=hit(B, 2, fault))
    flower.run()
    assert flower.adapters() == calm(config, tmp_path / "calm")
    absences = [e for e in read_events(flower.folder / "server" / "events.jsonl") if e["event"] == "absence"]
    harmless = fault in (twice, died_before, died_after)
    assert [e["reason"] for e in absences] == ([] if harmless else ["invalid"])
    assert all(e["party"] == "clinic-b" for e in absences)


def test_a_late_reply_is_dropped_and_noted(tiny: Tiny, tmp_path: Path, federation) -> None:  # type: ignore[no-untyped-def]
    config = tiny("federation.min_clients=1", "federation.num_rounds=2", "knowledge.exchange=one_phase")
    config = config.model_copy(
        update={"federation": config.federation.model_copy(update={"deadline_s": 1.0})}
    )
    held: list[Message] = []

    def hold(request: Message, client: Client) -> list[Message]:
        held.append(client(request))
        return []

    late_b = hit(B, 1, hold)

    def meddle(request: Message, client: Client) -> list[Message]:
        before, held[:] = list(held), []
        return [*before, *late_b(request, client)]

    flower = federation(config, meddle=meddle)
    flower.run()
    first: list[str] = []

    def local(party: str, envelope: Envelope) -> Fault | None:
        if party == "clinic-b" and envelope.kind == "work" and not first:
            first.append(party)
            return Fault("late")
        return None

    run_methods(config, ["fedmkt"], tmp_path / "local", faults=local)
    assert flower.adapters() == weights_of(tmp_path / "local")
    events = read_events(flower.folder / "server" / "events.jsonl")
    assert [(e["party"], e["reason"]) for e in events if e["event"] == "absence"] == [("clinic-b", "late")]
    assert [(e["party"], e["round"]) for e in events if e["event"] == "late_reply"] == [("clinic-b", 1)]


def test_who_comes_late_joins_the_next_round(tiny: Tiny, tmp_path: Path, federation) -> None:  # type: ignore[no-untyped-def]
    config = tiny("federation.min_clients=1", "federation.num_rounds=2", "knowledge.exchange=one_phase")
    config = config.model_copy(
        update={"federation": config.federation.model_copy(update={"deadline_s": 1.5})}
    )

    def meddle(request: Message, client: Client) -> list[Message]:
        if request.metadata.message_type == "train":
            flower.grid.offline.clear()
        return [client(request)]

    flower = federation(config, meddle=meddle, offline={B})
    flower.run()
    cards: list[str] = []

    def local(party: str, envelope: Envelope) -> Fault | None:
        if party == "clinic-b" and envelope.kind == "card" and len(cards) < 2:
            cards.append(party)
            return Fault("lost")
        return None

    run_methods(config, ["fedmkt"], tmp_path / "local", faults=local)
    assert flower.adapters() == weights_of(tmp_path / "local")
    events = read_events(tmp_path / "local" / "events.jsonl")
    assert {e["round"] for e in events if e["event"] == "bytes" and e["party"] == "clinic-b"} == {0, 2, 3}


def test_a_replayed_request_is_refused_and_changes_nothing(tiny: Tiny, federation) -> None:  # type: ignore[no-untyped-def]
    flower = federation(tiny(*BOTH))
    flower.run()
    before = flower.adapters()
    first = next(message for message in flower.grid.sent if message.metadata.message_type == "train")
    assert Envelope.from_bytes(unpack_request(first.content)[1]).round == 1
    refusal = flower.grid.client(first).content.config_records["answer"]["refusal"]
    assert "replayed" in refusal
    assert "round 1" in refusal
    assert flower.adapters() == before


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The carrier's time, set by hand; it goes on by what the carrier sleeps."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(flower_carrier, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    return now


def asked(flower) -> list[Message]:  # type: ignore[no-untyped-def]
    return [m for m in flower.grid.sent if m.metadata.message_type == "train" and m.metadata.dst_node_id == B]


def test_who_is_asked_shortly_before_the_deadline_gets_a_message_that_can_travel(
    tiny: Tiny,
    federation,
    clock: list[float],  # type: ignore[no-untyped-def]
) -> None:
    """A SuperLink refuses a message that has expired when it is stored, and the server's process would end of it."""
    config = tiny(*BOTH, "federation.on_short=fail")

    def late(request: Message, client: Client) -> list[Message]:
        clock[0] += config.federation.deadline_s - 1.5
        return died_before(request, client)

    flower = federation(config, meddle=hit(B, 1, late))
    flower.run()
    assert len(asked(flower)) == 4  # rounds 1 to 3, and once more for the one that was lost
    assert min(message.metadata.ttl for message in asked(flower)) >= MIN_TTL_S


def test_nobody_is_asked_after_the_deadline(tiny: Tiny, federation, clock: list[float]) -> None:  # type: ignore[no-untyped-def]
    """That a node has died is told by a pull which took until then."""
    config = tiny(*BOTH, "federation.on_short=fail")

    def slow(request: Message, client: Client) -> list[Message]:
        clock[0] += config.federation.deadline_s + 1
        return died_before(request, client)

    flower = federation(config, meddle=hit(B, 1, slow))
    with pytest.raises(QuorumError, match=r"clinic-b: lost \(no reply within .*node unavailable"):
        flower.run()
    assert len(asked(flower)) == 1


def test_a_lost_quorum_names_the_missing(tiny: Tiny, federation) -> None:  # type: ignore[no-untyped-def]
    config = tiny(*BOTH, "federation.on_short=fail", "federation.deadline_s=1.5")
    flower = federation(config, offline={B})
    with pytest.raises(QuorumError, match="Missing: clinic-b") as fault:
        flower.run()
    assert fault.value.exit_code == 6


class Killed(BaseException):
    """What a kill looks like from inside: nothing catches it."""


def test_server_and_sites_killed_around_every_commit(
    tiny: Tiny,
    tmp_path: Path,
    federation,
    monkeypatch: pytest.MonkeyPatch,  # type: ignore[no-untyped-def]
) -> None:
    config = tiny(*BOTH)
    expected = calm(config, tmp_path / "calm")
    flower = federation(config)
    save, saves, kill_at = RoundStore.save, 0, -1

    def fragile(self: RoundStore, key: str, files: dict[str, bytes]) -> None:
        nonlocal saves
        saves += 1
        if saves == kill_at:
            if kill_at % 2:
                save(self, key, files)
            raise Killed
        save(self, key, files)

    monkeypatch.setattr(RoundStore, "save", fragile)
    kills = 0
    for kill in range(1, 40):
        saves, kill_at = 0, 1 + kill % 2
        try:
            flower.run(resume=(flower.folder / "server" / "run.json").is_file())
        except Killed:
            kills += 1
            continue
        break
    assert kills >= 5
    assert flower.adapters() == expected
