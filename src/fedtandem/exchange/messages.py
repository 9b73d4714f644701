"""What parties say to each other: cards, work and its replies, fetched rows.

Every message turns into an envelope and back. A message that comes out of `from_envelope` was checked field by
field; what it does not accept raises `InvalidMessage` with party, round, field, value and remedy.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fedtandem.exchange.card import Card
from fedtandem.exchange.carrier import Envelope
from fedtandem.exchange.coding import pack_ascending, pack_texts, unpack_texts
from fedtandem.exchange.frame import Array
from fedtandem.exchange.knowledge import Knowledge, knowledge_section, take_index, take_knowledge
from fedtandem.exchange.reading import ANY, MAX_TEXT, MEND, SERVER, Expected, Reader, refusal
from fedtandem.exchange.sealing import named, seal, take_party, unseal

__all__ = ["Card", "Expected", "FetchReply", "FetchRequest", "Knowledge", "WorkReply", "WorkRequest"]

MAX_METRICS = 10_000


@dataclass(frozen=True, eq=False)
class WorkRequest:
    """The server to a client: learn from this, tune, tell me what you know.

    Attributes:
        round: the round that begins.
        knowledge: the server's of the round before; None in the first.
        stands: in place of `knowledge`: what this client was last told, made in this round, still holds.
        adapter: averaged weights to start from; homogeneous clients only.
        distil: learn from the public set before tuning.
        tune: tune on the private set.
        want_rows: rows are to travel in the reply (one-phase exchange).
        return_adapter: the reply is to hold the trainable weights.
        wanted: the items whose paths or rows the server asks for; (M,) ascending; None: all.
        drafts: the server's own paths of these items, to be scored; M texts, "" where there is none.
    """

    round: int
    knowledge: Knowledge | None
    adapter: Mapping[str, Array] | None
    distil: bool
    tune: bool
    want_rows: bool
    return_adapter: bool
    stands: int | None = None
    wanted: npt.NDArray[np.int64] | None = None
    drafts: tuple[str, ...] | None = None

    def to_envelope(self, kind: Literal["work", "finish"] = "work") -> Envelope:
        """Encode as `work`, or as `finish`, which delivers the last knowledge."""
        header: dict[str, Any] = {
            "distil": self.distil,
            "tune": self.tune,
            "want_rows": self.want_rows,
            "return_adapter": self.return_adapter,
        }
        if self.stands is not None:
            header["stands"] = int(self.stands)
        arrays = _put_contents(header, self.knowledge, self.adapter, SERVER, self.round)
        arrays |= _put_wanted(self.wanted, self.drafts)
        return seal(kind, "work_request", self.round, header, arrays)

    @classmethod
    def from_envelope(cls, envelope: Envelope, *, expected: Expected = ANY) -> "WorkRequest":
        """Decode and check; `expected` is about the server's knowledge.

        Raises:
            InvalidMessage: a field is not what a request may hold, or not what was expected.
        """
        read = unseal(envelope, ("work", "finish"), "work_request", expected)
        request = cls(
            round=envelope.round,
            knowledge=take_knowledge(read, expected),
            adapter=_take_adapter(read),
            distil=read.flag("distil"),
            tune=read.flag("tune"),
            want_rows=read.flag("want_rows"),
            return_adapter=read.flag("return_adapter"),
            stands=None if read.peek("stands") is None else read.integer("stands", 0, envelope.round),
            wanted=(wanted := _take_wanted(read, expected)),
            drafts=_take_drafts(read, wanted),
        )
        if request.stands is not None and request.knowledge is not None:
            raise read.refuse("stands", request.stands, "none beside new knowledge", MEND)
        read.finish()
        return request


@dataclass(frozen=True, eq=False)
class WorkReply:
    """A client to the server: what it knows after this round's tuning.

    Attributes:
        round, party: of the request, and who answers.
        knowledge: scores, rows in one-phase exchange, texts on an unlabelled set; None where none was asked for.
        adapter: trainable weights, float32 or float16, where asked for.
        metrics: flat JSON objects for the record.
        n_private: size of its private set.
        wanted: the items it asks the server to teach next; (M,) ascending; None: all.
        drafts: its own paths of these items, to be scored; M texts, "" where there is none.
    """

    round: int
    party: str
    knowledge: Knowledge | None
    adapter: Mapping[str, Array] | None
    metrics: list[dict[str, Any]]
    n_private: int
    wanted: npt.NDArray[np.int64] | None = None
    drafts: tuple[str, ...] | None = None

    def to_envelope(self) -> Envelope:
        """Encode; raises InvalidMessage where a field could not be accepted (NaN scores, say)."""
        header: dict[str, Any] = {
            "party": self.party,
            "metrics": self.metrics,
            "n_private": int(self.n_private),
        }
        arrays = _put_contents(header, self.knowledge, self.adapter, self.party, self.round)
        arrays |= _put_wanted(self.wanted, self.drafts)
        return seal("work", "work_reply", self.round, header, arrays)

    @classmethod
    def from_envelope(cls, envelope: Envelope, *, expected: Expected = ANY) -> "WorkReply":
        """Decode and check.

        Raises:
            InvalidMessage: a field is not what a reply may hold, or not what was expected.
        """
        read = unseal(envelope, ("work",), "work_reply", expected)
        party = take_party(read, expected)
        reply = cls(
            round=envelope.round,
            party=party,
            knowledge=take_knowledge(read, expected, party),
            adapter=_take_adapter(read),
            metrics=_take_metrics(read),
            n_private=read.integer("n_private", 0, 1 << 48),
            wanted=(wanted := _take_wanted(read, expected)),
            drafts=_take_drafts(read, wanted),
        )
        read.finish()
        return reply


@dataclass(frozen=True, eq=False)
class FetchRequest:
    """The server to a client: send the rows of these samples; (M,) int32 ascending. No model is loaded."""

    round: int
    sample_index: npt.NDArray[np.int32]

    def to_envelope(self) -> Envelope:
        """Encode."""
        arrays = {"sample_index": pack_ascending(np.asarray(self.sample_index, np.int64))}
        return seal("fetch", "fetch_request", self.round, {}, arrays)

    @classmethod
    def from_envelope(cls, envelope: Envelope, *, expected: Expected = ANY) -> "FetchRequest":
        """Decode and check.

        Raises:
            InvalidMessage: a field is not what a request may hold, or not what was expected.
        """
        read = unseal(envelope, ("fetch",), "fetch_request", expected)
        request = cls(envelope.round, take_index(read, expected.n_public))
        read.finish()
        return request


@dataclass(frozen=True, eq=False)
class FetchReply:
    """A client to the server: the rows that were asked for."""

    round: int
    party: str
    knowledge: Knowledge

    def to_envelope(self) -> Envelope:
        """Encode."""
        header: dict[str, Any] = {"party": self.party}
        arrays = _put_contents(header, self.knowledge, None, self.party, self.round)
        return seal("fetch", "fetch_reply", self.round, header, arrays)

    @classmethod
    def from_envelope(cls, envelope: Envelope, *, expected: Expected = ANY) -> "FetchReply":
        """Decode and check.

        Raises:
            InvalidMessage: a field is not what a reply may hold, or not what was expected.
        """
        read = unseal(envelope, ("fetch",), "fetch_reply", expected)
        party = take_party(read, expected)
        knowledge = take_knowledge(read, expected, party)
        if knowledge is None:
            raise read.refuse("knowledge", None, "the rows that were asked for", MEND)
        if _take_adapter(read) is not None:
            raise read.refuse("adapter", "present", "none in a fetch reply", MEND)
        read.finish()
        return cls(envelope.round, party, knowledge)


def _put_contents(
    header: dict[str, Any],
    knowledge: Knowledge | None,
    adapter: Mapping[str, Array] | None,
    party: str,
    round_number: int,
) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    header["knowledge"] = None
    if knowledge is not None:
        header["knowledge"], section = knowledge_section(knowledge)
        arrays |= named("knowledge", section)
    header["adapter"] = adapter is not None
    if adapter is not None:
        _check_adapter(adapter, party, round_number)
        arrays |= named("adapter", adapter)
    return arrays


def _put_wanted(wanted: npt.NDArray[np.int64] | None, drafts: tuple[str, ...] | None) -> dict[str, Array]:
    """Requested items as gaps, a byte or two each, and the asker's own paths of them; nothing where all are wanted."""
    if wanted is None:
        return {}
    arrays: dict[str, Array] = {"wanted": pack_ascending(np.asarray(wanted, np.int64))}
    if drafts is not None:
        arrays |= named("drafts", pack_texts(drafts))
    return arrays


