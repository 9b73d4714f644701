"""The path check: form, and what the receiver itself knows."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.checking.checkers import judge
from fedtandem.checking.path import Ask, Claim, Fact, PathCheck, chains_form, known_topics, remembering
from fedtandem.data.chains import ChainsSource, chain_path, chain_prompt, operator_tables, read_prompt

TABLES = operator_tables("+-*m@&", table_seed=3)
OTHERS = operator_tables("@&", table_seed=4)


def knows(sureness: float = 1.0) -> tuple[list[str], Ask]:
    """A receiver that knows every table of `TABLES`, and the questions it was asked."""
    asked: list[str] = []

    def ask(questions: Sequence[str]) -> list[Fact]:
        asked.extend(questions)
        return [Fact(chain_path(*read_prompt(text), TABLES), sureness) for text in questions]

    return asked, ask


@given(st.integers(0, 10**6))
def test_right_paths_pass_and_every_spoilt_one_is_refused(seed: int) -> None:
    asked, ask = knows()
    check = PathCheck(chains_form, ask, "+-*m@&")
    for sample in ChainsSource(
        n=4, operators=tuple("+-*m@&"), steps=(1, 2, 3), seed=seed, table_seed=3
    ).samples():
        path = sample.answer or ""
        assert check(sample.prompt, path).ok is True
        assert check.vouches(sample.prompt, path)
        digits = [i for i, letter in enumerate(path) if letter.isdigit()]
        at = digits[seed % len(digits)]
        spoilt = path[:at] + str((int(path[at]) + 1 + seed % 9) % 10) + path[at + 1 :]
        assert check(sample.prompt, spoilt).ok is False
    assert len(asked) == len(set(asked))  # nothing is asked twice


def test_only_what_the_receiver_claims_to_know_is_asked_again() -> None:
    prompt = chain_prompt([3, 5, 2], ["@", "&"])
    foreign = chain_path([3, 5, 2], ["@", "&"], OTHERS)
    asked, ask = knows()
    # It has seen & alone: the steps with @ are judged by form.
    only_and = PathCheck(chains_form, ask, {"&"})
    verdict = only_and(prompt, foreign)
    assert verdict.ok is False
    assert "contradicts" in verdict.reason
    assert verdict.first_wrong is not None
    assert foreign[slice(*verdict.first_wrong)] == foreign[12:24]  # the second step, with &
    assert all("&" in question for question in asked)
    stranger = PathCheck(chains_form, ask, ())
    assert stranger(prompt, foreign).reason == "the form holds, 0 of 2 steps asked again"
    assert stranger(prompt, foreign).ok is True
    assert not stranger.vouches(prompt, foreign)


def test_a_receiver_that_is_not_sure_does_not_contradict() -> None:
    prompt, foreign = chain_prompt([3, 5], ["@"]), chain_path([3, 5], ["@"], OTHERS)
    assert foreign != chain_path([3, 5], ["@"], TABLES)
    _, unsure = knows(0.89)
    assert PathCheck(chains_form, unsure, "@", 0.9)(prompt, foreign).ok is True
    _, sure = knows(0.9)
    assert PathCheck(chains_form, sure, "@", 0.9)(prompt, foreign).ok is False


@pytest.mark.parametrize(
    "path",
    [
        "",
        " ",
        " 3 + 5 = 8 ; # 7",
        " 3 + 5 = 8 ;",
        " 3 + 4 = 7 ; # 7",
        " 3 - 5 = 8 ; # 8",
        " 4 + 5 = 9 ; # 9",
        "3 + 5 = 8 ; # 8",
        " 3 + 5 = 8 ; # 8 ",
    ],
)
def test_the_form(path: str) -> None:
    check = PathCheck(chains_form, lambda _: [], ())
    assert judge(check, [("Q 3 + 5 A", path)])[0].ok is False


def test_results_are_carried_on() -> None:
    check = PathCheck(chains_form, lambda _: [], ())
    assert check("Q 3 + 5 * 2 A", " 3 + 5 = 8 ; 8 * 2 = 6 ; # 6").ok is True
    assert check("Q 3 + 5 * 2 A", " 3 + 5 = 8 ; 7 * 2 = 4 ; # 4").ok is False


def test_many_paths_are_one_batch_of_questions() -> None:
    batches: list[int] = []

    def ask(questions: Sequence[str]) -> list[Fact]:
        batches.append(len(questions))
        return [Fact(chain_path(*read_prompt(text), TABLES), 1.0) for text in questions]

    samples = ChainsSource(n=50, operators=("@",), steps=(2,), table_seed=3).samples()
    verdicts = judge(
        PathCheck(chains_form, ask, "@"), [(sample.prompt, sample.answer or "") for sample in samples]
    )
    assert all(verdict.ok for verdict in verdicts)
    assert len(batches) == 1


def test_a_form_of_ones_own_and_what_own_data_are_about() -> None:
    def colon(prompt: str, path: str) -> Sequence[Claim] | str:
        if ":" not in path:
            return "no colon"
        return [Claim(prompt, path, path.partition(":")[0])]

    def ask(questions: Sequence[str]) -> list[Fact]:
        return [Fact({"q1": "a: 1", "q2": "b: 2"}[question], 1.0) for question in questions]

    # Its own data hold `c`, too, but it does not answer them as they do: of that it knows nothing.
    own = [("q1", "a: 1"), ("q2", "b: 2"), ("q1", "nothing"), ("q1", "c: 1"), ("q2", "c: 2")]
    assert known_topics(colon, own, ask) == {"a", "b"}
    assert known_topics(colon, [], ask) == frozenset()
    check = PathCheck(colon, lambda questions: [Fact("a: 1", 1.0) for _ in questions], {"a"})
    assert check("q", "a: 1").ok is True
    assert check("q", "a: 2").ok is False
    assert check("q", "c: 2").ok is True
    assert check("q", "nothing").reason == "no colon"
    assert chains_form("no chain", "x") == "'no chain' is no chain"


def test_a_topic_is_known_from_the_stated_agreement_on() -> None:
    """Nine of ten steps as the data say, no less."""

    def form(prompt: str, path: str) -> Sequence[Claim]:
        return [Claim(prompt, path, "t")]

    def ask(questions: Sequence[str]) -> list[Fact]:
        return [Fact("right", 1.0) for _ in questions]

    right = [(f"q{i}", "right") for i in range(9)]
    assert known_topics(form, [*right, ("q9", "else")], ask) == {"t"}
    assert known_topics(form, [*right[:8], ("q9", "else")], ask) == frozenset()


def test_a_question_is_asked_once() -> None:
    asked: list[str] = []

    def ask(questions: Sequence[str]) -> list[Fact]:
        asked.extend(questions)
        return [Fact(question.upper(), 1.0) for question in questions]

    twice = remembering(ask)
    assert [fact.answer for fact in twice(["a", "b", "a"])] == ["A", "B", "A"]
    assert [fact.answer for fact in twice(["b", "c"])] == ["B", "C"]
    assert asked == ["a", "b", "c"]
