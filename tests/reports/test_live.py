"""A run is watched from its folder alone: running, ended, killed, half-written."""

import json
import re
import threading
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedtandem.cli import main
from fedtandem.federation.alone import alone
from fedtandem.reports.live import look
from fedtandem.reports.live_page import open_page
from fedtandem.reports.live_terminal import picture

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
CLIENTS = ["clinic-a", "clinic-b"]


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


class Record:
    """A run folder that grows, line by line, as `run` writes it."""

    def __init__(self, folder: Path, *, rounds: int = 4, controls: tuple[str, ...] = ()) -> None:
        folder.mkdir()
        self.folder = folder
        self.about: dict[str, Any] = {
            "schema": 1, "name": "two", "methods": ["fedmkt", *controls], "carrier": "flower", "status": "running",
            "config": {"federation": {"num_rounds": rounds}, "clients": [{"name": name} for name in CLIENTS]},
            "models": {"server": {}},  # as of a deployed run, whose clients' models are elsewhere
        }  # fmt: skip
        self.say()
        (folder / "events.jsonl").touch()
        self.add(0, "run_started", method=None)
        self.add(0, "method_started", says="")

    def say(self, **changes: Any) -> None:
        self.about.update(changes)
        (self.folder / "run.json").write_text(json.dumps(self.about))

    def add(self, seconds: float, event: str, *, method: str | None = "fedmkt", **fields: Any) -> None:
        line = {
            "time": at(seconds).isoformat(),
            "event": event,
            **({"method": method} if method else {}),
            **fields,
        }
        with (self.folder / "events.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def ask(self, seconds: float, number: int) -> None:
        self.add(seconds, "round_started", round=number)
        self.add(seconds, "asked", round=number, parties=CLIENTS, kinds=["work"], deadline_s=600.0)

    def answer(self, seconds: float, number: int, party: str) -> None:
        self.add(seconds, "bytes", round=number, party=party, up=1000, down=200)


@pytest.fixture
def record(tmp_path: Path) -> Record:
    made = Record(tmp_path / "run")
    made.add(1, "connected", parties=CLIENTS)
    for number in (1, 2):
        made.ask(100 * number, number)
        for party in CLIENTS:
            made.answer(100 * number + 50, number, party)
        made.add(
            100 * number + 60, "selection", round=number, party="server",
            teachers={"clinic-a": 3 * number, "clinic-b": 1},
            n=10, skipped=2, unscored=0,
        )  # fmt: skip
        made.add(100 * number + 100, "round_committed", round=number, skipped=False)
    made.ask(300, 3)
    made.answer(350, 3, "clinic-a")
    return made


def states(record: Record, seconds: float = 360) -> dict[str, str]:
    return {party.name: party.state for party in look(record.folder, at(seconds)).parties}


def text(record: Record, seconds: float = 360) -> str:
    console = Console(width=160, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(picture(look(record.folder, at(seconds)), at(seconds)))
    console.file.close()
    return console.export_text()


def test_who_is_here_who_is_waited_for_and_how_long_it_takes(record: Record) -> None:
    with alone(record.folder):
        live = look(record.folder, at(360))
        assert states(record) == {"server": "waiting", "clinic-a": "answered", "clinic-b": "asked"}
        said = text(record)
    assert (live.state, live.rounds_done, live.num_rounds) == ("running", 2, 4)
    # Two rounds of 100 s each are left, 60 s of the first have passed.
    assert live.eta_s == 140
    assert [(r.number, r.seconds, r.answered, r.up, r.down) for r in live.rounds] == [
        (1, 100, 2, 2000, 400), (2, 100, 2, 2000, 400), (3, None, 1, 1000, 200),
    ]  # fmt: skip
    assert [(lesson.round, dict(lesson.teachers)) for lesson in live.lessons] == [
        (2, {"clinic-a": 6, "clinic-b": 1})
    ]
    assert "clinic-a 6, clinic-b 1; 2 that no peer knew better" in said
    assert "2 of 4 rounds" in said


def test_methods_to_come_count_as_many_rounds(tmp_path: Path) -> None:
    record = Record(tmp_path / "run", rounds=2, controls=("standalone_public",))
    record.ask(0, 1)
    record.add(100, "round_committed", round=1, skipped=False)
    with alone(record.folder):
        assert look(record.folder, at(100)).eta_s == 100 + 2 * 100


def test_absent_disconnected_and_late_are_told(record: Record) -> None:
    record.add(355, "absence", round=3, party="clinic-b", reason="invalid", text="the checksum is wrong")
    with alone(record.folder):
        assert states(record)["clinic-b"] == "absent (invalid)"
        record.add(356, "connected", parties=["clinic-a"])
        assert states(record)["clinic-b"] == "not connected"
        record.add(357, "late_reply", round=3, party="clinic-b", text="it came after its deadline: dropped")
        live = look(record.folder, at(360))
    assert [note.kind for note in live.notes] == ["invalid", "late_reply"]
    assert live.rounds[-1].absent == ("clinic-b",)


def test_a_killed_run_is_told_from_a_running_one_by_its_lock(record: Record) -> None:
    with alone(record.folder):
        assert look(record.folder, at(360)).state == "running"
    live = look(record.folder, at(10_000))
    assert live.state == "stopped"
    assert "--resume" in live.says
    assert live.seconds == 350  # to its last line, not to now
    assert live.eta_s is None


def test_an_ended_run_says_how(record: Record) -> None:
    record.add(
        360, "run_failed", method=None, kind="QuorumError", text="round 3: 1 of 2 clients; missing clinic-b"
    )
    assert look(record.folder, at(400)).state == "failed"
    assert "missing clinic-b" in text(record)
    record.say(status="finished")
    assert look(record.folder, at(400)).state == "finished"


def test_what_is_still_being_written_is_not_read(record: Record) -> None:
    before = look(record.folder, at(360))
    with (record.folder / "events.jsonl").open("a") as file:
        file.write('{"time": "2026-11-21T12:06:00+00:00", "event": "round_comm')
    assert look(record.folder, at(360)) == before


def test_every_prefix_of_a_record_can_be_watched(record: Record) -> None:
    whole = (record.folder / "events.jsonl").read_bytes()
    for end in range(0, len(whole) + 1, 37):
        (record.folder / "events.jsonl").write_bytes(whole[:end])
        assert text(record)


def test_a_resumed_round_counts_from_its_newest_begin(record: Record) -> None:
    record.add(1000, "run_started", method=None, resumed=True)
    record.ask(1010, 3)
    record.add(1050, "round_committed", round=3, skipped=False)
    assert [r.seconds for r in look(record.folder, at(1060)).rounds] == [100, 100, 40]


def test_watching_writes_nothing(record: Record, capsys: pytest.CaptureFixture[str]) -> None:
    def stamps() -> dict[str, tuple[int, bytes]]:
        return {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in record.folder.iterdir()}

    before = stamps()
    assert main(["watch", str(record.folder), "--once"]) == 0
    assert main(["watch", str(record.folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rounds"][2]["up"] == 1000
    assert stamps() == before


def test_a_folder_without_a_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(tmp_path / "nothing"), "--once"]) == 2
    assert "there is no run in" in capsys.readouterr().err
    assert look(tmp_path / "nothing", NOON).state == "not begun"


def fetch(url: str, **headers: str) -> tuple[int, str, dict[str, str]]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as reply:
            return reply.status, reply.read().decode(), {k.lower(): v for k, v in reply.headers.items()}
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), {}


def test_the_page_shows_the_run_to_this_machine_alone(record: Record) -> None:
    with open_page(record.folder, 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            assert server.server_address[0] == "127.0.0.1"
            url = f"http://127.0.0.1:{server.server_port}"
            status, page, headers = fetch(f"{url}/")
            assert status == 200
            assert "2 of 4 rounds" in page
            assert "default-src 'none'" in headers["content-security-policy"]
            loaded = re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?([^\"')\s>]+)", page)
            assert [one for one in loaded if not one.startswith(("#", "/live.js"))] == []
            record.add(400, "round_committed", round=3, skipped=False)
            assert "3 of 4 rounds" in fetch(f"{url}/view")[1]
            assert "/view" in fetch(f"{url}/live.js")[1]
            assert fetch(f"{url}/../run.json")[0] == 404
            assert fetch(f"{url}/view", Host="evil.example")[0] == 403
        finally:
            server.shutdown()
            thread.join()


def test_a_port_that_is_taken_is_named(record: Record, capsys: pytest.CaptureFixture[str]) -> None:
    with open_page(record.folder, 0) as server:
        assert main(["watch", str(record.folder), "--serve", str(server.server_port)]) == 2
    assert f"127.0.0.1:{server.server_port}" in capsys.readouterr().err


def test_markup_in_a_record_stays_text(record: Record) -> None:
    record.add(
        355,
        "absence",
        round=3,
        party="clinic-b",
        reason="lost",
        text="<script>alert(1)</script> [red]x[/red]",
    )
    from fedtandem.reports.live_page import Page

    view = Page(record.folder).view("live_view.html.j2")
    assert "<script>" not in view
    assert "&lt;script&gt;" in view
    assert "[red]x[/red]" in text(record)
