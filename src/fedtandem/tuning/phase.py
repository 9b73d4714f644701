"""One phase of training: a model, its examples, a loss; back come new weights and what happened.

Private tuning, tuning on public labels and distillation are the same loop: a phase distils when some
of its examples carry a teacher's rows.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from fedtandem.distillation.kd import Loss, LossCounts, Untaught
from fedtandem.distillation.step import BatchPart, LossSettings, StepLosses, accumulate_gradients
from fedtandem.errors import ConfigError, ModelError, OutOfMemoryFailure
from fedtandem.models.language_model import Batch
from fedtandem.tuning.batches import Example, plan_updates, replayed_per_batch, to_part, updates_per_epoch
from fedtandem.tuning.distributed import World, join_world, sum_gradients, sum_numbers
from fedtandem.tuning.dp_sgd import DPSteps
from fedtandem.tuning.optimizer_state import export_state, import_state
from fedtandem.tuning.schedule import Schedule, learning_rate_factor

__all__ = ["Example", "OnBatch", "PhaseReport", "PhaseSettings", "StepLosses", "count_steps", "train_phase"]

OnStep = Callable[[int, int, StepLosses], None]
"""Called after every update with its number from 1, the phase's updates, and its losses."""

OnBatch = Callable[[Sequence[int], float], None]
"""Called inside every update, its gradient made, with the places of its own examples and a factor for whatever
gradient the function adds (1 / processes, since the gradients of all processes are summed)."""


class HasPadding(Protocol):
    """The one thing training wants from a tokenizer."""

    @property
    def pad_id(self) -> int: ...


class Tunable(Protocol):
    """A language model as training sees it; `models.LanguageModel` is one."""

    @property
    def model(self) -> Any:
        """A torch module; its parameters that require a gradient are trained."""

    @property
    def tokenizer(self) -> HasPadding: ...

    @property
    def device(self) -> torch.device:
        """Where batches go."""

    def logits_at(self, batch: Batch) -> Tensor:
        """Logits at the batch's predictor positions, cut to the real vocabulary; (P, V)."""


@dataclass(frozen=True)
class PhaseSettings:
    """How a phase trains. Names follow `transformers.TrainingArguments`.

    `batch_size` examples go through the model at a time, per process; an update takes
    batch_size x gradient_accumulation_steps x processes of them. AdamW's weight decay spares vectors (biases, norms).

    Source: FedMKT, arXiv:2406.02224v4, appendix (optimiser); the loss defaults to ours.
    """

    learning_rate: float = 3e-5
    num_train_epochs: float = 1.0
    max_steps: int = -1
    batch_size: int = 4
    gradient_accumulation_steps: int = 1
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    warmup_ratio: float = 0.008
    lr_scheduler_type: Schedule = "cosine"
    hard_weight: float = 0.1
    temperature: float = 1.0
    untaught: Untaught = "labels"
    loss: Loss = "ce"
    label_smoothing: float = 0.0

    @property
    def loss_settings(self) -> LossSettings:
        """The part of the settings that the loss takes."""
        return LossSettings(
            self.hard_weight, self.temperature, self.untaught, self.loss, self.label_smoothing
        )


@dataclass(frozen=True)
class PhaseReport:
    """What a phase did.

    Attributes:
        steps: updates made.
        loss_first, loss_last: total loss of the first and the last update, in nats; None without updates.
        hard: mean cross-entropy on the labels over the phase, in nats; None without labels.
        soft: mean distillation loss over the phase (τ² included), in nats; 0 where nothing was taught.
        kd_gradient_share: ‖gradient of the soft term‖ / ‖gradient of the hard term‖ with respect to the logits, weights
            included, over the measured updates; None where no teacher was given or the labels weigh nothing.
        n_taught, n_labels: positions taught and labelled, every pass counted.
        delta_norm: ‖new weights - old weights‖ of all trainable weights; 0 is a dead adapter.
        optimizer_state: AdamW's moments, to be handed to the next phase of the same kind.
        cpu_seconds: processor time of this process.
    """

    steps: int
    loss_first: float | None
    loss_last: float | None
    hard: float | None
    soft: float
    kd_gradient_share: float | None
    n_taught: int
    n_labels: int
    delta_norm: float
    cpu_seconds: float
    optimizer_state: dict[str, Tensor] = field(repr=False)


