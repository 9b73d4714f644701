"""The LLM's side: one pass over what is pending, accept or correct, and measure what was kept unseen."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedtandem.inference.choice import NEAR_TIE, Choice, checked_logits
from fedtandem.inference.drafting import NextTokenModel
from fedtandem.inference.row import Row
from fedtandem.inference.settings import DecodeSettings
from fedtandem.inference.speculative import accept_probability, residual_law
from fedtandem.inference.uplink import (
    SCALAR_BITS,
    Draft,
    SparseLaw,
    Uplink,
    pack_block,
    pack_ids,
    pack_law,
    pack_text_verdict,
    pack_verdict,
)


def verify(target: NextTokenModel, rows: Sequence[Row], choice: Choice) -> None:
    """One pass of the LLM over what every row has pending; commits what stands and one token of its own."""
    texts = [row.ids for row in rows]
    last = []
    for row in rows:
        audits_from = row.unaudited[0][0] if row.unaudited else len(row.written)
        last.append(len(row.written) - audits_from + len(row.pending) + 1)
    answers = target.logits([row.index for row in rows], texts, last)
    for row, answer in zip(rows, answers, strict=True):
        scores = choice.scores(checked_logits(answer[None], [row], "target model")[0])  # (last, V)
        row.record.llm_passes += 1
        _count_uplink(row, choice.settings, target.vocab_size)
        _audit(row, scores, choice.settings)
        first = len(scores) - len(row.pending) - 1
        _settle(row, scores[first:], choice)


def _settle(row: Row, scores: Tensor, choice: Choice) -> None:
    """Keep the longest prefix of the block that stands, then one token of the LLM's.

    Args:
        scores: of the LLM, at each place of the block and after it; (g + 1, V).
    """
    pending, record, base = row.pending, row.record, len(row.written)
    record.drafted += len(pending)
    own_choices = choice.tokens(row, base, scores)
    tokens: list[int] = []
    accepted = 0
    for i in range(min(len(pending) + 1, row.limit - base)):
        draft = pending[i] if i < len(pending) else None
        if own_choices is not None:
            token, margin = own_choices[i]
            _note_near_tie(row, base + i, margin, choice.settings.uplink)
        elif draft is None or draft.law is None:
            token = choice.token(row, base + i, scores[i])
        else:
            token = _accept_or_resample(row, draft, draft.law, scores[i], choice)
        tokens.append(token)
        if draft is None:
            record.own += 1
            break
        if token != draft.token:
            record.corrected += 1
            break
        accepted += 1
        if token == row.eos_id:
            break
    record.accepted += accepted
    row.pending, row.draft_ends, row.block_bytes = [], False, None
    own = tokens[accepted] if len(tokens) > accepted else None
    if choice.settings.mode == "cloud":
        record.downlink_bytes += len(pack_ids(tokens))  # a plain stream
    elif row.spell is not None:
        stands = sum(len(row.spell(token)) for token in tokens[:accepted])
        record.downlink_bytes += len(pack_text_verdict(stands, None if own is None else row.spell(own)))
    else:
        record.downlink_bytes += len(pack_verdict(accepted, own))
    row.commit(tokens, resolved=True)
    row.told = len(row.written)


def _note_near_tie(row: Row, place: int, margin: float, uplink: Uplink) -> None:
    if margin < NEAR_TIE[uplink]:
        row.record.near_ties += 1
        if row.record.first_near_tie is None:
            row.record.first_near_tie = place


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


def audit_the_rest(row: Row, target: NextTokenModel, choice: Choice) -> None:
    """Measure the kept tokens that no pass of the LLM came after, with one pass of their own."""
    if not row.unaudited:
        return
    first = row.unaudited[0][0]
    # The law of the token at `first` stands after the token before it; nothing is asked after the last one.
    ids = [*row.prompt, *row.written[:-1]]
    answer = target.logits([row.index], [ids], [len(row.written) - first])[0]
    row.record.audit_passes += 1
    _audit(row, choice.scores(checked_logits(answer[None], [row], "target model")[0]), choice.settings)
