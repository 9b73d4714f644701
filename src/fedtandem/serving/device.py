"""The device: a request becomes two models, settings and terms; answers are written in threads of their own."""

import asyncio
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from fedtandem.config.serve import DeviceConfig
from fedtandem.errors import FedtandemError, ModelError, VocabularyMismatch
from fedtandem.federation.generate import measure
from fedtandem.models.fingerprint import fingerprint
from fedtandem.models.language_model import LanguageModel
from fedtandem.serving.answering import (
    Answer,
    CutShort,
    LargeParty,
    Piece,
    Prompt,
    SharedRows,
    SmallParty,
    Speller,
    Writer,
)
from fedtandem.serving.asking import Asking, Terms
from fedtandem.serving.batching import Batcher
from fedtandem.serving.breaker import OPEN
from fedtandem.serving.choosing import (
    Asked,
    Gate,
    facts_of,
    gate_of,
    mode_of,
    on_outage_of,
    peer_use,
    settings_of,
)
from fedtandem.serving.decisions import Decisions
from fedtandem.serving.faults import Refusal, too_busy
from fedtandem.serving.ledger import Ledger
from fedtandem.serving.logs import log
from fedtandem.serving.peering import EdgePeers, Peering
from fedtandem.serving.policies import Policies
from fedtandem.serving.pricing import Price
from fedtandem.serving.trail import Trail
from fedtandem.serving.turns import TURNS
from fedtandem.serving.upstream import Outage, Rejected, RemoteModel, Upstream


@dataclass(frozen=True)
class Order:
    """One request as it came in.

    Attributes:
        request: its fields.
        prompt: what is to be answered.
        top: log-probabilities per token, -1 for none.
        emit: takes every piece of the answer.
        cancelled: set where nobody waits any more.
        request_id: for logs.
        began_s: monotonic time at which it came in.
    """

    request: Asked
    prompt: Prompt
    top: int
    emit: Callable[[Piece], None]
    cancelled: threading.Event
    request_id: str
    began_s: float


@dataclass(frozen=True)
class Plan:
    """One request, decided.

    Attributes:
        mode: that is used.
        gate: threshold in force, and where it comes from.
        write: writes the answer; blocks.
        degraded: why, by now, tokens were written without the LLM; "" if none were.
        trail: how the answer came about, so far.
        facts: what was decided, for the decision log.
    """

    mode: str
    gate: Gate
    write: Callable[[], Answer]
    degraded: Callable[[], str]
    trail: Trail
    facts: Mapping[str, Any]


