"""`fedtandem calibrate` with the clients at their sites: the server's part, behind any engine."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fedtandem.algorithms.fedhlm import run_fedhlm
from fedtandem.algorithms.threshold_policy import make_policy
from fedtandem.atomic import write_text
from fedtandem.errors import ConfigError, InvalidMessage
from fedtandem.evaluation.scored_trace import LEARNED, MEASURE_NAMES
from fedtandem.exchange.carrier import Absence, Carrier, Envelope
from fedtandem.exchange.reading import Expected
from fedtandem.exchange.trace_card import TraceCard, TraceCardRequest
from fedtandem.federation.calibrate import (
    CalibrateRequest,
    check_last,
    settings_of,
)
from fedtandem.federation.calibration_result import CalibrationResult
from fedtandem.federation.events import EventLog
from fedtandem.federation.local import LocalCarrier
from fedtandem.federation.logical_edges import LogicalEdges, Quorate
from fedtandem.federation.remote import Count, Emit
from fedtandem.federation.site_calibration import CALIBRATE, Plan
from fedtandem.federation.strategy import RoundPolicy, Strategy
from fedtandem.inference.policy import policy_to_json, read_policy

if TYPE_CHECKING:
    from fedtandem.federation.masked_edges import Known

Connect = Callable[[Plan, Sequence[str], Count, Emit], Carrier]
"""`connect(plan, clients, count, emit)`: a carrier to these clients, the plan beside every message."""
CARDS, CLIENTS, CLOUD = "cards", "clients and edges", "edges and cloud"
"""Whose bytes are counted: the sites' cards before round 1, then both levels as in one process."""
RESULT, POLICY = "calibration.json", "policy.json"
"""What a calibration leaves in its folder."""
ORDER = ("expected", "recorded")
"""Measures that are taken where none is named: the first that all sites have."""


@dataclass(frozen=True)
class SitesRequest:
    """What is asked, of whom, and when it is enough.

    Attributes:
        request: as typed; without a trace.
        members: the clients, sorted by name.
        min_clients, deadline_s, on_short: as in [federation].
    """

    request: CalibrateRequest
    members: tuple[str, ...]
    min_clients: int = 1
    deadline_s: float = 600.0
    on_short: Literal["wait", "skip", "fail"] = "wait"

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        request = {
            key: str(value.resolve()) if isinstance(value, Path) else value
            for key, value in vars(self.request).items()
        }
        return {**vars(self), "request": request, "members": list(self.members)}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> "SitesRequest":
        """What `to_json` wrote."""
        request = dict(told["request"])
        last = None if request["last"] is None else Path(request["last"])
        request |= {"output": Path(request["output"]), "last": last}
        return cls(**{**told, "request": CalibrateRequest(**request), "members": tuple(told["members"])})


def check_request(request: CalibrateRequest) -> None:
    """Refuse what cannot be asked of sites, before anything starts.

    Raises:
        ConfigError: names the option.
    """
    settings = settings_of(request)
    if request.clusters is not None:
        raise ConfigError(
            "--clusters groups clients by embeddings, which sites do not send; each site names its edge (`edge` in its "
            "site.toml)."
        )
    if request.measure == LEARNED:
        raise ConfigError(
            "--measure learned is fitted on single decisions in one place, which sites do not send; take expected."
        )
    if request.measure is not None and request.measure not in MEASURE_NAMES:
        raise ConfigError(f"--measure {request.measure}; choose one of {', '.join(MEASURE_NAMES)}.")
    if request.masked and settings.learn == "gradient":
        raise ConfigError(
            "--masked: a client's own gradient step is no sum to be masked; use --learn histogram or line."
        )
    if request.last is not None:
        read_policy(request.last)


def calibrate_sites(
    asked: SitesRequest, connect: Connect, folder: Path, experiment: str, known: "Known | None" = None
) -> CalibrationResult:
    """Ask the sites, learn thresholds, and leave policy, bytes and record in the folder.

    Args:
        folder: for `events.jsonl`, `calibration.json` and `policy.json`.
        experiment: the calibration's name; masks are bound to it.
        known: the sites' public keys by name; only for `--masked`.

    Raises:
        QuorumError: too few sites answer; names the missing and why.
        ConfigError: the sites' traces do not allow what is asked, or the goal cannot be met.
    """
    log = EventLog(folder / "events.jsonl")
    try:
        done = _Calibrating(asked, connect, partial(log.emit, method=CALIBRATE)).run(experiment, known)
    finally:
        log.close()
    write_text(folder / POLICY, policy_to_json(done.policy))
    write_text(folder / RESULT, done.to_json())
    return done


