from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from fedtandem.alignment.sequence import EndTable
from fedtandem.errors import InvalidMessage
from fedtandem.exchange.carrier import Envelope
from fedtandem.exchange.frame import decode_frame, encode_frame
from fedtandem.exchange.messages import (
    Card,
    Expected,
    FetchReply,
    FetchRequest,
    Knowledge,
    WorkReply,
    WorkRequest,
)
from fedtandem.knowledge.sparse_logits import SparseLogits

Make = Callable[..., Knowledge]
Envelopes = dict[str, Envelope]

READ: dict[str, Callable[..., Any]] = {
    "card": Card.from_envelope,
    "work_request": WorkRequest.from_envelope,
    "first_request": WorkRequest.from_envelope,
    "standing_request": WorkRequest.from_envelope,
    "finish": WorkRequest.from_envelope,
    "work_reply": WorkReply.from_envelope,
    "fetch_request": FetchRequest.from_envelope,
    "fetch_reply": FetchReply.from_envelope,
}


def same(a: Any, b: Any) -> bool:
    """Equal field by field, arrays value by value."""
    if isinstance(a, SparseLogits):
        return a.same_as(b)
    if isinstance(a, Knowledge | EndTable):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    return bool(a == b)


@pytest.mark.parametrize("name", READ)
def test_a_message_comes_back_with_every_field_and_encodes_to_the_same_bytes(
    envelopes: Envelopes, name: str
) -> None:
    envelope = Envelope.from_bytes(envelopes[name].to_bytes())
    message = READ[name](envelope)
    again = message.to_envelope(envelope.kind) if isinstance(message, WorkRequest) else message.to_envelope()
    assert again == envelope
    second = READ[name](again)
    assert all(same(getattr(message, f.name), getattr(second, f.name)) for f in fields(message))


def test_every_field_of_a_work_reply_arrives(knowledge: Make, adapter: dict[str, np.ndarray]) -> None:
    of_drafts = np.array([np.inf, 0.5, np.inf, 0.25, 1, np.inf], np.float32)
    asked = (np.array([0, 3, 5]), ("", " 3 + 4 = 7", " é"))
    sent = WorkReply(
        2, "clinic-a", replace(knowledge(), of_drafts=of_drafts), adapter, [{"loss": 0.5}], 12, *asked
    )
    got = WorkReply.from_envelope(sent.to_envelope())
    assert all(same(getattr(sent, f.name), getattr(got, f.name)) for f in fields(sent))


def test_one_draft_for_each_wanted_item_and_one_score_for_each_sample(knowledge: Make) -> None:
    with pytest.raises(InvalidMessage, match=r"drafts = 1 texts; expected 2, one for each wanted item"):
        WorkReply.from_envelope(
            WorkReply(2, "clinic-a", None, None, [], 1, np.array([0, 3]), ("alone",)).to_envelope()
        )
    for scores, told in ((np.zeros(5), "5 scores; expected 6"), (np.full(6, np.nan), "nan at sample 0")):
        with pytest.raises(InvalidMessage, match=rf"knowledge\.of_drafts = {told}"):
            replace(knowledge(), of_drafts=scores.astype(np.float32)).check()


def test_every_field_of_a_card_arrives(card: Card) -> None:
    got = Card.from_envelope(card.to_envelope())
    assert all(same(getattr(card, f.name), getattr(got, f.name)) for f in fields(card))
    bare = Card.from_envelope(replace(card, ends=None, token_ids=None).to_envelope())
    assert bare.ends is None
    assert bare.token_ids is None


def test_scores_travel_bit_for_bit(knowledge: Make) -> None:
    scores = np.array([0.1, 1 / 3, np.inf, 7e-8, 2.0, 5.0], np.float32)
    got = WorkReply.from_envelope(
        WorkReply(2, "clinic-a", replace(knowledge(), scores=scores), None, [], 1).to_envelope()
    )
    assert got.knowledge is not None
    assert got.knowledge.scores.tobytes() == scores.tobytes()


def test_public_token_ids_travel_only_where_the_card_was_given_them(card: Card) -> None:
    _, arrays = decode_frame(replace(card, token_ids=None).to_envelope().body)
    assert "token_ids" not in arrays


def test_what_was_received_can_be_changed(knowledge: Make, adapter: dict[str, np.ndarray]) -> None:
    # torch.from_numpy warns of arrays that own nothing and cannot be written.
    got = WorkReply.from_envelope(WorkReply(2, "clinic-a", knowledge(), adapter, [], 1).to_envelope())
    assert got.adapter is not None
    assert all(array.flags.writeable for array in got.adapter.values())


