"""Positions of two tokenisations of one text."""

import json
import unicodedata
from collections import UserDict
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from fedtandem.alignment.sequence import NO_ROW, EndTable, align_bytes, align_min_ed, end_table, keeps_pace
from fedtandem.models.encoded import Encoded
from fedtandem.models.pairs import align_text
from fedtandem.models.spelling import Spelling, read_spelling

TEN = ("llama2", "gpt2", "bert-uncased", "t5", "roberta", "gpt-neox", "qwen2", "llama3", "falcon", "o200k")
NORMALISING = ("gpt-neox", "qwen2")
HARD = [
    "e\u0301", "\u1100\u1161\u11a8", "ﬁ", "½", "각", "👩\u200d🚀", "\u200b", "\u00ad", "▁", "Ġ", "  ", "\t\n", "\u3000",
    "<0x41>", "12345", "ا", "日本", "\x7f", "\u0344", "Å", "don't", "def f(x):\n    return x", "#", "\ufffd",
]  # fmt: skip
texts = st.lists(
    st.one_of(st.text(max_size=8), st.sampled_from(HARD), st.text("ab 1.", max_size=6)), max_size=6
).map("".join)


class Ten(UserDict[str, Spelling]):
    """The tokenizers by name; a failing example shows no vocabulary."""

    def __repr__(self) -> str:
        return "ten"


@pytest.fixture(scope="module")
def tokenizers(shared: Path) -> Ten:
    folder = shared / "tokenizers"
    return Ten(
        {name: read_spelling(Tokenizer.from_file(str(folder / name / "tokenizer.json"))) for name in TEN}
    )


def nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def character_places(text: str) -> list[tuple[int, str]]:
    return [(len(text[:k].encode()), character) for k, character in enumerate(text)]


def places(name: str, spelling: Spelling, ids: list[int], text: str) -> set[int]:
    """Every byte of `text` at which a reader of these tokens may stand, found without the code under test.

    Byte-level strings hold one character per byte; the others are read by trying all prefixes of the text.
    """
    tokens = [spelling.tokenizer.id_to_token(i) for i in ids]
    if name == "llama2":
        sizes = [1 if t.startswith("<0x") else len(t.replace("▁", " ").encode()) for t in tokens]
        # A literal ▁ is read as a space, three bytes of the text as one: one entry per byte that is read.
        read = [
            p for p, c in character_places(text) for p in (range(p, p + len(c.encode())) if c != "▁" else [p])
        ]
        return {[*read, len(text.encode())][sum(sizes) - 1]}
    prefixes = [(text[:k], text[k:]) for k in range(len(text) + 1)]
    if name in NORMALISING:
        read = sum(map(len, tokens))
        apart = [
            len(a.encode())
            for a, b in prefixes
            if nfc(a) + nfc(b) == nfc(text) and len(nfc(a).encode()) == read
        ]
        inside = [
            len(a.encode()) + read - len(nfc(a).encode())
            for a, b in prefixes
            if b and nfc(a) + nfc(b) == nfc(text) and nfc(a + b[0]) + nfc(b[1:]) == nfc(text) and nfc(b[0]) == b[0]
            and 0 < read - len(nfc(a).encode()) < len(b[0].encode())
        ]  # fmt: skip
        return {*apart, *inside}
    if name in ("bert-uncased", "t5"):
        if any(i in spelling.special for i in ids):
            return set(range(len(text.encode()) + 1))  # an unknown token: anything may have stood there
        read_text = "".join(t.removeprefix("##") if name == "bert-uncased" else t for t in tokens).replace(
            "▁", ""
        )
        normal = spelling.tokenizer.normalizer.normalize_str
        return {
            len(a.encode())
            for a, _ in prefixes
            if "".join(normal(a).split()).replace("▁", "") == "".join(read_text.split())
        }
    return {sum(map(len, tokens))}


