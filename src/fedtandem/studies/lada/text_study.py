"""`lada-text`: selectors on real rationales (GSM8K), judged by bits per byte of held-out ones.

A model of a quarter of a million weights that has read children's stories cannot solve such problems: its accuracy is
that of chance, nought, and no selector changes that. What can be measured is how likely right reasoning becomes. A
third of the pool carries the rationale of another question, so that there is something to avoid; a quarter is known to
the student already.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fedtandem.algorithms.learner import TestSet
from fedtandem.algorithms.sequence_scores import sequence_log_probs
from fedtandem.data.files import read_file
from fedtandem.data.public import Sample
from fedtandem.errors import DataError
from fedtandem.models.language_model import LanguageModel
from fedtandem.models.load import ModelSpec, load_model
from fedtandem.studies.lada.mixed_pool import MixedPool
from fedtandem.studies.lada.selection_study import ARMS
from fedtandem.studies.lada.text_tables import tables_and_bars
from fedtandem.studies.lada.trial import Client, Recipe, fresh_copy, run_trial
from fedtandem.studies.trials import Cell, Outcome, Progress
from fedtandem.tuning.phase import Example, PhaseSettings, train_phase

BITS, EXACT = "bits per byte", "exact path"
KNOWN, NEW, SWAPPED = "known", "new", "swapped"
SHARES = {KNOWN: 0.25, NEW: 0.42, SWAPPED: 0.33}
LINES = ("random", "all_matched", "highest_loss", "gap", "confident_gap", "lada")


RECIPE = Recipe(
    pool=500,
    rounds=3,
    budget=100,
    updates=30,
    batch_size=8,
    replay=0.25,
    learning_rate=1e-3,
    own=150,
    tests=150,
)


@dataclass(frozen=True)
class Settings:
    """What the figures depend on."""

    recipe: Recipe = field(default_factory=lambda: RECIPE)
    longest: int = 180
    """Bytes of a question, and of a rationale; longer ones are left out."""
    teacher_rows: int = 700
    teacher_updates: int = 150
    student_updates: int = 40


SMALL = Settings(
    Recipe(pool=40, rounds=2, budget=8, updates=2, batch_size=8, replay=0.25, learning_rate=1e-3, own=10, tests=8),
    teacher_rows=40, teacher_updates=2, student_updates=2,
)  # fmt: skip
"""What a test runs."""


@dataclass(frozen=True)
class TextStudy:
    """See the module.

    Attributes:
        data: the folder that holds `gsm8k`; the student lies beside it, in `models/stories260k`.
    """

    data: Path
    settings: Settings = field(default_factory=Settings)
    name: str = "lada-text"
    version: int = 1

    def missing(self, seeds: Sequence[int], done: Mapping[Cell, Outcome]) -> Iterable[Cell]:
        """Every line of every seed."""
        return [(seed, line) for seed in seeds for line in LINES if (seed, line) not in done]

    def run(self, cell: Cell, progress: Progress) -> Outcome:
        """One trial."""
        seed, line = cell
        client, pool = _world(self, seed)
        return run_trial(client, pool, ARMS[line](), self.settings.recipe, seed)

    def seconds(self, cells: Sequence[Cell]) -> float:
        """As measured on one shared core."""
        recipe = self.settings.recipe
        return 0.15 * len(cells) * recipe.rounds * recipe.updates + 0.2 * self.settings.teacher_updates

    def summary(self, seeds: Sequence[int], done: Mapping[Cell, Outcome]) -> dict[str, Any]:
        """Tables and bars."""
        return tables_and_bars(LINES, tuple(SHARES), list(seeds), done, asdict(self.settings))


@lru_cache(maxsize=1)
def rationales(data: Path, longest: int) -> tuple[list[Sample], list[Sample]]:
    """Short questions with their rationales and answers: of the train and of the test part.

    Raises:
        DataError: the data set is not there.
    """
    parts = []
    for part in ("train", "test"):
        file = data / "gsm8k" / f"{part}.jsonl.gz"
        if not file.is_file():
            raise DataError(f"{file} is not there; name the folder that holds `gsm8k` with --data.")
        values = [row.values for row in read_file(file, where="lada-text")]
        rows = [
            Sample(str(v["id"]), f"{v['question']}\n", f"{v['rationale_plain']}\n#### {v['answer']}")
            for v in values
        ]
        short = [
            s for s in rows if len(s.prompt.encode()) <= longest and len((s.answer or "").encode()) <= longest
        ]
        parts.append(short)
    return parts[0], parts[1]


@lru_cache(maxsize=1)
def _world(study: TextStudy, seed: int) -> tuple[Client, MixedPool]:
    """A student that has seen some rationales, and a pool of rationales with the teacher's log-probabilities."""
    settings, recipe = study.settings, study.settings.recipe
    train, test = rationales(study.data, settings.longest)
    order = np.random.default_rng([seed, 11]).permutation(np.arange(settings.teacher_rows, len(train)))
    own = [train[i] for i in order[: recipe.own]]
    lm = _stories(study.data)
    _tune(lm, own, settings.student_updates, recipe, seed)
    tests = [
        TestSet(BITS, "bits_per_byte", test[: recipe.tests]),
        TestSet(EXACT, "exact_match", test[: recipe.tests]),
    ]
    pool = _pool(own, [train[i] for i in order[recipe.own :]], recipe.pool, seed)
    encoded = _teacher(study).tokenizer.encode_many(
        [(s.prompt, p) for s, p in zip(pool.samples, pool.paths, strict=True)]
    )
    log_probs = sequence_log_probs(_teacher(study), encoded, 64)
    return Client(lm, fresh_copy(lm.state()), own, tests), replace(pool, log_probs=log_probs)


