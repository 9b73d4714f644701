"""DP-SGD: clipping against a loop by hand, noise of the right size, opacus' own figure, budgets that hold."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from opacus.accountants import RDPAccountant, create_accountant
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from fedtandem.distillation.kd import IGNORE_INDEX
from fedtandem.errors import PrivacyBudgetError
from fedtandem.models.language_model import Batch
from fedtandem.tuning.accountant import Spending, affordable_steps, epsilon_of, noise_for
from fedtandem.tuning.batches import Update, to_part
from fedtandem.tuning.dp_sgd import DPReport, DPSettings, DPSteps, PrivateTraining, grant
from fedtandem.tuning.per_sample import PerSample
from fedtandem.tuning.phase import Example, PhaseSettings, train_phase
from fedtandem.tuning.secret_noise import SecretNoise

KEY = bytes(range(32))
SHAPE = {
    "vocab_size": 29,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


class Memory:
    """A ledger in memory: the three lines a file's are about."""

    def __init__(self) -> None:
        self.lines: list[Spending] = []

    def read(self) -> list[Spending]:
        return list(self.lines)

    def add(self, spending: Spending) -> None:
        self.lines += [spending] if spending not in self.lines else []


class Padding:
    pad_id = 0


class Adapted:
    """A small model of a family with a LoRA adapter that already does something."""

    def __init__(self, family: str) -> None:
        torch.manual_seed(1)
        model: Any = {
            "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
            "qwen2": lambda: Qwen2ForCausalLM(
                Qwen2Config(**SHAPE, num_key_value_heads=1, tie_word_embeddings=True)
            ),
            "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SHAPE)),
        }[family]()
        self.model: Any = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules="all-linear"))
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.2)
        self.tokenizer, self.device = Padding(), torch.device("cpu")

    def logits_at(self, batch: Batch) -> Tensor:
        logits: Tensor = self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        return logits[batch.row, batch.col]


def alone(lm: Any, example: Example) -> list[Tensor]:
    """One sample's gradient, the long way."""
    lm.model.zero_grad()
    part = to_part([example], pad_id=0, device=torch.device("cpu"), distils=False)
    F.cross_entropy(lm.logits_at(part.inputs), part.labels, ignore_index=IGNORE_INDEX).backward()
    found = [p.grad.clone() for p in lm.model.parameters() if p.requires_grad]
    lm.model.zero_grad()
    return found


def clipped_by_hand(gradients: list[list[Tensor]], norm: float) -> list[Tensor]:
    total = [torch.zeros_like(g) for g in gradients[0]]
    for gradient in gradients:
        length = math.sqrt(sum(float(g.square().sum()) for g in gradient))
        total = [t + g * min(1.0, norm / (length + 1e-6)) for t, g in zip(total, gradient, strict=True)]
    return total


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt_neox"])
def test_clipping_of_an_adapter_by_hooks_is_that_of_a_loop(
    family: str, make_example: Callable[..., Example]
) -> None:
    lm, batch = Adapted(family), [make_example(i) for i in range(6)]
    per_sample = PerSample(lm, batch)
    assert per_sample.uses_hooks
    by_loop = [alone(lm, example) for example in batch]
    lengths = [math.sqrt(sum(float(g.square().sum()) for g in one)) for one in by_loop]
    norm = float(np.median(lengths))  # some are cut, some are not
    got, nll, n_labels = per_sample.clipped_sum(batch, norm)
    for ours, theirs in zip(got, clipped_by_hand(by_loop, norm), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert n_labels == sum(example.counts.labels for example in batch)
    assert nll > 0


def test_tied_weights_are_not_left_to_hooks(tiny_lm: Any, make_example: Callable[..., Example]) -> None:
    lm, batch = tiny_lm(), [make_example(i) for i in range(4)]  # all weights: embeddings and norms, too
    per_sample = PerSample(lm, batch)
    assert not per_sample.uses_hooks
    got, _, _ = per_sample.clipped_sum(batch, 0.5)
    for ours, theirs in zip(got, clipped_by_hand([alone(lm, e) for e in batch], 0.5), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_no_sample_moves_the_sum_by_more_than_the_norm(make_example: Callable[..., Example]) -> None:
    lm, batch = Adapted("llama"), [make_example(i) for i in range(5)]
    per_sample = PerSample(lm, batch)
    whole = per_sample.clipped_sum(batch, 0.1)[0]
    for left_out in range(5):
        rest = per_sample.clipped_sum(batch[:left_out] + batch[left_out + 1 :], 0.1)[0]
        moved = math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(whole, rest, strict=True)))
        assert moved <= 0.1 + 1e-5


