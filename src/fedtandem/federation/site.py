"""One client at its own machine: its own file is asked, the work is done once, the reply is logged.

No engine here: what carries the bytes hands them to `Site.answer`.
"""

import fcntl
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fedtandem.algorithms.client import Client, fetch_rows, stored_reply, work_key
from fedtandem.atomic import remove_drafts
from fedtandem.config import RunConfig
from fedtandem.config.site import SiteConfig
from fedtandem.errors import FedtandemError, InvalidMessage, PrivacyBudgetError
from fedtandem.evaluation.scorer import Evaluation
from fedtandem.exchange.carrier import Envelope
from fedtandem.exchange.describe import describe
from fedtandem.exchange.messages import FetchRequest, WorkRequest
from fedtandem.exchange.reading import printable
from fedtandem.federation.audit import NAME, append_audit, read_audit
from fedtandem.federation.build import assemble_client, frame_of, load_parts
from fedtandem.federation.consent import check_envelope, check_plan
from fedtandem.federation.events import EventLog
from fedtandem.federation.methods import method_named
from fedtandem.federation.plan import run_at_site
from fedtandem.federation.privacy_ledger import Vault
from fedtandem.federation.runs import save_adapter
from fedtandem.federation.site_calibration import CALIBRATE, Plan, answer_calibration
from fedtandem.federation.store import RoundStore

SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


@dataclass(frozen=True)
class Order:
    """What travels beside an envelope.

    Attributes:
        party: whom it is for; for a reply: who answers.
        experiment: the run's own name, under which a site keeps its states.
        method: of `METHODS`, or `CALIBRATE`.
        untouched: whether this method measures the untouched models.
        plan: the rules of the run (`plan_of`), or what a calibration asks (`Plan`), JSON.
    """

    party: str
    experiment: str
    method: str
    untouched: bool
    plan: str


@dataclass(frozen=True)
class Answer:
    """What a site says: an envelope with its lines for the record, or why there is none.

    Attributes:
        spent: it refuses because its privacy budget is spent.
    """

    envelope: bytes = b""
    events: tuple[dict[str, Any], ...] = ()
    refusal: str = ""
    spent: bool = False


