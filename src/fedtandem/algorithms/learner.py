"""A party's model and everything it does to it: tune, pass, write, learn, evaluate. It never sees a message."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedtandem.algorithms.public_pass import public_pass
from fedtandem.algorithms.settings import KnowledgeSettings, Unlabelled
from fedtandem.checking.checkers import CheckSettings
from fedtandem.data.public import Sample, public_hash
from fedtandem.errors import ModelError
from fedtandem.evaluation.scorer import Evaluation, evaluate
from fedtandem.knowledge.sparse_logits import SparseLogits
from fedtandem.models.encoded import Encoded
from fedtandem.models.language_model import LanguageModel
from fedtandem.tuning.dp_sgd import DPSteps, PrivateTraining, grant
from fedtandem.tuning.phase import (
    Example,
    OnBatch,
    PhaseReport,
    PhaseSettings,
    count_steps,
    train_phase,
    update_size,
)

NO_CHECK = CheckSettings()
"""Every written path is believed."""
Emit = Callable[..., None]
"""`emit(event, **fields)`: one line of the run's record."""
Progress = Callable[[str, int, int], None]
"""`progress(what, done, of)`: what a progress bar shows."""


@dataclass(frozen=True)
class TestSet:
    """Held-out samples a party is measured on."""

    __test__ = False  # not a test of ours

    split: str
    metric: str
    samples: Sequence[Sample]


@dataclass(frozen=True)
class Lesson:
    """What a public phase trains on: N texts, and for each of their positions a teacher's row or none."""

    texts: Sequence[Encoded]
    rows: Sequence[SparseLogits | None]
    taught: Sequence[np.ndarray | None]


@dataclass(frozen=True)
class Remembered:
    """What a phase ended in: the party's state, and the line it left in the record."""

    state: Mapping[str, Mapping[str, Tensor]]
    event: Mapping[str, Any] | None


