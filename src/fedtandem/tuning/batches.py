"""Which examples form which update, and an update's examples as tensors."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fedtandem.distillation.kd import IGNORE_INDEX, LossCounts, SparseTargets
from fedtandem.distillation.step import BatchPart
from fedtandem.knowledge.sparse_logits import SparseLogits, splits_of
from fedtandem.models.encoded import ANSWER, Encoded
from fedtandem.models.language_model import Batch, collate


@dataclass(frozen=True, eq=False)
class Example:
    """One sample to train on: its tokens, and what a teacher says about them.

    Attributes:
        encoded: the sample in the learner's tokenisation, P predictor positions.
        targets: the teacher's rows in the learner's vocabulary, one per position (empty where there is no
            partner); None: no teacher.
        taught: (P,) bool, positions the teacher may teach; None: every row that is not empty.
        labelled: whether the tokens themselves are to be learnt; False for rows without trusted text.
    """

    encoded: Encoded
    targets: SparseLogits | None = None
    taught: npt.NDArray[np.bool_] | None = None
    labelled: bool = True

    def __post_init__(self) -> None:
        n_positions = len(self.encoded.positions)
        if self.targets is not None and self.targets.n_rows != n_positions:
            raise ValueError(
                f"targets hold {self.targets.n_rows} rows for {n_positions} positions; expected one each."
            )
        if self.taught is not None and self.taught.shape != (n_positions,):
            raise ValueError(f"taught has shape {self.taught.shape}; expected ({n_positions},).")

    @property
    def is_taught(self) -> npt.NDArray[np.bool_]:
        """Positions with a teacher's row; (P,) bool. None in a sample whose answer was cut off."""
        if self.targets is None or not self.encoded.scored:
            return np.zeros(len(self.encoded.positions), np.bool_)
        has_row = np.diff(self.targets.row_splits) > 0
        return has_row if self.taught is None else has_row & self.taught

    @property
    def counts(self) -> LossCounts:
        """How many positions carry a label, a teacher's row, or either."""
        is_labelled, is_taught = self.is_labelled, self.is_taught
        return LossCounts(
            labels=int(is_labelled.sum()),
            taught=int(is_taught.sum()),
            active=int((is_labelled | is_taught).sum()),
        )

    @property
    def is_labelled(self) -> npt.NDArray[np.bool_]:
        """Positions whose token is learnt: those of the answer; (P,) bool. Prompt positions can only be taught."""
        answer: npt.NDArray[np.bool_] = self.encoded.segment == ANSWER
        return answer if self.labelled else np.zeros_like(answer)


@dataclass(frozen=True)
class Update:
    """The examples of one update, by index: `own` of the phase, `replayed` of the learner's own data."""

    own: tuple[int, ...]
    replayed: tuple[int, ...]


def replayed_per_batch(batch_size: int, replay_fraction: float) -> int:
    """How many of a batch's examples are replayed: the rounded share, leaving room for at least one other."""
    return min(round(batch_size * replay_fraction), batch_size - 1)


def updates_per_epoch(n_examples: int, batch_size: int, n_replayed: int = 0) -> int:
    """Updates it takes to see every example once; batch_size counts the replayed ones too."""
    return math.ceil(n_examples / (batch_size - n_replayed))


def plan_updates(
    n_examples: int,
    n_replay: int,
    *,
    batch_size: int,
    replay_fraction: float,
    num_epochs: float,
    max_steps: int,
    generator: torch.Generator,
) -> list[Update]:
    """The order of a whole phase, from the generator alone.

    Examples are shuffled anew every epoch. Replayed ones come from an order of their own that is shuffled anew when
    it is used up; a last, smaller batch takes its share of them only.

    Args:
        n_examples, n_replay: how many there are; without replay data the batches are all own.
        batch_size: examples of an update, replayed ones included.
        replay_fraction: their share of every batch.
        num_epochs: times every example is seen; may be broken.
        max_steps: updates in all, whatever num_epochs says; not positive: no limit of its own.
    """
    if n_examples == 0:
        return []
    n_replayed = replayed_per_batch(batch_size, replay_fraction) if n_replay else 0
    n_own = batch_size - n_replayed
    steps = (
        max_steps
        if max_steps > 0
        else math.ceil(num_epochs * updates_per_epoch(n_examples, batch_size, n_replayed))
    )
    replayed = _cycle(n_replay, generator)
    plan: list[Update] = []
    while len(plan) < steps:
        order = torch.randperm(n_examples, generator=generator).tolist()
        for start in range(0, n_examples, n_own):
            own = tuple(order[start : start + n_own])
            share = round(len(own) * n_replayed / n_own)
            plan.append(Update(own, tuple(next(replayed) for _ in range(share))))
    return plan[:steps]


def _cycle(n: int, generator: torch.Generator) -> Iterator[int]:
    """Indices below n in a random order, then in another, for ever."""
    while n:
        yield from torch.randperm(n, generator=generator).tolist()


def to_part(
    examples: Sequence[Example], *, pad_id: int, device: torch.device, distils: bool
) -> BatchPart[Batch]:
    """Examples as one padded batch on `device`, with labels and, if the phase distils, targets for all positions."""
    batch = collate([example.encoded for example in examples], pad_id)
    is_labelled = torch.from_numpy(np.concatenate([example.is_labelled for example in examples]))
    labels = torch.where(is_labelled, batch.targets, IGNORE_INDEX)
    targets = _targets_of(examples, device) if distils else None
    return BatchPart(batch.to(device), labels.to(device), targets)


def _targets_of(examples: Sequence[Example], device: torch.device) -> SparseTargets:
    """The rows of all examples, empty ones where an example has no teacher."""
    rows = [example.targets if example.targets is not None else _silent(example) for example in examples]
    taught = np.concatenate([example.is_taught for example in examples])
    return SparseTargets.from_sparse(SparseLogits.concat(rows), taught, device)


def _silent(example: Example) -> SparseLogits:
    """One row without entries for each position."""
    n = len(example.encoded.positions)
    return SparseLogits(
        token_ids=np.zeros(0, np.int32),
        log_probs=np.zeros(0, np.float32),
        row_splits=np.zeros(n + 1, np.int64),
        tail_log_prob=np.zeros(n, np.float32),
        end_byte=example.encoded.end_byte,
        segment=example.encoded.segment,
        sample_splits=splits_of(np.array([n])),
    )