class _Calibrating:
    """One calibration, from the sites' cards to the policy."""

    def __init__(self, asked: SitesRequest, connect: Connect, emit: Emit) -> None:
        self._asked, self._connect, self._emit = asked, connect, emit
        self._settings = replace(settings_of(asked.request), deadline_s=asked.deadline_s)
        self._up: Counter[str] = Counter()
        self._down: Counter[str] = Counter()
        self._traffic: dict[tuple[str, int, str], list[int]] = {}

    def run(self, experiment: str, known: "Known | None") -> CalibrationResult:
        request, settings = self._asked.request, self._settings
        last = None if request.last is None else read_policy(request.last)
        cards = self._cards()
        plan = self._agree(cards)
        check_last(request, last, plan.measure)
        members: dict[str, list[str]] = {}
        for name, card in cards.items():
            members.setdefault(card.edge or "all", []).append(name)
        self._emit("edges", edges=members, measure=plan.measure, feedback=plan.feedback)
        edges = (
            self._plain(members, plan) if known is None else self._masked(members, plan, experiment, known)
        )
        done = run_fedhlm(edges, settings, last)
        policy = make_policy(done, settings, measure=plan.measure, feedback=plan.feedback)
        if isinstance(edges, Quorate):
            return CalibrationResult(
                replace(policy, clients={}), done.names, dict(self._up), dict(self._down), edges.summed()
            )
        counted = {
            edge: tuple(name for name, group in zip(done.names, done.group, strict=True) if group == at)
            for at, edge in enumerate(done.clusters)
        }
        return CalibrationResult(policy, done.names, dict(self._up), dict(self._down), counted)

    def _cards(self) -> dict[str, TraceCard]:
        """What each site can be asked; one that refuses ends the calibration."""
        plan = Plan(self._asked.request.masked)
        strategy = self._strategy(plan, self._asked.members, CARDS)

        def decode(name: str, envelope: Envelope) -> TraceCard:
            card = TraceCard.from_envelope(envelope, expected=Expected(party=name, round=0))
            if card.masked != plan.masked:
                raise InvalidMessage(f"{name}: its card is one for another calibration. Ask again.")
            return card

        asked = dict.fromkeys(self._asked.members, TraceCardRequest().to_envelope())
        return strategy.ask(asked, decode, round_number=0, need="willing") or {}

    def _agree(self, cards: Mapping[str, TraceCard]) -> Plan:
        """The measure and the feedback that all sites have, as one process would choose them on all their traces."""
        request = self._asked.request
        measure = request.measure or next(
            (one for one in ORDER if all(one in card.measures for card in cards.values())), ""
        )
        feedback: str = request.feedback
        if feedback == "auto":
            wanted = (*(("quality",) if request.max_loss is not None else ()), "probabilities")
            feedback = next(
                (one for one in wanted if all(one in card.feedbacks for card in cards.values())), "agreement"
            )
        for option, value, has in (
            ("measure", measure, {name: card.measures for name, card in cards.items()}),
            ("feedback", feedback, {name: card.feedbacks for name, card in cards.items()}),
        ):
            lacking = [
                f"{name} has {', '.join(own) or 'none'}" for name, own in has.items() if value not in own
            ]
            if lacking:
                raise ConfigError(
                    f"--{option} {value or '(none given)'}: not all sites' traces allow it: {'; '.join(lacking)}. Name "
                    "one that all have, or record their traces alike."
                )
        return Plan(request.masked, measure, feedback)

    def _plain(self, members: Mapping[str, Sequence[str]], plan: Plan) -> LogicalEdges:
        everyone = sorted(name for names in members.values() for name in names)
        return LogicalEdges(members, self._strategy(plan, everyone, CLIENTS), partial(self._count, CLOUD))

    def _masked(
        self, members: Mapping[str, Sequence[str]], plan: Plan, experiment: str, known: "Known"
    ) -> Quorate:
        from fedtandem.federation.masked_edges import MaskedEdge

        def absent(name: str, round_number: int, absence: Absence) -> None:
            self._emit("absence", round=round_number, party=name, reason=absence.reason, text=absence.text)

        edges = {
            edge: MaskedEdge(
                edge, self._connect(plan, names, partial(self._count, CLIENTS), self._emit), known, experiment,
                self._asked.deadline_s, sorted(names), absent,
            )
            for edge, names in members.items()
        }  # fmt: skip
        carrier = LocalCarrier(edges, count=partial(self._count, CLOUD))
        return Quorate(carrier, list(edges.values()), self._asked.min_clients)

    def _strategy(self, plan: Plan, members: Sequence[str], level: str) -> Strategy:
        asked = self._asked
        policy = RoundPolicy(
            min_clients=asked.min_clients, deadline_s=asked.deadline_s, on_short=asked.on_short,
            seed=asked.request.seed, members=tuple(members), again="start again",
        )  # fmt: skip
        carrier = self._connect(plan, members, partial(self._count, level), self._emit)
        return Strategy(carrier, policy, self._emit)

    def _count(self, level: str, party: str, round_number: int, up: int, down: int) -> None:
        self._up[level] += up
        self._down[level] += down
        total = self._traffic.setdefault((level, round_number, party), [0, 0])
        total[0] += up
        total[1] += down
        self._emit("bytes", level=level, round=round_number, party=party, up=total[0], down=total[1])
