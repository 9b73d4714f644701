"""What a run is doing, from its folder alone: running, ended, killed or half-written, whatever carries it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any, Literal

from fedtandem.federation.alone import is_worked_in
from fedtandem.federation.events import newest_of_each, read_lines
from fedtandem.federation.now import FILE as NOW
from fedtandem.reports.record import SERVER, Lesson, Note, Point, RunRecord, Traffic, is_run, read_run
from fedtandem.reports.wording import seconds

State = Literal["not begun", "running", "finished", "failed", "stopped"]
Event = Mapping[str, Any]


@dataclass(frozen=True)
class PartyNow:
    """One party.

    Attributes:
        state: in a word or two.
        told: more of it: since when, or why.
        heard: when it last wrote or answered something; None: never.
        up, down: bytes in the current method so far.
        absences: how often it was absent in the current method.
    """

    name: str
    state: str
    told: str
    heard: datetime | None
    up: int
    down: int
    absences: int


@dataclass(frozen=True)
class RoundNow:
    """One round of the current method; `seconds` is None while it is under way."""

    number: int
    began: datetime
    seconds: float | None
    state: Literal["under way", "committed", "skipped"]
    answered: int
    absent: tuple[str, ...]
    up: int
    down: int


@dataclass(frozen=True)
class Measured:
    """A party's test set in the current method: before training, and newest."""

    party: str
    split: str
    metric: str
    before: float | None
    now: float
    round: int


@dataclass(frozen=True)
class Live:
    """A run at one moment; everything of `method` where nothing else is said.

    Attributes:
        state: of the run.
        says: why it is in that state, or what to do; empty where there is nothing to say.
        doing: the newest progress of the process, e.g. "fedmkt · server: public tuning 12 of 20".
        heard: time of the record's last line.
        seconds: since the run's first line.
        eta_s: estimate of what is left; None before a first round is committed, and when nothing runs.
    """

    name: str
    carrier: str
    state: State
    says: str
    doing: str
    started: datetime | None
    heard: datetime | None
    seconds: float
    eta_s: float | None
    methods: tuple[str, ...]
    method: str
    num_rounds: int
    rounds: tuple[RoundNow, ...]
    parties: tuple[PartyNow, ...]
    lessons: tuple[Lesson, ...]
    measured: tuple[Measured, ...]
    notes: tuple[Note, ...]

    @property
    def rounds_done(self) -> int:
        """The newest committed round."""
        return max((r.number for r in self.rounds if r.seconds is not None), default=0)


def look(folder: Path, now: datetime) -> Live:
    """Read a run folder; writes nothing.

    Args:
        now: with its time zone.

    Raises:
        DataError: run.json is no JSON.
    """
    if not is_run(folder):
        return Live(
            folder.name, "", "not begun", f"there is no run in {folder} yet", "", None, None, 0.0, None, (), "", 0,
            (), (), (), (), (),
        )  # fmt: skip
    run, lines = read_run(folder), read_lines(folder / "events.jsonl")
    state, says = _state(folder, run, lines)
    method = next((str(e["method"]) for e in reversed(lines) if "method" in e), run.main)
    mine = [e for e in lines if e.get("method") == method]
    traffic = [t for t in run.traffic if t.method == method]
    rounds = _rounds(mine, traffic)
    started = _time(lines[0]) if lines else None
    heard = _time(lines[-1]) if lines else None
    until = now if state == "running" else heard
    return Live(
        name=run.name,
        carrier=str(run.about.get("carrier", "local")),
        state=state,
        says=says,
        doing=_doing(folder, heard) if state == "running" else "",
        started=started,
        heard=heard,
        seconds=(until - started).total_seconds() if started and until else 0.0,
        eta_s=_eta_s(run, lines, method, rounds, now) if state == "running" else None,
        methods=run.methods,
        method=method,
        num_rounds=run.num_rounds,
        rounds=rounds,
        parties=tuple(_party(name, mine, traffic, state) for name in _names(run)),
        lessons=_newest_lessons(run, method),
        measured=_measured(run.points, method),
        notes=_notes(mine),
    )


def _names(run: RunRecord) -> list[str]:
    """The parties of the record, and the clients at sites that have not said a word yet."""
    clients = [str(client["name"]) for client in run.about.get("config", {}).get("clients", ())]
    return list(dict.fromkeys((*run.parties, *clients)))


def _time(event: Event) -> datetime:
    return datetime.fromisoformat(str(event["time"]))


def _state(folder: Path, run: RunRecord, lines: Sequence[Event]) -> tuple[State, str]:
    if run.finished:
        return "finished", ""
    if is_worked_in(folder):
        return "running", ""
    last = lines[-1] if lines else {}
    if last.get("event") == "run_failed":
        return "failed", str(last["text"]) or str(last["kind"])
    ended = folder / "end.json"
    if run.about.get("status") == "failed" and ended.is_file():
        return "failed", str(json.loads(ended.read_text()).get("text", ""))
    if (folder / "submission.json").is_file() and not lines:
        return "stopped", "handed to the SuperLink; its server process has not taken it up yet"
    return (
        "stopped",
        "no process of this machine works in this folder: killed, or not yet begun; go on with --resume",
    )


def _doing(folder: Path, heard: datetime | None) -> str:
    """The newest progress, unless the record has gone on since."""
    try:
        told = json.loads((folder / NOW).read_text())
    except (OSError, ValueError):
        return ""
    if heard is not None and (heard - datetime.fromisoformat(told["time"])).total_seconds() > 1:
        return ""
    return f"{told['what']} {told['done']} of {told['of']}"


