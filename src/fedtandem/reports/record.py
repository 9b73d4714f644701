"""What a run or a study left behind, read into frozen values; an unfinished run is read as far as it came."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fedtandem.errors import ConfigError, DataError
from fedtandem.federation.events import read_events

UNTOUCHED = "zero_shot"
"""The method whose rows are the models before any training."""
SERVER = "server"


@dataclass(frozen=True)
class Score:
    """A final measurement."""

    method: str
    party: str
    split: str
    metric: str
    higher_is_better: bool
    value: float
    n: int


@dataclass(frozen=True)
class Point:
    """A measurement on the way; `round` 0 is before any training."""

    method: str
    party: str
    split: str
    metric: str
    round: int
    value: float


@dataclass(frozen=True)
class Lesson:
    """Who taught a learner in one round, in samples.

    Attributes:
        teachers: name -> samples it taught.
        skipped: samples that no peer knew better.
        unscored: samples without a comparable score.
        kept_mass: teacher -> mean probability its rows kept.
    """

    method: str
    round: int
    learner: str
    teachers: Mapping[str, int]
    skipped: int
    unscored: int
    kept_mass: Mapping[str, float]


@dataclass(frozen=True)
class Checked:
    """What a learner's check said of one producer's paths in one round.

    Attributes:
        checker: its name.
        written: paths that came.
        accepted, refused, undecided, failed: verdicts; `failed` are faults of the checker itself.
        used: paths that may be learnt.
        examples: (prompt id, reason) of a few that may not.
        strata: kind of prompt -> (written, used, right among the used; None where the right paths are not known).
    """

    method: str
    round: int
    learner: str
    producer: str
    checker: str
    written: int
    accepted: int
    refused: int
    undecided: int
    failed: int
    used: int
    examples: tuple[tuple[str, str], ...]
    strata: Mapping[str, tuple[int, int, int | None]]


@dataclass(frozen=True)
class Items:
    """What a selector chose for one pair in one round, in items.

    Attributes:
        producer, learner: who taught whom.
        spearman: between the selector's scores and the rewards (of a formula: the gains), before it learnt from them.
        strata: stratum -> (chosen, in the pool), where the public rows name theirs.
        gain, probe_gain: how much likelier the right paths became, of the items trained on and of the probe.
    """

    method: str
    round: int
    learner: str
    producer: str
    selector: str
    direction: str
    pool: int
    selected: int
    trained: int
    reasons: Mapping[str, int]
    spearman: float | None
    gain: float | None
    probe_gain: float | None
    strata: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Crossing:
    """How well a teacher's tokens fit a learner's."""

    method: str
    learner: str
    teacher: str
    aligned_share: float


@dataclass(frozen=True)
class Traffic:
    """Payload bytes of one client in one round."""

    method: str
    round: int
    party: str
    up: int
    down: int


@dataclass(frozen=True)
class Phase:
    """Work of one kind by one party in one round."""

    method: str
    round: int
    party: str
    phase: str
    cpu_seconds: float
    steps: int
    kd_gradient_share: float | None


@dataclass(frozen=True)
class Spent:
    """What one private phase under DP-SGD cost.

    Attributes:
        epsilon: of all of the client's private phases up to this one, at `delta`.
        epsilon_phase: of this one alone.
        noise_multiplier, max_grad_norm, sample_rate, steps: of this phase.
        planned: updates it would have made with budget enough.
        target_epsilon: the budget; None: none was set.
    """

    method: str
    round: int
    party: str
    epsilon: float
    epsilon_phase: float
    delta: float
    noise_multiplier: float
    max_grad_norm: float
    sample_rate: float
    steps: int
    planned: int
    target_epsilon: float | None


@dataclass(frozen=True)
class Note:
    """A warning or an absence."""

    method: str
    round: int
    party: str
    kind: str
    text: str


@dataclass(frozen=True)
class RunRecord:
    """A run folder."""

    folder: Path
    about: Mapping[str, Any]
    """run.json as it stands."""
    methods: tuple[str, ...]
    says: Mapping[str, str]
    """method -> what it is."""
    scores: tuple[Score, ...]
    points: tuple[Point, ...]
    lessons: tuple[Lesson, ...]
    checked: tuple[Checked, ...]
    items: tuple[Items, ...]
    crossings: tuple[Crossing, ...]
    traffic: tuple[Traffic, ...]
    phases: tuple[Phase, ...]
    warnings: tuple[Note, ...]
    absences: tuple[Note, ...]
    spent: tuple[Spent, ...]
    rounds_done: int
    """The newest committed round of the run's first method."""

    @property
    def name(self) -> str:
        return str(self.about.get("name", self.folder.name))

    @property
    def main(self) -> str:
        """The method the run is about."""
        return self.methods[0] if self.methods else str(self.about.get("algorithm", ""))

    @property
    def finished(self) -> bool:
        return self.about.get("status") == "finished"

    @property
    def parties(self) -> tuple[str, ...]:
        """The server, then the clients in their own order."""
        named = [*self.about.get("models", {}), *(score.party for score in self.scores)]
        order = dict.fromkeys(named)
        return tuple(sorted(order, key=lambda party: (party != SERVER, list(order).index(party))))

    @property
    def num_rounds(self) -> int:
        return int(self.about.get("config", {}).get("federation", {}).get("num_rounds", 0))


