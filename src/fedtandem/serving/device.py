"""The device: a request becomes two models, settings and terms; answers are written in threads of their own."""

import asyncio
import secrets
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from fedtandem.config.serve import DeviceConfig
from fedtandem.errors import ConfigError, FedtandemError, ModelError, VocabularyMismatch
from fedtandem.federation.generate import TAU, measure
from fedtandem.inference.policy import Policy
from fedtandem.inference.settings import DecodeSettings
from fedtandem.inference.uncertainty import MEASURES
from fedtandem.models.fingerprint import fingerprint
from fedtandem.models.language_model import LanguageModel
from fedtandem.serving.answering import (
    Answer,
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
from fedtandem.serving.faults import Refusal, too_busy
from fedtandem.serving.ledger import Ledger
from fedtandem.serving.logs import log
from fedtandem.serving.openai_wire import ChatRequest, CompletionRequest
from fedtandem.serving.peering import EdgePeers, Peering
from fedtandem.serving.policies import Policies
from fedtandem.serving.upstream import Outage, Rejected, RemoteModel, Upstream

Asked = ChatRequest | CompletionRequest


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
        tau, tau_reason: threshold in force, and the scope it comes from.
        write: writes the answer; blocks.
        degraded: why, by now, tokens were written without the LLM; "" if none were.
    """

    mode: str
    tau: float
    tau_reason: str
    write: Callable[[], Answer]
    degraded: Callable[[], str]


class Device:
    """The SLM, its line to the LLM, and places for answers.

    Args:
        config: of the device.
        lm: the SLM.
        batcher: reads for it.
        upstream: None serves mode local alone.
        policies: thresholds in force.
        ledger: counts feedback for the edge.
    """

    def __init__(
        self,
        config: DeviceConfig,
        lm: LanguageModel,
        batcher: Batcher,
        upstream: Upstream | None,
        policies: Policies,
        ledger: Ledger,
    ) -> None:
        self.config, self.lm, self.batcher, self.upstream = config, lm, batcher, upstream
        self.policies, self.ledger = policies, ledger
        self.fingerprint = fingerprint(lm.name, lm.model, lm.tokenizer.card.hash)
        self.peering = Peering(lm) if upstream is not None else None
        self._threads = ThreadPoolExecutor(config.max_streams, thread_name_prefix="answer")
        self._lock = threading.Lock()
        self._open: set[threading.Event] = set()
        self.running = 0
        """Answers being written or waiting for a place."""

    def close(self) -> None:
        """Let the threads go; the server waited for answers as long as it may."""
        with self._lock:
            for cancelled in self._open:
                cancelled.set()
        self._threads.shutdown(wait=True)
        self.batcher.close()
        if self.upstream is not None:
            self.upstream.close()

    # -- a request becomes a plan ------------------------------------------------------------------------------

    def plan(self, order: Order) -> Plan:
        """What is to be done. May ask the upstream what it is: not for the event loop.

        Raises:
            Refusal: it cannot be done as asked.
            Outage: the LLM is needed, and nobody says what it is.
        """
        request, prompt = order.request, order.prompt
        mode = self._mode(request)
        on_outage = self._on_outage(request, mode)
        remote, degraded = self._remote(mode, on_outage)
        effective = "local" if remote is None else mode
        policy, name, tau, reason = self._threshold(mode, remote)
        settings = self._settings(request, effective, tau)
        ends_s = order.began_s + self.config.request_timeout_s
        if time.monotonic() > ends_s:  # it waited for a place, or for who serves the LLM
            raise Outage("timeout")
        rows = SharedRows(self.batcher, uuid.uuid4().hex, order.top >= 0)
        small = SmallParty(self.lm.name, Speller(self.lm.tokenizer, prompt), rows)
        large, peers = None, None
        if remote is not None and self.upstream is not None:
            peering = self.peering if self._asks_peers(request, effective) else None
            terms = self._terms(order, on_outage, ends_s, peering if remote.attests else None)
            asking = Asking(
                self.upstream, remote, settings, terms, cancelled=order.cancelled,
                embed=None if peering is None else peering.embed(remote.tokenizer), on_feedback=self.ledger.sent,
            )  # fmt: skip
            large = LargeParty(remote.fingerprint, Speller(remote.tokenizer, prompt), asking)
            if peering is not None:
                peers = EdgePeers(peering, self.upstream, asking)
        writer = Writer(
            small=None if effective == "cloud" else small, large=large, settings=settings,
            uncertainty=measure(name), stops=request.stops, top=order.top, ends_s=ends_s,
            cancelled=order.cancelled, emit=order.emit, on_audit=self.ledger.audited, peers=peers,
            beta_upper=policy.beta_upper if policy is not None and effective == "bounded" else None,
        )  # fmt: skip
        self._check_room(small if effective == "local" else large)

        def write() -> Answer:
            answer = writer.write()
            if degraded:
                answer.degraded, answer.degraded_tokens = degraded, answer.completion_tokens
            return answer

        return Plan(
            effective, tau, reason, write, lambda: degraded or (large.asking.degraded if large else "")
        )

    def _mode(self, request: Asked) -> str:
        if request.model != self.config.served_name:
            raise Refusal(404, f"this device serves {self.config.served_name!r} and no other model.",
                          "model_not_found", "model")  # fmt: skip
        mode = request.mode or self.config.mode
        if request.privacy == "local-only":
            if request.mode not in (None, "local"):
                raise Refusal(400, f"privacy local-only lets nothing leave the device; mode {mode} asks the cloud.",
                              "contradiction", "privacy")  # fmt: skip
            return "local"
        if request.max_cloud_fraction is not None and mode in ("exact", "cloud"):
            raise Refusal(400, f"mode {mode} has the LLM see every token; max_cloud_fraction goes with fedhlm and "
                               "bounded.", "contradiction", "max_cloud_fraction")  # fmt: skip
        if mode == "bounded" and (request.eps or self.config.eps) is None:
            raise Refusal(400, "mode bounded needs eps, e.g. 0.1.", "missing", "eps")
        if request.peer == "answer":
            raise Refusal(400, "peers serve as drafters here: peer is off or draft.", "not_served", "peer")
        if request.peer == "draft" and mode != "exact":
            raise Refusal(400, f"peers draft in mode exact, not in {mode}.", "contradiction", "peer")
        return mode

    def _on_outage(self, request: Asked, mode: str) -> str:
        if mode in ("fedhlm", "bounded"):
            return request.on_outage or "degrade"
        asked = request.on_outage or self.config.on_outage
        return "error" if mode == "cloud" and asked == "degrade" else asked

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

    def _threshold(self, mode: str, remote: RemoteModel | None) -> tuple[Policy | None, str, float, str]:
        """The policy, the uncertainty's name, τ, and the scope it comes from."""
        policy = self.policies.current()
        config = self.config
        name = config.uncertainty or ("expected" if policy is None else policy.measure)
        if policy is not None and (policy.measure != name or name not in MEASURES):
            policy, name = None, config.uncertainty or "expected"
        if policy is None or remote is None:
            tau, reason = TAU, "built-in"
        else:
            found = policy.resolve(config.name, "", (self.fingerprint, remote.fingerprint))
            tau, reason = found.tau, found.scope
            if found.scope == "built-in" and mode == "bounded":
                policy = None  # bounds of other models bound nothing here
        if config.tau is not None:
            tau, reason = config.tau, "config"
        if mode == "bounded" and remote is not None and (policy is None or policy.bounds is None):
            raise Refusal(400, "mode bounded needs a policy with bounds for these models; this device has none.",
                          "no_bounds", "mode")  # fmt: skip
        return policy, name, tau, reason

    def _settings(self, request: Asked, mode: str, tau: float) -> DecodeSettings:
        temperature = 1.0 if request.temperature is None else request.temperature
        limit = request.max_tokens or self.config.max_tokens
        if isinstance(request, ChatRequest):
            limit = request.max_completion_tokens or limit
        seed = secrets.randbits(63) if request.seed is None else request.seed % 2**64
        try:
            return DecodeSettings(
                mode=mode,  # type: ignore[arg-type]
                uplink="greedy" if temperature == 0 else self.config.uplink, block=self.config.block, tau=tau,
                eps=request.eps or self.config.eps, max_new_tokens=limit, seed=seed,
                temperature=temperature or 1.0, audit="none" if mode in ("local", "cloud") else "passing",
            )  # fmt: skip
        except ConfigError as fault:
            raise Refusal(400, str(fault), "invalid_request") from fault

    def _terms(self, order: Order, on_outage: str, ends_s: float, peering: Peering | None) -> Terms:
        fraction = order.request.max_cloud_fraction
        return Terms(
            on_outage=on_outage, deadline_s=self.config.deadline_ms / 1000,
            prompt_deadline_s=self.config.prompt_deadline_ms / 1000, ends_s=ends_s, top=order.top,
            request_id=order.request_id, max_cloud_fraction=1.0 if fraction is None else fraction,
            scope="" if peering is None else peering.scope(order.prompt),
        )  # fmt: skip

    def _asks_peers(self, request: Asked, mode: str) -> bool:
        return mode == "exact" and (request.peer or self.config.peer) == "draft"

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
        return await asyncio.wrap_future(self.start(work, threading.Event()))

    def start(self, work: Callable[[], Any], cancelled: threading.Event) -> "Future[Any]":
        """Have it done in a thread for answers, once there is a place.

        Args:
            work: what blocks.
            cancelled: set where the service ends before the work does.

        Raises:
            Refusal: too many wait (429).
        """
        with self._lock:
            if self.running >= self.config.max_streams + self.config.max_waiting:
                raise too_busy(2.0)
            self.running += 1
            self._open.add(cancelled)
        try:
            future = self._threads.submit(work)
        except BaseException:
            self._leave(cancelled)
            raise
        future.add_done_callback(lambda _: self._leave(cancelled))
        return future

    def _leave(self, told: threading.Event) -> None:
        with self._lock:
            self.running -= 1
            self._open.discard(told)


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
    if isinstance(fault, Rejected):
        if fault.status == 400:
            return Refusal(400, fault.said, fault.code)
        return Refusal(
            502, "the upstream does not take this device's requests; its log says why.", "bad_upstream"
        )
    if isinstance(fault, VocabularyMismatch):
        return Refusal(400, str(fault), "vocabulary_mismatch", "mode")
    return None


def readiness(device: Device, model: RemoteModel | None) -> Mapping[str, object]:
    """What /readyz says: ready to answer in the configured mode."""
    needs = device.config.mode != "local" and device.upstream is not None
    alone = device.config.mode in ("fedhlm", "bounded") or device.config.on_outage == "degrade"
    return {
        "ready": not needs or model is not None or alone,
        "mode": device.config.mode,
        "model": device.fingerprint,
        "llm": None if model is None else model.fingerprint,
    }