@settings(max_examples=12, deadline=None)
@given(text=texts)
@example(text="".join(HARD))
@example(text="\x7fE1.F..12F 谥\U0009e5e5፤")
@example(text="▁a ▁ b")
def test_aligned_positions_of_all_ordered_pairs_of_the_ten_tokenizers_have_read_the_same_bytes(
    tokenizers, text
):
    for base_name, base in tokenizers.items():
        for teacher_name, teacher in tokenizers.items():
            result = align_text(base, teacher, text)
            base_ids, teacher_ids = result["base_ids"], result["teacher_ids"]
            assert len(result["pairs"]) == len(base_ids)
            for i, partners in enumerate(result["pairs"]):
                assert len(partners) <= 1
                for j in partners:
                    mine = places(base_name, base, base_ids[: i + 1], text)
                    theirs = places(teacher_name, teacher, teacher_ids[: j + 1], text)
                    assert mine & theirs, (base_name, teacher_name, i, j)


@settings(max_examples=30, deadline=None)
@given(text=texts)
def test_gpt2_and_roberta_align_one_to_one(tokenizers, text):
    for base, teacher in (("gpt2", "roberta"), ("roberta", "gpt2")):
        pairs = align_text(tokenizers[base], tokenizers[teacher], text)["pairs"]
        assert pairs == [[i] for i in range(len(pairs))]


@settings(max_examples=30, deadline=None)
@given(text=texts, mode=st.sampled_from(["bytes", "mined"]))
def test_a_tokenizer_with_itself_is_the_identity(tokenizers, text, mode):
    for name in ("gpt2", "llama2", "llama3", "o200k"):
        result = align_text(tokenizers[name], tokenizers[name], text, mode)
        if mode == "bytes":  # of tokens at one byte only the last is a boundary
            assert all(partners in ([i], []) for i, partners in enumerate(result["pairs"]))
            assert sum(map(len, result["pairs"])) >= len(result["pairs"]) - text.count("▁") - 1
        else:
            assert result["pairs"] == [[i] for i in range(len(result["pairs"]))]


def table(*samples: list[tuple[int, int]]) -> EndTable:
    rows = [row for sample in samples for row in sample]
    return EndTable(
        np.array([end for end, _ in rows], np.int32),
        np.array([segment for _, segment in rows], np.uint8),
        np.cumsum([0, *(len(sample) for sample in samples)]).astype(np.int64),
    )


def test_two_tokenisations_of_one_word():
    # base:    | un | believ | able | EOS      ends before: 0 2 8 12
    # teacher: | unbeliev | ab | le | EOS      ends before: 0 8 10 12
    base = table([(0, 1), (2, 1), (8, 1), (12, 1)])
    teacher = table([(0, 1), (8, 1), (10, 1), (12, 1)])
    assert align_bytes(base, teacher).tolist() == [0, NO_ROW, 1, 3]


@given(
    base=st.lists(
        st.lists(st.tuples(st.integers(-1, 6), st.integers(0, 1)), max_size=6), min_size=1, max_size=4
    ),
    data=st.data(),
)
def test_vectorised_alignment_equals_the_rule_read_aloud(base, data):
    teacher = [
        data.draw(st.lists(st.tuples(st.integers(-1, 6), st.integers(0, 1)), max_size=6))
        for _ in range(len(base))
    ]
    base = [sorted(sample, key=lambda row: (row[1], row[0])) for sample in base]
    teacher = [sorted(sample, key=lambda row: (row[1], row[0])) for sample in teacher]
    expected, offset = [], 0
    for mine, theirs in zip(base, teacher, strict=True):
        for i, (end, segment) in enumerate(mine):
            last = (end, segment) not in mine[i + 1 :]
            found = [j for j, row in enumerate(theirs) if row == (end, segment)]
            expected.append(offset + found[-1] if end >= 0 and last and found else NO_ROW)
        offset += len(theirs)
    assert align_bytes(table(*base), table(*teacher)).tolist() == expected


def test_tables_of_different_sets_are_refused():
    with pytest.raises(ValueError, match="1 samples and the teacher 2"):
        align_bytes(table([(0, 1)]), table([(0, 1)], [(0, 1)]))