def _pool(own: Sequence[Sample], others: Sequence[Sample], n: int, seed: int) -> MixedPool:
    """Known, new and swapped items in random order; log-probabilities are still missing."""
    counts = {name: round(share * n) for name, share in SHARES.items()}
    known = min(counts[KNOWN], len(own))
    right = [*own[:known], *others[: counts[NEW] + counts[SWAPPED]]]
    strata = [KNOWN] * known + [NEW] * counts[NEW] + [SWAPPED] * (len(right) - known - counts[NEW])
    paths = [s.answer or "" for s in right]
    first = known + counts[NEW]
    paths[first:] = paths[first + 1 :] + paths[first : first + 1]
    order = np.random.default_rng([seed, 12]).permutation(len(right))
    samples = [
        replace(right[i], id=f"item-{at}", answer=None, fields={"gold": right[i].answer})
        for at, i in enumerate(order)
    ]
    drawn = np.random.default_rng([seed, 13]).permutation(len(right))[: len(right) // 10]
    return MixedPool(
        samples, [strata[i] for i in order], [paths[i] for i in order], np.zeros(len(right)),
        np.array([strata[i] != SWAPPED for i in order]), np.sort(drawn).astype(np.int64),
    )  # fmt: skip


@lru_cache(maxsize=1)
def _teacher(study: TextStudy) -> LanguageModel:
    """The same pretrained model, tuned on rationales that no seed's student or pool holds."""
    lm = _stories(study.data)
    train, _ = rationales(study.data, study.settings.longest)
    rows = train[: study.settings.teacher_rows]
    _tune(lm, rows, study.settings.teacher_updates, study.settings.recipe, 0)
    return lm


def _stories(data: Path) -> LanguageModel:
    folder = data.parent / "models" / "stories260k"
    return load_model(ModelSpec(model=str(folder), tuning_method="full", device="cpu"))


def _tune(lm: LanguageModel, rows: Sequence[Sample], updates: int, recipe: Recipe, seed: int) -> None:
    encoded = lm.tokenizer.encode_many([(s.prompt, s.answer or "") for s in rows], max_length=512)
    settings = PhaseSettings(
        learning_rate=recipe.learning_rate, batch_size=recipe.batch_size, max_steps=updates, weight_decay=0.01,
        lr_scheduler_type="linear", warmup_ratio=0.05,
    )  # fmt: skip
    train_phase(lm, [Example(text) for text in encoded], settings, seed=seed)