@dataclass(frozen=True)
class StudyRecord:
    """A study folder: its summary holds all a report needs, the cells may be gone."""

    folder: Path
    summary: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.summary.get("name", self.folder.name))

    @property
    def rows(self) -> tuple[Mapping[str, Any], ...]:
        return tuple(self.summary["rows"])


def is_run(folder: Path) -> bool:
    """Whether a run was begun there."""
    return (folder / "run.json").is_file()


def is_study(folder: Path) -> bool:
    """Whether a study wrote its table there."""
    path = folder / "summary.json"
    return not is_run(folder) and path.is_file() and _json(path).get("kind") == "study"


def read_record(folder: Path) -> RunRecord | StudyRecord:
    """Read whichever of the two lies there.

    Raises:
        ConfigError: neither does.
        DataError: a file of it cannot be read.
    """
    if is_run(folder):
        return read_run(folder)
    if is_study(folder):
        return read_study(folder)
    raise ConfigError(
        f"{folder} holds neither a run (run.json) nor a study (summary.json). Name the folder that `fedtandem run` "
        "or `fedtandem study` wrote."
    )


def read_study(folder: Path) -> StudyRecord:
    """Read a study's folder."""
    return StudyRecord(folder, _json(folder / "summary.json"))


def read_run(folder: Path) -> RunRecord:
    """Read a run folder, finished or not.

    Raises:
        DataError: run.json or summary.json is not JSON.
    """
    about = _json(folder / "run.json")
    events = read_events(folder / "events.jsonl")
    methods = tuple(about.get("methods", ()))
    points = tuple(_point(e) for e in events if e["event"] == "metric")
    summary = folder / "summary.json"
    scores = _final(_json(summary)["rows"]) if summary.is_file() else _scores_so_far(events, methods)
    return RunRecord(
        folder=folder,
        about=about,
        methods=methods,
        says={e["method"]: e.get("says", "") for e in events if e["event"] == "method_started"},
        scores=scores,
        points=points,
        lessons=tuple(_lesson(e) for e in events if e["event"] == "selection"),
        checked=tuple(_checked(e) for e in events if e["event"] == "check"),
        items=tuple(_items(e) for e in events if e["event"] == "items"),
        crossings=tuple(_crossing(e) for e in events if e["event"] == "alignment"),
        traffic=tuple(_traffic(e) for e in events if e["event"] == "bytes"),
        phases=tuple(_phase(e) for e in events if e["event"] == "phase"),
        warnings=tuple(_note(e, "signature") for e in events if e["event"] == "warning"),
        absences=tuple(_note(e, "reason") for e in events if e["event"] == "absence"),
        spent=tuple(_spent(e) for e in events if e["event"] == "privacy"),
        rounds_done=max(
            (
                int(e["round"])
                for e in events
                if e["event"] == "round_committed" and e.get("method") in methods[:1]
            ),
            default=0,
        ),
    )


