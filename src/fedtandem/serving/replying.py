"""One exchange with an OpenAI client, from the plan to the last byte; whole or streamed."""

import asyncio
import codecs
import json
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from fedtandem.errors import FedtandemError
from fedtandem.inference.row import Tier
from fedtandem.serving.account import account, decision, usage
from fedtandem.serving.answering import Answer, CutShort, Piece, Prompt, Token
from fedtandem.serving.device import Device, Order, Plan, refusal_of_fault
from fedtandem.serving.faults import Refusal, refusal_of
from fedtandem.serving.logs import log
from fedtandem.serving.mailbox import Mailbox, running_office
from fedtandem.serving.metrics import DeviceMetrics
from fedtandem.serving.openai_wire import ChatRequest, CompletionRequest
from fedtandem.serving.shell import tell
from fedtandem.serving.streaming import EventStream
from fedtandem.serving.upstream import Rejected
from fedtandem.serving.words import ChatWords, CompletionWords

MOST_PIECES = 16
"""In one write: who is fast may not keep the first ones waiting."""
ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
DONE = b"data: [DONE]\n\n"
TRACED: Mapping[Tier, str] = {
    "kept": "slm", "accepted": "slm-verified", "peer": "peer", "llm": "llm", "corrected": "llm-corrected",
    "degraded": "degraded",
}  # fmt: skip
"""Whose a token is, in the words of `trace`."""


