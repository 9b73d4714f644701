"""A phase of training on a tiny real Llama."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from fedtandem.errors import ModelError, OutOfMemoryFailure
from fedtandem.tuning.phase import Example, PhaseSettings, StepLosses, count_steps, train_phase

SETTINGS = PhaseSettings(learning_rate=1e-2, batch_size=4, warmup_ratio=0.0)
Make = Callable[..., Example]


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_the_same_seed_gives_the_same_bits_even_with_dropout(tiny_lm: Any, make_example: Make) -> None:
    examples = [make_example(i, taught=i % 2 == 0) for i in range(10)]
    runs = []
    for seed in (5, 5, 6):
        lm = tiny_lm(dropout=0.3)
        torch.manual_seed(len(runs))  # whatever was drawn before must not matter
        train_phase(lm, examples, SETTINGS, seed=seed)
        runs.append(lm.weights())
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_the_global_random_state_and_the_mode_are_left_alone(tiny_lm: Any, make_example: Make) -> None:
    lm = tiny_lm(dropout=0.3)
    before = torch.get_rng_state()
    train_phase(lm, [make_example(0)], SETTINGS, seed=5)
    assert torch.equal(before, torch.get_rng_state())
    assert not lm.model.training
    assert all(parameter.grad is None for parameter in lm.model.parameters())


def test_two_phases_straight_equal_save_reload_and_continue(
    tiny_lm: Any, make_example: Make, tmp_path: Path
) -> None:
    examples = [make_example(i, taught=True) for i in range(9)]
    settings = replace(SETTINGS, warmup_ratio=0.1)
    straight = tiny_lm()
    first = train_phase(straight, examples, settings, progress_span=(0, 0.5), seed=1)
    middle = straight.weights()
    second = train_phase(
        straight, examples, settings, optimizer_state=first.optimizer_state, progress_span=(0.5, 1), seed=2
    )

    save_file(first.optimizer_state, tmp_path / "optimizer.safetensors")
    save_file(middle, tmp_path / "weights.safetensors")
    resumed = tiny_lm(seed=99)
    resumed.model.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    again = train_phase(
        resumed,
        examples,
        settings,
        optimizer_state=load_file(tmp_path / "optimizer.safetensors"),
        progress_span=(0.5, 1),
        seed=2,
    )
    assert same(straight.weights(), resumed.weights())
    assert same(second.optimizer_state, again.optimizer_state)
    # And the moments do matter: without them the second phase ends elsewhere.
    fresh = tiny_lm()
    fresh.model.load_state_dict(middle)
    train_phase(fresh, examples, settings, progress_span=(0.5, 1), seed=2)
    assert not same(straight.weights(), fresh.weights())


@pytest.mark.parametrize("taught", [False, True])
@pytest.mark.parametrize("untaught", ["labels", "paper"])
def test_accumulated_parts_equal_the_whole_batch(
    tiny_lm: Any, make_example: Make, taught: bool, untaught: Any
) -> None:
    examples = [make_example(i, taught=taught and i % 3 != 0, labelled=i % 5 != 1) for i in range(12)]
    results = []
    for batch_size, accumulation in ((6, 1), (2, 3), (1, 6)):
        lm = tiny_lm()
        settings = replace(
            SETTINGS, batch_size=batch_size, gradient_accumulation_steps=accumulation, untaught=untaught
        )
        results.append((lm, train_phase(lm, examples, settings, seed=3)))
    whole, reference = results[0]
    for lm, report in results[1:]:
        assert report.steps == reference.steps == 2
        assert report.loss_last == pytest.approx(reference.loss_last, abs=1e-5)
        assert report.hard == pytest.approx(reference.hard, abs=1e-5)
        assert report.soft == pytest.approx(reference.soft, abs=1e-5)
        for name, value in whole.weights().items():
            assert torch.allclose(value, lm.weights()[name], atol=1e-5), name


def test_a_hard_weight_of_one_is_plain_fine_tuning(tiny_lm: Any, make_example: Make) -> None:
    taught = [make_example(i, taught=True) for i in range(8)]
    plain = [Example(example.encoded) for example in taught]
    with_teacher, without = tiny_lm(), tiny_lm()
    train_phase(with_teacher, taught, replace(SETTINGS, hard_weight=1.0), seed=0)
    train_phase(without, plain, replace(SETTINGS, hard_weight=0.1), seed=0)
    for name, value in without.weights().items():
        assert torch.allclose(value, with_teacher.weights()[name], atol=1e-6), name


def test_one_update_is_torchs_own_adamw_on_torchs_own_cross_entropy(tiny_lm: Any, make_example: Make) -> None:
    ours, theirs = tiny_lm(), tiny_lm()
    text = make_example(1)
    settings = replace(SETTINGS, max_grad_norm=0.5)
    report = train_phase(ours, [text], settings)

    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in theirs.model.parameters() if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in theirs.model.parameters() if p.dim() == 1], "weight_decay": 0.0},
        ],
        lr=1e-2,
        betas=(0.9, 0.95),
    )
    ids = torch.from_numpy(text.encoded.input_ids.astype(np.int64))[None]
    logits = theirs.model(input_ids=ids).logits[0, text.encoded.positions]
    loss = F.cross_entropy(logits, torch.from_numpy(text.encoded.targets.astype(np.int64)))
    loss.backward()
    torch.nn.utils.clip_grad_norm_(theirs.model.parameters(), 0.5)
    optimizer.step()
    assert report.loss_first == pytest.approx(loss.item(), abs=1e-5)
    for name, value in theirs.weights().items():
        assert torch.allclose(value, ours.weights()[name], atol=1e-6), name


def test_training_learns_its_examples_and_its_teacher(tiny_lm: Any, make_example: Make) -> None:
    settings = replace(SETTINGS, num_train_epochs=30, max_grad_norm=0.0)
    labels = train_phase(tiny_lm(), [make_example(i) for i in range(4)], settings)
    assert labels.loss_first is not None
    assert labels.loss_last is not None
    assert labels.loss_last < 0.5 * labels.loss_first
    # With the teacher alone, the student comes close to it: 0 is reached by a copy only.
    copy = replace(settings, hard_weight=0.0, loss="kl", lr_scheduler_type="constant", num_train_epochs=60)
    taught = train_phase(tiny_lm(), [make_example(i, taught=True) for i in range(4)], copy)
    assert taught.loss_first is not None
    assert taught.loss_last is not None
    assert 0 <= taught.loss_last < 0.2 * taught.loss_first


def test_the_report_adds_up(tiny_lm: Any, make_example: Make) -> None:
    lm, examples = tiny_lm(), [make_example(i, taught=i < 4, labelled=i != 0) for i in range(6)]
    before, seen = lm.weights(), []

    def on_step(step: int, steps: int, losses: StepLosses) -> None:
        seen.append((step, steps, losses))

    settings = replace(SETTINGS, num_train_epochs=2)
    report = train_phase(lm, examples, settings, on_step=on_step, gradient_share_every=1)
    assert [(step, steps) for step, steps, _ in seen] == [(i, 4) for i in (1, 2, 3, 4)]
    assert (report.steps, report.loss_first, report.loss_last) == (4, seen[0][2].total, seen[-1][2].total)
    assert report.n_labels == 2 * sum(example.counts.labels for example in examples)
    assert report.n_taught == 2 * sum(example.counts.taught for example in examples)
    moved = sum(float((value - before[name]).square().sum()) for name, value in lm.weights().items())
    assert report.delta_norm == pytest.approx(moved**0.5, rel=1e-5)
    assert report.delta_norm > 0
    assert report.kd_gradient_share is not None
    assert report.kd_gradient_share > 0
    assert report.cpu_seconds > 0
    assert count_steps(6, settings) == 4


def test_a_learning_rate_of_zero_is_a_dead_adapter(tiny_lm: Any, make_example: Make) -> None:
    report = train_phase(tiny_lm(), [make_example(0)], replace(SETTINGS, learning_rate=0.0))
    assert report.delta_norm == 0


def test_without_a_teacher_there_is_no_share_to_report(tiny_lm: Any, make_example: Make) -> None:
    report = train_phase(tiny_lm(), [make_example(0)], SETTINGS)
    assert (report.kd_gradient_share, report.soft, report.n_taught) == (None, 0.0, 0)


def test_without_examples_nothing_happens(tiny_lm: Any) -> None:
    lm = tiny_lm()
    before = lm.weights()
    report = train_phase(lm, [], SETTINGS, replay_fraction=0.5)
    assert (report.steps, report.loss_first, report.delta_norm) == (0, None, 0)
    assert same(before, lm.weights())
    assert count_steps(0, SETTINGS) == 0


def test_replay_keeps_what_was_known(tiny_lm: Any, make_example: Make) -> None:
    """Trained on A, then on B: with A replayed its loss stays lower than without."""
    old, new = [make_example(i) for i in range(4)], [make_example(100 + i) for i in range(12)]
    learn = replace(SETTINGS, num_train_epochs=20)
    known = tiny_lm()
    train_phase(known, old, learn)
    losses = {}
    for fraction in (0.0, 0.5):
        lm = tiny_lm()
        lm.model.load_state_dict(known.model.state_dict())
        train_phase(lm, new, replace(SETTINGS, num_train_epochs=4), replay=old, replay_fraction=fraction)
        losses[fraction] = train_phase(lm, old, replace(SETTINGS, learning_rate=0.0)).hard
    assert losses[0.5] < losses[0.0]


def test_frozen_weights_stay_and_a_frozen_model_is_refused(tiny_lm: Any, make_example: Make) -> None:
    lm = tiny_lm()
    lm.model.model.requires_grad_(False)
    before = lm.weights()
    report = train_phase(lm, [make_example(0)], SETTINGS)
    changed = {name for name, value in lm.weights().items() if not torch.equal(value, before[name])}
    assert changed == {"lm_head.weight"}
    assert set(report.optimizer_state) == {f"{m}/lm_head.weight" for m in ("exp_avg", "exp_avg_sq", "step")}
    lm.model.requires_grad_(False)
    with pytest.raises(ModelError, match="no trainable weights"):
        train_phase(lm, [make_example(0)], SETTINGS)


def test_a_loss_that_is_not_a_number_stops_the_phase(tiny_lm: Any, make_example: Make) -> None:
    lm = tiny_lm()
    with torch.no_grad():
        lm.model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(ModelError, match="loss became nan at update 1 of 1"):
        train_phase(lm, [make_example(0)], SETTINGS)


def test_running_out_of_memory_says_what_to_lower(tiny_lm: Any, make_example: Make) -> None:
    lm = tiny_lm()

    def full(batch: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    lm.logits_at = full
    with pytest.raises(OutOfMemoryFailure, match="per_device_train_batch_size = 4"):
        train_phase(lm, [make_example(0)], SETTINGS)
    assert not lm.model.training


def test_numbers_out_of_range_are_refused(tiny_lm: Any, make_example: Make) -> None:
    with pytest.raises(ValueError, match=r"replay_fraction is 1\.0"):
        train_phase(tiny_lm(), [make_example(0)], SETTINGS, replay_fraction=1.0)
    with pytest.raises(ValueError, match="progress_span"):
        train_phase(tiny_lm(), [make_example(0)], SETTINGS, progress_span=(0.5, 0.2))
