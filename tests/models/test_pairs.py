"""Two tokenizer folders on the command line and from Python."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from fedtandem.errors import ConfigError, DataError, ModelError
from fedtandem.models.pairs import align, align_command, vocabulary_command, vocabulary_map


@pytest.fixture(scope="module")
def folders(shared: Path) -> tuple[Path, Path]:
    return shared / "models/stories260k", shared / "tokenizers/bert-uncased"


def test_lines_come_out_in_order_and_as_python_gives_them(folders, tmp_path):
    texts = ["Once upon a time", "", "naïve café </s>", "\u2028 line"]
    source = tmp_path / "texts.jsonl"
    source.write_text(
        "".join(json.dumps({"text": text, "id": 1}, ensure_ascii=False) + "\n" for text in texts)
    )
    for mode in ("bytes", "mined"):
        written = align_command(
            base=folders[0], teacher=folders[1], mode=mode, input=source, output=tmp_path / "out.jsonl"
        )
        lines = [json.loads(line) for line in written.read_text().splitlines()]
        assert [line["text"] for line in lines] == texts
        assert lines == align(*folders, texts, mode)
        for line in lines:
            assert len(line["pairs"]) == len(line["base_ids"])
            sizes = [len(partners) for partners in line["pairs"]]
            assert max(sizes, default=0) <= 1 if mode == "bytes" else min(sizes, default=1) >= 1
    squeezed = tmp_path / "texts.jsonl.gz"
    squeezed.write_bytes(gzip.compress(source.read_bytes()))
    again = align_command(
        base=folders[0], teacher=folders[1], mode="mined", input=squeezed, output=tmp_path / "again.jsonl"
    )
    assert again.read_bytes() == (tmp_path / "out.jsonl").read_bytes()


def test_a_literal_special_string_is_a_token_here(folders):
    (line,) = align(folders[0], folders[0], ["a</s>b"])
    assert 2 in line["base_ids"]
    assert line["pairs"] == [[i] for i in range(len(line["pairs"]))]


def test_the_table_names_every_teacher_id(folders, tmp_path):
    path = vocabulary_command(
        base=folders[1], teacher=folders[0], mode="bytes", output=tmp_path / "table.json"
    )
    table = json.loads(path.read_text())
    assert list(table) == [str(i) for i in range(512)]
    assert list(table.values()) == vocabulary_map(folders[1], folders[0]).tolist()
    assert (vocabulary_map(folders[0], folders[0], "mined") == np.arange(512)).all()
    told: list[tuple[int, int]] = []
    mined = vocabulary_map(folders[0], folders[1], "mined", lambda *step: told.append(step))
    assert mined.shape == (30522,)
    assert told


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n{"txt": "b"}\n', 'line 2: "text" is None'),
        ("{\n", "line 1: not JSON"),
        ("[1]\n", "line 1"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_written(folders, tmp_path, content, message):
    source, output = tmp_path / "texts.jsonl", tmp_path / "out.jsonl"
    source.write_text(content)
    with pytest.raises(DataError, match=message):
        align_command(base=folders[0], teacher=folders[1], mode="bytes", input=source, output=output)
    assert not output.exists()


def test_faults_are_named(folders, tmp_path):
    with pytest.raises(ConfigError, match="mode is 'exact'"):
        align(*folders, ["a"], "exact")
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        align(tmp_path, folders[1], ["a"])
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be read as a tokenizer"):
        align(tmp_path, folders[1], ["a"])
    missing = tmp_path / "no.jsonl"
    with pytest.raises(DataError, match="cannot be read"):
        align_command(base=folders[0], teacher=folders[1], mode="bytes", input=missing, output=tmp_path / "o")
