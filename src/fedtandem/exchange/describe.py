"""Any message in plain words, for `fedtandem inspect`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedtandem.alignment.card import VocabularyCard
from fedtandem.alignment.sequence import EndTable
from fedtandem.errors import InvalidMessage
from fedtandem.exchange.carrier import Envelope
from fedtandem.exchange.coding import from_planes
from fedtandem.exchange.describe_thresholds import CONTENTS, TITLES
from fedtandem.exchange.frame import Array, decode_frame
from fedtandem.exchange.messages import Card, FetchReply, FetchRequest, Knowledge, WorkReply, WorkRequest
from fedtandem.exchange.reading import printable
from fedtandem.knowledge.sparse_logits import SparseLogits

SHOWN = 5
"""How many values of a list are shown."""
_TITLES = {
    "card": "the card of {party}: its vocabulary and where it stands in the public set",
    "work_request": "the server asks a client to work",
    "work_reply": "{party} answers a request to work",
    "fetch_request": "the server asks a client for rows from its file",
    "fetch_reply": "{party} sends the rows it was asked for",
    **TITLES,
}


def describe(envelope: Envelope) -> list[str]:
    """Say what a message holds, line by line: fields, sizes, shapes, first values.

    A message that would be refused is described as far as it can be read, and says why it would be refused.

    Raises:
        InvalidMessage: the frame itself cannot be read.
    """
    header, arrays = decode_frame(envelope.body)
    name = str(header.get("message", "unknown"))
    party = str(header.get("party", "a party without a name"))
    unpacked = sum(array.nbytes for array in arrays.values())
    lines = [
        f"{name}: {_TITLES.get(name, 'a kind of message this version does not know').format(party=party)}",
        f"round {envelope.round}, kind {envelope.kind}, schema {envelope.schema}; {envelope.n_bytes:,} bytes on the "
        f"wire, holding {unpacked:,} bytes in {len(arrays)} arrays",
    ]
    try:
        lines += _contents(name, envelope)
    except (InvalidMessage, KeyError) as error:
        why = "this version does not know it" if isinstance(error, KeyError) else str(error)
        lines += [f"IT WOULD BE REFUSED: {why}", *_raw(header, arrays)]
    return [printable(line) for line in lines]


def describe_frame(data: bytes) -> list[str]:
    """Say what a bare frame holds: header fields, then name, dtype, shape and first values of each array.

    Raises:
        InvalidMessage: it cannot be read.
    """
    header, arrays = decode_frame(data)
    return [
        f"a frame of {len(data):,} bytes with {len(arrays)} arrays",
        *map(printable, _raw(header, arrays)),
    ]


def _contents(name: str, envelope: Envelope) -> list[str]:
    if name == "card":
        return _card(Card.from_envelope(envelope))
    if name == "work_request":
        request = WorkRequest.from_envelope(envelope)
        asked = {
            "learn from the public set": request.distil,
            "tune on private data": request.tune,
            "send rows with the scores": request.want_rows,
            "send its weights": request.return_adapter,
        }
        orders = [f"to {order}: {'yes' if wanted else 'no'}" for order, wanted in asked.items()]
        return orders + _knowledge(request.knowledge) + _adapter(request.adapter)
    if name == "work_reply":
        reply = WorkReply.from_envelope(envelope)
        lines = [f"{reply.n_private:,} private samples (their number only), {len(reply.metrics)} metrics"]
        lines += [f"  metric {metric}" for metric in reply.metrics[:SHOWN]]
        return lines + _knowledge(reply.knowledge) + _adapter(reply.adapter)
    if name == "fetch_request":
        index = FetchRequest.from_envelope(envelope).sample_index
        return [f"{len(index):,} samples: {_first(index)}"]
    if name == "fetch_reply":
        return _knowledge(FetchReply.from_envelope(envelope).knowledge)
    return CONTENTS[name](envelope)


def _card(card: Card) -> list[str]:
    return [
        f"model {card.model!r}; its trainable weights would take {card.trainable_bytes:,} bytes at 2 bytes a number",
        f"{card.n_private:,} private samples (their number only)",
        f"public set {card.public_hash[:16]} with {card.n_public:,} samples",
        *_vocabulary(card.vocabulary),
        *_ends(card.ends),
        "no token ids of the public text"
        if card.token_ids is None
        else f"{len(card.token_ids):,} token ids at those positions: {_first(card.token_ids)}",
    ]


def _vocabulary(card: VocabularyCard) -> list[str]:
    pieces = [repr(token) for token in card.tokens if token][:SHOWN]
    roles = ", ".join(f"{role} = {token_id}" for role, token_id in sorted(card.roles.items()))
    return [
        f"vocabulary {card.hash[:16]} of {len(card):,} tokens ({len(card.special)} special; {roles or 'no roles'}), "
        f"a leading space written {card.marker!r}",
        f"  first tokens: {', '.join(pieces)}",
    ]


def _ends(ends: EndTable | None) -> list[str]:
    if ends is None:
        return ["no positions: the public set has no answers"]
    known = int((ends.end_byte >= 0).sum())
    return [
        f"{ends.n_rows:,} positions in {ends.n_samples:,} samples, {known:,} at a known byte: {_first(ends.end_byte)}"
    ]


def _knowledge(knowledge: Knowledge | None) -> list[str]:
    if knowledge is None:
        return ["no knowledge"]
    scored = knowledge.scores[np.isfinite(knowledge.scores)]
    mean = f"mean {scored.mean():.4f}" if len(scored) else "none finite"
    unscored = len(knowledge.scores) - len(scored)
    lines = [
        f"knowledge of {knowledge.party} from round {knowledge.round} about public set {knowledge.public_hash[:16]}, "
        f"in vocabulary {knowledge.vocab_hash[:16]}",
        f"  {len(knowledge.scores):,} scores in nats, {mean}, {unscored} samples not scored: "
        f"{_first(knowledge.scores)}",
    ]
    if knowledge.rows is None:
        lines.append("  no rows")
    else:
        of = f"  rows of {len(knowledge.sample_index):,} samples ({_first(knowledge.sample_index)})"
        lines += [
            f"{of}, values as {knowledge.values}, temperature {knowledge.tau:g}",
            *_rows(knowledge.rows),
        ]
    if knowledge.texts is not None:
        written = [text for text in knowledge.texts if text]
        lines.append(f"  {len(written):,} texts for {len(knowledge.texts):,} prompts")
        lines += [f"    {text[:100]!r}" for text in written[:SHOWN]]
    return lines


def _rows(rows: SparseLogits) -> list[str]:
    if rows.n_rows == 0:
        return ["  0 positions"]
    kept = float(rows.kept_mass().mean())
    first, last = int(rows.row_splits[0]), int(rows.row_splits[1])
    best = np.argsort(-rows.log_probs[first:last], kind="stable")[:SHOWN] + first
    shown = ", ".join(f"id {rows.token_ids[i]} p {np.exp(rows.log_probs[i]):.3f}" for i in best)
    rest = np.exp(rows.tail_log_prob[0])
    return [
        f"  {rows.n_rows:,} positions, {rows.n_entries:,} tokens kept ({rows.n_entries / rows.n_rows:.1f} a position), "
        f"{kept:.1%} of the probability on average",
        f"  first position: byte {rows.end_byte[0]}, {shown or 'nothing kept'}, rest {rest:.3f}",
    ]


def _adapter(adapter: Mapping[str, Array] | None) -> list[str]:
    if adapter is None:
        return ["no weights"]
    numbers = sum(array.size for array in adapter.values())
    lines = [f"weights: {len(adapter)} tensors, {numbers:,} numbers"]
    lines += [f"  {name} {array.dtype}{array.shape}" for name, array in sorted(adapter.items())[:SHOWN]]
    return lines


def _raw(header: Mapping[str, Any], arrays: Mapping[str, Array]) -> list[str]:
    lines = [f"  {field} = {str(value)[:100]}" for field, value in sorted(header.items())]
    for name, array in sorted(arrays.items()):
        lines.append(f"  {name}: {array.dtype}{array.shape}, first values {_first(_numbers(array))}")
    return lines


def _numbers(array: Array) -> Array:
    if array.dtype == np.uint8 and array.ndim == 2 and 1 <= array.shape[0] <= 4 and array[-1].any():
        return from_planes("", array)
    return array.reshape(-1)


def _first(values: Array) -> str:
    more = ", ..." if len(values) > SHOWN else ""
    return ", ".join(f"{value:g}" for value in values[:SHOWN].tolist()) + more if len(values) else "none"
