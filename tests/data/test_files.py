"""Reading rows: every supported file gives the same ones, every fault names its place."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.data.files import read_rows
from fedtandem.data.source import DataSource
from fedtandem.errors import DataError

ROWS = [{"prompt": "Q: 1 + 1", "answer": "2"}, {"prompt": "größer — ☕?", "answer": "ja"}]


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def values(source: DataSource) -> list[dict[str, object]]:
    return [dict(row.values) for row in read_rows(source, where="public set")]


def fault(source: DataSource) -> str:
    with pytest.raises(DataError) as caught:
        read_rows(source, where="client clinic-a")
    assert str(caught.value).startswith("client clinic-a: ")
    return str(caught.value)


def test_plain_gzipped_and_parquet_files_hold_the_same_rows(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "c.parquet")
    for file in (
        write(tmp_path / "a.jsonl", ROWS),
        write(tmp_path / "b.jsonl.gz", ROWS),
        tmp_path / "c.parquet",
    ):
        assert values(DataSource(path=str(file))) == ROWS


def test_a_folder_saved_by_datasets_and_one_of_jsonl_files_both_load(tmp_path: Path) -> None:
    import datasets

    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(str(tmp_path / "saved"))
    write(tmp_path / "train.jsonl", ROWS)
    write(tmp_path / "test.jsonl", ROWS[:1])
    assert values(DataSource(name=str(tmp_path / "saved"))) == ROWS
    assert values(DataSource(path=str(tmp_path), split="test")) == ROWS[:1]
    assert "holds test, train" in fault(DataSource(path=str(tmp_path)))
    assert "no split 'dev'" in fault(DataSource(name=str(tmp_path / "saved"), split="dev"))


def test_globs_and_lists_are_read_in_order(tmp_path: Path) -> None:
    first, second = write(tmp_path / "b1.jsonl", ROWS[:1]), write(tmp_path / "a2.jsonl", ROWS[1:])
    assert values(DataSource(path=(str(first), str(second)))) == ROWS
    assert values(DataSource(path=str(tmp_path / "*.jsonl"))) == ROWS[::-1]


def test_rows_without_an_id_are_named_after_their_file(tmp_path: Path) -> None:
    (row, _) = read_rows(DataSource(path=str(write(tmp_path / "ward.jsonl.gz", ROWS))), where="")
    assert row.default_id == "ward-0"
    assert row.place.endswith("ward.jsonl.gz, line 1")


@given(st.lists(st.dictionaries(st.text(max_size=4), st.text(max_size=8), max_size=3), max_size=4))
def test_any_text_survives_a_file(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]]
) -> None:
    file = write(tmp_path_factory.mktemp("any") / "rows.jsonl", rows)
    assert values(DataSource(path=str(file))) == rows


def test_a_missing_file_is_named_with_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ROWS)
    message = fault(DataSource(path=str(tmp_path / "trian.jsonl")))
    assert "trian.jsonl" in message
    assert "holds train.jsonl" in message
    assert "does not exist either" in fault(DataSource(path=str(tmp_path / "nowhere" / "x.jsonl")))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"prompt": "a"}\n{"prompt": \n', "line 2, column 11 is not JSON"),
        (b'["prompt"]\n', "line 1 holds list, not an object"),
        (b'{"prompt": "\xff"}\n', "line 1 is not UTF-8"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "bad.jsonl").write_bytes(content)
    assert words in fault(DataSource(path=str(tmp_path / "bad.jsonl")))


def test_a_truncated_archive_an_unknown_suffix_and_no_file_at_all_are_data_errors(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.jsonl.gz", ROWS * 50).read_bytes()
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-12])
    (tmp_path / "no.parquet").write_bytes(b"PAR1 but no more")
    (tmp_path / "rows.csv").write_text("prompt,answer\n")
    assert "cannot be read after line" in fault(DataSource(path=str(tmp_path / "cut.jsonl.gz")))
    assert "cannot be read as Parquet" in fault(DataSource(path=str(tmp_path / "no.parquet")))
    assert "has a suffix that cannot be read" in fault(DataSource(path=str(tmp_path / "rows.csv")))
    assert "neither path nor name" in fault(DataSource())
    assert "both path and name" in fault(DataSource(path="a", name="b"))


def test_an_unreachable_hub_name_says_what_to_check(tmp_path: Path) -> None:
    message = fault(DataSource(name=str(tmp_path / "no-such-set")))
    assert "cannot load" in message
    assert "HF_TOKEN" in message
