"""The second host: the same selectors, another algorithm; asked first, then taught."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from fedtandem.algorithms.contrast import make_contrast, wrong_step
from fedtandem.algorithms.lada import lada_named
from fedtandem.algorithms.learner import Learner, Lesson
from fedtandem.algorithms.pool_rows import PoolScorer
from fedtandem.algorithms.sequence_scores import sequence_log_probs
from fedtandem.algorithms.step_by_step import ModelTeacher, step_by_step
from fedtandem.checking.verdict import Verdict
from fedtandem.data.chains import check_path, operator_tables
from fedtandem.distillation.contrastive_reasoning import ContrastiveTerm
from fedtandem.models.language_model import LanguageModel
from fedtandem.models.load import ModelSpec, load_model
from fedtandem.selection.heuristics import heuristic
from fedtandem.selection.items import Floats, ItemSelector, Pair, Pool, ScoreRows, Selection

Student = Callable[..., Learner]


def pool_of(learner: Learner, probe: int = 4, rounds: int = 2) -> Pool:
    drawn = np.arange(0, len(learner.public), len(learner.public) // max(1, probe))[:probe] if probe else []
    return Pool(
        [s.prompt for s in learner.public], [None] * len(learner.public), np.array(drawn, np.int64), rounds, 0
    )


@dataclass
class Overheard:
    """A teacher whose every question is written down."""

    teacher: ModelTeacher
    diary: list[tuple[str, int]]

    @property
    def name(self) -> str:
        return self.teacher.name

    def write(self, prompts: Sequence[str]) -> list[str]:
        self.diary.append(("asked", len(prompts)))
        return self.teacher.write(prompts)

    def log_probs(self, prompts: Sequence[str], paths: Sequence[str]) -> Floats:
        return self.teacher.log_probs(prompts, paths)


def noted(selector: ItemSelector, diary: list[tuple[str, int]]) -> ItemSelector:
    """The selector, with the number of paths it could see at each choice written down."""
    select = selector.select

    def watched(round: int, pair: Pair, rows: ScoreRows, budget: int) -> Selection:
        diary.append(("selected", int(rows.has_path.sum())))
        return select(round, pair, rows, budget)

    selector.select = watched  # type: ignore[method-assign]
    return selector


def test_lada_runs_unchanged_and_asks_only_for_what_it_selected(
    student: Student, server_lm: LanguageModel
) -> None:
    diary: list[tuple[str, int]] = []
    learner = student(40)
    rounds = step_by_step(
        learner, Overheard(ModelTeacher("llm", server_lm, 24), diary), noted(lada_named("lada"), diary),
        pool_of(learner), budget=10,
    )  # fmt: skip
    # The probe once; then, each round, first the choice by what is held, then the question.
    assert diary == [("asked", 4), ("selected", 4), ("asked", 10), ("selected", 14), ("asked", 10)]
    assert [r.asked for r in rounds] == [10, 10]
    assert all({"f1_loss", "f2_loss", "gain", "signatures"} <= r.report.keys() for r in rounds)
    assert rounds[1].report["gain"] is not None


@pytest.mark.parametrize("reference", ["self", "peer", "none"])
def test_a_contrastive_loss_with_every_reference_changes_what_is_learnt(
    student: Student, server_lm: LanguageModel, reference: str
) -> None:
    def final(weight: float) -> dict[str, np.ndarray]:
        learner = student(24)
        term = ContrastiveTerm(weight, reference) if weight else None  # type: ignore[arg-type]
        step_by_step(
            learner, ModelTeacher("llm", server_lm, 24), lada_named("lada", term=term),
            pool_of(learner, rounds=1), budget=12,
        )  # fmt: skip
        return {name: value.numpy() for name, value in learner.lm.state().items()}

    plain, again, contrasted = final(0.0), final(0.0), final(0.5)
    assert all(np.array_equal(plain[name], again[name]) for name in plain)
    assert any(not np.array_equal(plain[name], contrasted[name]) for name in plain)


def test_a_heuristic_and_a_checker_work_here_too(student: Student, server_lm: LanguageModel) -> None:
    tables, refused = operator_tables(("+", "-", "*", "m"), 0), []

    def checker(prompt: str, path: str) -> Verdict:
        ok = check_path(prompt, path, tables)
        refused.append(not ok)
        return Verdict(ok, "by the rules of arithmetic")

    learner = student(30)
    done = step_by_step(
        learner, ModelTeacher("llm", server_lm, 24), heuristic("random"), pool_of(learner, probe=0, rounds=1),
        budget=0.5, checker=checker,
    )  # fmt: skip
    assert done[0].asked == 15
    assert done[0].learnt == 15 - sum(refused)


def lesson_of(learner: Learner, paths: list[str]) -> Lesson:
    texts = learner.answered(range(len(paths)), paths)
    return Lesson(texts, [None] * len(texts), [None] * len(texts))


def test_a_student_that_writes_what_it_is_taught_adds_nothing(
    student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = student(6)
    paths = [" 1 + 1 = 2 ; # 2"] * 3
    # The strictest case: the student's own path is the very one it is taught, or it writes nothing at all.
    monkeypatch.setattr(learner, "write", lambda *_, **__: [*paths[:2], ""])
    scorer = PoolScorer(learner, pool_of(learner, probe=0), frozenset(), None)
    places = {"clinic-a": np.arange(3)}
    contrast = make_contrast(
        learner,
        scorer,
        1,
        lesson_of(learner, paths),
        np.arange(3),
        {"clinic-a": ContrastiveTerm(1.0)},
        places,
    )
    assert contrast.pairs == {}
    learner.lm.model.zero_grad()
    contrast((0, 1, 2), 1.0)
    assert all(p.grad is None for p in learner.lm.model.parameters())


def test_the_contrast_pulls_the_taught_path_up_and_the_own_one_down(
    student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = student(6, learning_rate=3e-3, max_steps=1)
    taught, own = [" 1 + 1 = 2 ; # 2"] * 2, [" 1 + 1 = 9 ; # 9"] * 2
    monkeypatch.setattr(learner, "write", lambda *_, **__: own)
    scorer = PoolScorer(learner, pool_of(learner, probe=0), frozenset(), None)
    contrast = make_contrast(
        learner, scorer, 1, lesson_of(learner, taught), np.arange(2), {"clinic-a": ContrastiveTerm(1.0)},
        {"clinic-a": np.arange(2)},
    )  # fmt: skip
    pair = contrast.pairs[0]
    parameters = [p for p in learner.lm.model.parameters() if p.requires_grad]
    learner.lm.model.zero_grad()
    contrast((0, 1), 1.0)
    import torch

    with torch.no_grad():
        for p in parameters:
            if p.grad is not None:
                p -= (
                    0.01
                    * p.grad
                    / (1e-12 + torch.stack([q.grad.norm() for q in parameters if q.grad is not None]).norm())
                )
    now_pos, now_neg = sequence_log_probs(learner.lm, [pair.pos, pair.neg])
    assert now_pos > pair.ref_pos
    assert now_neg < pair.ref_neg


SPOILT = " 3 + 5 = 8 ; 8 * 2 = 7 ; 7 - 1 = 6 ; # 6"


@pytest.mark.parametrize("model", ["client-a", "client-b", "server"])
def test_a_path_cut_to_each_of_its_steps_adds_up_to_the_whole(model: str) -> None:
    lm = load_model(ModelSpec(model=f"embedded:chains-{model}", tuning_method="none", device="cpu"))
    (text,) = lm.tokenizer.encode_many([("Q 3 + 5 * 2 - 1 A", SPOILT)])
    places = [*((at, at + 12) for at in (0, 12, 24)), (36, len(SPOILT))]
    steps = [wrong_step(text, SPOILT, where) for where in places]
    (whole,) = sequence_log_probs(lm, [text])
    parts = sequence_log_probs(lm, [step for step in steps if step is not None])
    (closed,) = sequence_log_probs(lm, [wrong_step(text, SPOILT, (0, len(SPOILT)))])  # type: ignore[list-item]
    assert parts.sum() == pytest.approx(closed, abs=1e-4)
    assert closed >= whole  # the EOS belongs to no step
    assert wrong_step(text, SPOILT, (99, 120)) is None


def test_only_the_first_wrong_step_of_a_refuted_path_counts(
    student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = student(3)
    right = SPOILT.replace("8 * 2 = 7 ; 7 - 1 = 6 ; # 6", "8 * 2 = 6 ; 6 - 1 = 5 ; # 5")
    verdicts = {
        right: Verdict(True, "right"),
        SPOILT: Verdict(False, "a wrong step", first_wrong=(12, 24)),
        " no chain": Verdict(False, "no chain"),
    }
    monkeypatch.setattr(learner, "write", lambda *_, **__: [SPOILT, " no chain", SPOILT])
    scorer = PoolScorer(
        learner, pool_of(learner, probe=0), frozenset({"verdict"}), lambda _, path: verdicts[path]
    )
    term = ContrastiveTerm(1.0, prefer="verified", negative="first_wrong_step")
    contrast = make_contrast(
        learner, scorer, 1, lesson_of(learner, [right, right, SPOILT]), np.arange(3), {"clinic-a": term},
        {"clinic-a": np.arange(3)},
    )  # fmt: skip
    assert list(contrast.pairs) == [0]  # where nobody can say which step is wrong, nothing is contrasted
    pair = contrast.pairs[0]
    assert (
        learner.lm.tokenizer.decode_answer(pair.neg.targets[pair.neg.segment == 1]).strip() == "8 * 2 = 7 ;"
    )
    assert pair.ref_neg == pytest.approx(float(sequence_log_probs(learner.lm, [pair.neg])[0]))
