"""The losses against a dense reading of their formulas, values and gradients."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedtandem.distillation import fused
from fedtandem.distillation.kd import (
    IGNORE_INDEX,
    LossCounts,
    SparseTargets,
    combined_loss,
    count_terms,
    renormalised_kd_loss,
    sparse_kd_loss,
)

V = 23
TEMPERATURES = [1.0, 0.7, 2.0, 3.0]
seeds = st.integers(0, 2**31)


def teacher_of(
    rows: int,
    seed: int,
    kept: int = 5,
    *,
    vocabulary: int = V,
    taught: float = 0.7,
    dtype: torch.dtype = torch.float32,
) -> SparseTargets:
    """The top `kept` of random distributions, ragged: every third row keeps one less, every seventh nothing."""
    generator = torch.Generator().manual_seed(seed)
    log_p = (2 * torch.randn(rows, vocabulary, generator=generator, dtype=dtype)).log_softmax(-1)
    top, ids = log_p.topk(kept, dim=-1)
    ids, order = ids.sort(dim=-1)
    top = top.gather(-1, order)
    if kept > 1:
        top[::3, -1] = -torch.inf
        ids[::3, -1] = 0
    top[6::7] = -torch.inf
    ids[6::7] = 0
    tail = torch.log1p(-top.exp().sum(-1).clamp_max(1))
    is_taught = (torch.rand(rows, generator=generator) < taught) & ~top.isneginf().all(-1)
    return SparseTargets(ids, top, tail, is_taught)


def student_of(rows: int, seed: int, *, vocabulary: int = V, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1)
    return (3 * torch.randn(rows, vocabulary, generator=generator, dtype=dtype)).requires_grad_()


def labels_of(rows: int, seed: int, labelled: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 2)
    labels = torch.randint(V, (rows,), generator=generator)
    return labels.where(torch.rand(rows, generator=generator) < labelled, IGNORE_INDEX)


def dense_soft_rows(logits: Tensor, targets: SparseTargets, temperature: float) -> Tensor:
    """ℓ of each row, written with dense tensors and left to autograd; (P,)."""
    p = targets.log_probs.exp() ** (1 / temperature)
    r = targets.tail_log_prob.exp() ** (1 / temperature)
    mass = p.sum(-1) + r
    p, r = p / mass[:, None], r / mass
    log_q = F.log_softmax(logits / temperature, dim=-1)
    is_kept = torch.zeros(logits.shape, dtype=torch.bool)
    dense_p = torch.zeros_like(log_q)
    for row in range(len(p)):
        real = ~targets.log_probs[row].isneginf()
        is_kept[row, targets.token_ids[row][real]] = True
        dense_p[row, targets.token_ids[row][real]] = p[row][real]
    q_tail = (log_q.exp() * ~is_kept).sum(-1)
    tail = torch.where(r > 0, r * q_tail.clamp_min(1e-7).log(), 0.0)
    return -(dense_p * log_q).sum(-1) - tail


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    (result,) = torch.autograd.grad(loss, logits, retain_graph=True)
    return result


def assert_same(ours: Tensor, reference: Tensor, logits: Tensor, tolerance: float = 1e-5) -> None:
    """Equal in value and in gradient."""
    assert torch.allclose(ours, reference, atol=tolerance, rtol=tolerance)
    assert torch.allclose(gradient(ours, logits), gradient(reference, logits), atol=tolerance, rtol=1e-4)


@pytest.fixture(params=["whole", "row by row"])
def chunking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both in one piece and cut into single rows."""
    if request.param == "row by row":
        monkeypatch.setattr(fused, "CHUNK_ELEMENTS", {"cpu": 1})