def report(**changes: Any) -> DPReport:
    plain = DPReport(0.0, 0.0, 1e-5, 0.0, math.inf, 1.0, 1, 1, None)
    return replace(plain, **changes)


def test_without_noise_and_without_a_bound_it_is_plain_sgd(make_example: Callable[..., Example]) -> None:
    lm, batch = Adapted("llama"), [make_example(i) for i in range(4)]
    DPSteps(report(), SecretNoise(KEY, "x")).set_gradients(lm, batch, Update((0, 1, 2, 3), ()), 4)
    got = [p.grad.clone() for p in lm.model.parameters() if p.requires_grad]
    mean = [torch.stack(g).mean(dim=0) for g in zip(*(alone(lm, e) for e in batch), strict=True)]
    for ours, theirs in zip(got, mean, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_the_noise_is_sigma_times_the_norm_over_the_expected_batch(
    make_example: Callable[..., Example],
) -> None:
    """An update that drew nobody is noise alone: its deviation is σ C / (q N)."""
    lm, examples = Adapted("llama"), [make_example(i) for i in range(8)]
    steps = DPSteps(report(noise_multiplier=3.0, max_grad_norm=0.5, sample_rate=0.5), SecretNoise(KEY, "n"))
    values = []
    for _ in range(20):
        steps.set_gradients(lm, examples, Update((), ()), 4)
        values += [p.grad.flatten().clone() for p in lm.model.parameters() if p.requires_grad]
    drawn = torch.cat(values)
    expected = 3.0 * 0.5 / (0.5 * 8)
    assert abs(float(drawn.std()) / expected - 1) < 4 / math.sqrt(2 * len(drawn))
    assert abs(float(drawn.mean())) < 4 * expected / math.sqrt(len(drawn))


def test_samples_are_drawn_as_the_accountant_assumes() -> None:
    """Poisson: each sample by itself with probability q; sizes vary as a binomial's and pairs are independent."""
    steps = DPSteps(report(sample_rate=0.2, steps=4000), SecretNoise(KEY, "p"))
    drawn = np.zeros((4000, 30), bool)
    for at, update in enumerate(steps.plan(30)):
        drawn[at, list(update.own)] = True
    assert np.abs(drawn.mean(axis=0) - 0.2).max() < 5 * math.sqrt(0.16 / 4000)
    sizes = drawn.sum(axis=1)
    assert abs(sizes.var() / (30 * 0.16) - 1) < 0.15
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]) < 0.08


def test_noise_belongs_to_its_key_and_label() -> None:
    one = SecretNoise(KEY, "a").gaussian((1000,))
    assert torch.equal(one, SecretNoise(KEY, "a").gaussian((1000,)))
    for other in (SecretNoise(KEY, "b"), SecretNoise(bytes(32), "a")):
        assert abs(float(torch.corrcoef(torch.stack([one, other.gaussian((1000,))]))[0, 1])) < 0.15
    assert abs(float(one.std()) - 1) < 0.1
    with pytest.raises(ValueError, match="32"):
        SecretNoise(b"short", "a")


def test_epsilon_is_opacus_own() -> None:
    theirs = RDPAccountant()
    for sigma, rate, steps in ((1.1, 0.05, 70), (0.8, 0.1, 30)):
        for _ in range(steps):
            theirs.step(noise_multiplier=sigma, sample_rate=rate)
    ours = [Spending("a", 1.1, 0.05, 70), Spending("b", 0.8, 0.1, 30)]
    assert epsilon_of(ours, 1e-5) == pytest.approx(theirs.get_epsilon(1e-5), rel=1e-12)
    tight = create_accountant("prv")
    tight.history = [(1.1, 0.05, 70)]
    assert epsilon_of(ours[:1], 1e-5, "prv") == tight.get_epsilon(1e-5) < epsilon_of(ours[:1], 1e-5)
    sigma = noise_for(4.0, 1e-5, 0.05, 100)
    assert 3.99 <= epsilon_of([Spending("a", sigma, 0.05, 100)], 1e-5) <= 4.0
    assert epsilon_of([], 1e-5) == 0
    assert epsilon_of([Spending("a", 0.0, 0.1, 1)], 1e-5) == math.inf


