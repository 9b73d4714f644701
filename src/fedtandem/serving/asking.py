"""The LLM as the device's decoding loop sees it: each block is judged behind a line that may be slow or down."""

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fedtandem.errors import InvalidMessage
from fedtandem.exchange.verification import EMPTY, MAX_MORE, VerifyReply, VerifyRequest, decoding_of, hash_of
from fedtandem.inference.row import Row, Source
from fedtandem.inference.settings import DecodeSettings
from fedtandem.inference.uplink import Draft, pack_block
from fedtandem.inference.verify import Verdict, settle
from fedtandem.serving.hearing import refuse_what_cannot_be
from fedtandem.serving.logs import log
from fedtandem.serving.sessions import UnknownPrefix
from fedtandem.serving.turns import TURNS
from fedtandem.serving.upstream import Outage, RemoteModel, Upstream

CHUNK = 8
"""Tokens the LLM writes per exchange when it writes alone."""
STALL_S = 0.25
"""Between two tries while an answer waits for the LLM."""


@dataclass(frozen=True)
class Terms:
    """What a request asks of the line.

    Attributes:
        on_outage: error, stall or degrade.
        deadline_s, prompt_deadline_s: for one verification, and for the first.
        ends_s: monotonic time at which the answer must be over.
        top: log-probabilities per token, -1 for none.
        max_cloud_fraction: of the answer's tokens that the LLM may verify.
        request_id: for the logs of the other tiers.
        scope: for peers; "" without.
    """

    on_outage: str
    deadline_s: float
    prompt_deadline_s: float
    ends_s: float
    top: int = -1
    max_cloud_fraction: float = 1.0
    request_id: str = ""
    scope: str = ""


@dataclass
class Said:
    """What is known of tokens beyond their ids, as the last verdict told it; read at their commit.

    Attributes:
        log_probs, top_ids, top_log_probs: as in `VerifyReply`; empty without.
        wait_s, uplink_bytes, downlink_bytes: of the exchange.
    """

    log_probs: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    top_ids: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    top_log_probs: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    wait_s: float = 0.0
    uplink_bytes: int = 0
    downlink_bytes: int = 0