@pytest.mark.usefixtures("chunking")
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_sparse_loss_is_its_formula(temperature: float) -> None:
    for seed in range(20):
        targets, logits = teacher_of(15, seed), student_of(15, seed)
        rows = dense_soft_rows(logits, targets, temperature)
        reference = temperature**2 * (rows * targets.taught).sum() / max(1, int(targets.taught.sum()))
        assert_same(sparse_kd_loss(logits, targets, targets.taught, temperature), reference, logits)


@pytest.mark.usefixtures("chunking")
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("untaught", ["labels", "paper"])
@pytest.mark.parametrize("labelled", [1.0, 0.6, 0.0])
def test_the_combined_loss_is_its_formula(temperature: float, untaught: Any, labelled: float) -> None:
    for seed, hard_weight in enumerate([0.0, 0.1, 0.5, 0.9, 1.0]):
        targets, logits, labels = teacher_of(15, seed), student_of(15, seed), labels_of(15, seed, labelled)
        soft = temperature**2 * dense_soft_rows(logits, targets, temperature)
        hard = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="none")
        has_label, taught = labels != IGNORE_INDEX, targets.taught
        if untaught == "paper":
            reference = hard_weight * hard.sum() / has_label.sum().clamp_min(1)
            reference = reference + (1 - hard_weight) * (soft * taught).sum() / taught.sum().clamp_min(1)
        else:
            weight = torch.where(taught, hard_weight, 1.0) * has_label
            active = (has_label | taught).sum().clamp_min(1)
            reference = (weight * hard + (1 - weight) * soft * taught).sum() / active
        parts = combined_loss(
            logits, labels, targets, hard_weight=hard_weight, temperature=temperature, untaught=untaught
        )
        assert_same(parts.total, reference, logits)
        mean_hard = float(hard.detach().sum() / has_label.sum().clamp_min(1))
        mean_soft = float((soft.detach() * taught).sum() / taught.sum().clamp_min(1))
        assert parts.hard == pytest.approx(mean_hard, rel=1e-5, abs=1e-5)
        assert parts.soft == pytest.approx(mean_soft, rel=1e-5, abs=1e-5)
        assert (parts.n_labels, parts.n_taught) == (int(has_label.sum()), int(taught.sum()))


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_gradients_agree_with_finite_differences(temperature: float) -> None:
    targets = teacher_of(4, 3, dtype=torch.float64, taught=1.0)
    logits, labels = student_of(4, 3, dtype=torch.float64), labels_of(4, 3)

    def total(z: Tensor) -> Tensor:
        return combined_loss(
            z,
            labels,
            targets,
            hard_weight=0.3,
            temperature=temperature,
            label_smoothing=0.2,
            untaught="labels",
        ).total

    assert torch.autograd.gradcheck(total, (logits,))
    assert torch.autograd.gradcheck(lambda z: sparse_kd_loss(z, targets, None, temperature), (logits,))


