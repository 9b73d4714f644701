"""Distributions carried across vocabularies and positions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.alignment import transport
from fedtandem.alignment.sequence import EndTable
from fedtandem.alignment.transport import transport_bytes, transport_min_ed
from fedtandem.alignment.vocabulary import VocabularyCard
from fedtandem.errors import UnknownTokenId
from fedtandem.knowledge.sparse_logits import SparseLogits, splits_of

V_TEACHER, V_BASE = 9, 7


def rows_of(*rows: tuple[dict[int, float], float]) -> SparseLogits:
    """Rows given as ({id: probability}, tail probability)."""
    kept = [sorted(row.items()) for row, _ in rows]
    with np.errstate(divide="ignore"):
        return SparseLogits(
            token_ids=np.array([i for row in kept for i, _ in row], np.int32),
            log_probs=np.log(np.array([p for row in kept for _, p in row])).astype(np.float32),
            row_splits=splits_of(np.array([len(row) for row in kept], np.int64)),
            tail_log_prob=np.log(np.array([tail for _, tail in rows])).astype(np.float32),
            end_byte=np.arange(len(rows), dtype=np.int32),
            segment=np.ones(len(rows), np.uint8),
            sample_splits=np.array([0, len(rows)], np.int64),
        )


@st.composite
def distributions(draw: st.DrawFn) -> tuple[dict[int, float], float]:
    ids = draw(st.lists(st.integers(0, V_TEACHER - 1), unique=True, min_size=1))
    weights = [draw(st.floats(1e-3, 1)) for _ in ids]
    tail = draw(st.just(0.0) | st.floats(1e-3, 1))
    total = sum(weights) + tail
    return {i: w / total for i, w in zip(ids, weights, strict=True)}, tail / total


maps = st.lists(st.integers(-1, V_BASE - 1), min_size=V_TEACHER, max_size=V_TEACHER).map(
    lambda ids: np.array(ids, np.int32)
)


@given(
    rows=st.lists(distributions(), min_size=1, max_size=5),
    id_map=maps,
    data=st.data(),
    chunk=st.integers(1, 20),
)
def test_probabilities_of_one_base_id_add_up_and_the_rest_joins_the_tail(rows, id_map, data, chunk):
    row_of = np.array(data.draw(st.lists(st.integers(-1, len(rows) - 1), max_size=6)), np.int64)
    with pytest.MonkeyPatch.context() as patch:  # chunks of any size give the same
        patch.setattr(transport, "ENTRIES_AT_A_TIME", chunk)
        carried = transport_bytes(rows_of(*rows), row_of, id_map)
    carried.validate(V_BASE, mass_tolerance=1e-6)
    for i, j in enumerate(row_of):
        entries = slice(carried.row_splits[i], carried.row_splits[i + 1])
        got = dict(
            zip(carried.token_ids[entries].tolist(), np.exp(carried.log_probs[entries]).tolist(), strict=True)
        )
        if j < 0:
            assert got == {}
            assert carried.tail_log_prob[i] == 0
            continue
        expected: dict[int, float] = {}
        tail = rows[j][1]
        for token_id, p in rows[j][0].items():
            if id_map[token_id] < 0:
                tail += p
            else:
                expected[int(id_map[token_id])] = expected.get(int(id_map[token_id]), 0.0) + p
        assert got == pytest.approx(expected, abs=1e-6)
        assert np.exp(carried.tail_log_prob[i]) == pytest.approx(tail, abs=1e-6)


@given(rows=st.lists(distributions(), min_size=1, max_size=5))
def test_a_shared_vocabulary_and_tokenisation_change_no_bit(rows):
    source = rows_of(*rows)
    ends = EndTable(source.end_byte, source.segment, source.sample_splits)
    carried = transport_bytes(source, np.arange(len(rows)), np.arange(V_TEACHER, dtype=np.int32), ends)
    assert carried.same_as(source)


@given(rows=st.lists(distributions(), min_size=1, max_size=4), order=st.permutations(range(V_TEACHER)))
def test_a_one_to_one_map_keeps_every_value_bit_for_bit(rows, order):
    source = rows_of(*rows)
    there, back = np.array(order, np.int32), np.argsort(order).astype(np.int32)
    everywhere = np.arange(len(rows))
    assert transport_bytes(transport_bytes(source, everywhere, there), everywhere, back).same_as(source)


def test_one_row_by_hand():
    #  teacher: "the" .5, " cat" .3, "ſ" .1 (no base token), tail .1;  base: "th" stands for "the" and "this"
    source = rows_of(({0: 0.5, 1: 0.3, 2: 0.1}, 0.1), ({0: 0.25, 3: 0.25}, 0.5))
    carried = transport_bytes(source, np.array([1, -1, 0]), np.array([4, 2, -1, 4], np.int32))
    assert carried.row_splits.tolist() == [0, 1, 1, 3]
    assert carried.token_ids.tolist() == [4, 2, 4]
    assert np.exp(carried.log_probs) == pytest.approx([0.5, 0.3, 0.5])
    assert np.exp(carried.tail_log_prob) == pytest.approx([0.5, 1.0, 0.2])
    assert carried.end_byte.tolist() == [1, -1, 0]


def test_faults_are_named():
    source = rows_of(({5: 1.0}, 0.0))
    with pytest.raises(UnknownTokenId, match="token id 5, but the teacher's vocabulary ends at 2"):
        transport_bytes(source, np.array([0]), np.zeros(3, np.int32))
    with pytest.raises(ValueError, match="row_of runs from 1 to 1"):
        transport_bytes(source, np.array([1]), np.zeros(9, np.int32))
    ends = EndTable(np.zeros(2, np.int32), np.zeros(2, np.uint8), np.array([0, 2]))
    with pytest.raises(ValueError, match="row_of has 1 positions and the base's end table 2"):
        transport_bytes(source, np.array([0]), np.zeros(9, np.int32), ends)


BASE = VocabularyCard(("▁a", "b", "c", "▁d"), (b" a", b"b", b"c", b" d"), {}, frozenset(), "▁")
TEACHER = VocabularyCard(("a", "Ġa", "b", "x", "y"), (b"a", b" a", b"b", b"x", b"y"), {}, frozenset(), "Ġ")
TABLE = np.array([1, 0, 1, 2, 2], np.int32)


def carry(matches, base_ids, teacher_ids, rows, targets=None):
    targets = [*base_ids[1:], -1] if targets is None else targets
    return transport_min_ed(
        rows, matches, base_ids=base_ids, base_targets=targets, teacher_ids=teacher_ids, base=BASE,
        teacher=TEACHER, id_map=TABLE,
    )  # fmt: skip


def test_the_first_arrival_stays_and_the_one_hot_is_the_next_token():
    #  base: ▁a b c     teacher: a b y     at position 0 the teacher's `a` counts as `Ġa`
    rows = rows_of(({3: 0.6, 4: 0.3}, 0.1), ({0: 0.2, 2: 0.7}, 0.1), ({1: 1.0}, 0.0))
    carried, has_target = carry([[0], [1], [1, 2]], [0, 1, 2], [0, 2, 4], rows)
    assert has_target.tolist() == [True, True, False]  # the last base token has nothing to predict
    assert carried.token_ids.tolist() == [2, 1]  # x and y fall on c, a and b on b
    assert np.exp(carried.log_probs) == pytest.approx([0.6, 0.7])  # of each the more probable one
    assert np.exp(carried.tail_log_prob[:2]) == pytest.approx([0.4, 0.3])


@given(
    matches=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3), min_size=1, max_size=4),
    data=st.data(),
)
def test_no_target_points_at_the_current_token_unless_the_teacher_says_so(matches, data):
    base_ids = data.draw(st.lists(st.integers(0, 3), min_size=len(matches), max_size=len(matches)))
    teacher_ids = data.draw(st.lists(st.integers(0, 4), min_size=3, max_size=3))
    targets = [(i + 1) % 4 for i in base_ids]  # the next token never repeats the current one
    rows = rows_of(*[({3: 0.9}, 0.1)] * 3)  # the teacher always says c
    carried, has_target = carry(matches, base_ids, teacher_ids, rows, targets)
    assert has_target.all()
    for i, places in enumerate(matches):
        entries = carried.token_ids[carried.row_splits[i] : carried.row_splits[i + 1]].tolist()
        assert entries in ([targets[i]], [2])
        if len(places) > 1:
            assert entries == [targets[i]]
