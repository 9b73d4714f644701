"""Gradients of a batch that is worked off in parts."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.distillation.kd import IGNORE_INDEX, LossCounts, SparseTargets, count_terms
from fedtandem.distillation.step import BatchPart, LossSettings, accumulate_gradients

ROWS, WIDTH, V = 12, 5, 23


def batch_of(generator: torch.Generator) -> BatchPart[torch.Tensor]:
    """Random features, labels for most rows, a teacher's four best tokens for half of them."""
    top, ids = torch.randn(ROWS, V, generator=generator).log_softmax(-1).topk(4)
    is_taught = torch.rand(ROWS, generator=generator) < 0.5
    labels = torch.randint(V, (ROWS,), generator=generator)
    labels = labels.where(torch.rand(ROWS, generator=generator) < 0.8, IGNORE_INDEX)
    targets = SparseTargets(ids, top, torch.log1p(-top.exp().sum(-1)), is_taught)
    return BatchPart(torch.randn(ROWS, WIDTH, generator=generator), labels, targets)


def part_of(batch: BatchPart[torch.Tensor], rows: slice) -> BatchPart[torch.Tensor]:
    assert batch.targets is not None
    targets = SparseTargets(*(value[rows] for value in vars(batch.targets).values()))
    return BatchPart(batch.inputs[rows], batch.labels[rows], targets)


@given(seed=st.integers(0, 1000), cuts=st.sets(st.integers(0, ROWS), max_size=4))
def test_how_a_batch_is_cut_changes_nothing(seed: int, cuts: set[int]) -> None:
    batch = batch_of(torch.Generator().manual_seed(seed))
    head = torch.nn.Linear(WIDTH, V)
    counts = count_terms(batch.labels, batch.targets)
    gradients, reports = [], []
    for edges in ([0, ROWS], sorted({0, ROWS} | cuts)):
        head.zero_grad()
        parts = (part_of(batch, slice(a, b)) for a, b in itertools.pairwise(edges))
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