def copy_state(state: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """A state that later training does not touch."""
    return {
        group: {name: tensor.clone() for name, tensor in tensors.items()} for group, tensors in state.items()
    }


def phase_seed(seed: int, party: str, round_number: int, phase: str) -> int:
    """A seed of its own for each phase of each party and round, the same in every method; 63 bits."""
    text = f"{seed}/{party}/{round_number}/{phase}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


class Learner:
    """One party's model with its data.

    Args:
        name: the party.
        lm: its model, with the trainable weights attached.
        public: the shared public set; answers are None where it is unlabelled.
        own: the party's own data: a client's private set, a server's replay set.
        tests: what it is measured on.
        private_settings: the private phase (step 1).
        public_settings: the public phase (steps 6 and 11).
        knowledge: how knowledge is made.
        unlabelled: set where the public set has no answers.
        check: what written paths must pass before they are learnt.
        check_answers: the public rows' column with known answers, for checks that compare.
        replay_fraction: share of each public batch that is own data.
        num_rounds: for the schedule, which spans all rounds.
        private_rounds: the same for the private phase; None: as many.
        seed: of the run.
        max_length: tokens.
        chat_template: wrap prompts in the tokenizer's own template.
        reset_optimizer: start each phase with new moments and its own schedule, as the reference does.
        emit, progress: where the record and the progress go.
        memo: private phases already done from the very same state, shared by the methods of a run; None: none are kept.
        private_training: private phases by DP-SGD under this budget; then nothing private is replayed either.
    """

    def __init__(
        self,
        *,
        name: str,
        lm: LanguageModel,
        public: Sequence[Sample],
        own: Sequence[Sample],
        tests: Sequence[TestSet],
        private_settings: PhaseSettings,
        public_settings: PhaseSettings,
        knowledge: KnowledgeSettings,
        unlabelled: Unlabelled | None,
        replay_fraction: float,
        num_rounds: int,
        seed: int,
        max_length: int = 512,
        chat_template: bool = False,
        reset_optimizer: bool = False,
        eval_batch_size: int = 64,
        private_rounds: int | None = None,
        check: CheckSettings = NO_CHECK,
        check_answers: str | None = None,
        emit: Emit = lambda *_, **__: None,
        progress: Progress = lambda *_: None,
        memo: dict[str, Remembered] | None = None,
        private_training: PrivateTraining | None = None,
    ) -> None:
        self.name = name
        self.lm = lm
        self.public = public
        self.own = own
        self.tests = tests
        self.private_settings = private_settings
        self.public_settings = public_settings
        self.knowledge = knowledge
        self.unlabelled = unlabelled
        # Replaying own data in the public phase would be tuning on it without noise.
        self.replay_fraction = replay_fraction if private_training is None else 0.0
        self.num_rounds = num_rounds
        self.private_rounds = num_rounds if private_rounds is None else private_rounds
        self.seed = seed
        self.max_length = max_length
        self.chat_template = chat_template
        self.reset_optimizer = reset_optimizer
        self.eval_batch_size = eval_batch_size
        self.check = check
        self.check_answers = check_answers
        self.emit = emit
        self.progress = progress
        self.memo = memo
        self.private_training = private_training
        self.optimizers: dict[str, dict[str, Tensor]] = {}
        self.replay: list[Example] | None = None
        self._last: dict[str, Any] | None = None
        self._own_examples: list[Example] | None = None
        self._public_texts: list[Encoded] | None = None

    # -- texts -------------------------------------------------------------------------------------------------

    def encode(self, samples: Sequence[Sample], positions: str = "answer") -> list[Encoded]:
        """Samples with answers in this party's tokenisation."""
        return self.lm.tokenizer.encode_many(
            [(sample.prompt, sample.answer or "") for sample in samples],
            max_length=self.max_length,
            chat_template=self.chat_template,
            positions=positions,
            eos=[sample.eos for sample in samples],
        )

    @property
    def public_texts(self) -> list[Encoded]:
        """The labelled public set in this party's tokenisation; made once."""
        if self._public_texts is None:
            self._public_texts = self.encode(self.public, self.knowledge.positions)
        return self._public_texts

    @property
    def own_examples(self) -> list[Example]:
        """Own data to train on; made once."""
        if self._own_examples is None:
            self._own_examples = [Example(text) for text in self.encode(self.own)]
        return self._own_examples

    def answered(self, index: Sequence[int] | np.ndarray, answers: Sequence[str]) -> list[Encoded]:
        """Public prompts with answers somebody wrote."""
        samples = [replace(self.public[i], answer=text) for i, text in zip(index, answers, strict=True)]
        return self.encode(samples, self.knowledge.positions)

    # -- the phases --------------------------------------------------------------------------------------------

    def tune(self, round_number: int) -> None:
        """Step 1: one private phase."""
        if self.memo is None:
            self._tune(round_number)
            return
        key = self._fingerprint(round_number)
        if key not in self.memo:
            self._tune(round_number)
            self.memo[key] = Remembered(copy_state(self._private_state()), self._last)
            return
        known = self.memo[key]
        self.load_state({**self.state(), **copy_state(known.state)})
        if known.event is not None:
            # The CPU seconds stay: they are what this phase costs whoever runs it alone.
            self.emit("phase", **{**known.event, "remembered": True})

    def _tune(self, round_number: int) -> None:
        self._last = None
        dp = None
        if self.private_training is not None and self.own:
            dp = self._grant(self.private_training, round_number)
            if dp is None:
                return
        self._train("private", round_number, self.own_examples, self.private_settings, [], 0.0, dp=dp)

    def _grant(self, training: PrivateTraining, round_number: int) -> DPSteps | None:
        """The private updates of this round that the budget allows; None, with a warning, where it is spent."""
        settings, n = self.private_settings, len(self.own)
        granted = grant(
            training, f"{self.name}, round {round_number}", self._fingerprint(round_number), n_examples=n,
            update_size=update_size(settings), steps=count_steps(n, settings), phases=self.private_rounds,
        )  # fmt: skip
        if granted is None or granted.report.steps < granted.report.planned:
            left = 0 if granted is None else granted.report.steps
            self.emit(
                "warning", round=round_number, party=self.name, signature="privacy budget spent",
                text=f"{self.name} made {left} private updates in round {round_number}: its privacy budget is spent",
            )  # fmt: skip
        return granted

    def _private_state(self) -> dict[str, Mapping[str, Tensor]]:
        """The part of the state that a private phase reads and changes."""
        return {group: s for group, s in self.state().items() if group in ("adapter", "optimizer-private")}

    def _fingerprint(self, round_number: int) -> str:
        """SHA-256 of all that decides a private phase: settings, data, seed, round and the state before it."""
        digest = hashlib.sha256(repr((
            self.name, round_number, self.private_rounds, self.seed, self.private_settings, self.max_length,
            self.chat_template, self.reset_optimizer, public_hash(self.own),
        )).encode())  # fmt: skip
        for group, tensors in sorted(self._private_state().items()):
            for name, tensor in sorted(tensors.items()):
                digest.update(f"{group}/{name}/{tensor.dtype}".encode())
                digest.update(
                    tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
                )
        return digest.hexdigest()

    def learn(
        self,
        round_number: int,
        lesson: Lesson,
        *,
        on_batch: OnBatch | None = None,
        updates_of: int | None = None,
    ) -> None:
        """Steps 6 and 11: one public phase, labels and teachers together, own data replayed.

        Args:
            on_batch: told the lesson's places in every update; may add a loss of its own.
            updates_of: make as many updates as so many texts would take.
        """
        examples = [
            Example(text, rows, taught)
            for text, rows, taught in zip(lesson.texts, lesson.rows, lesson.taught, strict=True)
        ]
        replay = (
            (self.own_examples if self.replay is None else self.replay) if self.replay_fraction > 0 else []
        )
        fraction = self.replay_fraction if replay else 0.0
        settings = self.public_settings
        if updates_of is not None:
            settings = replace(
                settings, max_steps=count_steps(updates_of, settings, replay_fraction=fraction)
            )
        self._train("public", round_number, examples, settings, replay, fraction, on_batch)

    def _train(
        self,
        phase: str,
        round_number: int,
        examples: list[Example],
        settings: PhaseSettings,
        replay: list[Example],
        replay_fraction: float,
        on_batch: OnBatch | None = None,
        dp: DPSteps | None = None,
    ) -> None:
        if not examples:
            self.emit(
                "warning",
                round=round_number,
                party=self.name,
                signature="nothing to train on",
                text=f"{self.name}: the {phase} phase of round {round_number} has no samples",
            )
            return
        rounds = self.private_rounds if phase == "private" else self.num_rounds
        span = (0.0, 1.0) if self.reset_optimizer else ((round_number - 1) / rounds, round_number / rounds)
        report = train_phase(
            self.lm,
            examples,
            settings,
            replay=replay,
            replay_fraction=replay_fraction,
            optimizer_state=None if self.reset_optimizer else self.optimizers.get(phase),
            progress_span=span,
            seed=phase_seed(self.seed, self.name, round_number, phase),
            on_step=lambda step, of, _parts: self.progress(f"{self.name}: {phase} tuning", step, of),
            on_batch=on_batch,
            dp=dp,
        )
        self.optimizers[phase] = report.optimizer_state
        if report.delta_norm == 0.0:
            raise ModelError(
                f"{self.name}, round {round_number}: {report.steps} updates of the {phase} phase changed no weight. "
                "Check tuning.peft.target_modules and that learning_rate is not 0."
            )
        if phase == "public":
            self._warn_of_idle_distillation(round_number, report)
        self._last = {
            "round": round_number, "party": self.name, "phase": phase, "cpu_seconds": report.cpu_seconds,
            "steps": report.steps, "loss_first": report.loss_first, "loss_last": report.loss_last, "hard": report.hard,
            "soft": report.soft, "kd_gradient_share": report.kd_gradient_share, "active_positions": report.n_taught,
            "label_positions": report.n_labels, "delta_norm": report.delta_norm,
        }  # fmt: skip
        if dp is not None:
            # What follows from the noised weights may be told, a loss on private samples or their number may not.
            self._last |= dict.fromkeys(("loss_first", "loss_last", "hard", "label_positions"))
            self.emit("privacy", round=round_number, party=self.name, **asdict(dp.report))
        self.emit("phase", **self._last)

    def _warn_of_idle_distillation(self, round_number: int, report: PhaseReport) -> None:
        """A teacher that has no pull is said so (specification of FedMKT, section 18)."""
        share = report.kd_gradient_share
        if share is not None and share < 0.01:
            self.emit(
                "warning", round=round_number, party=self.name, signature="no effect of distillation",
                text=f"the distillation term's gradient is {share:.2%} of the labels' in {self.name}'s public phase "
                f"({report.n_taught} of {report.n_labels} positions taught); lower distillation.hard_weight or see "
                "how many samples have a teacher",
            )  # fmt: skip

    def pass_over(
        self, texts: Sequence[Encoded], round_number: int, *, want_rows: bool
    ) -> tuple[np.ndarray, SparseLogits]:
        """Steps 2 and 7: scores and rows of this model on texts."""
        with self.timed("pass", round_number):
            return public_pass(
                self.lm, texts, self.knowledge, want_rows=want_rows, party=self.name,
                progress=lambda done, of: self.progress(f"{self.name}: public pass", done, of),
            )  # fmt: skip

    def write(
        self,
        round_number: int,
        max_new_tokens: int,
        temperature: float = 0.0,
        *,
        index: Sequence[int] | np.ndarray | None = None,
        phase: str = "write",
    ) -> list[str]:
        """One answer per public prompt, or per prompt of `index`; greedy or drawn.

        Args:
            phase: names the work in the record, and seeds the draws.
        """
        with self.timed(phase, round_number):
            asked = self.public if index is None else [self.public[i] for i in index]
            prompts = [
                self.lm.tokenizer.encode_prompt(sample.prompt, chat_template=self.chat_template)
                for sample in asked
            ]
            written = self.lm.generate(
                prompts,
                max_new_tokens=max_new_tokens,
                batch_size=self.eval_batch_size * 2,
                on_progress=lambda done, of: self.progress(f"{self.name}: writing answers", done, of),
                temperature=temperature,
                seed=phase_seed(self.seed, self.name, round_number, phase),
            )
            return [self.lm.tokenizer.decode_answer(ids) for ids in written]

    def evaluate(self, round_number: int) -> dict[str, Evaluation]:
        """Measure the model on its test sets; split -> evaluation."""
        results = {}
        with self.timed("evaluate", round_number):
            for test in self.tests:
                results[test.split] = evaluate(
                    self.lm,
                    test.samples,
                    test.metric,
                    batch_size=self.eval_batch_size,
                    max_length=self.max_length,
                    chat_template=self.chat_template,
                )
                self.progress(f"{self.name}: evaluation", len(results), len(self.tests))
        return results

    def timed(self, phase: str, round_number: int) -> "Timed":
        """A block whose CPU seconds go to the record."""
        return Timed(lambda seconds: self.emit(
            "phase", round=round_number, party=self.name, phase=phase, cpu_seconds=seconds))  # fmt: skip

    # -- state -------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Mapping[str, Tensor]]:
        """Everything a later round needs: the trainable weights and the optimizers' moments."""
        return {"adapter": self.lm.state(), **{f"optimizer-{kind}": s for kind, s in self.optimizers.items()}}

    def load_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Go back to a state `state()` gave."""
        self.lm.load_state(dict(state["adapter"]))
        self.optimizers = {
            name.removeprefix("optimizer-"): dict(tensors)
            for name, tensors in state.items()
            if name.startswith("optimizer-")
        }


class Timed:
    """A context that reports the CPU seconds (of this process, all threads) spent inside it."""

    def __init__(self, report: Callable[[float], None]) -> None:
        self._report = report
        self._start = 0.0

    def __enter__(self) -> "Timed":
        self._start = time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self._report(time.process_time() - self._start)
