"""`lada-contrast`: does a contrast with the student's own wrong paths help, at equal compute?

A student that knows some three quarters of a secret operator learns from right paths of 150 prompts. Each arm starts
from the same weights, sees the same prompts and replays the same data; negatives are own samples a checker refuted.
Rejection sampling is no arm of its own: a chain has one right path, so what it would accept is the one that is given.
Compute is counted in tokens (one for a token read, three for a token trained on), so that a rerun makes the same
comparison; CPU seconds stand beside it.

Source: specification of studies, section 7 (the fair trial).
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor

from fedtandem.algorithms.contrast import Contrast, make_contrast
from fedtandem.algorithms.learner import Learner, Lesson, TestSet
from fedtandem.algorithms.pool_rows import PoolScorer
from fedtandem.algorithms.settings import KnowledgeSettings, Unlabelled
from fedtandem.checking.verdict import Checker, Verdict
from fedtandem.data.chains import BASE_OPERATORS, STEP_LENGTH, ChainsSource
from fedtandem.data.public import Sample
from fedtandem.distillation.contrastive_reasoning import ContrastiveTerm
from fedtandem.errors import ModelError
from fedtandem.evaluation.scorer import evaluate
from fedtandem.models.encoded import Encoded
from fedtandem.models.load import ModelSpec, load_model
from fedtandem.selection.items import Pool
from fedtandem.studies.lada.contrast_tables import tables_and_bars
from fedtandem.studies.lada.trial import fresh_copy
from fedtandem.studies.trials import Cell, Outcome, Progress
from fedtandem.tuning.phase import Example, PhaseSettings, train_phase

SECRET = "@"
STUDENTS: Mapping[str, str] = {
    "bpe": "embedded:chains-client-a",
    "pieces": "embedded:chains-client-b",
}
"""Tokenizer -> student. The first cuts text as the shipped server does, the second otherwise."""
PATH_TOKENS = 48
SFT, LONGER = "sft", "sft, equal compute"
TERMS: Mapping[str, ContrastiveTerm] = {
    "contrast, whole path, weight 0.1": ContrastiveTerm(0.1, "self", "verified"),
    "contrast, whole path, weight 0.5": ContrastiveTerm(0.5, "self", "verified"),
    "contrast, first wrong step, weight 0.1": ContrastiveTerm(
        0.1, "self", "verified", negative="first_wrong_step"
    ),
}
"""0.5 is the parity recipe's."""
ARMS = (SFT, LONGER, *TERMS)


@dataclass(frozen=True)
class Settings:
    """What the figures depend on."""

    prompts: int = 150
    rounds: int = 2
    updates: int = 50
    """A round, except where compute is made equal."""
    batch_size: int = 32
    replay: float = 0.5
    learning_rate: float = 2e-3
    own: int = 1000
    tests: int = 2000
    lowest: float = 0.71
    highest: float = 0.85
    """What share of the test a student must solve before the trial."""
    teaching: int = 400
    """Prompts it was brought there with."""


SMALL = Settings(prompts=12, rounds=2, updates=2, own=40, tests=40, lowest=0.0, highest=1.0, teaching=20)
"""What a test runs."""


class KnownPaths:
    """Refutes a path that is not the right one, and says which step goes wrong first."""

    def __init__(self, right: Mapping[str, str]) -> None:
        self.right = right

    def __call__(self, prompt: str, path: str) -> Verdict:
        right = self.right[prompt]
        if path == right:
            return Verdict(True, "the right path")
        same = next(
            (i for i, (a, b) in enumerate(zip(path, right, strict=False)) if a != b),
            min(len(path), len(right)),
        )
        first = same // STEP_LENGTH * STEP_LENGTH
        return Verdict(False, "differs from the right path", first_wrong=(first, first + STEP_LENGTH))


@dataclass(frozen=True, eq=False)
class Student:
    """A student before the trial: its learner, its weights, its right paths, and how much it knew."""

    learner: Learner
    start: Mapping[str, Tensor]
    right: Mapping[str, str]
    knew: float


