"""Answer checkers, by worked examples and by what may not change a verdict."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.checking.answers import (
    choice_answer,
    exact_answer,
    final_answer,
    final_number,
    numeric_answer,
)


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("48/2 = 24\n#### 24", "24"),
        (" 3 + 5 = 8 ; 8 * 2 = 6 ; # 6", "6"),
        ("First we add. The answer is 42.", "42."),
        ("Answer: Paris\n\nHope this helps", "Paris"),
        ("so \\boxed{17}", "17"),
        ("a line\nand the last", "and the last"),
        ("", ""),
    ],
)
def test_a_path_ends_in_its_answer(path: str, answer: str) -> None:
    assert final_answer(path) == answer


@pytest.mark.parametrize(
    ("text", "number"),
    [("$1,200.50", 1200.5), ("about -3 apples", -3), ("10 - 3", 3), ("day-5", 5), ("−7", -7), ("none", None)],
)
def test_the_last_number(text: str, number: float | None) -> None:
    assert final_number(text) == number


@given(st.integers(-(10**9), 10**9), st.sampled_from(["{}", "{:,}", "${:,}", "{}.00", "{} apples."]))
def test_the_same_number_is_accepted_however_it_is_written(n: int, form: str) -> None:
    check = numeric_answer({"q": str(n)})
    assert check("q", f"steps 1 + 1 = 2\n#### {form.format(n)}").ok is True
    assert check("q", f"steps\n#### {form.format(n + 1)}").ok is False


def test_exact_forgives_case_and_space_but_no_letter() -> None:
    check = exact_answer({"q": "New  York."})
    assert check("q", "The answer is new york").ok is True
    assert check("q", "The answer is Newark").ok is False


@pytest.mark.parametrize(
    "said", ["B", "(b)", "B.", "B) gravity", "Gravity", "it must be gravity", "B: gravity"]
)
def test_a_choice_is_named_by_letter_or_text(said: str) -> None:
    options = {"q": ["park", "gravity", "anti-gravity belt"]}
    assert choice_answer({"q": "B"}, options)("q", f"why not. The answer is {said}").ok is True
    assert choice_answer({"q": "gravity"}, options)("q", f"The answer is {said}").ok is True
    assert choice_answer({"q": "A"}, options)("q", f"The answer is {said}").ok is False


def test_a_choice_that_is_none_is_refused_and_an_unknown_prompt_cannot_be_told() -> None:
    options = {"q": ["park", "gravity"]}
    assert choice_answer({"q": "A"}, options)("q", "The answer is Z").ok is False
    assert choice_answer({"q": "A"}, options)("q", "a park or gravity").ok is False
    for check in (exact_answer({}), numeric_answer({}), choice_answer({})):
        assert check("q", "x").ok is None