def reply_with(envelopes: Envelopes, header: dict[str, Any], arrays: dict[str, Any]) -> Envelope:
    """The valid work reply with some fields of its knowledge replaced, checksums right."""
    envelope = envelopes["work_reply"]
    old_header, old_arrays = decode_frame(envelope.body)
    nested = old_header["knowledge"] | {
        k.removeprefix("knowledge."): v for k, v in header.items() if "." in k
    }
    new_header = old_header | {k: v for k, v in header.items() if "." not in k} | {"knowledge": nested}
    return replace(envelope, body=encode_frame(new_header, old_arrays | arrays))


NAN = np.array([0.5, np.nan, 1, 1, 1, 1], np.float32)


@pytest.mark.parametrize(
    ("header", "arrays", "told"),
    [
        ({}, {"knowledge.scores": NAN}, r"clinic-a, round 2: knowledge\.scores = nan at sample 1; .* learning rate"),
        ({}, {"knowledge.scores": np.full(6, -np.inf, np.float32)}, r"knowledge\.scores = -inf at sample 0"),
        ({}, {"knowledge.scores": NAN[2:4]}, r"knowledge\.sample_index = 5; expected sample numbers in \[0, 2\)"),
        ({}, {"knowledge.scores": NAN.astype(np.float64)}, r"knowledge\.scores = float64\(6,\); expected float32"),
        ({}, {"knowledge.scores": NAN.reshape(2, 3)}, r"knowledge\.scores = float32\(2, 3\)"),
        ({}, {"knowledge.sample_index": np.zeros((1, 2), np.uint8)}, r"knowledge\.rows = rows of 3 samples"),
        ({}, {"knowledge.sample_index": np.full((4, 3), 255, np.uint8)}, r"knowledge\.sample_index: numbers reach"),
        ({}, {"knowledge.surprise": NAN}, r"knowledge\.surprise = present; expected no such field"),
        ({}, {"surprise": NAN}, r"round 2: surprise = present"),
        ({"surprise": 1}, {}, r"round 2: surprise = present"),
        ({"knowledge.tau": -1.0}, {}, r"knowledge\.tau = -1\.0; expected a number above 0"),
        ({"knowledge.tau": 1}, {}, r"knowledge\.tau = 1"),
        ({"knowledge.values": "f32"}, {}, r"knowledge\.values = f32; expected fp16 or u8"),
        ({"knowledge.values": "u8"}, {}, r"knowledge\.rows: rows consist of"),
        ({"knowledge.rows": False}, {}, r"knowledge\.rows\.\w+ = present"),
        ({"knowledge.rows": 1}, {}, r"knowledge\.rows = 1; expected true or false"),
        ({"knowledge.round": 3}, {}, r"knowledge\.round = 3; expected an integer from 0 to 2"),
        ({"knowledge.party": "clinic-b"}, {}, r"clinic-a, round 2: knowledge\.party = clinic-b"),
        ({"knowledge.vocab_hash": ""}, {}, r"knowledge\.vocab_hash = ; expected a text of 1 to 512"),
        ({"n_private": -1}, {}, r"clinic-a, round 2: n_private = -1; expected an integer from 0"),
        ({"n_private": True}, {}, r"n_private = True"),
        ({"n_private": 1 << 70}, {}, r"n_private = 1180591620717411303424"),
        ({"metrics": [[1]]}, {}, r"metrics = \[1\]; expected flat JSON objects"),
        ({"round": 5}, {}, r"clinic-a, round 2: round = 5; expected 2"),
        ({"schema": 2}, {}, r"schema = 2; expected 1. Run the same fedtandem version"),
        ({"schema": True}, {}, r"schema = True"),
        ({"kind": "finish"}, {}, r"kind = finish"),
        ({"message": "fetch_reply"}, {}, r"message = fetch_reply; expected 'work_reply'"),
        ({"adapter": False}, {}, r"adapter = 2 tensors; expected none"),
        ({}, {"adapter.x": NAN}, r"clinic-a, round 2: adapter\.x = nan; expected finite weights"),
        ({}, {"adapter.x": np.zeros(1)}, r"adapter\.x = dtype\('float64'\); expected float32"),
        ({"party": "a\x1b[2J"}, {}, r"a\\x1b\[2J, round 2: knowledge\.party"),
    ],
)  # fmt: skip
def test_a_tampered_reply_is_refused_by_party_round_field_and_value(
    envelopes: Envelopes, header: dict[str, Any], arrays: dict[str, Any], told: str
) -> None:
    with pytest.raises(InvalidMessage, match=told):
        WorkReply.from_envelope(reply_with(envelopes, header, arrays))