@dataclass(frozen=True)
class ContrastStudy:
    """See the module."""

    settings: Settings = field(default_factory=Settings)
    name: str = "lada-contrast"
    version: int = 1

    def missing(self, seeds: Sequence[int], done: Mapping[Cell, Outcome]) -> Iterable[Cell]:
        """Every arm with both tokenizers."""
        every = [(seed, f"{kind}: {arm}") for kind in STUDENTS for seed in seeds for arm in ARMS]
        return [cell for cell in every if cell not in done]

    def run(self, cell: Cell, progress: Progress) -> Outcome:
        """One trial."""
        seed, line = cell
        kind, arm = line.split(": ")
        return run_trial(_student(self.settings, kind, seed), arm, self.settings)

    def seconds(self, cells: Sequence[Cell]) -> float:
        """As measured on one shared core."""
        return 0.05 * len(cells) * self.settings.rounds * self.settings.updates

    def summary(self, seeds: Sequence[int], done: Mapping[Cell, Outcome]) -> dict[str, Any]:
        """Tables and bars."""
        complete = [k for k in STUDENTS if all((s, f"{k}: {arm}") in done for s in seeds for arm in ARMS)]
        return tables_and_bars(complete, ARMS, list(seeds), done, asdict(self.settings))


def run_trial(student: Student, arm: str, settings: Settings) -> Outcome:
    """Teach one arm and measure it."""
    started = time.process_time()
    learner = student.learner
    learner.lm.load_state(dict(student.start))
    learner.optimizers.clear()
    pool = Pool(
        [s.prompt for s in learner.public],
        [None] * len(learner.public),
        np.zeros(0, np.int64),
        settings.rounds,
        0,
    )
    checker: Checker = KnownPaths(student.right)
    scorer = PoolScorer(learner, pool, frozenset({"verdict"}), checker)
    tokens = {"sft": 0.0, "extra": 0.0}
    pairs, updates, unpaid = [], 0, 0.0
    for t in range(1, settings.rounds + 1):
        kept = np.arange(len(learner.public))
        texts = learner.answered(kept, [student.right[s.prompt] for s in learner.public])
        extra = 0.0
        on_batch: Contrast | None = None
        if arm in TERMS or arm == LONGER:
            # The longer training is as long as what the first contrast costs: it pays for nothing else.
            term = TERMS[arm] if arm in TERMS else next(iter(TERMS.values()))
            lesson = Lesson(texts, [None] * len(texts), [None] * len(texts))
            places = {learner.name: np.arange(len(texts))}
            drawn = time.process_time()
            found = make_contrast(learner, scorer, t, lesson, kept, {learner.name: term}, places)
            unpaid += time.process_time() - drawn if arm == LONGER else 0.0
            extra = _cost_of(found, learner, texts, settings)
            pairs.append(len(found.pairs))
            on_batch = found if arm in TERMS else None
        plain = settings.updates * _update_tokens(learner, texts, settings)
        n = settings.updates
        if arm == LONGER:
            n = round(n * (1 + extra / plain))
        learner.public_settings = replace(learner.public_settings, max_steps=n)
        lesson = Lesson(texts, [None] * len(texts), [None] * len(texts))
        learner.learn(t, lesson, on_batch=on_batch)
        updates += n
        tokens["sft"] += plain
        tokens["extra"] += extra
    taught = time.process_time() - started - unpaid
    measured = learner.evaluate(settings.rounds)
    return Outcome(
        {
            **{split: found.value for split, found in measured.items()}, "knew": student.knew,
            "updates": updates, "pairs": pairs, "compute": 1 + tokens["extra"] / tokens["sft"], "cpu_seconds": taught,
        },
        {split: found.item_values for split, found in measured.items()},
    )  # fmt: skip


def _length(texts: Sequence[Encoded]) -> float:
    return float(np.mean([len(text.input_ids) for text in texts])) if texts else 0.0


def _update_tokens(learner: Learner, texts: Sequence[Encoded], settings: Settings) -> float:
    """Three for each token of an update's texts."""
    replayed = round(settings.replay * settings.batch_size)
    own = [example.encoded for example in learner.own_examples]
    return 3 * ((settings.batch_size - replayed) * _length(texts) + replayed * _length(own))