def _spent(event: Mapping[str, Any]) -> Spent:
    names = [field.name for field in fields(Spent) if field.name != "method"]
    return Spent(method=event.get("method", ""), **{name: event[name] for name in names})


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} holds a {type(value).__name__}, not an object.")
    return value


def _final(rows: Iterable[Mapping[str, Any]]) -> tuple[Score, ...]:
    return tuple(_score(row) for row in rows)


def _scores_so_far(events: Iterable[Mapping[str, Any]], methods: tuple[str, ...]) -> tuple[Score, ...]:
    """The newest measurement of each kind; those of round 0 are the untouched models'."""
    latest: dict[tuple[str, str, str, str], tuple[int, Score]] = {}
    for event in events:
        if event["event"] != "metric":
            continue
        untouched = event["round"] == 0 and event["method"] in methods[:1]
        method = UNTOUCHED if untouched else event["method"]
        key = (method, event["party"], event["split"], event["metric"])
        if key not in latest or latest[key][0] <= event["round"]:
            latest[key] = (event["round"], _score({**event, "method": method}))
    return tuple(score for _, score in latest.values())


def _score(row: Mapping[str, Any]) -> Score:
    return Score(
        row["method"],
        row["party"],
        row["split"],
        row["metric"],
        bool(row["higher_is_better"]),
        float(row["value"]),
        int(row["n"]),
    )


def _point(e: Mapping[str, Any]) -> Point:
    return Point(e["method"], e["party"], e["split"], e["metric"], int(e["round"]), float(e["value"]))


def _lesson(e: Mapping[str, Any]) -> Lesson:
    learner = str(e.get("learner", e.get("party", "")))
    return Lesson(
        str(e.get("method", "")),
        int(e["round"]),
        learner,
        {name: int(count) for name, count in e["teachers"].items()},
        int(e["skipped"]),
        int(e.get("unscored", 0)),
        {name: float(mass) for name, mass in (e.get("kept_mass") or {}).items()},
    )


def _checked(e: Mapping[str, Any]) -> Checked:
    return Checked(
        str(e.get("method", "")),
        int(e["round"]),
        str(e["party"]),
        str(e["teacher"]),
        str(e["checker"]),
        int(e["written"]),
        int(e["accepted"]),
        int(e["refused"]),
        int(e["undecided"]),
        int(e["failed"]),
        int(e["used"]),
        tuple((str(example["id"]), str(example["reason"])) for example in e.get("examples", ())),
        {name: (of["written"], of["used"], of["right"]) for name, of in e.get("strata", {}).items()},
    )


def _items(e: Mapping[str, Any]) -> Items:
    return Items(
        str(e.get("method", "")), int(e["round"]), str(e["party"]), str(e["teacher"]), str(e["selector"]),
        str(e["direction"]), int(e["pool"]), int(e["selected"]), int(e["trained"]), dict(e["reasons"]),
        e.get("spearman"), e.get("gain"), e.get("probe_gain"),
        {name: (int(chosen), int(of)) for name, (chosen, of) in e.get("strata", {}).items()},
    )  # fmt: skip


def _crossing(e: Mapping[str, Any]) -> Crossing:
    learner = str(e.get("learner", e.get("party", "")))
    return Crossing(str(e.get("method", "")), learner, str(e["teacher"]), float(e["aligned_share"]))


def _traffic(e: Mapping[str, Any]) -> Traffic:
    return Traffic(str(e.get("method", "")), int(e["round"]), str(e["party"]), int(e["up"]), int(e["down"]))


def _phase(e: Mapping[str, Any]) -> Phase:
    share = e.get("kd_gradient_share")
    return Phase(
        str(e.get("method", "all")),
        int(e.get("round", 0)),
        str(e.get("party", "all")),
        str(e["phase"]),
        float(e["cpu_seconds"]),
        int(e.get("steps") or 0),
        None if share is None else float(share),
    )


def _note(e: Mapping[str, Any], kind: str) -> Note:
    return Note(
        str(e.get("method", "")),
        int(e.get("round", 0)),
        str(e.get("party", "")),
        str(e[kind]),
        str(e["text"]),
    )