@given(seed=seeds, temperature=st.sampled_from(TEMPERATURES))
def test_keeping_the_whole_vocabulary_is_the_dense_loss(seed: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    log_p = torch.randn(6, V, generator=generator).log_softmax(-1)
    everything = SparseTargets(
        torch.arange(V).expand(6, V), log_p, torch.full((6,), -torch.inf), torch.ones(6, dtype=torch.bool)
    )
    logits = student_of(6, seed)
    log_q = (logits / temperature).log_softmax(-1)
    dense = -((log_p / temperature).softmax(-1) * log_q).sum(-1).mean() * temperature**2
    assert_same(sparse_kd_loss(logits, everything, None, temperature), dense, logits)


@given(seed=seeds, temperature=st.sampled_from(TEMPERATURES))
def test_masking_a_position_equals_leaving_it_out(seed: int, temperature: float) -> None:
    targets, logits = teacher_of(9, seed, taught=1.0), student_of(9, seed)
    mask = torch.rand(9, generator=torch.Generator().manual_seed(seed)) < 0.5
    masked = sparse_kd_loss(logits, targets, mask, temperature)
    rest = SparseTargets(*(value[mask] for value in vars(targets).values()))
    left_out = sparse_kd_loss(logits[mask], rest, torch.ones(int(mask.sum())), temperature)
    assert_same(masked, left_out, logits)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_an_empty_mask_gives_zero_and_a_zero_gradient(temperature: float) -> None:
    targets, logits = teacher_of(5, 0), student_of(5, 0)
    loss = sparse_kd_loss(logits, targets, torch.zeros(5), temperature)
    assert loss.item() == 0
    assert not gradient(loss, logits).any()


def test_no_rows_at_all_is_zero_too() -> None:
    logits = torch.empty(0, V, requires_grad=True)
    loss = sparse_kd_loss(logits, teacher_of(0, 0), None, 1.0)
    assert loss.item() == 0
    assert gradient(loss, logits).shape == (0, V)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("untaught", ["labels", "paper"])
def test_a_batch_without_taught_positions_is_trained_by_its_labels(untaught: Any, temperature: float) -> None:
    targets, logits, labels = teacher_of(5, 0, taught=0.0), student_of(5, 0), labels_of(5, 0)
    parts = combined_loss(
        logits, labels, targets, hard_weight=0.9, untaught=untaught, temperature=temperature
    )
    assert parts.soft == 0
    weight = 0.9 if untaught == "paper" else 1.0
    assert_same(parts.total, weight * F.cross_entropy(logits, labels), logits)


@pytest.mark.parametrize("sure", [10.0, 100.0, 1000.0])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_everything_stays_finite_when_the_students_tail_vanishes(sure: float, temperature: float) -> None:
    """q_tail -> 0 with mass in the teacher's tail, and r = 0 with mass in the student's."""
    logits = torch.zeros(2, V)
    logits[:, 3] = sure
    logits.requires_grad_()
    targets = SparseTargets(
        torch.tensor([[3], [7]]),
        torch.tensor([[0.5], [1.0]]).log(),
        torch.tensor([0.5, 0.0]).log(),
        torch.ones(2, dtype=torch.bool),
    )
    loss = sparse_kd_loss(logits, targets, None, temperature)
    assert loss.isfinite()
    assert gradient(loss, logits).isfinite().all()


def test_on_the_floor_the_tail_has_no_slope() -> None:
    logits = torch.zeros(1, V, dtype=torch.float64)
    logits[:, 3] = 60.0
    logits.requires_grad_()
    half = torch.tensor([0.5], dtype=torch.float64).log()
    targets = SparseTargets(torch.tensor([[3]]), half[None], half, torch.tensor([True]))
    assert_same(sparse_kd_loss(logits, targets), dense_soft_rows(logits, targets, 1.0).mean(), logits)
    assert gradient(sparse_kd_loss(logits, targets), logits).abs().max() < 1e-20


def test_a_teacher_equal_to_the_student_pulls_nowhere() -> None:
    logits = student_of(8, 5)
    log_p = logits.detach().log_softmax(-1)
    top, ids = log_p.topk(4)
    same = SparseTargets(ids, top, torch.log1p(-top.exp().sum(-1)), torch.ones(8, dtype=torch.bool))
    assert gradient(sparse_kd_loss(logits, same), logits).abs().max() < 1e-6
    assert sparse_kd_loss(logits, same, loss="kl").item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_kl_differs_from_cross_entropy_by_the_teachers_entropy_only(temperature: float) -> None:
    targets, logits, labels = teacher_of(9, 1), student_of(9, 1), labels_of(9, 1)
    ce = combined_loss(logits, labels, targets, hard_weight=0.5, temperature=temperature)
    kl = combined_loss(logits, labels, targets, hard_weight=0.5, temperature=temperature, loss="kl")
    assert torch.allclose(gradient(ce.total, logits), gradient(kl.total, logits))
    assert 0 <= kl.soft < ce.soft
    alone = sparse_kd_loss(logits, targets, None, temperature, loss="kl")
    assert alone.item() == pytest.approx(kl.soft, abs=1e-4)


def test_mined_renormalises_what_was_kept() -> None:
    targets, logits, labels = teacher_of(9, 2), student_of(9, 2), labels_of(9, 2)
    p = targets.log_probs.softmax(-1).nan_to_num(0)
    log_q = logits.log_softmax(-1).gather(-1, targets.token_ids)
    rows = -(p * log_q).sum(-1)
    soft = (rows * targets.taught).sum() / targets.taught.sum()
    assert_same(renormalised_kd_loss(logits, targets), soft, logits)
    whole = combined_loss(logits, labels, targets, hard_weight=0.9, untaught="paper", loss="mined")
    assert_same(whole.total, 0.9 * F.cross_entropy(logits, labels) + 0.1 * soft, logits)
    with pytest.raises(ValueError, match="temperature 1, not 2"):
        combined_loss(logits, labels, targets, hard_weight=0.9, temperature=2.0, loss="mined")


@given(seed=seeds, untaught=st.sampled_from(["labels", "paper"]), temperature=st.sampled_from(TEMPERATURES))
def test_a_hard_weight_of_one_is_plain_cross_entropy(seed: int, untaught: Any, temperature: float) -> None:
    targets, logits, labels = teacher_of(6, seed), student_of(6, seed), labels_of(6, seed)
    parts = combined_loss(
        logits, labels, targets, hard_weight=1.0, untaught=untaught, temperature=temperature
    )
    assert_same(parts.total, F.cross_entropy(logits, labels), logits)


@given(seed=seeds, smoothing=st.floats(0, 1), labelled=st.sampled_from([1.0, 0.5]))
def test_without_a_teacher_it_is_torchs_cross_entropy(seed: int, smoothing: float, labelled: float) -> None:
    logits, labels = student_of(6, seed), labels_of(6, seed, labelled)
    labels[0] = 1
    parts = combined_loss(logits, labels, None, hard_weight=0.1, label_smoothing=smoothing)
    reference = F.cross_entropy(logits, labels, label_smoothing=smoothing, ignore_index=IGNORE_INDEX)
    assert_same(parts.total, reference, logits)
    assert (parts.soft, parts.n_taught) == (0, 0)


@given(seed=seeds, cut=st.integers(0, 12), untaught=st.sampled_from(["labels", "paper"]))
def test_a_batch_in_two_parts_sums_to_the_whole(seed: int, cut: int, untaught: Any) -> None:
    targets, logits, labels = teacher_of(12, seed), student_of(12, seed), labels_of(12, seed, 0.7)
    whole = combined_loss(logits, labels, targets, hard_weight=0.4, untaught=untaught)
    counts = count_terms(labels, targets)
    parts = [
        combined_loss(
            logits[part],
            labels[part],
            SparseTargets(*(value[part] for value in vars(targets).values())),
            hard_weight=0.4,
            untaught=untaught,
            counts=counts,
        )
        for part in (slice(0, cut), slice(cut, 12))
    ]
    assert_same(parts[0].total + parts[1].total, whole.total, logits)
    assert sum(part.hard for part in parts) == pytest.approx(whole.hard, abs=1e-5)
    assert sum(part.soft for part in parts) == pytest.approx(whole.soft, abs=1e-5)


@pytest.mark.usefixtures("chunking")
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_measured_gradient_norms_are_those_of_the_two_terms(temperature: float, smoothing: float) -> None:
    targets, logits, labels = teacher_of(12, 4), student_of(12, 4), labels_of(12, 4, 0.8)
    parts = combined_loss(
        logits,
        labels,
        targets,
        hard_weight=0.3,
        temperature=temperature,
        label_smoothing=smoothing,
        with_gradient_norms=True,
    )
    active = count_terms(labels, targets).active
    has_label, taught = labels != IGNORE_INDEX, targets.taught
    weight = torch.where(taught, 0.3, 1.0) * has_label
    hard = F.cross_entropy(
        logits, labels, ignore_index=IGNORE_INDEX, reduction="none", label_smoothing=smoothing
    )
    soft = temperature**2 * dense_soft_rows(logits, targets, temperature)
    expected_hard = gradient((weight * hard).sum() / active, logits).norm()
    expected_soft = gradient(((1 - weight) * taught * soft).sum() / active, logits).norm()
    assert parts.hard_gradient == pytest.approx(float(expected_hard), rel=1e-4)
    assert parts.soft_gradient == pytest.approx(float(expected_soft), rel=1e-4)


def test_a_row_without_text_learns_from_its_teacher_only() -> None:
    targets, logits = teacher_of(6, 8, taught=1.0), student_of(6, 8)
    parts = combined_loss(logits, torch.full((6,), IGNORE_INDEX), targets, hard_weight=0.9)
    assert_same(parts.total, sparse_kd_loss(logits, targets), logits)
    assert (parts.hard, parts.n_labels) == (0, 0)


def test_bfloat16_logits_are_summed_in_float32() -> None:
    targets, labels = teacher_of(9, 1), labels_of(9, 1)
    logits = student_of(9, 1).detach().bfloat16()
    coarse, fine = logits.clone().requires_grad_(), logits.float().requires_grad_()
    ours = combined_loss(coarse, labels, targets, hard_weight=0.5)
    exact = combined_loss(fine, labels, targets, hard_weight=0.5)
    assert ours.total.dtype == torch.float32
    assert ours.total.item() == exact.total.item()
    slope = gradient(ours.total, coarse)
    assert slope.dtype == torch.bfloat16
    assert torch.allclose(slope.float(), gradient(exact.total, fine), atol=1e-3, rtol=1e-2)


def test_a_scaled_loss_scales_its_gradient_and_can_be_taken_twice() -> None:
    targets, logits = teacher_of(5, 0), student_of(5, 0)
    loss = sparse_kd_loss(logits, targets)
    once = gradient(sparse_kd_loss(logits, targets), logits)
    for factor in (1.0, 3.0, 1.0):
        (scaled,) = torch.autograd.grad(loss, logits, torch.tensor(factor), retain_graph=True)
        assert torch.allclose(scaled, factor * once)


def test_without_gradients_the_value_is_the_same() -> None:
    targets, logits = teacher_of(5, 0), student_of(5, 0)
    with torch.no_grad():
        assert sparse_kd_loss(logits, targets).item() == sparse_kd_loss(logits, targets).item()
    assert sparse_kd_loss(logits.detach(), targets).item() == sparse_kd_loss(logits, targets).item()


def test_foreign_vocabularies_and_shapes_are_refused() -> None:
    targets, logits = teacher_of(5, 0), student_of(5, 0)
    beyond = replace(targets, token_ids=targets.token_ids + V)
    with pytest.raises(ValueError, match=r"token id \d+, but the student's vocabulary ends at 22"):
        sparse_kd_loss(logits, beyond)
    with pytest.raises(ValueError, match="one target per row"):
        sparse_kd_loss(logits[:3], targets)
    with pytest.raises(ValueError, match=r"mask has shape \(2,\)"):
        sparse_kd_loss(logits, targets, torch.ones(2))
    with pytest.raises(ValueError, match="temperature is 0"):
        sparse_kd_loss(logits, targets, None, 0.0)
    with pytest.raises(ValueError, match="hard_weight is 2"):
        combined_loss(logits, labels_of(5, 0), targets, hard_weight=2.0)
    with pytest.raises(ValueError, match="labels have shape"):
        combined_loss(logits, labels_of(4, 0), targets, hard_weight=0.5)


def test_counts_add_up() -> None:
    assert LossCounts(1, 2, 3) + LossCounts(4, 5, 6) == LossCounts(5, 7, 9)