class Exchange:
    """One request, from its plan to the last byte."""

    def __init__(
        self, device: Device, metrics: DeviceMetrics, request: Request, asked: ChatRequest | CompletionRequest,
        words: ChatWords | CompletionWords,
    ) -> None:  # fmt: skip
        self._device, self._metrics, self._request, self._asked, self._words = (
            device,
            metrics,
            request,
            asked,
            words,
        )
        self._events: Mailbox[Piece | Answer | BaseException] = Mailbox(
            running_office(), is_whole=not asked.stream
        )
        self._mode: str = asked.mode or device.config.mode
        self._plan: Plan | None = None
        self._cancelled = threading.Event()
        self._created, self._began_s = int(time.time()), time.monotonic()
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")

    async def answer(self, prompt: Prompt, top: int) -> Response:
        """Whole or streamed."""
        self._device.start(lambda: self._work(prompt, top), self._stop)
        looking = asyncio.create_task(self._look())
        is_streaming = False
        try:
            first = await self._next()  # before the headers go out: what fails here has a status of its own
            if not self._asked.stream:
                return await self._whole(first)
            is_streaming = True
            return EventStream(self._stream(first, looking), self._headers(None))
        finally:
            if not is_streaming:
                looking.cancel()

    async def _whole(self, first: Piece | Answer) -> Response:
        text, event = "", first
        tokens: list[Token] = []
        while isinstance(event, Piece):
            text += event.text
            tokens += event.tokens
            event = await self._next()
        assert isinstance(event, Answer)
        self._count(event)
        choice = self._words.whole(text, tokens, event.finish)
        told = account(event) | ({"tokens": self._traced(tokens)} if self._asked.trace else {})
        body_json = self._object([choice], self._words.kind, usage(event), told)
        return JSONResponse(body_json, headers=self._headers(event))

    def _work(self, prompt: Prompt, top: int) -> None:
        """In a thread: every piece as it becomes final, then the answer, or what went wrong."""
        try:
            event: Answer | BaseException = self._written(prompt, top)
        except BaseException as fault:
            event = fault
        self._events.put(event, is_last=True)

    def _written(self, prompt: Prompt, top: int) -> Answer:
        request_id = self._request.state.request_id
        answer, fault = None, None
        try:
            order = Order(
                self._asked, prompt, top, self._events.put, self._cancelled, request_id, self._began_s
            )  # fmt: skip
            plan = self._device.plan(order)
            self._plan, self._mode = plan, plan.mode
            answer = plan.write()
            return answer
        except BaseException as caught:
            fault = caught
            raise
        finally:
            self._remember(answer, fault)

    def _remember(self, answer: Answer | None, fault: BaseException | None) -> None:
        """Charge the key for what was written, and write down how it came about, whoever still reads."""
        state = self._request.state
        written = 0 if self._plan is None else self._plan.trail.tokens
        state.charge(written if answer is None else usage(answer)["total_tokens"])
        log_book = self._device.decisions
        if log_book is None:
            return
        try:
            log_book.keep(
                decision(
                    request_id=state.request_id, caller=state.caller, path=self._request.url.path, mode=self._mode,
                    plan=self._plan, answer=answer, fault=fault,
                )
            )  # fmt: skip
        except OSError as lost:
            self._metrics.decisions_lost.inc()
            log("decision lost", level=40, fault=lost, tier="device", request_id=state.request_id)

    async def _next(self) -> Piece | Answer:
        """The next event; what went wrong is raised as a refusal."""
        try:
            while (event := self._events.take()) is None:
                await self._events.wait()
        except asyncio.CancelledError:
            self._cancel()
            raise
        return self._checked(event)

    async def _look(self) -> None:
        """End the work when the client has gone: nobody writes for one that does not read."""
        while (await self._request.receive())["type"] != "http.disconnect":
            ...
        self._cancel()

    def _checked(self, event: Piece | Answer | BaseException) -> Piece | Answer:
        if isinstance(event, BaseException):
            raise self._as_refusal(event)
        return event

    def _as_refusal(self, fault: BaseException) -> BaseException:
        if isinstance(fault, FedtandemError):
            if isinstance(fault, Rejected):
                log("upstream refuses", level=40, tier="device", request_id=self._request.state.request_id,
                    says=str(fault))  # fmt: skip
            known = refusal_of_fault(fault, self._mode)
            if known is None:
                log("failed", level=40, fault=fault, tier="device", request_id=self._request.state.request_id)
                known = refusal_of(fault)
            tell(self._request, mode=self._mode, refused=known.code)
            return known
        return fault

    def _cancel(self) -> None:
        self._cancelled.set()

    def _stop(self) -> None:
        """The service ends: tell who waits, without waiting for who writes."""
        self._cancel()
        self._events.put(CutShort(), is_last=True)

    async def _stream(self, first: Piece | Answer, looking: "asyncio.Task[None]") -> AsyncIterator[bytes]:
        chunk_kind = "text_completion" if self._words.kind == "text_completion" else "chat.completion.chunk"

        def chunk(choices: list[dict[str, Any]], **more: Any) -> bytes:
            usage = {"usage": None} if self._asked.includes_usage else {}
            return _event({**self._object(choices, chunk_kind), **usage, **more})

        try:
            opening = self._words.first()
            ready = (
                [] if opening is None else [chunk([opening])]
            )  # what is there already goes out in one write
            event: Piece | Answer | BaseException | None = first
            while isinstance(event, Piece):
                choice = self._words.part(event.text, event.tokens)
                told = {"fedtandem": {"tokens": self._traced(event.tokens)}} if self._asked.trace else {}
                ready.append(chunk([choice], **told))
                event = self._events.take()
                if not isinstance(event, Piece | Answer) or len(ready) >= MOST_PIECES:
                    yield b"".join(ready)
                    ready = []
                event = await self._next() if event is None else self._checked(event)
            assert isinstance(event, Answer)
            self._count(event)
            ready.append(chunk([self._words.last(event.finish)], fedtandem=account(event)))
            if self._asked.includes_usage:
                ready.append(chunk([], usage=usage(event)))
            yield b"".join([*ready, DONE])
        except Exception as fault:
            refusal = (
                fault if isinstance(fault, Refusal) else Refusal(500, "the service failed.", "internal_error")
            )
            if refusal is not fault:
                log("failed", level=40, fault=fault, tier="device", request_id=self._request.state.request_id)
            yield _event(refusal.body())  # what was shown stands; the stream ends without [DONE]
        finally:
            looking.cancel()
            self._cancel()

    def _traced(self, tokens: Sequence[Token]) -> list[dict[str, Any]]:
        """Per token its text (whole characters only), whose it is, u and τ: what a page colours."""
        tau = 0.0 if self._plan is None else self._plan.gate.tau
        return [
            {
                "text": self._characters.decode(token.spelled), "tier": TRACED[token.source.tier],
                "u": token.source.u, "tau": tau,
            }
            for token in tokens
        ]  # fmt: skip

    def _object(
        self, choices: list[dict[str, Any]], kind: str, usage: Any = None, account: Any = None
    ) -> dict[str, Any]:
        whole = {
            "id": self._words.id, "object": kind, "created": self._created, "model": self._asked.model,
            "choices": choices,
        }  # fmt: skip
        if usage is not None:
            whole["usage"] = usage
        if account is not None:
            whole["fedtandem"] = account
        return whole

    def _headers(self, answer: Answer | None) -> dict[str, str]:
        """What is known when the headers go out; of a stream the rest is in its last chunk, under `fedtandem`."""
        degraded = "" if self._plan is None else self._plan.degraded()
        headers = {"x-mode": self._mode, "x-degraded": degraded or "none", "cache-control": "no-store"}
        if answer is not None:
            told = account(answer)
            headers["x-route"] = ", ".join(f"{tier}={n}" for tier, n in told["route"].items())
            headers["x-verified-tokens"] = str(told["verified_tokens"])
            headers["x-degraded"] = answer.degraded or "none"
        return headers

    def _count(self, answer: Answer) -> None:
        record, metrics = answer.record, self._metrics
        for tier, n in account(answer)["route"].items():
            metrics.tokens.labels(tier).inc(n)
        metrics.drafted.labels("accepted").inc(record.accepted)
        metrics.drafted.labels("refused").inc(record.drafted - record.accepted)
        accepted = metrics.drafted.labels("accepted")._value.get()
        metrics.accepted.set(accepted / max(1.0, accepted + metrics.drafted.labels("refused")._value.get()))
        metrics.cost.inc(record.llm_passes)
        metrics.degraded.inc(answer.degraded_tokens)
        metrics.ttft.observe(answer.first_s)
        metrics.speed.observe(answer.completion_tokens / max(1e-6, answer.seconds))
        if self._plan is not None:
            metrics.tau.labels(self._plan.gate.scope).set(self._plan.gate.tau)
        tell(
            self._request, mode=self._mode, finish=answer.finish, prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens, llm_passes=record.llm_passes,
            degraded=answer.degraded or "none", first_ms=round(1000 * answer.first_s, 1),
        )  # fmt: skip


def _event(value: Mapping[str, Any]) -> bytes:
    return b"data: " + ENCODER.encode(value).encode() + b"\n\n"
