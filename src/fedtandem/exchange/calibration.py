"""What parties say to each other about thresholds: a client speaks for itself, an edge for all of its clients."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from fedtandem.exchange.carrier import Envelope
from fedtandem.exchange.frame import Array
from fedtandem.exchange.reading import ANY, MAX_TEXT, Expected, Reader
from fedtandem.exchange.sealing import seal, take_party, unseal

Floats = npt.NDArray[np.float64]
Job = Literal["survey", "count", "descend", "publish"]

MAX_CLIENTS = 1 << 20
N_COUNTS = 7
"""Rows of a histogram: tokens; sent and audited, each with the sums of β and β²."""
N_BINS = 64
N_SUMS = 6
"""Sums of a line: n, u, u², β, uβ, β²."""


@dataclass(frozen=True, eq=False)
class CalibrationRequest:
    """The cloud to an edge, or an edge to a client.

    Attributes:
        round: of the calibration.
        job: `survey`: how many tokens, how many are skipped; `count`: histogram and line sums; `descend`: local
            gradient steps; `publish`: use this threshold from now on.
        audit_rate: of skipped tokens, in (0, 1].
        price: λ, for `descend`.
        names, tau: the receivers and their thresholds; one threshold without a name is for every receiver.
    """

    round: int
    job: Job
    audit_rate: float
    price: float
    names: tuple[str, ...]
    tau: Floats

    def to_envelope(self) -> Envelope:
        """Encode."""
        header: dict[str, Any] = {
            "job": self.job,
            "audit_rate": float(self.audit_rate),
            "price": float(self.price),
            "names": list(self.names),
        }
        return seal("calibrate", "calibration_request", self.round, header, {"tau": _f4(self.tau)})

    @classmethod
    def from_envelope(cls, envelope: Envelope, *, expected: Expected = ANY) -> "CalibrationRequest":
        """Decode and check.

        Raises:
            InvalidMessage: a field is not what a request may hold.
        """
        read = unseal(envelope, ("calibrate",), "calibration_request", expected)
        job = read.text("job")
        if job not in get_args(Job):
            raise read.refuse("job", job, ", ".join(get_args(Job)))
        names = _names(read, "names")
        request = cls(
            round=envelope.round, job=job, audit_rate=_number(read, "audit_rate", 0.0, 1.0),  # type: ignore[arg-type]
            price=_number(read, "price", -2.0, 2.0), names=names,
            tau=_values(read, "tau", max(1, len(names)), 0.0, 1.0),
        )  # fmt: skip
        read.finish()
        return request


@dataclass(frozen=True, eq=False)
class CalibrationReply:
    """A client's answer, or an edge's for C of its clients.

    Attributes:
        round, party: of the request, and who answers.
        names: the clients that are in it; C of them.
        models: fingerprints of the SLM and the LLM of each.
        tokens, skipped: how many each has, and how many it keeps at its threshold; (C,).
        tau: its threshold now; (C,).
        labelled: tokens with feedback, (C,).
        counts: histograms, (C, 7, 64); C = 0 unless asked for.
        sums: of a line, (C, 6); C = 0 unless asked for.
    """

    round: int
    party: str
    names: tuple[str, ...]
    models: tuple[tuple[str, str], ...]
    tokens: Floats
    skipped: Floats
    tau: Floats
    labelled: Floats
    counts: Floats
    sums: Floats

    def to_envelope(self) -> Envelope:
        """Encode."""
        header: dict[str, Any] = {
            "party": self.party,
            "names": list(self.names),
        }
        # Many clients share few models: their names once, then who has which.
        pairs = sorted(set(self.models))
        header["models"] = [text for pair in pairs for text in pair]
        place = {pair: i for i, pair in enumerate(pairs)}
        arrays: dict[str, Array] = {
            name: _f4(getattr(self, name))
            for name in ("tokens", "skipped", "tau", "labelled", "counts", "sums")
        }
        arrays["model"] = np.array([place[pair] for pair in self.models], dtype=np.int32)
        return seal("calibrate", "calibration_reply", self.round, header, arrays)

    @classmethod
    def from_envelope(cls, envelope: Envelope, *, expected: Expected = ANY) -> "CalibrationReply":
        """Decode and check.

        Raises:
            InvalidMessage: a field is not what a reply may hold: NaN, more labels than tokens, |Σβ| above its count.
        """
        read = unseal(envelope, ("calibrate",), "calibration_reply", expected)
        party = take_party(read, expected)
        names = _names(read, "names")
        c = len(names)
        models = _names(read, "models")
        which = read.array("model", np.int32, c)
        pairs = list(zip(models[::2], models[1::2], strict=False))
        if len(models) % 2 or ((which < 0) | (which >= len(pairs))).any():
            raise read.refuse("models", len(models), "two fingerprints a pair, and a pair for each client")
        tokens = _values(read, "tokens", c, 0.0, 1e12)
        reply = cls(
            round=envelope.round, party=party, names=names,
            models=tuple(pairs[i] for i in which.tolist()), tokens=tokens,
            skipped=_values(read, "skipped", c, 0.0, 1e12), tau=_values(read, "tau", c, 0.0, 1.0),
            labelled=_values(read, "labelled", c, 0.0, 1e12), counts=_counts(read, c),
            sums=_sums(read, c),
        )  # fmt: skip
        if (reply.skipped > tokens).any() or (reply.labelled > tokens).any():
            raise read.refuse("skipped or labelled", "more than tokens", "at most as many as tokens")
        read.finish()
        return reply


def _counts(read: Reader, c: int) -> Floats:
    counts = _values(read, "counts", None, -1e12, 1e12)
    if len(counts) not in (0, c * N_COUNTS * N_BINS):
        raise read.refuse("counts", len(counts), f"{N_COUNTS} x {N_BINS} for each of {c} clients, or none")
    counts = counts.reshape(-1, N_COUNTS, N_BINS)
    tokens, sent, sent_beta, sent_square, audited, audited_beta, audited_square = counts.transpose(1, 0, 2)
    # Single precision rounds the sums: a thousandth of slack.
    good = (
        (tokens >= 0).all()
        and (sent >= 0).all()
        and (audited >= 0).all()
        and (sent + audited <= tokens).all()
    )
    for n, total, square in ((sent, sent_beta, sent_square), (audited, audited_beta, audited_square)):
        good = good and (np.abs(total) <= 1.001 * n).all() and ((square >= 0) & (square <= 1.001 * n)).all()
    if not good:
        raise read.refuse(
            "counts", "contradictory", "labels not above tokens, and |Σβ| and Σβ² not above labels"
        )
    return counts


def _sums(read: Reader, c: int) -> Floats:
    sums = _values(read, "sums", None, -1e15, 1e15)
    if len(sums) not in (0, c * N_SUMS):
        raise read.refuse("sums", len(sums), f"{N_SUMS} for each of {c} clients, or none")
    return sums.reshape(-1, N_SUMS)


def _names(read: Reader, field: str) -> tuple[str, ...]:
    names = read.take(field)
    good = isinstance(names, list) and len(names) <= MAX_CLIENTS
    if not good or not all(isinstance(name, str) and 0 < len(name) <= MAX_TEXT for name in names):
        raise read.refuse(field, names, f"a list of texts of 1 to {MAX_TEXT} characters")
    if field == "names" and len(set(names)) != len(names):
        raise read.refuse(field, "a name twice", "each client once")
    return tuple(names)


def _number(read: Reader, field: str, low: float, high: float) -> float:
    value = read.take(field)
    if not isinstance(value, float) or not low <= value <= high:
        raise read.refuse(field, value, f"a number in [{low:g}, {high:g}], written with a decimal point")
    return value


def _values(read: Reader, field: str, length: int | None, low: float, high: float) -> Floats:
    values = read.array(field, np.float32, length).astype(np.float64)
    bad = ~((values >= low) & (values <= high))
    if bad.any():
        raise read.refuse(field, float(values[bad][0]), f"finite numbers in [{low:g}, {high:g}]")
    return values


def _f4(values: Floats) -> Array:
    return np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