class Device:
    """The SLM, its line to the LLM, and places for answers.

    Args:
        config: of the device.
        lm: the SLM.
        batcher: reads for it.
        upstream: None serves mode local alone.
        policies: thresholds in force.
        ledger: counts feedback for the edge.
        price: what a call costs now beyond the policy's λ.
        decisions: where answers are written down; None: nowhere.
    """

    def __init__(
        self,
        config: DeviceConfig,
        lm: LanguageModel,
        batcher: Batcher,
        upstream: Upstream | None,
        policies: Policies,
        ledger: Ledger,
        price: Price,
        decisions: Decisions | None = None,
    ) -> None:
        self.config, self.lm, self.batcher, self.upstream = config, lm, batcher, upstream
        self.policies, self.ledger, self.price, self.decisions = policies, ledger, price, decisions
        self.fingerprint = fingerprint(lm.name, lm.model, lm.tokenizer.card.hash)
        self.peering = Peering(lm) if upstream is not None else None
        self._threads = ThreadPoolExecutor(config.max_streams, thread_name_prefix="answer")
        self._lock = threading.Lock()
        self._open: set[Callable[[], None]] = set()
        self.running = 0
        """Answers being written or waiting for a place."""

    def close(self) -> None:
        """Let the threads go; the server waited for answers as long as it may."""
        self.cut_short()
        self._threads.shutdown(wait=True)
        self.batcher.close()
        if self.peering is not None:
            self.peering.close()
        if self.upstream is not None:
            self.upstream.close()
        if self.decisions is not None:
            self.decisions.close()

    def cut_short(self) -> None:
        """End every answer as it is, and say so to who waits for it."""
        with self._lock:
            stops = list(self._open)
        for stop in stops:
            stop()

    # -- a request becomes a plan ------------------------------------------------------------------------------

    def plan(self, order: Order) -> Plan:
        """What is to be done. May ask the upstream what it is: not for the event loop.

        Raises:
            Refusal: it cannot be done as asked.
            Outage: the LLM is needed, and nobody says what it is.
        """
        request, prompt, config = order.request, order.prompt, self.config
        mode = mode_of(request, config)
        peer = peer_use(request, config, mode)
        on_outage = on_outage_of(request, config, mode)
        remote, degraded = self._remote(mode, on_outage)
        effective = "local" if remote is None else mode
        models = None if remote is None else (self.fingerprint, remote.fingerprint)
        gate = gate_of(config, self.policies.current(), models, mode, self.price.surcharge)
        settings = settings_of(request, config, effective, gate.tau, peer)
        ends_s = order.began_s + config.request_timeout_s
        if time.monotonic() > ends_s:  # it waited for a place, or for who serves the LLM
            raise Outage("timeout")
        rows = SharedRows(self.batcher, uuid.uuid4().hex, order.top >= 0)
        small = SmallParty(self.lm.name, Speller(self.lm.tokenizer, prompt), rows)
        large, peers = None, None
        if remote is not None and self.upstream is not None:
            peering = self.peering if peer != "off" else None
            scope = peering.scope(prompt, peer) if peering is not None and remote.attests else ""
            terms = self._terms(order, on_outage, ends_s, scope)
            asking = Asking(
                self.upstream, remote, settings, terms, cancelled=order.cancelled,
                embed=None if peering is None else peering.embed(remote.tokenizer), on_feedback=self.ledger.sent,
            )  # fmt: skip
            large = LargeParty(remote.fingerprint, Speller(remote.tokenizer, prompt), asking)
            if peering is not None:
                prompt_ids = large.tokenizer.encode_prompt("").tolist()
                peers = EdgePeers(peering, self.upstream, asking, prompt_ids)
        trail, policy = Trail(), gate.policy
        writer = Writer(
            small=None if effective == "cloud" else small, large=large, settings=settings,
            uncertainty=measure(gate.measure), stops=request.stops, top=order.top, ends_s=ends_s,
            cancelled=order.cancelled, emit=order.emit, on_audit=self.ledger.audited, peers=peers,
            trail=trail,
            beta_upper=policy.beta_upper if policy is not None and effective == "bounded" else None,
        )  # fmt: skip
        self._check_room(small if effective == "local" else large)

        def write() -> Answer:
            answer = writer.write()
            if degraded:
                answer.degraded, answer.degraded_tokens = degraded, answer.completion_tokens
            return answer

        facts = {
            "mode": effective, "on_outage": on_outage, "models": [self.fingerprint, models[1] if models else None],
            "breaker": 0 if self.upstream is None else self.upstream.breaker.state,
            "device": config.name, "policy": self.policies.named(), **facts_of(mode, gate, settings, peer),
        }  # fmt: skip
        return Plan(
            effective, gate, write, lambda: degraded or (large.asking.degraded if large else ""), trail, facts
        )

    def _remote(self, mode: str, on_outage: str) -> tuple[RemoteModel | None, str]:
        """The LLM, or why the answer is written without it."""
        if mode == "local":
            return None, ""
        if self.upstream is None:
            raise Refusal(503, f"mode {mode} needs the LLM, and this device has no upstream; use mode local.",
                          "no_upstream")  # fmt: skip
        try:
            return self.upstream.model(), ""
        except Outage as outage:
            if on_outage == "degrade":
                return None, f"cloud-{outage.reason}"
            raise
        except (Rejected, ModelError) as fault:
            log("upstream unusable", level=40, tier="device", says=str(fault))
            raise Refusal(
                502, "the upstream cannot be used by this device; its log says why.", "bad_upstream"
            ) from fault

    def _terms(self, order: Order, on_outage: str, ends_s: float, scope: str) -> Terms:
        fraction = order.request.max_cloud_fraction
        return Terms(
            on_outage=on_outage, deadline_s=self.config.deadline_ms / 1000,
            prompt_deadline_s=self.config.prompt_deadline_ms / 1000, ends_s=ends_s, top=order.top,
            request_id=order.request_id, max_cloud_fraction=1.0 if fraction is None else fraction,
            scope=scope,
        )  # fmt: skip

    def _check_room(self, party: SmallParty | LargeParty | None) -> None:
        """Refuse a prompt that no answer fits behind, before anything is begun."""
        if party is None:
            return
        try:
            n = len(party.tokenizer.encode_prompt(""))
        except ModelError as fault:
            raise Refusal(400, "the model's chat template does not take this conversation (roles or their order).",
                          "bad_conversation", "messages") from fault  # fmt: skip
        limit = party.rows.limit if isinstance(party, SmallParty) else party.asking.limit
        if limit is not None and n > limit:
            raise Refusal(400, f"the prompt has {n} tokens, the model's context holds {limit}.",
                          "context_length_exceeded", "messages")  # fmt: skip

    # -- places ------------------------------------------------------------------------------------------------

    async def run(self, work: Callable[[], Any]) -> Any:
        """Do it in a thread for answers; waits for a place, and for the result.

        Raises:
            Refusal: too many wait (429).
        """
        return await asyncio.wrap_future(self.start(work, lambda: None))

    def start(self, work: Callable[[], Any], stop: Callable[[], None]) -> "Future[Any]":
        """Have it done in a thread for answers, once there is a place.

        Args:
            work: what blocks.
            stop: called where the service ends before the work does.

        Raises:
            Refusal: too many wait (429).
        """
        with self._lock:
            if self.running >= self.config.max_streams + self.config.max_waiting:
                raise too_busy(2.0)
            self.running += 1
            self._open.add(stop)
        try:
            future = self._threads.submit(_in_turn, work)
        except BaseException:
            self._leave(stop)
            raise
        future.add_done_callback(lambda _: self._leave(stop))
        return future

    def _leave(self, stop: Callable[[], None]) -> None:
        with self._lock:
            self.running -= 1
            self._open.discard(stop)


