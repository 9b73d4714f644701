"""Templates put columns into a prompt and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.data.template import fill, placeholders
from fedtandem.errors import DataError


def filled(template: str, **values: object) -> str:
    return fill(template, values, place="train.jsonl, line 3", where="public set")


def test_the_columns_are_filled_in() -> None:
    template = "{premise}\nquestion: {hypothesis}\nanswer:"
    assert filled(template, premise="It rains.", hypothesis="It is wet.") == (
        "It rains.\nquestion: It is wet.\nanswer:"
    )
    assert filled("{{kept}} {flag} {n} {many}", flag=True, n=3, many=["a", "b"]) == "{kept} true 3 a\nb"


@given(st.text())
def test_a_value_is_never_read_as_a_template(text: str) -> None:
    assert filled("<{x}>", x=text) == f"<{text}>"


@pytest.mark.parametrize("template", ["{", "a}", "{x!r}", "{x:>3}", "{}"])
def test_a_malformed_template_is_refused(template: str) -> None:
    with pytest.raises(DataError, match="template"):
        placeholders(template, where="public set")


def test_a_missing_column_is_named_with_those_there_are() -> None:
    with pytest.raises(DataError, match=r"line 3 has no column 'hypothesis'.*its columns are premise, text"):
        filled("{hypothesis}", premise="a", text="b")
