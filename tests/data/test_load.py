"""The way of a source's rows to samples: filter, part, partition, shuffle and limits."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.data.chains import ChainsSource
from fedtandem.data.load import limited, load, load_samples
from fedtandem.data.partition import Partition
from fedtandem.data.public import Sample
from fedtandem.data.source import DataSource
from fedtandem.errors import ConfigError, DataError

AUTHORS = ("Eliot_Adam", "Eliot_Mill", "Hardy_Tess")


@pytest.fixture
def file(tmp_path: Path) -> str:
    """60 questions of three sources, in turns."""
    rows = [{"id": i, "prompt": f"Q{i}:", "answer": str(i), "source": AUTHORS[i % 3]} for i in range(60)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def ids(source: DataSource) -> list[int]:
    return [int(sample.id) for sample in load_samples(source, where="client clinic-a")]


def test_rows_come_in_file_order_and_filters_keep_what_matches(file: str) -> None:
    assert ids(DataSource(path=file)) == list(range(60))
    assert ids(DataSource(path=file, filter={"source": "Eliot_*"})) == [i for i in range(60) if i % 3 != 2]
    several = DataSource(path=file, filter={"source": ("*_Tess", "Eliot_Mill"), "id": "1?"})
    assert ids(several) == [i for i in range(10, 20) if i % 3 != 0]


def test_parts_and_partitions_cover_the_file_without_overlap(file: str) -> None:
    parts = [ids(DataSource(path=file, part=part)) for part in ("train", "validation", "test")]
    assert sorted(i for part in parts for i in part) == list(range(60))
    assert [len(part) for part in parts] == [48, 6, 6]
    shares = [ids(DataSource(path=file, partition=Partition("iid", 5, index))) for index in range(5)]
    assert sorted(i for share in shares for i in share) == list(range(60))
    hardy = DataSource(path=file, partition=Partition("field", 2, 1, field="source", until="_"))
    assert ids(hardy) == list(range(2, 60, 3))


def test_a_shuffle_depends_on_its_seed_alone_and_comes_before_the_limit(file: str) -> None:
    shuffled = DataSource(path=file, shuffle=True, seed=1)
    assert sorted(ids(shuffled)) == list(range(60)) != ids(shuffled)
    assert ids(shuffled) == ids(shuffled) != ids(replace(shuffled, seed=2))
    assert ids(replace(shuffled, limit=7)) == ids(shuffled)[:7]


@given(st.lists(st.text(min_size=1, max_size=9), min_size=1, max_size=9), st.integers(0, 60))
def test_a_limit_in_bytes_keeps_the_longest_head_that_fits(answers: list[str], limit_bytes: int) -> None:
    samples = [Sample(str(i), "é", answer) for i, answer in enumerate(answers)]
    kept = limited(samples, None, limit_bytes)
    assert kept == samples[: len(kept)]
    assert len(kept) == 1 or sum(sample.n_bytes for sample in kept) <= limit_bytes
    assert kept == samples or sum(sample.n_bytes for sample in samples[: len(kept) + 1]) > limit_bytes


def test_windows_are_the_same_for_all_parties_whatever_they_share(tmp_path: Path) -> None:
    rows = [{"id": f"B-{n}", "source": "B", "text": f"paragraph {n} says something."} for n in range(50)]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[::-1]))
    whole = DataSource(path=str(tmp_path / "b.jsonl"), window_bytes=40)
    everything = load_samples(whole, where="public set")
    halves = [load_samples(replace(whole, partition=Partition("iid", 2, i)), where="x") for i in range(2)]
    assert sorted(map(len, halves)) == [len(everything) // 2, -(-len(everything) // 2)]
    assert {(s.id, s.answer) for half in halves for s in half} == {(s.id, s.answer) for s in everything}
    assert "".join(s.answer or "" for s in everything) == "\n".join(str(row["text"]) for row in rows)


def test_an_empty_answer_stops_or_is_dropped_and_counted(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('{"prompt": "a", "answer": "1"}\n{"prompt": "b", "answer": ""}\n')
    source = DataSource(path=str(tmp_path / "r.jsonl"))
    with pytest.raises(DataError, match=r"client 3: .*r.jsonl, line 2: the answer"):
        load_samples(source, where="client 3")
    loaded = load(replace(source, on_empty="drop"), where="client 3")
    assert [sample.prompt for sample in loaded.samples] == ["a"]
    assert loaded.decision.dropped == 1


def test_the_playground_needs_no_file() -> None:
    source = DataSource(path="embedded:chains", chains=ChainsSource(n=20, steps=(1, 2)), limit=5)
    assert len(load_samples(source, where="public set")) == 5
    hidden = load_samples(replace(source, labelled=False), where="public set")
    assert all(sample.answer is None for sample in hidden)
    with pytest.raises(DataError, match="needs a `chains` section"):
        load_samples(DataSource(path="embedded:chains"), where="public set")


def test_faults_name_the_party_the_value_and_a_remedy(file: str, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    for source, words in [
        (
            DataSource(path=file, filter={"source": "Austen_*"}),
            "no row has a source like Austen_.*there are Eliot",
        ),
        (
            DataSource(path=file, filter={"author": "x"}),
            "no column 'author' to filter by; its columns are id",
        ),
        (DataSource(path=file, limit=0), "no samples are left"),
        (DataSource(path=str(tmp_path / "empty.jsonl")), "holds no rows"),
        (DataSource(path=file, columns={"prompt": "question"}), r"no column 'question' \(columns.prompt\)"),
    ]:
        with pytest.raises(DataError, match=words) as caught:
            load_samples(source, where="client clinic-a, private data")
        assert str(caught.value).startswith("client clinic-a, private data: ")
    with pytest.raises(
        ConfigError, match=r"client 3: there is no preset 'ret'; presets: .*did you mean \"rte\""
    ):
        load_samples(DataSource(path=file, preset="ret"), where="client 3")
