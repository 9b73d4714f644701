"""Step-by-step distillation, down only: a small model asks a large one for its reasoning and learns it.

A second host for selectors, written plainly. One round:

 1. the student scores the pool by what it holds, and the selector names the prompts worth asking;
 2. the teacher writes a path for each of them; paths the checker refuses are dropped;
 3. the student trains on the paths, with the selector's contrastive loss against its own ones;
 4. the selector is told what that was worth.

Source: the setting of FedCoT (arXiv:2406.12403) and of distilling step by step (arXiv:2305.02301); specification of
LaDa, section 5.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedtandem.algorithms.contrast import make_contrast
from fedtandem.algorithms.learner import Learner, Lesson
from fedtandem.algorithms.pool_rows import PoolScorer
from fedtandem.algorithms.selecting import per_token
from fedtandem.algorithms.sequence_scores import sequence_log_probs
from fedtandem.checking.verdict import Checker
from fedtandem.models.language_model import LanguageModel
from fedtandem.selection.items import (
    WRONG,
    Feedback,
    Floats,
    ItemSelector,
    Pair,
    Path,
    Pool,
    count_of,
)


class Teacher(Protocol):
    """Who is asked; a hosted model that tells no probabilities answers NaN."""

    @property
    def name(self) -> str: ...

    def write(self, prompts: Sequence[str]) -> list[str]:
        """One path per prompt; "" for none."""

    def log_probs(self, prompts: Sequence[str], paths: Sequence[str]) -> Floats:
        """log p(path | prompt) in nats, (n,); NaN where the teacher cannot say."""


@dataclass
class ModelTeacher:
    """A language model of this process as a teacher."""

    name: str
    lm: LanguageModel
    max_new_tokens: int = 256
    batch_size: int = 32

    def write(self, prompts: Sequence[str]) -> list[str]:
        """Greedy paths."""
        tokenizer = self.lm.tokenizer
        ids = self.lm.generate(
            [tokenizer.encode_prompt(prompt) for prompt in prompts],
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
        )
        return [tokenizer.decode_answer(written) for written in ids]

    def log_probs(self, prompts: Sequence[str], paths: Sequence[str]) -> Floats:
        """By its own tokens."""
        texts = self.lm.tokenizer.encode_many(list(zip(prompts, paths, strict=True)))
        return sequence_log_probs(self.lm, texts, self.batch_size)


@dataclass(frozen=True)
class RoundOfSteps:
    """What one round did: prompts asked, paths learnt, and the selector's report."""

    asked: int
    learnt: int
    report: dict[str, object]


def step_by_step(
    student: Learner,
    teacher: Teacher,
    selector: ItemSelector,
    pool: Pool,
    *,
    budget: int | float,
    checker: Checker | None = None,
) -> list[RoundOfSteps]:
    """Distil for `pool.num_rounds` rounds.

    Args:
        student: changed in place; its public set is the pool, without answers.
        teacher: asked for the selected prompts only, and once for the probe.
        selector: a fresh one.
        budget: prompts a round: a count, or a share of the pool.
        checker: refuses paths; None accepts all.
    """
    selector.setup(pool)
    scorer = PoolScorer(student, pool, selector.needs, checker)
    pair, held = Pair(student.name, "down"), dict[int, Path]()
    everyone = np.arange(pool.n_items, dtype=np.int64)
    _ask(teacher, pool, [int(i) for i in pool.probe], held, 0)
    rounds = []
    for t in range(1, pool.num_rounds + 1):
        rows = scorer.rows(t, everyone, held, None)
        chosen = selector.select(t, pair, rows, count_of(budget, pool.n_items)).ids
        _ask(teacher, pool, [int(i) for i in chosen], held, t)
        kept = [
            int(i) for i in chosen if int(i) in held and scorer.verdict(int(i), held[int(i)].text) != WRONG
        ]
        items = np.array(kept, np.int64)
        texts = student.answered(items, [held[i].text for i in kept])
        probe = np.array([i for i in pool.probe if int(i) in held], np.int64)
        probe_texts = student.answered(probe, [held[int(i)].text for i in probe])
        term = selector.loss_term(t, pair)
        lesson = Lesson(texts, [None] * len(texts), [None] * len(texts))
        places = {student.name: np.arange(len(texts))}
        contrast = make_contrast(
            student, scorer, t, lesson, items, {student.name: term}, places,
            peer=lambda asked, paths: teacher.log_probs([pool.prompts[i] for i in asked], paths),
        )  # fmt: skip
        before, probe_before = per_token(student, texts), per_token(student, probe_texts)
        student.learn(t, lesson, on_batch=contrast)
        after, probe_after = per_token(student, texts), per_token(student, probe_texts)
        at = np.flatnonzero(contrast.batch_of >= 0)
        selector.feedback(t, pair, Feedback(
            ids=items[at], batch=contrast.batch_of[at], loss_before=contrast.loss(at, before),
            loss_after=contrast.loss(at, after, now=True), q_before=np.exp(before[at]), q_after=np.exp(after[at]),
            probe=probe, probe_before=np.exp(probe_before), probe_after=np.exp(probe_after),
        ))  # fmt: skip
        rounds.append(RoundOfSteps(len(chosen), len(at), dict(selector.report(pair))))
    return rounds


def _ask(teacher: Teacher, pool: Pool, items: Sequence[int], held: dict[int, Path], t: int) -> None:
    """Fetch paths for these items; a new one replaces the old."""
    prompts = [pool.prompts[i] for i in items]
    written = teacher.write(prompts) if items else []
    some = [(i, prompt, text) for i, prompt, text in zip(items, prompts, written, strict=True) if text]
    if not some:
        return
    log_probs = teacher.log_probs([prompt for _, prompt, _ in some], [text for _, _, text in some])
    for (i, _, text), log_prob in zip(some, log_probs, strict=True):
        held[i] = Path(text, float(log_prob), len(text.encode()), teacher.name, t)