def train_phase(
    lm: Tunable,
    examples: Sequence[Example],
    settings: PhaseSettings,
    *,
    replay: Sequence[Example] = (),
    replay_fraction: float = 0.0,
    optimizer_state: Mapping[str, Tensor] | None = None,
    progress_span: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
    on_step: OnStep | None = None,
    gradient_share_every: int = 10,
    on_batch: OnBatch | None = None,
    dp: DPSteps | None = None,
) -> PhaseReport:
    """Train the model's trainable weights on the examples; the model ends in evaluation mode.

    The same arguments give the same bits on a CPU. The global random state is left as it was.

    Args:
        lm: changed in place.
        examples: seen `num_train_epochs` times each.
        settings: how.
        replay: the learner's own data, mixed into every batch against forgetting.
        replay_fraction: its share of every batch, in [0, 1).
        optimizer_state: of the last phase of this kind; None starts AdamW afresh.
        progress_span: the part of the run's learning-rate schedule that this phase covers.
        seed: of the order of the examples and of dropout.
        on_step: progress.
        gradient_share_every: the share of the soft gradient is measured at every n-th update; 0: never.
        on_batch: may add the gradient of a loss of its own to every update.
        dp: updates by DP-SGD on the labels alone; nothing is replayed, and the report's losses are not to be told.

    Raises:
        ConfigError: DP-SGD in more than one process.
        ModelError: nothing to train, foreign optimiser state, or a loss that is not a number.
        OutOfMemoryFailure: the batch does not fit.
        ValueError: replay_fraction or progress_span out of range.
    """
    started = time.process_time()
    _check_ranges(replay_fraction, progress_span)
    device, world = lm.device, join_world(lm.device)
    names = {parameter: name for name, parameter in lm.model.named_parameters() if parameter.requires_grad}
    if not names:
        raise ModelError('the model has no trainable weights; set tuning.method to "lora" or "full".')
    optimizer = _adamw(names, settings)
    import_state(optimizer, names, optimizer_state or {})
    before = [parameter.detach().to("cpu", copy=True) for parameter in names]

    distils = any(example.targets is not None for example in examples)
    if dp is not None and world.size > 1:
        raise ConfigError(f"private tuning under DP-SGD runs in one process, not in {world.size}.")
    plan = (
        dp.plan(len(examples))
        if dp is not None
        else plan_updates(
            len(examples),
            len(replay),
            batch_size=update_size(settings, world),
            replay_fraction=replay_fraction,
            num_epochs=settings.num_train_epochs,
            max_steps=settings.max_steps,
            generator=torch.Generator().manual_seed(seed),
        )
    )
    history: list[StepLosses] = []
    with _training(lm, seed + world.rank), _memory_faults(settings):
        for step, update in enumerate(plan):
            batch = [examples[i] for i in update.own] + [replay[i] for i in update.replayed]
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * learning_rate_factor(
                    step,
                    len(plan),
                    progress_span,
                    schedule=settings.lr_scheduler_type,
                    warmup_ratio=settings.warmup_ratio,
                )
            optimizer.zero_grad(set_to_none=True)
            if dp is not None:
                own_loss = dp.set_gradients(lm, examples, update, settings.batch_size)
            else:
                own_loss = accumulate_gradients(
                    lm.logits_at,
                    _parts(batch[world.rank :: world.size], settings.batch_size, lm, distils),
                    settings.loss_settings,
                    sum((example.counts for example in batch), LossCounts(0, 0, 0)),
                    with_gradient_norms=distils
                    and gradient_share_every > 0
                    and step % gradient_share_every == 0,
                )
            losses = _of_all_processes(own_loss, world, device)
            if not math.isfinite(losses.total):
                raise ModelError(
                    f"the training loss became {losses.total} at update {step + 1} of {len(plan)}: lower "
                    f'tuning.learning_rate (now {settings.learning_rate}) or use dtype = "float32".'
                )
            if on_batch is not None:
                on_batch(update.own, 1 / world.size)
            sum_gradients(list(names), world)
            if dp is None:  # else every sample's was cut before the noise came
                torch.nn.utils.clip_grad_norm_(list(names), settings.max_grad_norm or math.inf)
            optimizer.step()
            history.append(losses)
            if on_step is not None:
                on_step(step + 1, len(plan), losses)
        optimizer.zero_grad(set_to_none=True)

    moved = (
        float((new.detach().cpu() - old).float().square().sum())
        for new, old in zip(names, before, strict=True)
    )
    return _report(
        history,
        distils=distils,
        delta_norm=math.sqrt(sum(moved)),
        optimizer_state=export_state(optimizer, names),
        cpu_seconds=time.process_time() - started,
    )


