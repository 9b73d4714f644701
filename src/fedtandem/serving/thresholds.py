"""The edge's thresholds: devices report what they counted, the newest report of each is solved for a policy."""

import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from fedtandem.algorithms.fedhlm import Settings, run_fedhlm
from fedtandem.algorithms.threshold_parties import NOBODY, Edge
from fedtandem.algorithms.threshold_policy import make_policy
from fedtandem.errors import ConfigError, QuorumError
from fedtandem.exchange.calibration import CalibrationReply, CalibrationRequest
from fedtandem.exchange.carrier import Envelope
from fedtandem.federation.local import LocalCarrier
from fedtandem.inference.policy import Policy, policy_from_json, policy_to_json
from fedtandem.inference.threshold import MIN_AUDITS, Goal
from fedtandem.serving.faults import Refusal

MEASURE = "expected"
"""What devices that report here measure; thresholds of two measures cannot be joined."""

ROUND_S = 60.0
"""Between two rounds, at least: a threshold moves by at most 0.1 in each."""


@dataclass(frozen=True)
class Published:
    """A policy as it goes out."""

    text: str
    etag: str
    until_s: float


class Thresholds:
    """One tenant's devices.

    Args:
        cluster: the edge's name.
        price: λ.
        valid_s: how long a policy may be used.
        now_s: seconds since 1970.
    """

    def __init__(
        self, cluster: str, price: float, valid_s: float, now_s: Callable[[], float] = time.time
    ) -> None:
        self._cluster, self._now_s = cluster, now_s
        self.set(price, valid_s)
        self._reports: dict[str, tuple[str, CalibrationReply]] = {}
        self._policy: Policy | None = None
        self._text = ""
        self._is_new, self._solved_s = False, 0.0
        self._lock = threading.Lock()
        self.rounds = 0
        """Policies made, ever."""

    def set(self, price: float, valid_s: float) -> None:
        """Another λ from the next round on, another validity at once."""
        self._price, self._valid_s = price, valid_s

    def report(self, key: str, reply: CalibrationReply) -> None:
        """Take a device's counts; they replace what it reported before.

        Args:
            key: name of the API key that brought it: a device is whose key reported it first.

        Raises:
            Refusal: it speaks for another device, or holds no counts.
        """
        if reply.names != (reply.party,) or len(reply.counts) != 1:
            raise Refusal(400, "a device reports its own counts, one table of them.", "bad_report")
        owner = self._reports.get(reply.party, (key, reply))[0]
        if owner != key:
            raise Refusal(
                403, "this device's name is another key's; give the device a name of its own.", "not_yours"
            )
        self._reports[reply.party] = (key, reply)
        self._solve()

    def published(self) -> Published | None:
        """The policy in force; None before the first report that says something."""
        if self._policy is None:
            return None
        etag = f'"{hashlib.sha256(self._text.encode()).hexdigest()[:32]}"'
        return Published(self._text, etag, self._now_s() + self._valid_s)

    @property
    def tau(self) -> float | None:
        """Of all devices together."""
        return None if self._policy is None else self._policy.overall.tau

    def _solve(self) -> None:
        devices: Mapping[str, _Reported] = {
            name: _Reported(reply) for name, (_, reply) in self._reports.items()
        }
        edge = Edge(self._cluster, LocalCarrier(devices))
        settings = Settings(goal=Goal("price", self._price), audit_rate=1.0, draws=100)
        try:
            calibration = run_fedhlm(LocalCarrier({self._cluster: edge}), settings, self._policy)
        except (QuorumError, ConfigError):
            return  # nothing labelled yet: the last policy stands
        if float(calibration.table.labelled.sum()) < MIN_AUDITS:
            return  # a threshold from a handful of tokens is chance
        policy = make_policy(calibration, settings, measure=MEASURE, feedback="agreement")
        self._text = policy_to_json(policy)
        self._policy = policy_from_json(self._text, "the new policy")
        self.rounds += 1


class _Reported:
    """A device that is not asked again: its report answers for it."""

    def __init__(self, reply: CalibrationReply) -> None:
        self._reply = reply

    def handle(self, envelope: Envelope) -> Envelope:
        """The report, as the answer to this round."""
        request = CalibrationRequest.from_envelope(envelope)
        counts = self._reply.counts if request.job == "count" else NOBODY
        return replace(self._reply, round=request.round, counts=counts).to_envelope()