@pytest.mark.parametrize(
    ("expected", "told"),
    [
        (Expected(party="clinic-b"), r"clinic-b, round 2: party = clinic-a; expected 'clinic-b'"),
        (Expected(round=3), r"round 2: round = 2; expected 3"),
        (Expected(vocab_hash="c" * 64), r"clinic-a, round 2: knowledge\.vocab_hash"),
        (Expected(public_hash="c" * 64), r"knowledge\.public_hash = b+; expected c+\. .* same order"),
        (Expected(n_public=7), r"knowledge\.scores = 6 scores; expected 7"),
        (
            Expected(vocab_size=9),
            r"knowledge\.rows: token_ids holds \d+ at entry .* the vocabulary ends at 8",
        ),
        (Expected(max_bytes=100), r"round 2: the frame unpacks to .* bytes, at most 100"),
    ],
)
def test_what_the_receiver_knows_beforehand_is_held_against_the_message(
    envelopes: Envelopes, expected: Expected, told: str
) -> None:
    with pytest.raises(InvalidMessage, match=told):
        WorkReply.from_envelope(envelopes["work_reply"], expected=expected)


def test_what_is_as_expected_is_accepted(envelopes: Envelopes, card: Card) -> None:
    known = Expected("clinic-a", 2, card.vocabulary.hash, len(card.vocabulary), card.public_hash, 6)
    WorkReply.from_envelope(envelopes["work_reply"], expected=known)


def test_one_message_is_not_taken_for_another(envelopes: Envelopes) -> None:
    for name, envelope in envelopes.items():
        for other, read in READ.items():
            if read != READ[name]:
                with pytest.raises(InvalidMessage):
                    read(envelope)
                assert other != name


def test_a_party_whose_model_diverged_hears_it_before_it_sends(
    knowledge: Make, adapter: dict[str, np.ndarray]
) -> None:
    broken = replace(knowledge(), scores=NAN)
    with pytest.raises(InvalidMessage, match=r"clinic-a, round 2: knowledge\.scores = nan at sample 1"):
        WorkReply(2, "clinic-a", broken, None, [], 1).to_envelope()
    with pytest.raises(InvalidMessage, match=r"clinic-a, round 2: adapter\.w = inf"):
        WorkReply(2, "clinic-a", None, {"w": np.array([np.inf], np.float32)}, [], 1).to_envelope()
    with pytest.raises(InvalidMessage, match="clinic-a, round 2: the header cannot be written as JSON"):
        WorkReply(2, "clinic-a", None, None, [{"loss": float("nan")}], 1).to_envelope()
    rows = knowledge().rows
    assert rows is not None
    poisoned = replace(rows, log_probs=rows.log_probs * np.float32(np.nan))
    with pytest.raises(
        InvalidMessage, match="clinic-a, round 2: its knowledge cannot be sent: log_probs holds nan"
    ):
        WorkReply(2, "clinic-a", replace(knowledge(), rows=poisoned), None, [], 1).to_envelope()


@pytest.mark.parametrize("index", [[3, 3], [5, 3], [-1, 2], [0, 6]])
def test_samples_out_of_order_or_range_are_refused_by_the_sender(knowledge: Make, index: list[int]) -> None:
    wrong = replace(knowledge(), sample_index=np.array([*index, 7][:3], np.int32))
    with pytest.raises(InvalidMessage, match=r"knowledge\.sample_index"):
        wrong.check()


def test_a_card_with_a_changed_vocabulary_or_ids_beyond_it_is_refused(card: Card) -> None:
    envelope = card.to_envelope()
    header, arrays = decode_frame(envelope.body)
    text = arrays["vocabulary.text"].copy()
    text[0] ^= 1
    changed = replace(envelope, body=encode_frame(header, arrays | {"vocabulary.text": text}))
    with pytest.raises(InvalidMessage, match="clinic-a, round 0: vocabulary card: its content has the hash"):
        Card.from_envelope(changed)
    beyond = replace(card, token_ids=np.array([300], np.int32)).to_envelope()
    with pytest.raises(InvalidMessage, match="clinic-a, round 0: token_ids = 300; expected ids up to 299"):
        Card.from_envelope(beyond)
    fewer = replace(card, n_public=2).to_envelope()
    with pytest.raises(InvalidMessage, match="ends = 3 samples; expected 2"):
        Card.from_envelope(fewer)


def test_asking_for_samples_beyond_the_public_set_is_refused(envelopes: Envelopes) -> None:
    with pytest.raises(
        InvalidMessage, match="the server, round 2: sample_index = 5; expected sample numbers below 5"
    ):
        FetchRequest.from_envelope(envelopes["fetch_request"], expected=Expected(n_public=5))