def _rounds(mine: Sequence[Event], traffic: Sequence[Traffic]) -> tuple[RoundNow, ...]:
    began = {
        int(e["round"]): e for e in mine if e["event"] == "round_started"
    }  # the newest, of a resumed run
    ended = {int(e["round"]): e for e in mine if e["event"] == "round_committed"}
    rounds = []
    for number, start in sorted(began.items()):
        end = ended.get(number)
        if end is not None and _time(end) < _time(start):  # committed, then begun again: its commit was lost
            end = None
        here = [t for t in traffic if t.round == number]
        absent = {str(e["party"]) for e in mine if e["event"] == "absence" and e["round"] == number}
        state: Any = "under way" if end is None else "skipped" if end.get("skipped") else "committed"
        took = None if end is None else (_time(end) - _time(start)).total_seconds()
        rounds.append(RoundNow(
            number, _time(start), took, state, len({t.party for t in here if t.up}), tuple(sorted(absent)),
            sum(t.up for t in here), sum(t.down for t in here),
        ))  # fmt: skip
    return tuple(rounds)


def _eta_s(
    run: RunRecord, lines: Sequence[Event], method: str, rounds: Sequence[RoundNow], now: datetime
) -> float | None:
    """Rounds to come times the median of those done; of the methods to come, as many rounds each."""
    done = [r.seconds for r in rounds if r.seconds is not None]
    if not done:
        return None
    left = max(0, run.num_rounds - max(r.number for r in rounds if r.seconds is not None))
    begun = {str(e["method"]) for e in lines if e["event"] == "method_started"}
    left += run.num_rounds * sum(name not in begun and name != method for name in run.methods)
    under_way = [r for r in rounds if r.seconds is None]
    spent = min((now - under_way[-1].began).total_seconds(), median(done)) if under_way else 0.0
    return left * median(done) - spent


def _party(name: str, mine: Sequence[Event], traffic: Sequence[Traffic], state: State) -> PartyNow:
    up = sum(t.up for t in traffic if t.party == name)
    down = sum(t.down for t in traffic if t.party == name)
    own = [e for e in mine if e.get("party") == name and e["event"] not in ("absence",)]
    absences = [e for e in mine if e["event"] == "absence" and e["party"] == name]
    heard = _time(own[-1]) if own else None
    word, told = _server_now(mine, state) if name == SERVER else _client_now(name, mine, state)
    return PartyNow(name, word, told, heard, up, down, len(absences))


def _server_now(mine: Sequence[Event], state: State) -> tuple[str, str]:
    if state != "running":
        return "–", ""
    waiting = [name for name in _asked(mine) if _client_now(name, mine, state)[0] == "asked"]
    return ("waiting", f"for {', '.join(waiting)}") if waiting else ("at work", "")


def _asked(mine: Sequence[Event]) -> list[str]:
    return list(next((e["parties"] for e in reversed(mine) if e["event"] == "asked"), ()))


def _client_now(name: str, mine: Sequence[Event], state: State) -> tuple[str, str]:
    """What the record tells of a client: the newest of asked, answered, absent, not connected."""
    connected = next((e["parties"] for e in reversed(mine) if e["event"] == "connected"), None)
    if state == "running" and connected is not None and name not in connected:
        return "not connected", "its SuperNode is not at the SuperLink"
    for event in reversed(mine):
        kind = event["event"]
        if kind == "absence" and event["party"] == name:
            return f"absent ({event['reason']})", str(event["text"])
        if kind == "bytes" and event["party"] == name and event["up"]:
            return "answered", f"round {event['round']}"
        if kind == "asked" and name in event["parties"]:
            if state != "running":
                return "–", ""
            return (
                "asked",
                f"{' and '.join(event['kinds'])}, round {event['round']}, within {event['deadline_s']:g} s",
            )
    return ("here", "") if state == "running" else ("–", "")


def _newest_lessons(run: RunRecord, method: str) -> tuple[Lesson, ...]:
    newest: dict[str, Lesson] = {}
    for lesson in run.lessons:
        if lesson.method in (method, "") and (
            lesson.learner not in newest or newest[lesson.learner].round <= lesson.round
        ):
            newest[lesson.learner] = lesson
    return tuple(newest[name] for name in sorted(newest, key=lambda name: (name != SERVER, name)))


def _measured(points: Sequence[Point], method: str) -> tuple[Measured, ...]:
    found = []
    keys = dict.fromkeys((p.party, p.split, p.metric) for p in points if p.method == method)
    for key in sorted(keys, key=lambda key: (key[0] != SERVER, key)):
        mine = [p for p in points if (p.party, p.split, p.metric) == key]
        before = [p.value for p in mine if p.round == 0]
        newest = max((p for p in mine if p.method == method), key=lambda p: p.round)
        found.append(Measured(*key, before[0] if before else None, newest.value, newest.round))
    return tuple(found)


_NOTES = {"warning": "signature", "absence": "reason", "late_reply": "event"}


def _notes(mine: Sequence[Event]) -> tuple[Note, ...]:
    """Warnings, absences and late replies, the newest last."""
    newest = newest_of_each(dict(e) for e in mine if e["event"] in _NOTES)
    return tuple(
        Note(e["method"], int(e.get("round", 0)), e.get("party", ""), e[_NOTES[e["event"]]], e["text"])
        for e in newest
    )


def took(one: RoundNow) -> str:
    """How long a round took, where it is over."""
    return "" if one.seconds is None else seconds(one.seconds)


def taught(lesson: Lesson) -> str:
    """Who taught, in samples: "clinic-a 5, clinic-b 16; 3 that no peer knew better"."""
    teachers = ", ".join(f"{name} {count}" for name, count in lesson.teachers.items() if count) or "nobody"
    return teachers + (f"; {lesson.skipped} that no peer knew better" if lesson.skipped else "")
