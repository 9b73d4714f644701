"""Rows to samples: the format is found, the space belongs to the answer, every fault has its place."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.data.files import Row
from fedtandem.data.formats import EmptyAnswer, convert, decide, renamed, separated
from fedtandem.data.public import Sample
from fedtandem.data.source import DataSource
from fedtandem.errors import DataError

ASK = {"question": "Capital of Peru?", "choices": ["Lima", "Quito", "La Paz"]}


def row(**values: object) -> Row:
    return Row(values, "train.jsonl, line 5", "train-4")


def sample(source: DataSource, **values: object) -> Sample:
    where = "public set"
    found = decide(source, [row(**values)], where=where).format
    return convert(renamed(row(**values), source, where=where), source, found, where=where)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"prompt": "Q", "completion": "A"}, "prompt_completion"),
        ({"prompt": "Q", "answer": "A", "text": "QA"}, "prompt_completion"),
        ({"prompt": "Q"}, "prompt_completion"),
        ({"messages": [], "prompt": "Q"}, "messages"),
        ({"conversations": []}, "messages"),
        ({"text": "once upon a time"}, "text"),
        ({**ASK, "answer": "A"}, "multiple_choice"),
    ],
)
def test_the_format_is_found_in_the_columns_and_the_reason_told(
    values: dict[str, object], found: str
) -> None:
    decision = decide(DataSource(), [row(**values)], where="public set")
    assert decision.format == found
    assert "the first row has" in decision.reason


def test_unknown_columns_are_listed_with_the_ways_out() -> None:
    with pytest.raises(
        DataError, match=r"public set: train.jsonl, line 5 has the columns premise, gold, which"
    ) as e:
        decide(DataSource(), [row(premise="a", gold="b")], where="public set")
    assert "columns" in str(e.value)
    assert "template" in str(e.value)


def test_a_stated_format_and_a_template_go_before_the_columns() -> None:
    assert decide(DataSource(format="text"), [row(prompt="Q")], where="").format == "text"
    assert decide(DataSource(template="{text}"), [row(text="Q")], where="").format == "prompt_completion"


def test_the_separating_space_belongs_to_every_answer_alike() -> None:
    for prompt, answer in (("Q:", "yes"), ("Q: ", "yes"), ("Q:", " yes"), ("Q: ", " yes")):
        made = sample(DataSource(), prompt=prompt, answer=answer)
        assert (made.prompt, made.answer) == ("Q:", " yes")
    assert sample(DataSource(separator=""), prompt="Q: ", completion="yes").prompt == "Q: "
    assert sample(DataSource(separator="\n"), prompt="Q:\n", completion="yes").answer == "\nyes"


@given(st.text(), st.text(), st.text(max_size=2))
def test_nothing_but_the_separator_is_added_or_taken(prompt: str, answer: str, separator: str) -> None:
    left, right = separated(prompt, answer, separator)
    assert right.startswith(separator)
    assert left in (prompt, prompt.removesuffix(separator))
    assert right.removeprefix(separator) in (answer, answer.removeprefix(separator))
    assert separated(left, right, separator)[1] == right


def test_label_words_become_the_choices() -> None:
    source = DataSource(
        template="{premise}\nanswer:",
        columns={"answer": "label"},
        answers={"0": "yes", "1": "no", "true": "yes"},
    )
    made = sample(source, id=3, premise="It rains.", label=1)
    assert (made.id, made.prompt, made.answer) == ("3", "It rains.\nanswer:", " no")
    assert (made.choices, made.label) == ((" yes", " no"), 1)
    assert sample(source, premise="It rains.", label=True).label == 0
    with pytest.raises(DataError, match="answer '2', which `answers` does not map; it maps 0, 1, true"):
        sample(source, premise="It rains.", label=2)


@pytest.mark.parametrize("answer", ["B", 1, "Quito"])
def test_an_option_is_named_by_letter_index_or_text(answer: object) -> None:
    made = sample(DataSource(), **ASK, answer=answer)
    assert made.prompt == "Question: Capital of Peru?\nAnswer:"
    assert (made.answer, made.label, made.choices) == (" Quito", 1, (" Lima", " Quito", " La Paz"))


def test_the_hub_form_of_multiple_choice_reads_with_its_own_names() -> None:
    choices = {"text": ["Lima", "Quito"], "label": ["1", "2"]}
    made = sample(DataSource(), question="Capital of Peru?", choices=choices, answerKey="1")
    assert made.answer == " Lima"


def test_options_can_stand_in_the_prompt() -> None:
    made = sample(DataSource(template="{question}\n{options}\n:"), **ASK, answer="A")
    assert made.prompt == "Capital of Peru?\nA. Lima\nB. Quito\nC. La Paz\n:"


@pytest.mark.parametrize("answer", ["D", 3, -1, True, "Bogotá"])
def test_an_answer_that_is_no_option_is_refused(answer: object) -> None:
    with pytest.raises(DataError, match="names none of its 3 choices"):
        sample(DataSource(), **ASK, answer=answer)


def test_several_accepted_answers_are_references() -> None:
    made = sample(DataSource(), prompt="Sum up.", answer=["short", "brief"])
    assert (made.answer, made.references) == (" short", ("short", "brief"))


def test_an_answer_template_joins_columns() -> None:
    source = DataSource(template="{question}", answer_template="{steps}\n#### {answer}")
    assert sample(source, question="1 + 1?", steps="1 + 1 = 2", answer="2").answer == " 1 + 1 = 2\n#### 2"


@pytest.mark.parametrize(
    "values",
    [
        {"prompt": "Q", "answer": "A", "gold": "A"},
        {**ASK, "answer": "B"},
        {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
    ],
)
def test_an_unlabelled_set_hides_its_answers(values: dict[str, object]) -> None:
    labelled = sample(DataSource(), **values)
    hidden = sample(DataSource(labelled=False), **values)
    assert (hidden.prompt, hidden.answer) == (labelled.prompt, None)
    assert (hidden.choices, hidden.label, hidden.references) == ((), None, ())
    assert "answer" not in hidden.fields


def test_a_remapped_answer_is_hidden_too_and_may_be_missing() -> None:
    source = DataSource(template="{text}", columns={"answer": "label"}, labelled=False)
    assert sample(source, text="a", label=1, author="x").fields == {"text": "a", "author": "x"}
    assert sample(source, text="a").answer is None
    with pytest.raises(DataError, match=r"no column 'label' \(columns.answer\); its columns are text"):
        sample(replace(source, labelled=True), text="a")


@pytest.mark.parametrize(
    ("source", "values"),
    [
        (DataSource(), {"prompt": "Q", "answer": ""}),
        (DataSource(), {"prompt": "Q", "completion": "  "}),
        (DataSource(), {"prompt": "Q", "answer": ["a", ""]}),
        (DataSource(), {"prompt": "Q", "answer": []}),
        (DataSource(labelled=False), {"prompt": "Q", "answer": ""}),
        (DataSource(), {**ASK, "choices": ["Lima", " "], "answer": "A"}),
        (
            DataSource(),
            {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": ""}]},
        ),
    ],
)
def test_an_empty_answer_is_an_error_with_its_line(source: DataSource, values: dict[str, object]) -> None:
    with pytest.raises(
        EmptyAnswer, match=r"public set: train.jsonl, line 5: the answer \(column '.*'\) is empty"
    ):
        sample(source, **values)


@pytest.mark.parametrize("answer", [{}, {"answer": None}])
def test_a_missing_answer_names_the_way_to_an_unlabelled_set(answer: dict[str, object]) -> None:
    with pytest.raises(DataError, match=r"column 'answer' is (missing|null).*labelled = false"):
        sample(DataSource(), prompt="Q", **answer)
