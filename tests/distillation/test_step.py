"""Gradients of a batch that is worked off in parts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.distillation.kd import LossCounts, count_terms
from fedtandem.distillation.step import BatchPart, LossSettings, accumulate_gradients
from tests.distillation.test_kd import V, labels_of, teacher_of

ROWS, WIDTH = 12, 5


def part_of(features: torch.Tensor, labels: torch.Tensor, seed: int, rows: slice) -> BatchPart[torch.Tensor]:
    targets = teacher_of(ROWS, seed)
    cut = type(targets)(*(value[rows] for value in vars(targets).values()))
    return BatchPart(features[rows], labels[rows], cut)


@given(seed=st.integers(0, 1000), cuts=st.sets(st.integers(0, ROWS), max_size=4))
def test_how_a_batch_is_cut_changes_nothing(seed: int, cuts: set[int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    features, labels = torch.randn(ROWS, WIDTH, generator=generator), labels_of(ROWS, seed, 0.8)
    head = torch.nn.Linear(WIDTH, V)
    counts = count_terms(labels, teacher_of(ROWS, seed))
    gradients, reports = [], []
    for edges in ([0, ROWS], sorted({0, ROWS} | cuts)):
        head.zero_grad()
        parts = (part_of(features, labels, seed, slice(a, b)) for a, b in zip(edges, edges[1:], strict=False))
        reports.append(accumulate_gradients(head, parts, LossSettings(), counts, with_gradient_norms=True))
        assert head.weight.grad is not None
        gradients.append(head.weight.grad.clone())
    assert torch.allclose(gradients[0], gradients[1], atol=1e-6)
    for name, value in vars(reports[0]).items():
        assert value == pytest.approx(getattr(reports[1], name), abs=1e-5), name


def test_parts_without_positions_are_passed_over() -> None:
    empty = BatchPart(torch.empty(0, WIDTH), torch.empty(0, dtype=torch.int64), None)
    head = torch.nn.Linear(WIDTH, V)
    losses = accumulate_gradients(head, [empty], LossSettings(), LossCounts(0, 0, 0))
    assert (losses.total, losses.n_labels, losses.hard_gradient) == (0, 0, None)
    assert head.weight.grad is None