def test_affordable_steps_are_the_most_that_fit() -> None:
    spent = [Spending("a", 1.0, 0.05, 40)]
    planned = Spending("b", 1.0, 0.05, 500)
    steps = affordable_steps(spent, planned, 4.0, 1e-5)
    assert 0 < steps < 500
    assert epsilon_of([*spent, replace(planned, steps=steps)], 1e-5) <= 4.0
    assert epsilon_of([*spent, replace(planned, steps=steps + 1)], 1e-5) > 4.0


def granted(ledger: Memory, what: str, **settings: Any) -> DPSteps | None:
    dp = DPSettings(**{"target_delta": 1e-5, "target_epsilon": 8.0, "noise_multiplier": 1.0, **settings})
    return grant(
        PrivateTraining(dp, ledger, KEY),
        what,
        f"state of {what}",
        n_examples=100,
        update_size=10,
        steps=60,
        phases=3,
    )


def test_a_budget_ends_the_tuning_and_says_what_was_reached() -> None:
    ledger, made = Memory(), []

    def all_rounds() -> None:
        made.extend(granted(ledger, f"a, round {round_number}") for round_number in range(1, 9))

    with pytest.raises(PrivacyBudgetError, match=r"epsilon 7\.9\d+ of 8 at delta 1e-05") as error:
        all_rounds()
    assert error.value.exit_code == 7
    assert [steps.report.steps for steps in made[:1]] == [60]
    assert 0 < made[-1].report.steps < 60  # the last phase went as far as it could
    assert made[-1].report.epsilon == epsilon_of(ledger.lines, 1e-5) <= 8.0
    assert granted(ledger, "a, round 9", on_spent="go_on") is None


def test_a_phase_done_again_costs_nothing_and_has_the_same_noise() -> None:
    """Killed after the grant, resumed: same state, same label, same draws. A phase of another state pays."""
    ledger = Memory()
    first, again = granted(ledger, "a, round 1"), granted(ledger, "a, round 1")
    assert first is not None
    assert again is not None
    assert len(ledger.lines) == 1
    assert first.report == again.report
    assert first.plan(100) == again.plan(100)
    granted(ledger, "a, round 2")
    assert len(ledger.lines) == 2


def test_noise_is_chosen_so_that_the_planned_phases_use_the_budget_up() -> None:
    ledger, reports = Memory(), []
    for round_number in (1, 2, 3):
        steps = granted(ledger, f"a, round {round_number}", noise_multiplier=None)
        assert steps is not None
        reports.append(steps.report)
    assert [r.steps for r in reports] == [60, 60, 60]
    assert 7.98 < reports[-1].epsilon <= 8.0


def test_a_phase_under_dp_is_repeatable_and_tunes(make_example: Callable[..., Example]) -> None:
    examples = [make_example(i) for i in range(24)]
    settings = PhaseSettings(learning_rate=2e-2, batch_size=8, lr_scheduler_type="constant")

    def tuned(sigma: float, key: bytes = KEY) -> tuple[float, Tensor]:
        lm = Adapted("llama")
        dp = DPSteps(
            report(noise_multiplier=sigma, max_grad_norm=1.0, sample_rate=1 / 3, steps=10),
            SecretNoise(key, "t"),
        )
        train_phase(lm, examples, settings, dp=dp)
        nll, n = PerSample(lm, examples).clipped_sum(examples, 1.0)[1:]
        return nll / n, torch.cat([p.detach().flatten() for p in lm.model.parameters() if p.requires_grad])

    before = PerSample(Adapted("llama"), examples).clipped_sum(examples, 1.0)
    loss, weights = tuned(0.5)
    assert loss < before[1] / before[2]
    assert torch.equal(weights, tuned(0.5)[1])
    assert not torch.equal(weights, tuned(0.5, bytes(32))[1])
