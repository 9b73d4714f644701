import numpy as np
import pytest

from fedtandem.knowledge.score import bytes_score, token_score


def test_the_closing_eos_counts_per_token_but_not_per_byte() -> None:
    # " yes" in two tokens and EOS: 4 bytes, 1 + 2 nats, and 3 more for EOS.
    nll = np.array([1.0, 2.0, 3.0], np.float32)
    eos = np.array([False, False, True])
    assert bytes_score(nll, eos, 4) == 0.75
    assert token_score(nll) == 2.0


def test_a_finer_tokenisation_of_equal_likelihood_has_the_same_score_per_byte() -> None:
    coarse = bytes_score(np.array([3.0, 9.0], np.float32), np.array([False, True]), 6)
    fine = bytes_score(np.array([1.0, 1.5, 0.5, 2.0], np.float32), np.array([False, False, False, True]), 6)
    assert coarse == fine == 0.5


def test_an_impossible_token_makes_the_sample_unscored_not_an_error() -> None:
    assert bytes_score(np.array([np.inf], np.float32), np.array([False]), 1) == np.inf


def test_nan_is_refused_with_its_place() -> None:
    with pytest.raises(ValueError, match="NaN at token 1"):
        bytes_score(np.array([0.0, np.nan], np.float32), np.array([False, False]), 3)
    with pytest.raises(ValueError, match="NaN at token 0"):
        token_score(np.array([np.nan], np.float32))


@pytest.mark.parametrize("n_bytes", [0, -1])
def test_an_answer_without_bytes_has_no_score(n_bytes: int) -> None:
    with pytest.raises(ValueError, match="n_answer_bytes"):
        bytes_score(np.zeros(1, np.float32), np.array([True]), n_bytes)


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="is_eos"):
        bytes_score(np.zeros(2, np.float32), np.array([True]), 3)
    with pytest.raises(ValueError, match="empty"):
        token_score(np.zeros(0, np.float32))
