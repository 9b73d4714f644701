"""Chat rows become one prompt and one reply."""

import pytest

from fedtandem.data.messages import prompt_and_reply
from fedtandem.errors import DataError

SYSTEM, ASK, REPLY = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Capital of Peru?"},
    {"role": "assistant", "content": "Lima."},
)


def read(*turns: object, labelled: bool = True) -> tuple[str, str | None]:
    return prompt_and_reply(list(turns), labelled=labelled, place="line 1", where="public set")


def test_one_question_stays_plain_text() -> None:
    assert read(ASK, REPLY) == ("Capital of Peru?", "Lima.")
    assert read(SYSTEM, ASK, REPLY) == ("Be brief.\n\nCapital of Peru?", "Lima.")


def test_a_longer_talk_is_written_out_and_its_last_reply_learnt() -> None:
    more = {"role": "user", "content": "And of Chile?"}
    prompt, reply = read(ASK, REPLY, more, {"role": "assistant", "content": "Santiago."})
    assert prompt == "user: Capital of Peru?\nassistant: Lima.\nuser: And of Chile?"
    assert reply == "Santiago."


def test_sharegpt_turns_read_like_messages() -> None:
    assert read({"from": "human", "value": "Capital of Peru?"}, {"from": "gpt", "value": "Lima."}) == read(
        ASK, REPLY
    )


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "Capital "}, {"type": "text", "text": "of Peru?"}]
    assert read({"role": "user", "content": parts}, REPLY) == read(ASK, REPLY)


def test_without_labels_the_reply_is_not_read_and_may_be_absent() -> None:
    assert read(ASK, labelled=False) == read(ASK, REPLY, labelled=False) == ("Capital of Peru?", None)


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        ([ASK], "ends with 'user'"),
        ([], "ends with 'nothing'"),
        ([REPLY], "no user turn"),
        ([{"role": "tool", "content": "x"}], "role 'tool'"),
        ([{"role": "user", "content": [{"type": "image"}]}, REPLY], "holds no text"),
        (["hello"], "message 0 is no object"),
    ],
)
def test_a_talk_that_cannot_be_learnt_from_says_why(turns: list[object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        read(*turns)


def test_messages_must_be_a_list() -> None:
    with pytest.raises(DataError, match="must be a list"):
        prompt_and_reply("hi", labelled=True, place="line 1", where="public set")
