"""The recorded behaviour of the reference's token alignment, and exact byte boundaries of ten tokenizers.

The files, what made them and their known faults are described in golden/mined/README.md of the shared data.
"""

import gzip
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from fedtandem.alignment.edit_distance import nearest_strings
from fedtandem.alignment.sequence import align_min_ed
from fedtandem.alignment.transport import transport_min_ed
from fedtandem.alignment.vocabulary import VocabularyCard, byte_map, min_ed_map, with_marker_of
from fedtandem.knowledge.sparse_logits import SparseLogits
from fedtandem.models.pairs import align_text
from fedtandem.models.spelling import Spelling, read_spelling
from fedtandem.models.token_ends import token_ends

TEN = ("llama2", "gpt2", "bert-uncased", "t5", "roberta", "gpt-neox", "qwen2", "llama3", "falcon", "o200k")
LARGE = ("qwen2", "llama3", "o200k")
PAIRS = [(a, b) for a in ("llama2", "gpt2", "gpt-neox") for b in ("llama2", "gpt2", "gpt-neox") if a != b]
NEVER = ("inside_character", "inside_composed_character")

each_pair = pytest.mark.parametrize(("base", "teacher"), PAIRS, ids=["<-".join(pair) for pair in PAIRS])


@cache
def spelling(folder: Path, name: str) -> Spelling:
    return read_spelling(Tokenizer.from_file(str(folder / name / "tokenizer.json")))


@cache
def card(folder: Path, name: str) -> VocabularyCard:
    """The vocabulary as the golden tables see it: every token a string, none with a role."""
    read = spelling(folder, name)
    return VocabularyCard(read.tokens, read.surface, {}, frozenset(), read.marker)


def lines(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


@each_pair
def test_alignments_and_path_costs_equal_the_references(shared, base, teacher):
    folder = shared / "tokenizers"
    rows = list(lines(shared / f"golden/mined/alignment_{base}_{teacher}.jsonl.gz"))
    assert len(rows) == 40
    for row in rows:
        result = align_text(spelling(folder, base), spelling(folder, teacher), row["text"], "mined")
        assert (result["base_ids"], result["teacher_ids"]) == (row["base_ids"], row["teacher_ids"])
        assert result["pairs"] == row["base_to_teacher"], row["id"]
        own, theirs = card(folder, base), card(folder, teacher)
        strings = [own.tokens[i] for i in row["base_ids"]], [theirs.tokens[i] for i in row["teacher_ids"]]
        assert align_min_ed(*strings, own.marker, theirs.marker)[1] == row["dtw_cost"]


@each_pair
def test_distances_and_nearest_tokens_equal_the_references(shared, base, teacher):
    own, theirs = (card(shared / "tokenizers", name) for name in (base, teacher))
    with gzip.open(shared / f"golden/mined/vocab_{base}_{teacher}.json.gz", "rt", encoding="utf-8") as file:
        table = json.load(file)
    assert (own.marker, theirs.marker) == (table["base_marker"], table["teacher_marker"])
    entries = table["entries"]
    queries = [with_marker_of(own, theirs, theirs.tokens[entry["teacher_id"]]) for entry in entries]
    assert queries == [entry["normalised"] for entry in entries]
    index, distance = nearest_strings(queries, own.tokens)
    assert distance.tolist() == [entry["distance"] for entry in entries]
    assert [own.tokens[i] for i in index] == [entry["nearest"][0] for entry in entries]


@pytest.mark.slow
def test_a_whole_table_has_the_recorded_hits_and_entries(shared):
    own, theirs = (card(shared / "tokenizers", name) for name in ("llama2", "gpt2"))
    table = min_ed_map(own, theirs)
    with gzip.open(shared / "golden/mined/vocab_llama2_gpt2.json.gz", "rt", encoding="utf-8") as file:
        golden = json.load(file)
    exact = [
        own.tokens[i] == with_marker_of(own, theirs, token)
        for i, token in zip(table, theirs.tokens, strict=True)
    ]
    assert (sum(exact), len(table) - sum(exact)) == (golden["exact_hits"], golden["misses"])
    for entry in golden["entries"]:
        assert own.tokens[table[entry["teacher_id"]]] == entry["nearest"][0]


@each_pair
def test_transfers_equal_the_references_where_it_transferred_and_else_the_next_token(shared, base, teacher):
    own, theirs = (card(shared / "tokenizers", name) for name in (base, teacher))
    matches = {
        row["id"]: row["base_to_teacher"]
        for row in lines(shared / f"golden/mined/alignment_{base}_{teacher}.jsonl.gz")
    }
    for row in lines(shared / f"golden/mined/transfer_{base}_{teacher}.jsonl.gz"):
        table = np.full(len(theirs), -1, np.int32)
        for teacher_id, base_id in row["table"]:
            table[teacher_id] = base_id
        targets = [*row["base_ids"][1:], -1]
        carried, has_target = transport_min_ed(
            golden_rows(row), matches[row["id"]], base_ids=row["base_ids"], base_targets=targets,
            teacher_ids=row["teacher_ids"], base=own, teacher=theirs, id_map=table,
        )  # fmt: skip
        for i, flag in enumerate(row["flag"]):
            entries = slice(carried.row_splits[i], carried.row_splits[i + 1])
            got = dict(
                zip(carried.token_ids[entries].tolist(), carried.log_probs[entries].tolist(), strict=True)
            )
            if flag == "transferred":
                assert got == pytest.approx(dict(map(tuple, row["result"][i])), abs=1e-4), (row["id"], i)
            else:  # the reference repeats the current token here; a target is the next token, or nothing
                assert got == ({} if targets[i] == -1 else {targets[i]: 0.0})
            assert has_target[i] == bool(got)


def golden_rows(row: dict[str, Any]) -> SparseLogits:
    """The recorded logits as rows; the map and the order of arrival do not ask for log-probabilities."""
    ids = np.array(row["teacher_topk_ids"], np.int32)
    logits = np.array(row["teacher_topk_logits"], np.float32) - 40  # below 0, as log-probabilities are
    order = np.argsort(ids, axis=1)
    n, k = ids.shape
    for golden_row in row["result"]:
        for entry in golden_row:
            entry[1] -= 40
    return SparseLogits(
        np.take_along_axis(ids, order, 1).reshape(-1), np.take_along_axis(logits, order, 1).reshape(-1),
        np.arange(n + 1, dtype=np.int64) * k, np.zeros(n, np.float32), np.full(n, -1, np.int32),
        np.ones(n, np.uint8), np.array([0, n], np.int64),
    )  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in TEN])