def count_steps(
    n_examples: int, settings: PhaseSettings, *, replay_fraction: float = 0.0, processes: int = 1
) -> int:
    """How many updates a phase over `n_examples` will make; for estimates before anything is loaded."""
    if n_examples == 0 or settings.max_steps > 0:
        return min(n_examples, 1) * max(settings.max_steps, 0)
    size = update_size(settings, World(size=processes))
    per_epoch = updates_per_epoch(n_examples, size, replayed_per_batch(size, replay_fraction))
    return math.ceil(settings.num_train_epochs * per_epoch)


def update_size(settings: PhaseSettings, world: World = World()) -> int:  # noqa: B008 (frozen)
    """Examples that an update takes."""
    return settings.batch_size * settings.gradient_accumulation_steps * world.size


def _check_ranges(replay_fraction: float, span: tuple[float, float]) -> None:
    if not 0 <= replay_fraction < 1:
        raise ValueError(f"replay_fraction is {replay_fraction}; expected a number from 0 to below 1.")
    if not 0 <= span[0] <= span[1] <= 1:
        raise ValueError(
            f"progress_span is {span}; expected two fractions of the run, the first not after the last."
        )


def _adamw(parameters: Mapping[torch.nn.Parameter, str], settings: PhaseSettings) -> torch.optim.AdamW:
    """AdamW with the decay on matrices only."""
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=settings.learning_rate, betas=settings.betas
    )


def _parts(batch: Sequence[Example], size: int, lm: Tunable, distils: bool) -> Iterator[BatchPart[Batch]]:
    """The batch, `size` examples at a time."""
    for start in range(0, len(batch), size):
        yield to_part(
            batch[start : start + size], pad_id=lm.tokenizer.pad_id, device=lm.device, distils=distils
        )


@contextlib.contextmanager
def _training(lm: Tunable, seed: int) -> Iterator[None]:
    """Dropout on and seeded; afterwards off, and the global random state as it was."""
    devices = [lm.device] if lm.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        lm.model.train()
        try:
            yield
        finally:
            lm.model.eval()


@contextlib.contextmanager
def _memory_faults(settings: PhaseSettings) -> Iterator[None]:
    """Say which settings need less memory when it runs out."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        is_memory = not isinstance(error, RuntimeError) or isinstance(error, torch.OutOfMemoryError)
        if not is_memory and "can't allocate memory" not in str(error):
            raise
        raise OutOfMemoryFailure(
            f"memory ran out while training with per_device_train_batch_size = {settings.batch_size}: lower it and "
            "raise gradient_accumulation_steps by the same factor (the result stays the same), lower max_length, or "
            "set gradient_checkpointing = true."
        ) from error


def _of_all_processes(losses: StepLosses, world: World, device: torch.device) -> StepLosses:
    """The losses of the whole batch, from each process's share."""
    if world.size == 1:
        return losses
    is_measured = losses.hard_gradient is not None
    values = [losses.total, losses.hard, losses.soft, losses.n_labels, losses.n_taught]
    values += [(losses.hard_gradient or 0.0) ** 2, (losses.soft_gradient or 0.0) ** 2]
    total, hard, soft, n_labels, n_taught, *squares = sum_numbers(values, world, device)
    norms = [math.sqrt(square) if is_measured else None for square in squares]
    return StepLosses(total, hard, soft, round(n_labels), round(n_taught), *norms)


def _report(
    history: Sequence[StepLosses],
    *,
    distils: bool,
    delta_norm: float,
    optimizer_state: dict[str, Tensor],
    cpu_seconds: float,
) -> PhaseReport:
    n_labels = sum(step.n_labels for step in history)
    n_taught = sum(step.n_taught for step in history)
    hard_square = sum((step.hard_gradient or 0.0) ** 2 for step in history)
    soft_square = sum((step.soft_gradient or 0.0) ** 2 for step in history)
    return PhaseReport(
        steps=len(history),
        loss_first=history[0].total if history else None,
        loss_last=history[-1].total if history else None,
        hard=sum(step.hard * step.n_labels for step in history) / n_labels if n_labels else None,
        soft=sum(step.soft * step.n_taught for step in history) / n_taught if n_taught else 0.0,
        kd_gradient_share=math.sqrt(soft_square / hard_square) if distils and hard_square > 0 else None,
        n_taught=n_taught,
        n_labels=n_labels,
        delta_norm=delta_norm,
        cpu_seconds=cpu_seconds,
        optimizer_state=optimizer_state,
    )
