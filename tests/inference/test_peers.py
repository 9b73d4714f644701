"""Peers: nothing unsigned, nothing foreign, nothing stale, nothing merely similar is ever served."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.errors import ConfigError
from fedtandem.inference.gates import content_key, namespace, text_gate, token_gate
from fedtandem.inference.peers import Attested, PeerCache, is_genuine, nearest_label, sign
from fedtandem.inference.similarity import START, audits_needed, calibrate_similarity, wilson

KEY = b"tenant secret"
HERE = namespace("acme", "llm-1", "tok", "You are kind.", "greedy")
NOW = 1_000_000.0
D = 8

UNSAFE = [
    ("Did Arsenal beat Chelsea?", "Did Chelsea beat Arsenal?"),
    ("Flights from Oslo to Rome", "Flights to Oslo from Rome"),
    ("The drug is safe for children.", "The drug is not safe for children."),
    ("It is possible", "It isn't possible"),
    ("She can pay", "She can't pay"),
    ("Shares fell 3 %", "Shares fell 13 %"),
    ("Shares fell 3.5 %", "Shares fell 35 %"),
    ("It was -5 degrees", "It was 5 degrees"),
    ("Who leads Apple today", "Who leads Google today"),
    ("The US votes", "Voices for us: the us votes"),
    ("x < 5", "x > 5"),
    ("He won.", "He won?"),
    ("pay $5", "pay €5"),
    ("a dog bit a man", "a man bit a dog"),
    ("with sugar", "without sugar"),
    ("all but one", "one but all"),
    ("are there a few seats", "are there few seats"),
    ("Who sings of vitamin A", "Who sings of vitamin"),
    ("The Who sang it", "Who sang it"),
    ("did Turkey win", "did turkey win"),
    ("is it 5 M", "is it 5 m"),
    ("what is 8 - 3", "what is 8 3"),
    ("what is 3! plus 2", "what is 3 plus 2"),
    ("the slope f'(x)", "the slope f(x)"),
]
SAME = [
    ("The drug is safe.", "the drug is safe"),
    ("It isn't so!", "It is not so"),
    ("1,000 euros", "1000 euros"),
    ("Please open a door", "open the door"),
    ("don’t go", "don't go"),
    ("It rains. The dog is wet", "it rains. the dog is wet"),
    ("the  dog - is it wet", "The dog, is it wet"),
]


def entry(text="q", answer=b"1", time_s=NOW, space=HERE, key=KEY, **changes):
    return sign(Attested("acme", "llm-1", space, text_gate(text), answer, time_s, **changes), key)


def vector(seed):
    return np.random.default_rng(seed).normal(size=D)


@pytest.mark.parametrize(("one", "other"), UNSAFE)
def test_swapped_negated_and_renumbered_contexts_are_never_served(one, other):
    assert content_key(one) != content_key(other)
    cache = PeerCache(KEY, D)
    assert cache.insert("a", vector(0), entry(one)).taken
    # The embedding sees no difference at all: the worst case.
    found = cache.look_up(vector(0), HERE, text_gate(other), NOW)
    assert (found.outcome, found.entry) == ("gate_refused", None)
    assert cache.look_up(vector(0), HERE, text_gate(one), NOW).outcome == "hit"


@pytest.mark.parametrize(("one", "other"), SAME)
def test_what_changes_no_answer_is_no_difference(one, other):
    assert text_gate(one) == text_gate(other)


names = ["Ann", "Bob", "pays", "owes", "not", "3", "30", "from", "to"]
words = st.lists(st.sampled_from(names), min_size=1, max_size=6)


@given(words, words)
def test_a_different_order_number_or_word_is_a_different_key(one, other):
    assert (text_gate(" ".join(one)) == text_gate(" ".join(other))) == (
        [w.casefold() for w in one] == [w.casefold() for w in other]
    )


def test_in_generation_the_last_tokens_are_equal():
    assert token_gate([1, 2, 3, 4], 2) == token_gate([9, 3, 4], 2)
    assert token_gate([1, 23], 2) != token_gate([12, 3], 2)
    assert token_gate([3, 4], 2) != token_gate([4, 3], 2)


@given(st.integers(0, 4), st.integers(1, 5))
def test_only_the_same_fingerprint_is_ever_resolved(field, change):
    parts = ["acme", "llm-1", "tok", "prompt", "greedy"]
    mine = namespace(*parts)
    parts[field] += "x" * change
    cache = PeerCache(KEY, D)
    cache.insert("a", vector(0), entry(space=mine))
    assert cache.look_up(vector(0), namespace(*parts), text_gate("q"), NOW).outcome == "gate_refused"
    assert cache.look_up(vector(0), mine, text_gate("q"), NOW).outcome == "hit"


@pytest.mark.parametrize("change", [
    {"answer": b"2"}, {"tenant": "other"}, {"model": "llm-2"}, {"namespace": b"n" * 16},
    {"context": b"c" * 16}, {"time_s": NOW + 1}, {"signature": b""},
])  # fmt: skip
def test_an_entry_changed_in_any_field_is_not_attested(change):
    from dataclasses import replace

    changed = replace(entry(), **change)
    assert is_genuine(entry(), KEY)
    assert not is_genuine(changed, KEY)
    cache = PeerCache(KEY, D)
    assert cache.insert("a", vector(0), changed).reason == "not attested"
    assert cache.insert("a", vector(0), entry(key=b"own")).reason == "not attested"  # a client's own label
    assert len(cache) == 0


def test_age_quota_quarantine_and_broken_vectors():
    cache = PeerCache(KEY, D, ttl_s=10, quota=2, max_failed_audits=2)
    cache.insert("a", vector(0), entry("old", time_s=NOW - 10))
    cache.insert("a", vector(1), entry("new", time_s=NOW - 9))
    assert cache.look_up(vector(0), HERE, text_gate("old"), NOW).outcome == "gate_refused"
    assert cache.look_up(vector(1), HERE, text_gate("new"), NOW).outcome == "hit"
    assert (
        cache.look_up(vector(1), HERE, text_gate("new"), NOW - 1000).outcome == "gate_refused"
    )  # from the future
    assert cache.insert("a", vector(2), entry()).reason == "quota"
    assert cache.insert("b", np.full(D, np.nan), entry()).reason == "bad embedding"
    assert cache.insert("b", np.ones(3), entry()).reason == "bad embedding"
    assert cache.look_up(np.zeros(D), HERE, text_gate("new"), NOW).outcome == "miss"
    cache.report_audit("a", right=True)
    cache.report_audit("a", right=False)
    assert cache.look_up(vector(1), HERE, text_gate("new"), NOW).inserted_by == "a"
    cache.report_audit("a", right=False)
    assert cache.is_quarantined("a")
    assert cache.look_up(vector(1), HERE, text_gate("new"), NOW).outcome == "gate_refused"
    assert cache.insert("a", vector(3), entry()).reason == "quarantined"


@pytest.mark.parametrize("index", ["exact", "usearch"])
def test_what_is_served_is_found_exactly_and_the_store_grows(index):
    if index == "usearch":
        pytest.importorskip("usearch")
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(300, D))
    cache = PeerCache(KEY, D, delta_sim=-1.0, index=index)
    for i, v in enumerate(vectors):
        cache.insert(f"c{i % 7}", v, entry(f"text {i % 3}", answer=str(i).encode()))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for i in range(30):
        query = rng.normal(size=D)
        found = cache.look_up(query, HERE, text_gate(f"text {i % 3}"), NOW)
        cosine = np.where(np.arange(300) % 3 == i % 3, unit @ query / np.linalg.norm(query), -2)
        assert found.entry is not None
        assert int(found.entry.answer) == int(np.argmax(cosine))
        assert found.similarity == pytest.approx(cosine.max(), abs=1e-5)
    assert PeerCache(KEY, D, index=index).look_up(query, HERE, text_gate("q"), NOW).outcome == "miss"
    cache.delta_sim = 0.99
    near = [cache.look_up(v, HERE, text_gate("another text"), NOW) for v in vectors]
    assert [found.outcome for found in near].count("gate_refused") >= (300 if index == "exact" else 290)
    assert cache.look_up(-vectors[0], HERE, text_gate("another text"), NOW).outcome == "miss"


def test_an_unknown_index_is_refused():
    with pytest.raises(ConfigError, match="use exact or usearch"):
        PeerCache(KEY, D, index="faiss")


def test_wilson_by_hand():
    low, high = wilson(9, 10)
    assert (float(low), float(high)) == pytest.approx((0.5958, 0.9821), abs=1e-3)
    assert tuple(map(float, wilson(0, 0))) == (0.0, 1.0)
    n = audits_needed()
    assert n == 381
    assert wilson(n, n)[0] >= 0.99 > wilson(n - 1, n - 1)[0]


def test_delta_sim_is_the_smallest_proven_cosine():
    rng = np.random.default_rng(1)
    cosine = rng.uniform(0.5, 1.0, 4000)
    right = (cosine > 0.8) | (rng.random(4000) < 0.5)
    found = calibrate_similarity(cosine, right)
    assert found.is_proven
    assert 0.78 < found.delta < 0.81
    assert found.lower_bound >= 0.99
    served = right[cosine >= found.delta]
    assert found.audits == len(served)
    assert float(wilson(served.sum(), len(served))[0]) == pytest.approx(found.lower_bound)
    # Nothing below qualifies: by brute force over every other value.
    for lower in np.sort(cosine[cosine < found.delta])[::40]:
        again = right[cosine >= lower]
        assert wilson(again.sum(), len(again))[0] < 0.99


def test_without_enough_audits_peers_only_draft():
    few = calibrate_similarity(np.full(100, 0.95), np.ones(100, dtype=bool))
    assert (few.delta, few.audits, few.is_proven) == (START, 100, False)
    assert few.lower_bound < 0.99
    assert calibrate_similarity([], []).is_proven is False
    tied = calibrate_similarity(np.full(1000, 0.9), np.arange(1000) < 990)
    assert not tied.is_proven  # equal cosines are not cut in the middle


def test_nearest_label_by_hand():
    points = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]])
    assert nearest_label(points, [3, 3, 1, 1], [[1, 0.2], [0.2, 1]], k=2).tolist() == [3, 1]