def test_every_known_boundary_is_reproduced_and_none_is_claimed_inside_a_character(shared, name):
    read = spelling(shared / "tokenizers", name)
    known = 0
    for row in lines(shared / "golden/mined/boundaries.jsonl.gz"):
        golden = row["tokenizers"][name]
        ends = token_ends(
            read, row["text"], np.array(golden["ids"], np.int32), [read.encode_with_marks]
        ).tolist()
        for i, (got, expected) in enumerate(zip(ends, golden["ends"], strict=True)):
            if expected is not None:
                assert got == expected, (row["id"], i)
                known += 1
            elif golden["null_reasons"][str(i)] in NEVER:
                assert got == -1, (row["id"], i)
    assert known > 1000


@pytest.mark.parametrize(
    ("base", "teacher"), [("llama2", "gpt2"), ("t5", "bert-uncased"), ("gpt-neox", "falcon")]
)
def test_a_pair_is_emitted_only_where_both_ends_are_known_and_equal(shared, base, teacher):
    folder = shared / "tokenizers"
    for row in lines(shared / "golden/mined/boundaries.jsonl.gz"):
        result = align_text(spelling(folder, base), spelling(folder, teacher), row["text"])
        mine, theirs = row["tokenizers"][base]["ends"], row["tokenizers"][teacher]["ends"]
        expected = []
        for i, end in enumerate(mine):
            there = [j for j, other in enumerate(theirs) if other == end]
            expected.append([] if end is None or end in mine[i + 1 :] else there[-1:])
        assert result["pairs"] == expected, row["id"]


def test_defects_of_the_references_table_stay_in_mined_and_out_of_bytes(shared):
    folder = shared / "tokenizers"
    own, theirs = card(folder, "llama2"), card(folder, "gpt2")
    table = byte_map(own, theirs, lambda texts: [-1] * len(texts))
    newline, total = theirs.ids["Ċ"], theirs.ids["total"]
    assert own.tokens[table[newline]] == "<0x0A>"  # by bytes `Ċ` meets `<0x0A>`; by edits it never does
    assert own.tokens[table[total]] == "total"
    index, _ = nearest_strings(["Ċ"], own.tokens)
    assert own.tokens[index[0]] != "<0x0A>"
