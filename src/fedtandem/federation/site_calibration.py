"""A site's part in `fedtandem calibrate`: counts of its own recorded decisions, plain or under masks, told once.

Nothing stays in memory between two messages: replies lie in the site's state folder, and so does the private half of a
key for masks (readable to its owner alone) from the moment it is offered until it has been used.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from fedtandem.algorithms.threshold_parties import ThresholdClient
from fedtandem.atomic import write_text
from fedtandem.config.site import SiteCalibration, SiteConfig
from fedtandem.data.traces import Trace, read_trace
from fedtandem.errors import ConfigError, InvalidMessage
from fedtandem.evaluation.scored_trace import MEASURE_NAMES, Feedback, feedbacks_of, measures_of, score_trace
from fedtandem.exchange.calibration import CalibrationRequest
from fedtandem.exchange.carrier import Envelope
from fedtandem.exchange.masking import MaskedReply, MaskingRequest, OfferReply
from fedtandem.exchange.trace_card import TraceCard, TraceCardRequest
from fedtandem.federation.calibrate import AUDIT_KEY, client_of
from fedtandem.federation.consent import check_calibration
from fedtandem.federation.secret_key import secret_key
from fedtandem.federation.store import RoundStore

if TYPE_CHECKING:
    from fedtandem.federation.masking import Attempt, Masker

CALIBRATE = "calibrate"
"""What stands in place of a run's method."""
PLAN_SCHEMA = 1
KEPT = 4
"""Replies a site keeps: a key and its sums, of this attempt and the one before."""
THRESHOLD = "threshold.json"
"""In the site's folder: the threshold that was published to it last."""