class Site:
    """A client's machine.

    Args:
        config: the site's own file.
    """

    def __init__(self, config: SiteConfig) -> None:
        self.config = config
        self.name = config.name
        self.log = config.home / NAME

    def answer(self, order: Order, data: bytes) -> Answer:
        """Answer one envelope. Every fault is an answer too: the server is told, the process lives.

        Args:
            data: the envelope as it came.
        """
        try:
            with self._alone():
                try:
                    return self._answer(order, data)
                except FedtandemError as fault:
                    self._log_refusal(order, str(fault))
                    return Answer(refusal=str(fault), spent=isinstance(fault, PrivacyBudgetError))
        except FedtandemError as fault:  # the log itself cannot be written: say that, and nothing else
            return Answer(refusal=str(fault))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One message at a time: a repeated one waits for the first and finds its reply."""
        self.config.home.mkdir(parents=True, exist_ok=True)
        with (self.config.home / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _answer(self, order: Order, data: bytes) -> Answer:
        if order.party != self.name:
            raise InvalidMessage(
                f"a message for {order.party!r} came to the site {self.name!r}. At the server, bind each name to the "
                "key of its own site."
            )
        for what, text in (("experiment", order.experiment), ("method", order.method)):
            if not SAFE_NAME.fullmatch(text):
                raise InvalidMessage(f"{what} is {text!r}; expected letters, digits, - and _.")
        envelope = Envelope.from_bytes(data, party="the server")
        folder = self.config.home / "runs" / order.experiment / order.method
        remove_drafts(folder)  # of a process that was killed while it committed
        if order.method == CALIBRATE:
            reply = answer_calibration(
                self.config, Plan.read(_plan(order)), order.experiment, envelope, folder
            )
            self._log(order, reply, [])
            return Answer(reply.to_bytes())
        config = run_at_site(_plan(order), self.config)
        check_plan(self.config, config, method_named(order.method))
        reply, events = self._reply(order, config, envelope, folder)
        if "measurements" not in self.config.allow.send:
            events = []
        self._log(order, reply, events)
        return Answer(reply.to_bytes(), tuple(events))

    def _reply(
        self, order: Order, config: RunConfig, envelope: Envelope, folder: Path
    ) -> tuple[Envelope, list[dict[str, Any]]]:
        events: list[dict[str, Any]] = []
        store = _StoreWithEvents(RoundStore(folder / "state"), events)
        if envelope.kind == "fetch":
            return fetch_rows(store, self.name, FetchRequest.from_envelope(envelope)), []
        adapter = folder / "adapter"
        stored: Envelope | None = None
        if envelope.kind in ("work", "finish"):
            request = WorkRequest.from_envelope(envelope)
            stored = stored_reply(store, self.name, request)
            if stored is not None and (envelope.kind == "work" or adapter.is_dir()):
                return stored, store.events(work_key(request))
        with _recording(folder / "events.jsonl", events) as emit:
            client = self._client(order, config, store, emit)
            reply = client.handle(envelope)
            if envelope.kind == "finish":
                client.wake()
                save_adapter(self._parts, self.name, order.method, adapter)
        if stored is not None:  # killed after it had committed its last round, before its model was saved
            return reply, store.events(work_key(request))
        return reply, events

    def _client(self, order: Order, config: RunConfig, store: "_StoreWithEvents", emit: Any) -> Client:
        torch.use_deterministic_algorithms(True, warn_only=True)
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        self._parts = load_parts(config, lambda *_: None, {self.name})
        frame = frame_of(self._parts, method_named(order.method), measure_untouched=order.untouched)

        def report(party: str, round_number: int, results: Mapping[str, Evaluation]) -> None:
            for split, result in results.items():
                emit(
                    "metric", round=round_number, party=party, split=split, metric=result.metric, value=result.value,
                    n=result.n, higher_is_better=result.higher_is_better,
                )  # fmt: skip

        return assemble_client(
            self._parts,
            self.name,
            frame,
            store,
            emit,
            lambda *_: None,
            report,
            Vault(self.config.home, f"{order.experiment}/{order.method}/"),
        )

    def _log(self, order: Order, reply: Envelope, events: list[dict[str, Any]]) -> None:
        """Hold the reply against the site's law and write down what leaves, before it leaves."""
        entries = read_audit(self.log)
        here = (order.experiment, order.method, reply.round)
        before = sum(
            entry["bytes"]
            for entry in entries
            if (entry["experiment"], entry["method"], entry["round"]) == here
        )
        told = json.dumps(events, default=float)
        check_envelope(self.config, reply, before + len(told))
        says = describe(reply)
        if events:
            kinds = Counter(str(event["event"]) for event in events)
            counted = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
            says.append(f"beside it, {len(told):,} bytes for the server's record: {counted}")
        append_audit(
            self.log, entries, experiment=order.experiment, method=order.method, round=reply.round, kind=reply.kind,
            bytes=reply.n_bytes + len(told) * bool(events), says=says,
            sha256=hashlib.sha256(reply.to_bytes()).hexdigest(),
        )  # fmt: skip

    def _log_refusal(self, order: Order, text: str) -> None:
        """The text of a refusal leaves the site too."""
        append_audit(
            self.log, read_audit(self.log), experiment=printable(order.experiment[:100]),
            method=printable(order.method[:100]), round=0, kind="refusal", bytes=len(text.encode()),
            sha256=hashlib.sha256(text.encode()).hexdigest(), says=[printable(text)],
        )  # fmt: skip


def _plan(order: Order) -> dict[str, Any]:
    try:
        plan = json.loads(order.plan)
    except ValueError as error:
        raise InvalidMessage(f"the server's plan is not JSON: {error}.") from error
    if not isinstance(plan, dict):
        raise InvalidMessage(f"the server's plan is a {type(plan).__name__}, not a table.")
    return plan


@contextmanager
def _recording(path: Path, events: list[dict[str, Any]]) -> Iterator[Any]:
    """A client's `emit`: into the site's own record, and into what may be told."""
    path.parent.mkdir(parents=True, exist_ok=True)
    log = EventLog(path)

    def emit(event: str, **fields: Any) -> None:
        log.emit(event, **fields)
        events.append({"event": event, **fields})

    try:
        yield partial(emit)
    finally:
        log.close()


class _StoreWithEvents:
    """A client's store that commits the record's lines of a round with its state, so that a repeated reply has them."""

    def __init__(self, store: RoundStore, events: list[dict[str, Any]]) -> None:
        self._store, self._events = store, events
        self.committed, self.load, self.put, self.get = store.committed, store.load, store.put, store.get

    def save(self, key: str, files: Mapping[str, bytes]) -> None:
        told = json.dumps(self._events, default=float).encode()
        self._store.save(key, {**files, "events": told})

    def events(self, key: str) -> list[dict[str, Any]]:
        told: list[dict[str, Any]] = json.loads(self.load(key)["events"])
        return told
