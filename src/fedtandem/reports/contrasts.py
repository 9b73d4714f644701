"""A method beside its control, from a run (one seed) or from a study (many), in one shape."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedtandem.reports.record import SERVER, UNTOUCHED, RunRecord, Score, StudyRecord

CONTROLS = {
    "server": ("fedmkt_random", "server_public", "centralised", "zero_shot"),
    "clients": ("fedmkt_random", "standalone_public", "standalone", "fedavg", "zero_shot"),
}
"""Side -> the controls a run is judged by, the best first."""


@dataclass(frozen=True)
class Contrast:
    """A method minus its control for one party and test set.

    Attributes:
        value, control_value: the two figures (means over seeds); no control leaves None.
        before: the untouched model's figure, where it was measured.
        difference: in the metric's unit and sign; `gain` turns it so that more is better.
        interval: Student's t, 95 %; None with fewer than two seeds.
        bootstrap: the two-level bootstrap's.
        claim: the difference may be called real; `why_no_claim` says why not.
        seeds: how many pairs of seeds it rests on.
        equal_updates: both were trained for the same number of updates; None if unknown.
        n: test items.
    """

    method: str
    control: str | None
    party: str
    split: str
    metric: str
    higher_is_better: bool
    value: float
    control_value: float | None = None
    before: float | None = None
    difference: float | None = None
    interval: tuple[float, float] | None = None
    bootstrap: tuple[float, float] | None = None
    p_holm: float | None = None
    claim: bool = False
    why_no_claim: str = "one seed"
    seeds: int = 1
    sd: float | None = None
    per_seed: tuple[float, ...] = ()
    equal_updates: bool | None = None
    updates: float = 0
    control_updates: float = 0
    in_family: bool = True
    n: int = 0

    @property
    def gain(self) -> float | None:
        """The difference, positive where the method is better."""
        return (
            None
            if self.difference is None
            else self.difference
            if self.higher_is_better
            else -self.difference
        )

    @property
    def side(self) -> str:
        """`server` or `clients`."""
        return SERVER if self.party == SERVER else "clients"

    @property
    def includes_zero(self) -> bool | None:
        """Whether the t interval includes 0; None without one."""
        return None if self.interval is None else self.interval[0] <= 0 <= self.interval[1]


def run_contrasts(run: RunRecord) -> tuple[Contrast, ...]:
    """The run's method against the best control that was run beside it, per party and test set."""
    by_key = {(s.method, s.party, s.split, s.metric): s for s in run.scores}
    updates = _updates(run)
    found = []
    for score in run.scores:
        if score.method != run.main:
            continue
        side = SERVER if score.party == SERVER else "clients"
        others = [
            name for name in (*CONTROLS[side], *run.methods) if name in run.methods and name != run.main
        ]
        control = next((name for name in others if (name, *_key(score)) in by_key), None)
        theirs = by_key.get((control or "", *_key(score)))
        before = by_key.get((UNTOUCHED, *_key(score)))
        found.append(
            Contrast(
                method=score.method,
                control=control,
                party=score.party,
                split=score.split,
                metric=score.metric,
                higher_is_better=score.higher_is_better,
                value=score.value,
                control_value=theirs.value if theirs else None,
                before=before.value if before else None,
                difference=score.value - theirs.value if theirs else None,
                equal_updates=_equal(updates, score, control),
                n=score.n,
            )
        )
    order = list(run.parties)
    return tuple(sorted(found, key=lambda c: order.index(c.party)))


def _key(score: Score) -> tuple[str, str, str]:
    return score.party, score.split, score.metric


def _updates(run: RunRecord) -> dict[tuple[str, str], int]:
    total: dict[tuple[str, str], int] = {}
    for phase in run.phases:
        total[phase.method, phase.party] = total.get((phase.method, phase.party), 0) + phase.steps
    return total


def _equal(updates: Mapping[tuple[str, str], int], score: Score, control: str | None) -> bool | None:
    if control is None:
        return None
    ours, theirs = updates.get((score.method, score.party), 0), updates.get((control, score.party), 0)
    return abs(ours - theirs) <= 0.01 * max(ours, theirs)


def study_contrasts(study: StudyRecord) -> tuple[Contrast, ...]:
    """Every compared row of a study, in the order of its table."""
    means = {_row_key(row, row["method"]): row["mean"] for row in study.rows}
    found = []
    for row in study.rows:
        if row["difference"] is None:
            continue
        found.append(
            Contrast(
                method=row["method"],
                control=row["control"],
                party=row["party"],
                split=row.get("split", ""),
                metric=row["metric"],
                higher_is_better=row["higher_is_better"],
                value=row["mean"],
                control_value=means.get(_row_key(row, row["control"])),
                before=means.get(_row_key(row, UNTOUCHED)),
                difference=row["difference"],
                interval=_pair(row["difference_ci"]),
                bootstrap=_pair(row.get("bootstrap_ci")),
                p_holm=row.get("p_holm"),
                claim=bool(row.get("claim")),
                why_no_claim=row.get("why_no_claim", ""),
                seeds=len(row.get("difference_per_seed", row["seeds"])),
                sd=row["sd"],
                per_seed=tuple(row.get("difference_per_seed", ())),
                equal_updates=row.get("equal_updates"),
                updates=row.get("updates", 0),
                control_updates=row.get("control_updates", 0),
                in_family=bool(row.get("family", 1)),
                n=row.get("n", 0),
            )
        )
    return tuple(found)


def _row_key(row: Mapping[str, Any], method: str) -> tuple[str, str, str, str]:
    return method, row["party"], row.get("split", ""), row["metric"]


def _pair(bounds: Sequence[float] | None) -> tuple[float, float] | None:
    return None if bounds is None else (bounds[0], bounds[1])