@dataclass(frozen=True)
class Plan:
    """What the server wants to know; beside every message of a calibration.

    Attributes:
        masked: under masks alone.
        measure: of uncertainty; empty while the server still asks what there is.
        feedback: what β is made of; empty likewise.
    """

    masked: bool
    measure: str = ""
    feedback: str = ""
    schema: int = PLAN_SCHEMA

    def to_json(self) -> str:
        """As it travels."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> "Plan":
        """Believing nothing.

        Raises:
            InvalidMessage: another schema, or a value that cannot be.
        """
        kinds = {key: type(value) for key, value in told.items()}
        if kinds != {"masked": bool, "measure": str, "feedback": str, "schema": int} or (
            told["schema"] != PLAN_SCHEMA
        ):
            raise InvalidMessage(
                f"the server's plan of a calibration is {str(dict(told))[:200]}; this site reads schema {PLAN_SCHEMA}. "
                "Install the same fedtandem version at server and sites."
            )
        return cls(**told)


def answer_calibration(
    site: SiteConfig, plan: Plan, experiment: str, envelope: Envelope, folder: Path
) -> Envelope:
    """Answer one message; the same one again gets the stored reply, byte for byte.

    Args:
        experiment: the calibration's own name; masks are bound to it.
        folder: where this site keeps its part of it.

    Raises:
        ConsentError: the site's file does not allow what is asked for.
        ConfigError: the site has no trace or no keys, or its trace lacks what is asked for.
        DataError: the trace cannot be read.
        InvalidMessage: a message that is malformed, was replayed, or is one of another calibration.
        QuorumError: fewer than three sites would be summed.
    """
    store = RoundStore(folder / "state", keep=KEPT)
    if envelope.kind == "card":
        TraceCardRequest.from_envelope(envelope)
        check_calibration(site, masked=plan.masked, step=0)
        return _once(store, site.name, "0000", envelope, lambda: _card(site, plan))
    if plan.masked:
        return _under_masks(site, plan, experiment, envelope, store)
    request = CalibrationRequest.from_envelope(envelope)
    check_calibration(site, masked=False, step=request.round - 1 if request.job == "descend" else 0)
    reply = _once(
        store, site.name, f"{request.round:04d}", envelope, lambda: _client(site, plan).handle(envelope)
    )
    _keep_threshold(site, plan, request)
    return reply


def _once(
    store: RoundStore, party: str, key: str, envelope: Envelope, make: Callable[[], Envelope]
) -> Envelope:
    """The reply, made and committed where this very message has none yet."""
    digest, kept = hashlib.sha256(envelope.to_bytes()).digest(), store.committed()
    if key in kept:
        stored = store.load(key)
        if stored["request"] == digest:
            return Envelope.from_bytes(stored["reply"])
    if kept and key <= kept[-1]:
        raise InvalidMessage(
            f"{party}: a message of step {key} came, but this site has answered another one of it, or a later one "
            f"({kept[-1]}). It was replayed or changed; begin a new calibration."
        )
    reply = make()
    store.save(key, {"request": digest, "reply": reply.to_bytes()})
    return reply


def _card(site: SiteConfig, plan: Plan) -> Envelope:
    trace = _trace(site)
    if plan.masked:
        _keys(site)
    return TraceCard(site.name, site.edge, measures_of(trace), feedbacks_of(trace), plan.masked).to_envelope()


def _own(site: SiteConfig) -> SiteCalibration:
    if site.calibration is None:
        raise ConfigError(
            f"{site.name} has no recorded decisions to learn thresholds from: record some with `fedtandem trace`, and "
            'name the file in the site\'s own file: [calibration] trace = "calibration.parquet".'
        )
    return site.calibration


def _trace(site: SiteConfig) -> Trace:
    return read_trace(Path(_own(site).trace))


def _client(site: SiteConfig, plan: Plan) -> ThresholdClient:
    if plan.measure not in MEASURE_NAMES or plan.feedback not in get_args(Feedback):
        raise InvalidMessage(
            f"{site.name}: measure = {plan.measure!r}, feedback = {plan.feedback!r} are none that this version knows. "
            "Install the same fedtandem version at server and sites."
        )
    trace = _trace(site)
    scored = score_trace(trace, plan.measure, plan.feedback)  # type: ignore[arg-type]
    return client_of(site.name, trace, scored, AUDIT_KEY)


def _keep_threshold(site: SiteConfig, plan: Plan, request: CalibrationRequest) -> None:
    """Put down what was published, for whoever sets the device up."""
    if request.job == "publish":
        told = {"tau": float(request.tau[0]), "measure": plan.measure, "feedback": plan.feedback}
        write_text(site.home / THRESHOLD, json.dumps(told, indent=1) + "\n")


# -- under masks -------------------------------------------------------------------------------------------------


def _under_masks(
    site: SiteConfig, plan: Plan, experiment: str, envelope: Envelope, store: RoundStore
) -> Envelope:
    """A fresh key, or the counts under the masks of all keys; the key is deleted once its reply is committed."""
    from fedtandem.federation.masking import Attempt

    request = MaskingRequest.from_envelope(envelope)
    check_calibration(site, masked=True, step=0)
    if request.run != experiment:
        raise InvalidMessage(
            f"{site.name}: keys for {request.run!r} were asked for within {experiment!r}. Nothing was sent."
        )
    attempt = Attempt(request.run, request.round, request.attempt)
    name = f"{request.round:04d}-{request.attempt:07d}"
    secret = store.root.parent / "masks" / f"{name}.key"
    if request.job is None:
        return _once(store, site.name, f"{name}-1-key", envelope, lambda: _offer(site, plan, attempt, secret))
    reply = _once(
        store, site.name, f"{name}-2-sums", envelope, lambda: _sums(site, plan, attempt, request, secret)
    )
    secret.unlink(missing_ok=True)
    _keep_threshold(site, plan, request.job)
    return reply


def _offer(site: SiteConfig, plan: Plan, attempt: "Attempt", secret: Path) -> Envelope:
    for left in secret.parent.glob("*.key"):  # of an attempt that was given up: it can no longer be answered
        if left != secret:
            left.unlink()
    models = _client(site, plan).models
    masker = _masker(site, attempt, secret_key(secret))
    return OfferReply(attempt.round, attempt.attempt, masker.offer, models).to_envelope()


def _sums(
    site: SiteConfig, plan: Plan, attempt: "Attempt", request: MaskingRequest, secret: Path
) -> Envelope:
    from fedtandem.federation.masked_edges import STATISTICS, statistics

    if request.job is None or not secret.is_file():
        raise InvalidMessage(
            f"{site.name}, round {attempt.round}: no key was offered for attempt {attempt.attempt} of run "
            f"{attempt.run!r}, or it was used. Ask for one first."
        )
    values = statistics(_client(site, plan), request.job)
    words = _masker(site, attempt, secret_key(secret)).mask(values, STATISTICS, request.offers)
    return MaskedReply(attempt.round, site.name, attempt.attempt, words).to_envelope()


def _masker(site: SiteConfig, attempt: "Attempt", secret: bytes) -> "Masker":
    from fedtandem.federation.masking import Masker

    signing, known = _keys(site)
    return Masker(site.name, attempt, signing, known, secret)


def _keys(site: SiteConfig) -> tuple[Any, dict[str, Any]]:
    """This site's registered key, and the public keys its operator knows (its own from its private key)."""
    from fedtandem.federation.registered_keys import public_keys, signing_key

    own = _own(site)
    signing = signing_key(Path(own.key))
    return signing, {**public_keys(Path(own.keys)), site.name: signing.public_key()}
