"""Windows of running text: together they are the text, and no character is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.data.files import Row
from fedtandem.data.public import Sample
from fedtandem.data.source import DataSource
from fedtandem.data.windows import GAP, boundary, cut, part_of_rows, part_slice, text_samples
from fedtandem.errors import DataError

texts = st.text(alphabet=st.sampled_from("ab \né☕😀"), max_size=80)


def book(source: str, numbers: list[int]) -> list[Row]:
    return [
        Row({"id": f"{source}-{n}", "source": source, "text": f"chunk {n}."}, f"line {i}", f"r-{i}")
        for i, n in enumerate(numbers)
    ]


def made(rows: list[Row], source: DataSource) -> list[Sample]:
    return text_samples(rows, source, where="public set")


@given(texts, st.integers(4, 20))
def test_windows_are_the_text_and_as_long_as_they_can_be(text: str, size: int) -> None:
    windows = cut(text, size)
    assert "".join(window for _, window in windows) == text
    lengths = [len(window.encode()) for _, window in windows]
    assert [offset for offset, _ in windows] == [sum(lengths[:i]) for i in range(len(lengths))]
    assert all(size - 3 <= length <= size for length in lengths[:-1])
    assert all(0 < length <= size for length in lengths)


@given(texts, st.integers(0, 20))
def test_a_prompt_takes_whole_characters_within_its_bytes(text: str, size: int) -> None:
    at = boundary(text, size)
    assert len(text[:at].encode()) <= size
    assert at == len(text) or len(text[: at + 1].encode()) > size


@given(st.permutations(list(range(7))))
def test_chunks_are_read_in_the_order_of_their_numbers(order: list[int]) -> None:
    (sample,) = made(book("Eliot_Adam_1859", order), DataSource(format="text", window_bytes=1000))
    assert sample.answer == "\n".join(f"chunk {n}." for n in range(7))
    assert (sample.id, sample.prompt, sample.eos) == ("Eliot_Adam_1859-0@0", "", False)


def test_a_missing_chunk_ends_a_run_and_no_window_reaches_over_it() -> None:
    samples = made(book("E", [9, 1, 2, 10]), DataSource(format="text", window_bytes=14))
    assert [(s.id, s.answer) for s in samples] == [
        ("E-1@0", "chunk 1.\nchunk"),
        ("E-1@14", " 2."),
        ("E-9@0", "chunk 9.\nchunk"),
        ("E-9@14", " 10."),
    ]


def test_rows_that_are_no_chunks_stay_apart() -> None:
    rows = [Row({"id": f"c4-{n}", "source": "web", "text": "one page"}, "line", "r") for n in range(2)]
    assert [s.answer for s in made(rows, DataSource(window_bytes=100))] == ["one page", "one page"]
    whole = made([Row({"text": "a tale"}, "line", "tales-0")], DataSource())
    assert [(s.id, s.answer, s.eos) for s in whole] == [("tales-0", "a tale", True)]


@given(st.integers(0, 400))
def test_parts_of_a_document_do_not_touch(n: int) -> None:
    train, validation, test = (range(n)[part_slice(n, part)] for part in ("train", "validation", "test"))
    assert list(train) == list(range(8 * n // 10))
    assert all(i >= len(train) + GAP for i in validation)
    assert sorted({*train, *validation, *test}) == [*train, *validation, *test]
    assert list(test) == list(range(9 * n // 10, n))


@given(st.integers(0, 200))
def test_parts_of_unordered_rows_cover_them(n: int) -> None:
    parts = [part_of_rows(n, part) for part in ("train", "validation", "test")]
    assert sorted(i for part in parts for i in part) == list(range(n))


def test_every_document_is_split_by_itself() -> None:
    rows = book("E", list(range(100))) + book("H", list(range(200)))
    test = made(rows, DataSource(format="text", part="test", window_bytes=10_000))
    assert [s.id for s in test] == ["E-90@0", "H-180@0"]


def test_an_unlabelled_window_keeps_its_head_as_the_prompt() -> None:
    rows = book("E", [0, 1])
    (labelled,) = made(rows, DataSource(window_bytes=100, prompt_bytes=6))
    (prompt,) = made(rows, DataSource(window_bytes=100, prompt_bytes=6, labelled=False))
    assert (labelled.prompt, labelled.answer) == ("chunk ", "0.\nchunk 1.")
    assert (prompt.prompt, prompt.answer) == ("chunk ", None)
    assert "text" not in prompt.fields


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (DataSource(window_bytes=100, labelled=False), "need prompt_bytes"),
        (DataSource(window_bytes=3), "too small"),
        (DataSource(window_bytes=64, prompt_bytes=64), "larger than prompt_bytes = 64"),
    ],
)
def test_sizes_that_leave_nothing_to_predict_are_refused(source: DataSource, words: str) -> None:
    with pytest.raises(DataError, match=words):
        made(book("E", [0]), source)


def test_a_row_without_text_is_named() -> None:
    with pytest.raises(DataError, match=r"line 8: column 'text' is missing.*its columns are title"):
        made([Row({"title": "x"}, "line 8", "r-0")], DataSource())
    with pytest.raises(DataError, match="column 'text' is empty"):
        made([Row({"text": " \n"}, "line 8", "r-0")], DataSource())
