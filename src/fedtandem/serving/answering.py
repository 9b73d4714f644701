"""One request answered, in a thread of its own: two models write, what is final is handed over at once."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fedtandem.alignment.card import VocabularyCard
from fedtandem.errors import FedtandemError
from fedtandem.inference.drafting import NextTokenModel, Uncertainty
from fedtandem.inference.generate import TextStream, generate
from fedtandem.inference.judging import token_log_probs
from fedtandem.inference.peer_tokens import PeerSource
from fedtandem.inference.record import Record
from fedtandem.inference.row import Source
from fedtandem.inference.settings import DecodeSettings
from fedtandem.models.tokenizer import TextTokenizer
from fedtandem.serving.asking import Asking, Said
from fedtandem.serving.batching import Batcher
from fedtandem.serving.stops import StopText
from fedtandem.serving.trail import Trail

Ids = npt.NDArray[np.int32]
UNKNOWN_LOG_PROB = -9999.0
"""OpenAI's sign for a log-probability that is not known."""
ENCODING = threading.Lock()
"""Fast tokenizers are switched between two ways of reading: one thread at a time."""


class CutShort(FedtandemError):
    """Nobody waits for this answer any more, or the service ends before it is finished."""

    def __init__(self) -> None:
        super().__init__("the answer was not finished: the service ends, or nobody waits for it.")


@dataclass(frozen=True)
class Prompt:
    """What is to be answered: a conversation, or a text that is gone on from."""

    messages: tuple[tuple[str, str], ...] = ()
    text: str = ""

    def ids(self, tokenizer: TextTokenizer) -> Ids:
        """In a model's own form; without a chat template the contents, a line each."""
        if self.messages and tokenizer.has_chat_template:
            return tokenizer.encode_messages(self.messages)
        return tokenizer.encode_prompt("\n".join(text for _, text in self.messages) or self.text)


class Speller:
    """A tokenizer that reads one request's prompt; safe among threads."""

    def __init__(self, tokenizer: TextTokenizer, prompt: Prompt) -> None:
        self._tokenizer, self._prompt = tokenizer, prompt
        self._ids: Ids | None = None

    @property
    def card(self) -> VocabularyCard:
        """Of the vocabulary."""
        return self._tokenizer.card

    def encode_prompt(self, _: str, *, chat_template: bool = False) -> Ids:
        """The request's prompt, read once."""
        if self._ids is None:
            with ENCODING:
                self._ids = self._prompt.ids(self._tokenizer)
        return self._ids

    def continue_ids(self, text: str) -> Ids:
        """Ids of text that follows other text."""
        with ENCODING:
            return self._tokenizer.continue_ids(text)


class SharedRows:
    """The SLM for one answer, read in passes with those of all others.

    Attributes:
        laws: length of a text -> raw logits (V,) after it, while `remembers`; emptied at every commit.
    """

    def __init__(self, batcher: Batcher, session: str, remembers: bool) -> None:
        self._batcher, self._session = batcher, session
        self.remembers = remembers
        self.laws: dict[int, Tensor] = {}

    @property
    def vocab_size(self) -> int:
        """V."""
        return self._batcher.reader.vocab_size

    @property
    def limit(self) -> int | None:
        """Tokens its context holds."""
        return self._batcher.reader.limit

    def logits(self, rows: Sequence[int], ids: Sequence[Sequence[int]], last: Sequence[int]) -> list[Tensor]:
        """One pass, shared with others."""
        answers = [
            self._batcher.logits(f"{self._session}.{row}", text, count)
            for row, text, count in zip(rows, ids, last, strict=True)
        ]
        if self.remembers:
            for text, answer in zip(ids, answers, strict=True):
                self.laws[len(text)] = answer[-1]
        return answers

    def forget(self, row: int) -> None:
        """This answer is finished."""
        self._batcher.forget(f"{self._session}.{row}")


@dataclass(frozen=True)
class SmallParty:
    """The SLM of one request, as `generate` takes it."""

    name: str
    tokenizer: Speller
    rows: SharedRows

    def cached_rows(self, n_rows: int) -> NextTokenModel:
        """The one text of this request."""
        return self.rows