def _take_wanted(read: Reader, expected: Expected) -> npt.NDArray[np.int64] | None:
    if not read.has("wanted"):
        return None
    return take_index(read, expected.n_public, "wanted").astype(np.int64)


def _take_drafts(read: Reader, wanted: npt.NDArray[np.int64] | None) -> tuple[str, ...] | None:
    arrays = read.group("drafts.")
    if not arrays:
        return None
    with read.naming("drafts"):
        drafts = unpack_texts(arrays)
    asked = 0 if wanted is None else len(wanted)
    if len(drafts) != asked:
        raise read.refuse("drafts", f"{len(drafts)} texts", f"{asked}, one for each wanted item", MEND)
    return drafts


def _check_adapter(adapter: Mapping[str, Array], party: str, round_number: int | None) -> None:
    for name, array in adapter.items():
        field = f"adapter.{name}"
        if not name or len(name) > MAX_TEXT:
            raise refusal(
                party, round_number, "adapter", name, f"tensor names of 1 to {MAX_TEXT} characters", MEND
            )
        if array.dtype not in (np.dtype("<f4"), np.dtype("<f2")):
            raise refusal(
                party, round_number, field, array.dtype, "float32 or float16", "Convert it before sending."
            )
        finite = np.isfinite(array)
        if not finite.all():
            value = array.reshape(-1)[int(np.argmin(finite))]
            remedy = "Its training has diverged: lower that party's learning rate."
            raise refusal(party, round_number, field, float(value), "finite weights", remedy)


def _take_adapter(read: Reader) -> dict[str, Array] | None:
    adapter = read.group("adapter.")
    if not read.flag("adapter"):
        if adapter:
            raise read.refuse("adapter", f"{len(adapter)} tensors", "none, as the header says")
        return None
    _check_adapter(adapter, read.party, read.round)
    return adapter


def _take_metrics(read: Reader) -> list[dict[str, Any]]:
    metrics = read.take("metrics")
    if not isinstance(metrics, list) or len(metrics) > MAX_METRICS:
        raise read.refuse("metrics", metrics, f"a list of at most {MAX_METRICS} objects")
    for entry in metrics:
        flat = isinstance(entry, dict) and not any(
            isinstance(value, (dict, list)) for value in entry.values()
        )
        if not flat:
            raise read.refuse("metrics", entry, "flat JSON objects")
    return metrics
