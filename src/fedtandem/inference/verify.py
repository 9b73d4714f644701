"""The LLM's side: one pass over what is pending, accept or correct, and measure what was kept unseen."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor

from fedtandem.inference.choice import NEAR_TIE, Choice, checked_logits
from fedtandem.inference.drafting import NextTokenModel
from fedtandem.inference.row import Row, Source
from fedtandem.inference.settings import DecodeSettings
from fedtandem.inference.speculative import accept_probability, residual_law
from fedtandem.inference.uplink import (
    SCALAR_BITS,
    Draft,
    SparseLaw,
    pack_block,
    pack_ids,
    pack_law,
    pack_text_verdict,
    pack_verdict,
)


class Verifier(Protocol):
    """The LLM as the decoding loop sees it; behind it may lie a network."""

    @property
    def vocab_size(self) -> int:
        """V of the LLM."""
        ...

    @property
    def limit(self) -> int | None:
        """Tokens its context holds; None if nothing says."""
        ...

    def verify(self, rows: Sequence[Row]) -> None:
        """Have every row's block judged, and commit at least one token to each or end it."""
        ...

    def audit_the_rest(self, row: Row) -> None:
        """Measure the kept tokens that no verification came after."""
        ...

    def forget(self, row: int) -> None:
        """This row is finished."""
        ...


@dataclass(frozen=True)
class Verdict:
    """What the LLM says of one block.

    Attributes:
        tokens: what is to be committed: the drafts that stand, then at most one token of the LLM's.
        accepted: how many of them are drafts.
        near_ties: places of the answer where the LLM's choice hung by less than NEAR_TIE.
    """

    tokens: list[int]
    accepted: int
    near_ties: tuple[int, ...] = ()


def as_verifier(target: NextTokenModel | Verifier, choice: Choice) -> Verifier:
    """Who verifies: the target, if it does so itself, else a model that is read here."""
    # By its method: isinstance on a Protocol costs as much as a token.
    if hasattr(target, "verify"):
        return cast(Verifier, target)
    return ModelVerifier(target, choice)


class ModelVerifier:
    """A model in this process, asked for all rows in one pass."""

    def __init__(self, target: NextTokenModel, choice: Choice) -> None:
        self._target, self._choice = target, choice

    @property
    def vocab_size(self) -> int:
        """V of the LLM."""
        return self._target.vocab_size

    @property
    def limit(self) -> int | None:
        """Tokens its context holds; None if nothing says."""
        return self._target.limit

    def forget(self, row: int) -> None:
        """This row is finished."""
        self._target.forget(row)

    def verify(self, rows: Sequence[Row]) -> None:
        """One pass of the LLM over what every row has pending; commits what stands and one token of its own."""
        choice = self._choice
        texts = [row.ids for row in rows]
        last = []
        for row in rows:
            audits_from = row.unaudited[0][0] if row.unaudited else len(row.written)
            last.append(len(row.written) - audits_from + len(row.pending) + 1)
        answers = self._target.logits([row.index for row in rows], texts, last)
        for row, answer in zip(rows, answers, strict=True):
            scores = choice.scores(checked_logits(answer[None], [row], "target model")[0])  # (last, V)
            _count_uplink(row, choice.settings, self._target.vocab_size)
            _audit(row, scores, choice.settings)
            first = len(scores) - len(row.pending) - 1
            verdict = judge(row, scores[first:], choice)
            _count_downlink(row, verdict, choice.settings)
            settle(row, verdict)

    def audit_the_rest(self, row: Row) -> None:
        """Measure the kept tokens that no pass of the LLM came after, with one pass of their own."""
        if not row.unaudited:
            return
        first = row.unaudited[0][0]
        # The law of the token at `first` stands after the token before it; nothing is asked after the last one.
        ids = [*row.prompt, *row.written[:-1]]
        answer = self._target.logits([row.index], [ids], [len(row.written) - first])[0]
        row.record.audit_passes += 1
        scores = self._choice.scores(checked_logits(answer[None], [row], "target model")[0])
        _audit(row, scores, self._choice.settings)


def judge(row: Row, scores: Tensor, choice: Choice) -> Verdict:
    """Keep the longest prefix of the block that stands, then one token of the LLM's.

    Args:
        row: what stands and what is pending; not changed.
        scores: of the LLM, at each place of the block and after it; (g + 1, V).
    """
    pending, base = row.pending, len(row.written)
    own_choices = choice.tokens(row, base, scores)
    tokens: list[int] = []
    near_ties: list[int] = []
    accepted = 0
    for i in range(min(len(pending) + 1, row.limit - base)):
        draft = pending[i] if i < len(pending) else None
        if own_choices is not None:
            token, margin = own_choices[i]
            if margin < NEAR_TIE[choice.settings.uplink]:
                near_ties.append(base + i)
        elif draft is None or draft.law is None:
            token = choice.token(row, base + i, scores[i])
        else:
            token = _accept_or_resample(row, draft, draft.law, scores[i], choice)
        tokens.append(token)
        if draft is None or token != draft.token:
            break
        accepted += 1
        if token == row.eos_id:
            break
    return Verdict(tokens, accepted, tuple(near_ties))


