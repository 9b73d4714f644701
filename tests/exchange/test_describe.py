from dataclasses import replace

import pytest

from fedtandem.errors import InvalidMessage
from fedtandem.exchange.carrier import Envelope
from fedtandem.exchange.describe import describe, describe_frame
from fedtandem.exchange.frame import decode_frame, encode_frame

Envelopes = dict[str, Envelope]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "card",
            [
                "model 'tiny'",
                "12 private samples",
                "of 300 tokens",
                "eos = 0",
                "4 positions in 3 samples, 3 at",
            ],
        ),
        (
            "work_request",
            ["to tune on private data: yes", "knowledge of server from round 2", "weights: 2 tensors, 12"],
        ),
        ("first_request", ["to learn from the public set: no", "no knowledge", "no weights"]),
        (
            "work_reply",
            ["6 scores", "1 samples not scored", "0.5, inf, 1.25, 0, 3.5", "4 texts", "'é 7'", "5 positions"],
        ),
        ("fetch_request", ["3 samples: 0, 3, 5"]),
        ("fetch_reply", ["values as u8", "tokens kept", "first position: byte -1, id"]),
    ],
)
def test_a_message_is_told_in_plain_words(envelopes: Envelopes, name: str, told: list[str]) -> None:
    envelope = envelopes[name]
    text = "\n".join(describe(envelope))
    assert f"{envelope.n_bytes:,} bytes on the wire" in text
    for words in told:
        assert words in text


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("trace_card_request", ["what thresholds can be learnt from"]),
        (
            "trace_card",
            ["edge north; uncertainty: expected, margin; feedback: agreement", "under masks alone"],
        ),
        ("calibration_request", ["count: count decisions", "threshold 0.2500, 0.5000, audit rate 0.5"]),
        (
            "calibration_reply",
            ["b: 3 decisions of slm-b beside llm, 1 kept at its threshold 0.5000", "448 counts"],
        ),
        ("key_request", ["for a fresh key, attempt 1"]),
        ("masking_request", ["attempt 1, summed with a, b, c", "count: count decisions"]),
        ("offer_reply", ["an X25519 public key for attempt 1, signed"]),
        ("masked_reply", ["9 numbers under the masks of attempt 1"]),
    ],
)
def test_a_message_about_thresholds_is_told_in_plain_words(
    about_thresholds: Envelopes, name: str, told: list[str]
) -> None:
    text = "\n".join(describe(about_thresholds[name]))
    assert "REFUSED" not in text
    for words in told:
        assert words in text


def test_a_message_that_would_be_refused_says_why_and_is_told_all_the_same(envelopes: Envelopes) -> None:
    envelope = envelopes["work_reply"]
    header, arrays = decode_frame(envelope.body)
    bad = replace(envelope, body=encode_frame(header | {"n_private": -5}, arrays))
    text = "\n".join(describe(bad))
    assert "IT WOULD BE REFUSED: clinic-a, round 2: n_private = -5" in text
    assert "knowledge.scores: float32(6,), first values 0.5, inf" in text
    unknown = replace(envelope, body=encode_frame(header | {"message": "hello"}, arrays))
    assert "this version does not know it" in "\n".join(describe(unknown))


def test_what_a_stranger_sent_cannot_steer_the_terminal(envelopes: Envelopes) -> None:
    envelope = envelopes["work_reply"]
    header, arrays = decode_frame(envelope.body)
    evil = replace(envelope, body=encode_frame(header | {"party": "a\x1b[2J"}, arrays))
    assert all("\x1b" not in line for line in describe(evil) + describe_frame(evil.body))


def test_what_is_no_frame_at_all_is_an_invalid_message(envelopes: Envelopes) -> None:
    with pytest.raises(InvalidMessage):
        describe(replace(envelopes["card"], body=b"nonsense"))