class Asking:
    """One answer's verifier; rows of one answer only.

    Attributes:
        said: of the tokens being committed; None while the SLM keeps its own.
        degraded: why tokens were written without the LLM that was asked for; empty if none were.
        degraded_tokens: how many.
        alone: why the LLM was not asked about the tokens that were committed last without it.
    """

    def __init__(
        self,
        upstream: Upstream,
        model: RemoteModel,
        settings: DecodeSettings,
        terms: Terms,
        *,
        cancelled: threading.Event,
        embed: Callable[[list[int]], npt.NDArray[np.float16]] | None = None,
        on_feedback: Callable[[float, float], None] | None = None,
    ) -> None:
        self._upstream, self._model, self._settings, self._terms = upstream, model, settings, terms
        self._cancelled, self._embed, self._on_feedback = cancelled, embed, on_feedback
        self._session = uuid.uuid4().hex
        self._told: list[int] = []
        self._n_verified = 0
        self.said: Said | None = None
        self.degraded = ""
        self.degraded_tokens = 0
        self.alone = ""

    @property
    def vocab_size(self) -> int:
        """V of the LLM."""
        return self._model.tokenizer.vocab_size

    @property
    def limit(self) -> int | None:
        """Tokens its context holds."""
        return self._model.limit

    def forget(self, row: int) -> None:
        """The cloud forgets by itself."""

    def audit_the_rest(self, row: Row) -> None:
        """An answer that ends without a further verification keeps its last tokens unaudited."""

    def peer_question(self, ids: list[int]) -> tuple[dict[str, str], npt.NDArray[np.float16]] | None:
        """Namespace and embedding of the place after these ids, for a look-up; None where peers are off."""
        if self._embed is None or not self._terms.scope:
            return None
        settings = self._settings
        asked = {
            "scope": self._terms.scope,
            "model": self._model.fingerprint,
            "tokenizer": self._model.tokenizer.card.hash,
            "decoding": decoding_of(settings.uplink, settings.temperature),
            "use": settings.peer,
        }
        return asked, self._embed(ids)

    def audit_request(self, ids: list[int], place: int, tokens: list[int]) -> bytes | None:
        """What puts a peer's answer to the LLM, on its own: nothing of this answer is changed or taken for known.

        Args:
            ids: the whole text before it.
            place: how many of them are the answer's.
            tokens: the peer's.

        Returns:
            The frame; None where the request lets the LLM see a part of its tokens only.
        """
        if self._terms.max_cloud_fraction < 1:
            return None
        settings, model = self._settings, self._model
        return VerifyRequest(
            session=uuid.uuid4().hex, model=model.fingerprint, tokenizer=model.tokenizer.card.hash, base=0, known="",
            place=place, room=len(tokens) + 1, uplink=settings.uplink, temperature=float(settings.temperature), seed=0,
            top_k=settings.top_k, top=-1, more=0, audits=0, scope=self._terms.scope, new_ids=np.array(ids, np.int32),
            block=pack_block([Draft(token) for token in tokens], self.vocab_size), embedding=EMPTY,
        ).to_bytes()  # fmt: skip

    def verify(self, rows: Sequence[Row]) -> None:
        """Have the block judged, or go on without, as the terms say.

        Raises:
            Outage: the LLM is needed and does not answer.
        """
        for row in rows:
            if self._is_over_budget(row):
                self._go_alone(row, "max-cloud-fraction")
                continue
            began, record = time.monotonic(), row.record
            up, down = record.uplink_bytes, record.downlink_bytes
            try:
                reply = self._asked(row)
            except Outage as outage:
                if self._terms.on_outage != "degrade":
                    raise
                self._go_alone(row, f"cloud-{outage.reason}")
                continue
            self.said = Said(
                reply.log_probs, reply.top_ids, reply.top_log_probs, time.monotonic() - began,
                record.uplink_bytes - up, record.downlink_bytes - down,
            )  # fmt: skip
            self._settle(row, reply)

    def _is_over_budget(self, row: Row) -> bool:
        wanted = self._n_verified + len(row.pending) + 1
        allowed = self._terms.max_cloud_fraction * (len(row.written) + len(row.pending) + 1)
        return wanted > allowed and bool(row.pending)

    def _asked(self, row: Row) -> VerifyReply:
        deadline_s = self._terms.deadline_s if self._told else self._terms.prompt_deadline_s
        request = self._request(row, self._told)
        while True:
            left = self._terms.ends_s - time.monotonic()
            if left <= 0:
                raise Outage("timeout")
            try:
                return self._exchange(row, request, min(deadline_s, left))
            except UnknownPrefix:
                if not request.base:
                    raise Outage("prefix-unknown") from None
                request = self._request(row, [])
                deadline_s = self._terms.prompt_deadline_s
            except Outage as outage:
                if self._terms.on_outage != "stall" or outage.reason in ("model-changed", "faulty"):
                    raise
                pause_s = max(STALL_S, outage.retry_after_s if outage.reason == "busy" else 0.0)
                with TURNS.away():
                    if self._cancelled.wait(min(pause_s, left)):
                        raise

    def _exchange(self, row: Row, request: VerifyRequest, deadline_s: float) -> VerifyReply:
        body = request.to_bytes()
        content = self._upstream.verify(
            body, deadline_s, request_id=self._terms.request_id, shares=bool(request.scope)
        )
        row.record.round_trips += 1
        row.record.uplink_bytes += len(body)
        row.record.downlink_bytes += len(content)
        try:
            reply = VerifyReply.from_bytes(content)
            refuse_what_cannot_be(reply, request, [draft.token for draft in row.pending], self.vocab_size)
        except InvalidMessage as fault:
            log(
                "verdict not believed", level=40, tier="device", request_id=self._terms.request_id, says=str(fault)
            )  # fmt: skip
            raise Outage("faulty") from fault
        return reply

    def _request(self, row: Row, told: list[int]) -> VerifyRequest:
        settings, terms = self._settings, self._terms
        ids = [*row.prompt, *row.written]
        known = told if told == ids[: len(told)] else []
        more = 0
        if settings.mode == "cloud" and row.written:  # the first token alone: somebody waits for it
            more = min(CHUNK - 1, MAX_MORE, row.limit - len(row.written) - 1)
        embedding = EMPTY if self._embed is None or not terms.scope else self._embed(ids)
        return VerifyRequest(
            session=self._session, model=self._model.fingerprint, tokenizer=self._model.tokenizer.card.hash,
            base=len(known),
            known=hash_of(known) if known else "", place=len(row.written), room=row.limit - len(row.written),
            uplink=settings.uplink, temperature=float(settings.temperature), seed=settings.seed % 2**64,
            top_k=settings.top_k, top=terms.top, more=more, audits=_audits(row, len(ids) - len(known)),
            scope=terms.scope, new_ids=np.array(ids[len(known) :], np.int32),
            block=pack_block(row.pending, self.vocab_size), embedding=embedding,
        )  # fmt: skip

    def _settle(self, row: Row, reply: VerifyReply) -> None:
        tokens = reply.tokens.tolist()
        pending = list(row.pending)
        self._hear(row, reply)
        self._n_verified += len(tokens)
        row.record.llm_passes += reply.passes - 1
        row.record.own += max(0, len(tokens) - reply.accepted - 1)
        settle(row, Verdict(tokens, reply.accepted, tuple(reply.near_ties.tolist())))
        self.said = None
        self._told = [*row.prompt, *row.written]
        if self._on_feedback is not None:
            # What comes after a refusal was drafted on a text that is not there any more.
            for i, draft in enumerate(pending[: reply.accepted + 1]):
                if draft.u is not None:
                    self._on_feedback(draft.u, float(i >= reply.accepted))

    def _hear(self, row: Row, reply: VerifyReply) -> None:
        """The audits that came along."""
        if len(reply.disagreed):
            for (_, law, u), other in zip(row.unaudited, reply.disagreed.tolist(), strict=False):
                if law is None:  # a peer's
                    row.record.peer_audited += 1
                    row.record.peer_wrong += other
                    continue
                row.record.audited += 1
                row.record.audited_error += other
                if row.on_audit is not None:
                    row.on_audit(row.index, u, float(other))
        row.unaudited = []

    def _go_alone(self, row: Row, reason: str) -> None:
        """The drafts stand as they are: nothing is lost, nothing comes twice, and it is said."""
        self.degraded, self.alone = self.degraded or reason, reason
        tokens, doubts = [draft.token for draft in row.pending], [draft.u for draft in row.pending]
        row.pending, row.draft_ends, row.block_bytes, row.unaudited = [], False, None, []
        if not tokens:
            row.is_done = True  # half a character of the LLM's, or no room: the SLM cannot go on from here
            return
        self.degraded_tokens += len(tokens)
        row.record.kept += len(tokens)
        row.commit(tokens, [Source("degraded", u) for u in doubts])


def _audits(row: Row, n_new: int) -> int:
    """How many of the last ids are kept tokens whose law waits for an audit; they must be the last ones in a row."""
    n = len(row.unaudited)
    places = [place for place, _, _ in row.unaudited]
    return n if n <= n_new and places == list(range(len(row.written) - n, len(row.written))) else 0
