"""Who teaches which sample: labelled (DualMinCE) and unlabelled (the surest writer)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.algorithms.lessons import choose, choose_paths, generator_of, rows_of
from fedtandem.errors import InvalidMessage
from fedtandem.exchange.messages import Knowledge
from fedtandem.knowledge.sparse_logits import SparseLogits
from fedtandem.selection.selectors import load_selector

N = 5
scores = st.lists(st.floats(0, 20, width=32) | st.just(float("inf")), min_size=N, max_size=N)


def knowledge(
    name: str, losses: list[float], rows: SparseLogits | None = None, index: list[int] | None = None
) -> Knowledge:
    return Knowledge(
        party=name, round=1, vocab_hash="v", public_hash="p", scores=np.asarray(losses, dtype=np.float32),
        sample_index=np.asarray(index or [], dtype=np.int32), rows=rows, texts=None,
    )  # fmt: skip


@given(own=scores, peers=st.lists(scores, min_size=1, max_size=4))
def test_a_labelled_sample_has_a_teacher_exactly_when_a_peer_is_strictly_better(
    own: list[float], peers: list[list[float]]
) -> None:
    told = {f"client-{i}": knowledge(f"client-{i}", losses) for i, losses in enumerate(peers)}
    choice = choose(np.asarray(own, dtype=np.float32), told, load_selector("dual_min_ce"), generator_of(0))
    best = np.asarray(peers, dtype=np.float32).min(axis=0)
    assert ((choice.teacher_of >= 0) == (best < np.asarray(own, dtype=np.float32))).all()
    assert choice.kept.tolist() == list(range(N))


@given(peers=st.lists(scores, min_size=2, max_size=4), data=st.data())
def test_the_order_in_which_clients_answer_changes_nothing(
    peers: list[list[float]], data: st.DataObject
) -> None:
    told = {f"client-{i}": knowledge(f"client-{i}", losses) for i, losses in enumerate(peers)}
    shuffled = dict(data.draw(st.permutations(list(told.items()))))
    own = np.full(N, 5.0, dtype=np.float32)
    select = load_selector("dual_min_ce")
    a, b = choose(own, told, select, generator_of(0)), choose(own, shuffled, select, generator_of(0))
    assert a.names == b.names
    assert (a.teacher_of == b.teacher_of).all()
    c, d = choose_paths(told, N, 0.6), choose_paths(shuffled, N, 0.6)
    assert (c.teacher_of == d.teacher_of).all()
    assert (c.kept == d.kept).all()


@given(peers=st.lists(scores, min_size=1, max_size=4), keep=st.floats(0.05, 1.0))
def test_the_surest_paths_are_kept_and_a_prompt_without_one_never(
    peers: list[list[float]], keep: float
) -> None:
    told = {f"client-{i}": knowledge(f"client-{i}", losses) for i, losses in enumerate(peers)}
    choice = choose_paths(told, N, keep)
    best = np.asarray(peers, dtype=np.float32).min(axis=0)
    answered = int(np.isfinite(best).sum())
    assert len(choice.kept) == int(np.ceil(keep * answered))
    assert np.isfinite(best[choice.kept]).all()
    left_out = np.setdiff1d(np.flatnonzero(np.isfinite(best)), choice.kept)
    if len(left_out) and len(choice.kept):
        assert best[choice.kept].max() <= best[left_out].min()
    for i in choice.kept:
        assert told[choice.names[choice.teacher_of[i]]].scores[i] == best[i]


def test_three_clients_by_head() -> None:
    told = {
        "a": knowledge("a", [0.9, 0.1, 0.5, float("inf"), 0.2]),
        "b": knowledge("b", [0.2, 0.1, 0.6, float("inf"), 0.1]),
        "c": knowledge("c", [0.3, 0.3, 0.4, float("inf"), 0.9]),
    }
    own = np.asarray([0.25, 0.1, 0.1, 1.0, 1.0], dtype=np.float32)
    choice = choose(own, told, load_selector("dual_min_ce"), generator_of(0))
    # sample 0: b beats the server; 1: a tie keeps the own view; 2: the server is best; 3: nobody scored; 4: b.
    assert choice.teacher_of.tolist() == [1, -1, -1, -1, 1]
    assert choice.won_by("b").tolist() == [0, 4]
    paths = choose_paths(told, N, 0.5)
    # best scores .2 .1 .4 - .1 : the surest half of four answered prompts is samples 1 (a, first by name) and 4 (b).
    assert paths.kept.tolist() == [1, 4]
    assert [paths.names[i] for i in paths.teacher_of[paths.kept]] == ["a", "b"]


def test_rows_that_did_not_come_are_named() -> None:
    rows = SparseLogits.empty(2)
    told = knowledge("clinic-a", [0.0] * N, rows, index=[1, 3])
    assert rows_of(told, np.asarray([3])).n_samples == 1
    with pytest.raises(InvalidMessage, match=r"clinic-a.*sample 2"):
        rows_of(told, np.asarray([1, 2]))
