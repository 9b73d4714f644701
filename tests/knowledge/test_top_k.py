import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.errors import ModelError
from fedtandem.knowledge import top_k as module
from fedtandem.knowledge.top_k import sparsify

# Few distinct values, so that ties at the edge of the top-k are the rule.
coarse = st.sampled_from([-torch.inf, -3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 30.0])


@st.composite
def dense_logits(draw: st.DrawFn) -> torch.Tensor:
    rows, vocab = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    table = draw(st.lists(st.lists(coarse, min_size=vocab, max_size=vocab), min_size=rows, max_size=rows))
    logits = torch.tensor(table)
    logits[:, draw(st.integers(0, vocab - 1))] = 0.25  # no row without any possible token
    return logits


def by_definition(row: torch.Tensor, top_k: int, top_k_mass: float) -> tuple[list[int], float]:
    """Sort by probability, then by id; take until the mass is reached."""
    probs = torch.softmax(row.double(), dim=-1).tolist()
    order = sorted((i for i in range(len(probs)) if row[i] > -torch.inf), key=lambda i: (-float(row[i]), i))
    kept: list[int] = []
    mass = 0.0
    for token in order[:top_k]:
        if top_k_mass < 1 and mass >= top_k_mass:
            break
        kept.append(token)
        mass += probs[token]
    return sorted(kept), 1 - sum(probs[token] for token in kept)


@given(dense_logits(), st.integers(1, 10), st.sampled_from([0.3, 0.77, 0.991, 1.0]))
def test_it_keeps_what_the_definition_keeps_even_among_ties(
    logits: torch.Tensor, top_k: int, mass: float
) -> None:
    ids, log_probs, counts, tails = sparsify(logits, top_k, mass)
    splits = np.concatenate([[0], np.cumsum(counts)])
    for row in range(len(logits)):
        kept, left = by_definition(logits[row], top_k, mass)
        here = slice(splits[row], splits[row + 1])
        assert ids[here].tolist() == kept
        expected = torch.log_softmax(logits[row].double(), dim=-1)[kept].numpy()
        np.testing.assert_allclose(log_probs[here], expected, atol=1e-5)
        assert np.exp(tails[row]) == pytest.approx(left, abs=1e-6)


@given(dense_logits())
def test_keeping_the_whole_vocabulary_gives_the_dense_distribution_and_no_tail(logits: torch.Tensor) -> None:
    ids, log_probs, counts, tails = sparsify(logits, logits.shape[1])
    dense = np.zeros(logits.shape, np.float64)
    dense[np.repeat(np.arange(len(counts)), counts), ids] = np.exp(log_probs.astype(np.float64))
    np.testing.assert_allclose(dense, torch.softmax(logits.double(), dim=-1).numpy(), atol=1e-6)
    assert np.isneginf(tails).all()


@given(dense_logits(), st.integers(1, 9), st.integers(1, 40))
def test_working_in_small_chunks_changes_nothing(logits: torch.Tensor, top_k: int, chunk: int) -> None:
    whole = sparsify(logits, top_k, 0.9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_ELEMENTS", chunk)
        cut = sparsify(logits, top_k, 0.9)
    assert all(np.array_equal(a, b) for a, b in zip(whole, cut, strict=True))


def test_equal_logits_keep_the_lower_ids_in_bfloat16_too() -> None:
    logits = torch.zeros(3, 1000, dtype=torch.bfloat16)
    logits[:, 500] = 1
    ids, _, _, _ = sparsify(logits, 4)
    assert ids.reshape(3, 4).tolist() == [[0, 1, 2, 500]] * 3


def test_a_tiny_tail_of_large_logits_keeps_its_digits() -> None:
    # Two tokens; the second has e^-12 of the first. The common offset of 1000 must not drown it.
    _, _, _, tails = sparsify(torch.tensor([[1000.0, 988.0]]), 1)
    assert tails[0] == pytest.approx(-12.0, abs=1e-4)


def test_a_tail_below_rounding_is_still_finite() -> None:
    _, _, _, tails = sparsify(torch.tensor([[200.0, 0.0]]), 1)
    assert np.isfinite(tails).all()


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_row_that_is_no_distribution_is_refused_by_number(poison: float) -> None:
    logits = torch.zeros(4, 6)
    logits[2, 3] = poison
    with pytest.raises(ModelError, match=r"clinic-a, row 2: the logits hold NaN"):
        sparsify(logits, 2, where="clinic-a")


def test_a_row_in_which_nothing_is_possible_is_refused() -> None:
    with pytest.raises(ModelError, match="row 0"):
        sparsify(torch.full((1, 4), -torch.inf), 2)


def test_no_rows_give_no_entries() -> None:
    assert [len(column) for column in sparsify(torch.zeros(0, 7), 3)] == [0, 0, 0, 0]


@pytest.mark.parametrize(("top_k", "mass"), [(0, 1.0), (3, 0.0), (3, 1.5)])
def test_a_bound_that_keeps_nothing_or_more_than_all_is_refused(top_k: int, mass: float) -> None:
    with pytest.raises(ValueError, match="top_k"):
        sparsify(torch.zeros(1, 4), top_k, mass)