def _cost_of(contrast: Contrast, learner: Learner, texts: Sequence[Encoded], settings: Settings) -> float:
    """Writing one path a prompt, the reference's pass over both paths, and training on both in every update."""
    of_pairs = sum(len(pair.pos.input_ids) + len(pair.neg.input_ids) for pair in contrast.pairs.values())
    own = settings.batch_size - round(settings.replay * settings.batch_size)
    return len(texts) * _length(texts) + of_pairs + 3 * of_pairs * settings.updates * own / max(1, len(texts))


@lru_cache(maxsize=1)
def _student(settings: Settings, kind: str, seed: int) -> Student:
    """A shipped client, taught the secret operator until it solves the wanted share of a validation set."""
    lm = load_model(ModelSpec(model=STUDENTS[kind], tuning_method="full", device="cpu"))
    own = ChainsSource(n=settings.own, steps=(1, 2), seed=3_000_000 + seed, part="train").samples()
    taught, prompts, validation, test = (
        _secret(n, seed, which, part)
        for which, (n, part) in enumerate(
            [
                (settings.teaching, "train"),
                (settings.prompts, "train"),
                (settings.tests // 4, "test"),
                (settings.tests, "test"),
            ]
        )
    )
    old = ChainsSource(n=settings.tests // 2, steps=(1, 2), seed=4_000_000 + seed, part="test").samples()
    learner = Learner(
        name="student", lm=lm, public=[replace(s, answer=None, fields={}) for s in prompts], own=own,
        tests=[TestSet("secret", "exact_match", test), TestSet("old skill", "exact_match", old)],
        private_settings=PhaseSettings(),
        public_settings=PhaseSettings(
            learning_rate=settings.learning_rate, batch_size=settings.batch_size, weight_decay=0.01,
            lr_scheduler_type="linear", warmup_ratio=0.02,
        ),
        knowledge=KnowledgeSettings(batch_size=128), unlabelled=Unlabelled(PATH_TOKENS),
        replay_fraction=settings.replay, num_rounds=settings.rounds, seed=seed, eval_batch_size=128,
    )  # fmt: skip
    knew = _bring_up(learner, taught, validation, settings, seed)
    return Student(learner, fresh_copy(lm.state()), {s.prompt: s.answer or "" for s in prompts}, knew)


def _bring_up(
    learner: Learner, taught: Sequence[Sample], validation: Sequence[Sample], settings: Settings, seed: int
) -> float:
    """Train in small pieces until the share is reached.

    Raises:
        ModelError: it is never inside the bounds.
    """
    examples = [Example(text) for text in learner.encode(taught)]
    pieces = replace(learner.public_settings, max_steps=10, lr_scheduler_type="constant")
    state = None
    for piece in range(200):
        kept = fresh_copy(learner.lm.state())
        report = train_phase(
            learner.lm, examples, pieces, replay=learner.own_examples, replay_fraction=settings.replay,
            optimizer_state=state, progress_span=(0.5, 0.5), seed=1000 * seed + piece,
        )  # fmt: skip
        state = report.optimizer_state
        knew = evaluate(learner.lm, validation, "exact_match", batch_size=128).value
        if knew > settings.highest:  # over the top: once more from before, in smaller steps
            learner.lm.load_state(kept)
            pieces = replace(pieces, max_steps=max(1, pieces.max_steps // 2))
        elif knew >= settings.lowest:
            return knew
    raise ModelError(f"student of seed {seed} never solved {settings.lowest:.0%} to {settings.highest:.0%}.")


def _secret(n: int, seed: int, which: int, part: Any) -> list[Sample]:
    """Chains of one and two steps with the secret operator of this seed; no prompt twice."""
    drawn = ChainsSource(
        n=3 * n, operators=BASE_OPERATORS, must_contain=(SECRET,), steps=(1, 2), part=part,
        seed=2_000_000 + 10 * seed + which, table_seed=5_000 + seed,
    ).samples()  # fmt: skip
    once = list({sample.prompt: sample for sample in drawn}.values())
    return [replace(sample, id=f"item-{i}") for i, sample in enumerate(once[:n])]