def test_the_end_table_lays_samples_one_after_another():
    def sample(ends: list[int]) -> Encoded:
        n = len(ends)
        return Encoded(
            np.zeros(n + 1, np.int32), np.arange(n, dtype=np.int32), np.array(ends, np.int32),
            np.ones(n, np.uint8), 3, True, np.zeros(n, np.bool_),
        )  # fmt: skip

    whole = end_table([sample([0, 2]), sample([]), sample([0])])
    assert whole.end_byte.tolist() == [0, 2, 0]
    assert whole.sample_splits.tolist() == [0, 2, 2, 3]
    assert whole.take_samples(np.array([2, 0])).end_byte.tolist() == [0, 0, 2]
    assert end_table([]).n_samples == 0


def slow_dtw(a: list[str], b: list[str]) -> int:
    """Cheapest path by the textbook recursion, edit distance included."""

    @cache
    def edit(x: str, y: str) -> int:
        if not x or not y:
            return len(x) + len(y)
        return min(edit(x[1:], y) + 1, edit(x, y[1:]) + 1, edit(x[1:], y[1:]) + (x[0] != y[0]))

    @cache
    def total(i: int, j: int) -> int:
        before = [total(p, q) for p, q in ((i - 1, j - 1), (i, j - 1), (i - 1, j)) if p >= 0 and q >= 0]
        return edit(a[i], b[j]) + min(before, default=0)

    return total(len(a) - 1, len(b) - 1)


tokens = st.lists(st.text("abc", max_size=3), min_size=1, max_size=5)


@given(a=tokens, b=tokens)
def test_warping_is_cheapest_and_covers_both_sequences(a, b):
    pairs, cost = align_min_ed(a, b)
    assert cost == slow_dtw(a, b)
    assert sorted({j for partners in pairs for j in partners}) == list(range(len(b)))
    assert all(partners == list(range(partners[0], partners[-1] + 1)) for partners in pairs)
    path = [(i, j) for i, partners in enumerate(pairs) for j in partners]
    assert all(q - p in (0, 1) and s - r in (0, 1) for (p, r), (q, s) in pairwise(path))


def test_warping_a_word_cut_differently():
    #  base     ut  ility
    #  teacher  util  ity      lev(ut, util) = 2, lev(ility, ity) = 2
    assert align_min_ed(["▁ut", "ility"], ["Ġutil", "ity"], "▁", "Ġ") == ([[0], [1]], 4)
    assert align_min_ed(["a"], []) == ([[]], 0)


def test_alignment_lines_are_json(tokenizers):
    assert (
        json.loads(json.dumps(align_text(tokenizers["gpt2"], tokenizers["t5"], "a b", "mined")))["text"]
        == "a b"
    )


def test_a_teacher_of_single_characters_keeps_no_pace_with_words() -> None:
    # " 38 = 1": the base reads " 38", " =", " 1"; the teacher " ", "3", "8", " ", "=", " ", "1".
    base = EndTable(np.array([0, 3, 5], np.int32), np.ones(3, np.uint8), np.array([0, 3]))
    teacher = EndTable(np.array([0, 1, 2, 3, 4, 5, 6], np.int32), np.ones(7, np.uint8), np.array([0, 7]))
    up = align_bytes(base, teacher)
    assert up.tolist() == [0, 3, 5]
    # Every row of the teacher predicts a lone space or digit; at the last position nobody's next end is known.
    assert keeps_pace(base, teacher, up).tolist() == [False, False, False]
    down = align_bytes(teacher, base)
    assert down.tolist() == [0, -1, -1, 1, -1, 2, -1]
    # Words reach at least as far as characters: all that is aligned is taught.
    assert keeps_pace(teacher, base, down).tolist() == (down >= 0).tolist()


@given(ends=st.lists(st.integers(0, 40), min_size=1, max_size=12, unique=True))
def test_equal_tokenisations_keep_pace_everywhere(ends: list[int]) -> None:
    table = EndTable(np.array(sorted(ends), np.int32), np.ones(len(ends), np.uint8), np.array([0, len(ends)]))
    assert keeps_pace(table, table, align_bytes(table, table)).all()