def settle(row: Row, verdict: Verdict) -> None:
    """Write a verdict into the row and its record, and commit."""
    record, pending = row.record, row.pending
    record.llm_passes += 1
    record.drafted += len(pending)
    record.accepted += verdict.accepted
    if len(verdict.tokens) > verdict.accepted:
        if verdict.accepted < len(pending):
            record.corrected += 1
        else:
            record.own += 1
    record.near_ties += len(verdict.near_ties)
    if verdict.near_ties and record.first_near_tie is None:
        record.first_near_tie = verdict.near_ties[0]
    row.pending, row.draft_ends, row.block_bytes = [], False, None
    row.commit(verdict.tokens, _sources(pending, verdict))
    row.told = len(row.written)


def _sources(pending: Sequence[Draft], verdict: Verdict) -> list[Source]:
    """Of a verdict's tokens; those of the LLM's that follow its first one were drafted by nobody."""
    sources = [Source("accepted", draft.u) for draft in pending[: verdict.accepted]]
    for draft in pending[verdict.accepted : verdict.accepted + 1]:
        sources.append(Source("corrected", draft.u))
    return [*sources, *[Source("llm")] * (len(verdict.tokens) - len(sources))][: len(verdict.tokens)]


def _count_downlink(row: Row, verdict: Verdict, settings: DecodeSettings) -> None:
    record, tokens, accepted = row.record, verdict.tokens, verdict.accepted
    own = tokens[accepted] if len(tokens) > accepted else None
    if settings.mode == "cloud":
        record.downlink_bytes += len(pack_ids(tokens))  # a plain stream
    elif row.spell is not None:
        stands = sum(len(row.spell(token)) for token in tokens[:accepted])
        record.downlink_bytes += len(pack_text_verdict(stands, None if own is None else row.spell(own)))
    else:
        record.downlink_bytes += len(pack_verdict(accepted, own))


def _accept_or_resample(row: Row, draft: Draft, law: SparseLaw, scores: Tensor, choice: Choice) -> int:
    """The draft, or a token of the residual law; its law is the LLM's. Never the draft again after a refusal."""
    q_draft = torch.tensor(law.of(draft.token), dtype=torch.float64)
    p_draft = (scores[draft.token].double() - log_total(scores)).exp()
    if choice.chance.happens(row.index, float(accept_probability(q_draft, p_draft))):
        return draft.token
    vocab_size = len(scores)
    residual = residual_law(law.dense(vocab_size), scores.double().softmax(dim=-1))
    if not residual.any():
        return draft.token  # refused by rounding alone: p = q
    if law.bits == SCALAR_BITS:
        # The server had one number of this law; it asks for the rest, and the client waits once more.
        row.record.uplink_bytes += len(pack_law(law, draft.token, vocab_size))
        row.record.round_trips += 1
    return choice.chance.choose(row.index, residual)


def log_total(scores: Tensor) -> Tensor:
    """log Σ exp of scores (..., V), in float64; only the sum is, since the scores are no more exact than they are."""
    highest = scores.amax(dim=-1, keepdim=True)
    return (scores - highest).exp_().sum(dim=-1, dtype=torch.float64).log() + highest[..., 0]


def _count_uplink(row: Row, settings: DecodeSettings, vocab_size: int) -> None:
    """What the client sends for this pass: the text the server does not know yet, then the block."""
    record = row.record
    if settings.mode == "cloud":  # one request, then a stream
        if row.told is None:
            record.uplink_bytes += row.prompt_bytes
            record.round_trips += 1
        return
    record.round_trips += 1
    if row.told is None:
        record.uplink_bytes += row.prompt_bytes
    record.uplink_bytes += len(pack_ids(row.written[row.told or 0 :]))
    block = row.block_bytes
    record.uplink_bytes += len(pack_block(row.pending, vocab_size)) if block is None else block


def _audit(row: Row, scores: Tensor, settings: DecodeSettings) -> None:
    """Measure kept tokens whose LLM law, as scores (last, V), this pass has shown.

    Per prefix the error of keeping is TV(q, p); a greedy draft's law is one-hot, and so is the LLM's. A peer's token,
    audited in `greedy` alone, is right or wrong.

    Source: FedHLM spec, equation (7).
    """
    for place, q, u in row.unaudited:
        at_place = scores[place - row.unaudited[0][0]]
        is_other = int(at_place.argmax()) != row.written[place]
        if q is None:
            row.record.peer_audited += 1
            row.record.peer_wrong += is_other
            continue
        if settings.uplink == "greedy":
            error = float(is_other)
        else:
            error = float((q - at_place.softmax(dim=-1)).clamp_min(0).sum())
        row.record.audited += 1
        row.record.audited_error += error
        if row.on_audit is not None:
            row.on_audit(row.index, u, error)
    row.unaudited = []