@dataclass(frozen=True)
class LargeParty:
    """The LLM of one request, which is elsewhere."""

    name: str
    tokenizer: Speller
    asking: Asking

    def cached_rows(self, n_rows: int) -> Asking:
        """Who asks it."""
        return self.asking


@dataclass(frozen=True)
class Token:
    """One token of an answer.

    Attributes:
        spelled: its bytes; empty for a mark.
        source: whose it is.
        log_prob: in nats.
        top: alternatives, (bytes, log-probability) each.
    """

    spelled: bytes
    source: Source
    log_prob: float = UNKNOWN_LOG_PROB
    top: tuple[tuple[bytes, float], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """As in OpenAI's `logprobs`."""
        return {
            **_spelling(self.spelled, self.log_prob),
            "top_logprobs": [_spelling(spelled, value) for spelled, value in self.top],
        }


def _spelling(spelled: bytes, log_prob: float) -> dict[str, Any]:
    value = max(UNKNOWN_LOG_PROB, float(log_prob))
    return {"token": spelled.decode("utf-8", "replace"), "logprob": value, "bytes": list(spelled)}


@dataclass(frozen=True)
class Piece:
    """What became final together: text of whole characters, and the tokens behind it."""

    text: str
    tokens: tuple[Token, ...]


@dataclass
class Answer:
    """What came of a request.

    Attributes:
        finish: stop or length.
        prompt_tokens, completion_tokens: in the writing model's tokens.
        record: what it took.
        degraded: why tokens were written without the LLM; "" if none were.
        degraded_tokens: how many.
        first_s, seconds: to the first token, and in all.
    """

    finish: str
    prompt_tokens: int
    completion_tokens: int
    record: Record
    degraded: str = ""
    degraded_tokens: int = 0
    first_s: float = 0.0
    seconds: float = 0.0


@dataclass
class Writer:
    """One answer being written.

    Attributes:
        small, large: the parties; `large` is None in mode local.
        prompt_tokens: of the writing model.
        settings, uncertainty, beta_upper, bridge: as in `generate`.
        stops: stop sequences.
        top: log-probabilities per token, -1 for none.
        ends_s: monotonic time at which it must be over.
        cancelled: set where nobody waits for the answer any more.
        emit: called with every piece, in this thread.
        on_audit: (u, error) of kept tokens that were measured.
        peers: as in `generate`.
        trail: told of every commit.
    """

    small: SmallParty | None
    large: LargeParty | None
    settings: DecodeSettings
    uncertainty: Uncertainty
    stops: Sequence[str]
    top: int
    ends_s: float
    cancelled: threading.Event
    emit: Callable[[Piece], None]
    trail: Trail
    beta_upper: Callable[[float], float] | None = None
    on_audit: Callable[[float, float], None] | None = None
    peers: PeerSource | None = None

    def write(self) -> Answer:
        """Write it.

        Raises:
            CutShort: it was cancelled before its end.
            Outage: the LLM is needed and does not answer; what was emitted stands.
            FedtandemError: as `generate`.
        """
        began = time.monotonic()
        writer = self.small if self.large is None else self.large
        assert writer is not None
        stream, text = TextStream(), StopText(self.stops)
        card = writer.tokenizer.card
        eos_id = card.roles["eos"]
        prompt_ids = writer.tokenizer.encode_prompt("")
        n_written, first_s, saw_eos, is_late, is_cut = 0, 0.0, False, False, False

        def commit(_: int, ids: list[int], sources: Sequence[Source]) -> bool:
            nonlocal n_written, first_s, saw_eos, is_late, is_cut
            first_s = first_s or time.monotonic() - began
            self.trail.add(sources, None if self.large is None else self.large.asking)
            tokens = self._tokens(card, ids, sources, len(prompt_ids) + n_written)
            n_written += len(ids)
            saw_eos = ids[-1] == eos_id
            shown, spelled = [], b""
            for token_id, token in zip(ids, tokens, strict=True):
                if token_id != eos_id:
                    shown.append(token)
                    spelled += token.spelled
            is_late = time.monotonic() > self.ends_s
            chunk = text.add(stream.add(spelled))
            if text.is_over:
                shown = _within(shown, len(chunk.encode()))
            is_cut = self.cancelled.is_set()
            if (chunk or shown) and not is_cut:
                self.emit(Piece(chunk, tuple(shown)))
            return text.is_over or is_late or is_cut

        (done,) = generate(
            self.small,
            self.large,
            [""],
            self.settings,
            uncertainty=self.uncertainty,
            beta_upper=self.beta_upper,
            peers=self.peers,
            on_tokens=commit,
            on_audit=None if self.on_audit is None else self._audited,
        )
        if is_cut and not (saw_eos or text.is_over):
            raise CutShort
        rest = text.add(stream.add(b"", final=True), final=True)
        if rest and not is_cut:
            self.emit(Piece(rest, ()))
        asking = None if self.large is None else self.large.asking
        return Answer(
            finish="stop" if saw_eos or text.is_over else "length",
            prompt_tokens=len(prompt_ids),
            completion_tokens=n_written,
            record=done.record,
            degraded="timeout" if is_late else "" if asking is None else asking.degraded,
            degraded_tokens=0 if asking is None else asking.degraded_tokens,
            first_s=first_s,
            seconds=time.monotonic() - began,
        )

    def _audited(self, _: int, u: float, error: float) -> None:
        if self.on_audit is not None:
            self.on_audit(u, error)

    def _tokens(
        self, card: VocabularyCard, ids: list[int], sources: Sequence[Source], place: int
    ) -> list[Token]:
        """The tokens of one commit with what is known of them."""
        said = None if self.large is None else self.large.asking.said
        spelled = [card.token_bytes[i] or b"" for i in ids]
        if said is not None and len(said.log_probs) and self.small is not None:
            self.small.rows.laws.clear()
        if said is None or not len(said.log_probs):
            return self._own_tokens(card, ids, spelled, sources, place)
        return [
            Token(spelled[i], sources[i], float(said.log_probs[i]), _alternatives(card, said, i, len(ids)))
            for i in range(len(ids))
        ]

    def _own_tokens(
        self,
        card: VocabularyCard,
        ids: list[int],
        spelled: list[bytes],
        sources: Sequence[Source],
        place: int,
    ) -> list[Token]:
        """Tokens that only the SLM has seen; a law is known where it speaks the writer's tokens."""
        if self.top < 0:  # no law was kept
            return [Token(*of) for of in zip(spelled, sources, strict=True)]
        laws = {} if self.small is None else self.small.rows.laws
        is_shared = self.small is not None and self.small.tokenizer.card.hash == card.hash
        tokens = []
        for i, token_id in enumerate(ids):
            law = laws.get(place + i) if is_shared else None
            if law is None:
                tokens.append(Token(spelled[i], sources[i]))
                continue
            own, top_ids, top = token_log_probs(law[None], [token_id], self.top)
            others = tuple(
                (card.token_bytes[j] or b"", float(v)) for j, v in zip(top_ids.tolist(), top, strict=True)
            )
            tokens.append(Token(spelled[i], sources[i], float(own[0]), others))
        laws.clear()
        return tokens


def _within(tokens: list[Token], n_bytes: int) -> list[Token]:
    """The tokens that begin within the first so many bytes: what a stop sequence cut off was not said."""
    kept, begins = [], 0
    for token in tokens:
        if begins >= n_bytes:
            break
        kept.append(token)
        begins += len(token.spelled)
    return kept


def _alternatives(card: VocabularyCard, said: Said, i: int, n: int) -> tuple[tuple[bytes, float], ...]:
    top = len(said.top_ids) // n
    part = slice(i * top, (i + 1) * top)
    ids, values = said.top_ids[part].tolist(), said.top_log_probs[part].tolist()
    return tuple((card.token_bytes[j] or b"", value) for j, value in zip(ids, values, strict=True))