def _in_turn(work: Callable[[], Any]) -> Any:
    with TURNS.taken():
        return work()


def refusal_of_fault(fault: FedtandemError, mode: str) -> Refusal | None:
    """What an answer that could not be written is over HTTP; None where nothing of the device's is known of it."""
    if isinstance(fault, Outage):
        headers = {
            "Retry-After": str(max(1, round(fault.retry_after_s))),
            "x-mode": mode,
            "x-degraded": "none",
        }
        if fault.reason == "timeout":
            return Refusal(504, "the answer was not finished within the time a request may take.", "timeout",
                           headers=headers)  # fmt: skip
        status = 429 if fault.reason == "busy" else 503
        return Refusal(status, f"the LLM cannot be asked now ({fault.reason}); mode {mode} needs it. Come back, or "
                               'send on_outage = "degrade" or mode = "local".', "llm_unavailable",
                       headers=headers)  # fmt: skip
    if isinstance(fault, CutShort):
        return Refusal(503, "the service ends; this answer is not finished. Ask again.", "service_ends",
                       headers={"Retry-After": "5", "x-mode": mode, "x-degraded": "none"})  # fmt: skip
    if isinstance(fault, Rejected):
        if fault.status == 400:
            return Refusal(400, fault.said, fault.code)
        return Refusal(
            502, "the upstream does not take this device's requests; its log says why.", "bad_upstream"
        )
    if isinstance(fault, VocabularyMismatch):
        return Refusal(400, str(fault), "vocabulary_mismatch", "mode")
    return None


def readiness(device: Device, model: RemoteModel | None, refused: str = "") -> Mapping[str, object]:
    """What /readyz says: ready to answer in the configured mode.

    Args:
        model: the LLM; None while nobody says what it is.
        refused: why the upstream will not have this device; "" where it is not known to.
    """
    needs = device.config.mode != "local" and device.upstream is not None
    alone = device.config.mode in ("fedhlm", "bounded") or device.config.on_outage == "degrade"
    is_heard = model is not None and device.upstream is not None and device.upstream.breaker.state != OPEN
    return {
        "ready": not needs or is_heard or (alone and not refused),
        "mode": device.config.mode,
        "model": device.fingerprint,
        "llm": (refused or None) if model is None else model.fingerprint,
    }
