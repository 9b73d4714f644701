"""The public set's hash, and what a usable sample is."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.data.public import Sample, check_samples, public_hash
from fedtandem.errors import DataError

rows = st.builds(
    Sample, id=st.text(max_size=5), prompt=st.text(max_size=9), answer=st.none() | st.text(max_size=5)
)


@given(st.lists(rows, max_size=5), st.lists(rows, max_size=5))
def test_hashes_agree_exactly_when_ids_prompts_and_answers_do(
    ours: list[Sample], theirs: list[Sample]
) -> None:
    assert (public_hash(ours) == public_hash(theirs)) == (ours == theirs)


def test_order_and_unlabelled_rows_change_the_hash_and_other_columns_do_not() -> None:
    first, second = Sample("1", "Q: 1 + 1", " 2"), Sample("2", "Q: 2 + 2", " 4")
    assert public_hash([first, second]) != public_hash([second, first])
    assert public_hash([first]) != public_hash([replace(first, answer=None)])
    assert public_hash([first]) == public_hash(
        [replace(first, fields={"author": "Eliot"}, choices=(" 2", " 3"))]
    )


def test_the_hash_is_the_same_in_every_process_and_release() -> None:
    golden = "3ffc230b72616b58b54d9082f7679c8c"  # of this very set; changing it breaks running federations
    assert public_hash([Sample("a", "Größe?", " 1,80 m")])[:32] == golden


@pytest.mark.parametrize(
    ("sample", "labelled", "words"),
    [
        (Sample("7", "Q", ""), True, "'7' has an empty answer"),
        (Sample("7", "Q", "  "), True, "'7' has an empty answer"),
        (Sample("7", "Q", None), True, "set labelled = false"),
        (Sample("7", "Q", " yes"), False, "has an answer, but the set is unlabelled"),
        (Sample("7", "", None), False, "neither prompt nor answer"),
    ],
)
def test_an_unusable_sample_is_named_with_its_party_and_a_remedy(
    sample: Sample, labelled: bool, words: str
) -> None:
    with pytest.raises(DataError, match=words) as caught:
        check_samples([sample], labelled=labelled, where="client clinic-a")
    assert str(caught.value).startswith("client clinic-a: ")
    assert caught.value.exit_code == 3


def test_a_blank_window_of_a_document_is_fine() -> None:
    check_samples([Sample("book-1@0", "", "\n\n  \n", eos=False)], labelled=True, where="public set")
