"""Accept or resample, one token at a time: the recorded cases, and what holds for every pair of laws."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedtandem.inference.decode import accept_probability, residual_law
from fedtandem.inference.uplink import sparse_law

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@st.composite
def two_laws(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Two laws over the same 1 to 8 tokens, with zeros; sometimes equal, sometimes disjoint."""
    size = draw(st.integers(1, 8))
    weights = st.lists(st.integers(0, 1000), min_size=size, max_size=size).filter(any)
    q = torch.tensor(draw(weights), dtype=torch.float64)
    p = torch.tensor(draw(weights), dtype=torch.float64) if draw(st.booleans()) else q
    return q / q.sum(), p / p.sum()


def output_law(drawn: Tensor, q: Tensor, p: Tensor) -> Tensor:
    """What comes out when drafts are drawn from `drawn` and verified as if they had come from q."""
    accepted = drawn * accept_probability(q, p)
    return accepted + (1 - accepted.sum()) * residual_law(q, p)


@pytest.fixture(scope="module")
def cases(shared: Path) -> list[dict[str, object]]:
    return json.loads((shared / "golden/speculative/cases.json").read_text())["cases"]


def exact(values: list[str]) -> Tensor:
    return torch.tensor([float(Fraction(value)) for value in values], dtype=torch.float64)


def test_the_recorded_laws_and_decisions(cases: list[dict[str, object]]) -> None:
    assert len(cases) == 100
    for case in cases:
        q, p = exact(case["draft"]), exact(case["target"])
        accept, residual = accept_probability(q, p), residual_law(q, p)
        for token, wanted in enumerate(case["accept_if_drafted"]):
            assert float(accept[token]) == pytest.approx(
                0 if wanted is None else float(Fraction(wanted)), abs=1e-12
            )
        wanted_residual = torch.zeros_like(p) if case["residual"] is None else exact(case["residual"])
        torch.testing.assert_close(residual, wanted_residual, atol=1e-9, rtol=0)
        assert float((q * accept).sum()) == pytest.approx(
            float(Fraction(case["accept_probability"])), abs=1e-12
        )
        torch.testing.assert_close(output_law(q, q, p), exact(case["output"]), atol=1e-12, rtol=0)
        for decision in case["decisions"]:
            stands = float(Fraction(decision["u"])) < float(accept[decision["drafted"]])
            assert stands == decision["accepted"], case["id"]


@given(two_laws())
def test_the_output_has_the_target_law(laws: tuple[Tensor, Tensor]) -> None:
    q, p = laws
    torch.testing.assert_close(output_law(q, q, p), p, atol=1e-12, rtol=0)
    # What is refused is the total variation.
    assert float(1 - (q * accept_probability(q, p)).sum()) == pytest.approx(
        float((q - p).clamp_min(0).sum()), abs=1e-12
    )


@given(two_laws(), st.sampled_from(DTYPES))
def test_rounded_laws_give_no_nan_and_keep_their_dtype(
    laws: tuple[Tensor, Tensor], dtype: torch.dtype
) -> None:
    q, p = (law.to(dtype) for law in laws)
    accept, residual = accept_probability(q, p), residual_law(q, p)
    assert accept.dtype == residual.dtype == dtype
    assert bool(((accept >= 0) & (accept <= 1)).all())
    assert not bool(accept[q == 0].any())
    assert bool(((residual >= 0) & (residual <= 1)).all())
    assert not bool(residual[p <= q].any())
    if torch.equal(q, p):
        assert not bool(residual.any())
    elif bool((p > q).any()):
        assert float(residual.double().sum()) == pytest.approx(1, abs=0.05)


def test_subnormal_surplus_in_float16() -> None:
    tiny = torch.tensor([1.0, 6e-8, 0.0], dtype=torch.float16)
    assert residual_law(torch.tensor([1.0, 0.0, 0.0], dtype=torch.float16), tiny).tolist() == [0, 1, 0]
    assert accept_probability(tiny, torch.tensor([0, 1, 0], dtype=torch.float16)).tolist() == [0, 1, 0]


def test_laws_work_over_any_leading_dimensions() -> None:
    q = torch.tensor([[[0.5, 0.5], [1.0, 0.0]]])
    p = torch.tensor([[[0.25, 0.75], [1.0, 0.0]]])
    assert accept_probability(q, p).tolist() == [[[0.5, 1.0], [1.0, 0.0]]]
    assert residual_law(q, p).tolist() == [[[0.0, 1.0], [0.0, 0.0]]]


def test_laws_over_different_tokens_are_refused() -> None:
    for function in (accept_probability, residual_law):
        with pytest.raises(ValueError, match=r"\(2,\).*\(3,\)"):
            function(torch.ones(2), torch.ones(3))


@given(two_laws(), st.integers(1, 8), st.sampled_from([8, 16]))
def test_a_sparse_law_is_a_law_and_drawing_from_it_is_exact(
    laws: tuple[Tensor, Tensor], k: int, bits: int
) -> None:
    q, p = laws
    sparse = sparse_law(q, k, bits)
    assert int(sparse.weights.sum()) == 2**bits - 1
    assert int(sparse.weights.min()) >= 0
    q_hat = sparse.dense(len(q))
    assert not bool(q_hat[q == 0].any())
    torch.testing.assert_close(output_law(q_hat, q_hat, p), p, atol=1e-12, rtol=0)
    if k >= len(q):
        assert float((q_hat - q).abs().max()) <= 1 / (2**bits - 1)


def test_drawing_from_q_and_verifying_with_its_truncation_is_biased() -> None:
    # q's third token is cut off, but still drafted: it is then always refused, and p's share of it never paid back.
    q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    p = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    q_hat = sparse_law(q, 2, 16).dense(3)
    biased = output_law(q, q_hat, p)
    assert float((biased - p).abs().sum() / 2) > 0.05
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(200):
        q, p = (torch.from_numpy(rng.dirichlet(np.full(8, 0.5))) for _ in range(2))
        q_hat = sparse_law(q, 3, 8).dense(8)
        errors.append(float((output_law(q, q_hat, p) - p).abs().sum() / 2))
        torch.testing.assert_close(output_law(q_hat, q_hat, p), p, atol=1e-12, rtol=0)
    assert np.mean(errors) > 0.01
