"""Study `gsm8k-routing`: which questions should the large model answer, on real answers of two real models.

    python -m fedtandem.studies.gsm8k_routing --data ../shared/data/gsm8k_routellm/test.jsonl.gz \\
        --output studies/gsm8k-routing

A router ranks questions; the first go to the large model. Routers learn on four fifths of the questions which ones
the large model alone gets right, and are measured on the fifth they have not seen. What is compared was named before
any figure was seen: gates against chance, length and a TF-IDF router, by APGR.
"""

import argparse
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedtandem.algorithms.fedhlm import Settings
from fedtandem.data.files import read_file
from fedtandem.data.traces import Trace, TraceInfo, make_trace
from fedtandem.errors import ConfigError, DataError
from fedtandem.evaluation.curves import apgr, calls_for_pgr, quality_curve
from fedtandem.evaluation.replay import replay
from fedtandem.evaluation.scored_trace import RECORDED, score_trace
from fedtandem.federation.calibrate import calibrate
from fedtandem.inference.routing import CLOUD
from fedtandem.inference.threshold import Goal
from fedtandem.studies.cells import Figure, Measured
from fedtandem.studies.in_memory import About, write_study
from fedtandem.studies.statistics import Items
from fedtandem.studies.summary import Pattern, Plan

Floats = npt.NDArray[np.float64]

FOLDS = 5
BUDGET = 0.3
"""Share of calls that thresholds are learnt for."""
PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0)
"""Inverse strengths of the ridge, chosen inside the training questions."""


@dataclass(frozen=True)
class Question:
    """One question with both models' answers.

    Attributes:
        small, large: whether each answer is right.
        said: the small model's answer.
    """

    id: str
    text: str
    said: str
    small: bool
    large: bool


Router = Callable[[Sequence[Question], Sequence[Question]], Floats]
"""(training questions, test questions) -> the larger, the sooner a test question goes to the large model; (N,)."""


def read_questions(path: Path) -> list[Question]:
    """Rows with question, small_response, small_correct and large_correct.

    Raises:
        DataError: no file, or a row without one of them.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}; give the rows of gsm8k_routellm.")
    found = []
    for row in read_file(path, where="gsm8k-routing"):
        try:
            v: Mapping[str, Any] = row.values
            found.append(
                Question(
                    str(v["id"]), str(v["question"]), str(v["small_response"]), bool(v["small_correct"]),
                    bool(v["large_correct"]),
                )
            )  # fmt: skip
        except KeyError as error:
            raise DataError(f"{row.place} has no column {error}.") from error
    return found


# -- features ----------------------------------------------------------------------------------------------------

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_SUM = re.compile(r"<<([-+*/(). \d]+)=\s*(-?[\d.]+)>>")
_QUESTION_WORDS = (
    "half",
    "twice",
    "times",
    "each",
    "per",
    "percent",
    "%",
    "more than",
    "less than",
    "if",
    "total",
)


def question_features(text: str) -> list[float]:
    """Length, numbers and words of a question that make it long-winded or hard."""
    numbers = [
        float(found.replace(",", "").rstrip(".")) for found in _NUMBER.findall(text) if found.count(".") < 2
    ]
    low = text.lower()
    return [
        np.log1p(len(text)), np.log1p(len(text.split())), float(text.count(".") + text.count("?")),
        float(len(numbers)), np.log1p(max(numbers, default=0.0)), float(sum(n != int(n) for n in numbers)),
        *(float(low.count(word)) for word in _QUESTION_WORDS),
    ]  # fmt: skip


def answer_features(text: str) -> list[float]:
    """Length, steps and slips of the small model's own answer: what a gate sees once the small model has written."""
    sums = _SUM.findall(text)
    wrong = sum(not _holds(left, right) for left, right in sums)
    final = _NUMBER.search(text.rpartition("####")[2]) if "####" in text else None
    value = float(final[0].replace(",", "").rstrip(".")) if final and final[0].count(".") < 2 else -1.0
    return [
        np.log1p(len(text)), float(text.count("\n") + 1), float(len(sums)), float(wrong), float(final is None),
        np.log1p(max(value, 0.0)), float(value != int(value)), float(text.count("=")),
        float(sum(text.lower().count(word) for word in ("however", "mistake", "assume", "cannot", "not "))),
    ]  # fmt: skip


def _holds(left: str, right: str) -> bool:
    """Whether a sum such as 45*1.2=54 is right: products and quotients first, no brackets; others count as right."""
    if re.fullmatch(r"\s*\d+(?:\.\d+)?(?:\s*[-+*/]\s*\d+(?:\.\d+)?)*\s*", left) is None:
        return True
    pieces = re.findall(r"[-+*/]|\d+(?:\.\d+)?", left)
    terms, sign = [float(pieces[0])], 1.0
    for operator, number in zip(pieces[1::2], map(float, pieces[2::2]), strict=True):
        if operator == "*":
            terms[-1] *= number
        elif operator == "/":
            terms[-1] = terms[-1] / number if number else float("nan")
        else:
            sign = 1.0 if operator == "+" else -1.0
            terms.append(sign * number)
    return abs(sum(terms) - float(right.rstrip("."))) <= 0.01 * max(1.0, abs(sum(terms)))


# -- routers -----------------------------------------------------------------------------------------------------


def by_lot(train: Sequence[Question], test: Sequence[Question]) -> Floats:
    """No question before another: its curve is the expectation of chance."""
    return np.zeros(len(test))


def by_length(train: Sequence[Question], test: Sequence[Question]) -> Floats:
    """The longest first."""
    return np.array([float(len(question.text)) for question in test])


def gate(features: Callable[[Question], list[float]]) -> Router:
    """Logistic regression on hand-made features."""

    def route(train: Sequence[Question], test: Sequence[Question]) -> Floats:
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        model = make_pipeline(StandardScaler(), _logistic())
        model.fit(np.array([features(q) for q in train]), _gains(train) > 0)
        return np.asarray(model.predict_proba(np.array([features(q) for q in test]))[:, 1], dtype=np.float64)

    return route


def tf_idf(text: Callable[[Question], str]) -> Router:
    """Logistic regression on TF-IDF of words and pairs of words: the usual learned router."""

    def route(train: Sequence[Question], test: Sequence[Question]) -> Floats:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.pipeline import make_pipeline

        model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True), _logistic())
        model.fit([text(q) for q in train], _gains(train) > 0)
        return np.asarray(model.predict_proba([text(q) for q in test])[:, 1], dtype=np.float64)

    return route


def _logistic() -> Any:
    """Ridge strength by five folds inside the training questions, by likelihood."""
    from sklearn.linear_model import LogisticRegressionCV

    return LogisticRegressionCV(
        Cs=list(PENALTIES),
        cv=5,
        scoring="neg_log_loss",
        max_iter=2000,
        l1_ratios=(0.0,),
        use_legacy_attributes=False,
    )


def _gains(questions: Sequence[Question]) -> Floats:
    return np.array([float(q.large) - float(q.small) for q in questions])


ROUTERS: Mapping[str, Router] = {
    "random": by_lot,
    "length": by_length,
    "tf_idf": tf_idf(lambda q: q.text),
    "gate": gate(lambda q: question_features(q.text)),
    "tf_idf_answer": tf_idf(lambda q: f"{q.text}\n{q.said}"),
    "gate_answer": gate(lambda q: question_features(q.text) + answer_features(q.said)),
}
"""The last two read the small model's answer as well, so they run after it; the others decide before."""

CONTROLS: Mapping[str, tuple[str, ...]] = {
    "gate": ("random", "length", "tf_idf"),
    "tf_idf": ("random", "length"),
    "gate_answer": ("random", "length", "tf_idf", "gate", "tf_idf_answer"),
    "tf_idf_answer": ("random", "tf_idf"),
}
CLAIMS = tuple(
    Pattern(method=row, control=control, metric="apgr")
    for row in ("gate", "gate_answer")
    for control in ("random", "length", "tf_idf")
)


# -- measuring ---------------------------------------------------------------------------------------------------


def apgr_items(rank: Floats, gain: Floats) -> Items:
    """APGR question by question: Σ gain · share of budgets at which it is called, over Σ gain.

    Of n questions the one at place r (0 first) is called at all budgets above r: over the area 1 - (r + ½)/n of
    them. Equal ranks share their places. The gap counts as known: redrawn questions move what is recovered of it.
    """
    _, inverse, counts = np.unique(-rank, return_inverse=True, return_counts=True)
    place = (np.cumsum(counts) - (counts + 1) / 2)[inverse]
    return Items(gain * (1 - (place + 0.5) / len(rank)), np.full(len(gain), gain.mean()))


def measure(
    questions: Sequence[Question], folds: int, seed: int
) -> dict[tuple[str, int], dict[Measured, Figure]]:
    """Every router on every fold.

    Returns:
        (router, fold) -> APGR, calls for 50 and 80 % of the gap, and calls and accuracy of a learnt threshold.
    """
    part = np.random.default_rng(seed).permutation(len(questions)) % folds
    figures: dict[tuple[str, int], dict[Measured, Figure]] = {}
    for fold in range(folds):
        train = [q for q, p in zip(questions, part, strict=True) if p != fold]
        test = [q for q, p in zip(questions, part, strict=True) if p == fold]
        for name, router in ROUTERS.items():
            figures[name, fold] = _measured(name, router, train, test, fold)
    return figures


def _measured(
    name: str, router: Router, train: Sequence[Question], test: Sequence[Question], fold: int
) -> dict[Measured, Figure]:
    slm, llm = (np.array([float(getattr(q, who)) for q in test]) for who in ("small", "large"))
    rank = router(train, test)
    curve = quality_curve(rank, slm, llm)
    items = apgr_items(rank, llm - slm)
    n = len(test)
    found = {("gate", "all", "apgr"): Figure(apgr(curve), True, n, items)}
    for share in (50, 80):
        found["gate", "all", f"calls_for_{share}_pgr"] = Figure(
            calls_for_pgr(curve, share / 100), False, n, None
        )
    if name in ("random", "length"):
        return found  # nothing was learnt, so there is no threshold to learn on it
    sent = _sent(router, train, test, rank, fold)
    split = f"budget-{100 * BUDGET:.0f}"
    score, one = np.where(sent, llm, slm), np.ones(n)
    found["gate", split, "accuracy"] = Figure(float(score.mean()), True, n, Items(score, one))
    found["gate", split, "calls"] = Figure(float(sent.mean()), False, n, Items(sent.astype(float), one))
    lots = slm + sent.mean() * (llm - slm)
    found["gate", split, "lead_over_chance"] = Figure(
        float((score - lots).mean()), True, n, Items(score - lots, one)
    )
    return found


def _sent(
    router: Router, train: Sequence[Question], test: Sequence[Question], rank: Floats, fold: int
) -> npt.NDArray[np.bool_]:
    """What a threshold learnt on the training questions would send of the test questions.

    Training questions are ranked by routers that have not seen them, or τ would be set on memorised scores.
    """
    held_out = np.empty(len(train))
    part = np.random.default_rng([7, fold]).permutation(len(train)) % FOLDS
    for inner in range(FOLDS):
        seen = [q for q, p in zip(train, part, strict=True) if p != inner]
        mine = np.flatnonzero(part == inner)
        held_out[mine] = router(seen, [train[i] for i in mine.tolist()])
    settings = Settings(goal=Goal("share", BUDGET), audit_rate=1.0, draws=0)
    learnt_on = as_trace(train, held_out)
    scored = score_trace(learnt_on, RECORDED, "quality")
    policy = calibrate(learnt_on, scored, settings, measure=RECORDED).policy
    used_on = as_trace(test, rank)
    return np.asarray(replay(used_on, score_trace(used_on, RECORDED, "quality"), policy).tier == CLOUD)


def as_trace(questions: Sequence[Question], rank: Floats) -> Trace:
    """The questions as one client's trace, the router's score as its uncertainty."""
    n = len(questions)
    return make_trace(
        TraceInfo(slm="small", llm="large", vocabulary=2, name="gsm8k-routing"),
        {
            "client": ["client"] * n, "cluster": ["edge"] * n, "session": [q.id for q in questions],
            "position": np.zeros(n), "draft": np.zeros(n), "answer": np.ones(n), "uncertainty": rank,
            "slm_score": [float(q.small) for q in questions], "llm_score": [float(q.large) for q in questions],
        },
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study; 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="F")
    parser.add_argument("--output", type=Path, default=Path("studies/gsm8k-routing"), metavar="DIR")
    parser.add_argument("--limit", type=int, help="the first N questions: the small form")
    given = parser.parse_args(argv)
    questions = read_questions(given.data)[: given.limit]
    if len(questions) < 20 * FOLDS:
        raise ConfigError(f"{len(questions)} questions; five folds need at least {20 * FOLDS}.")
    digest = hashlib.sha256("\n".join(q.id + q.text + q.said for q in questions).encode()).hexdigest()
    about = About(
        name="gsm8k-routing", main="gate_answer", data_hash=digest, packages=("fedtandem", "numpy", "scikit-learn"),
        command="python -m fedtandem.studies.gsm8k_routing --data .../gsm8k_routellm/test.jsonl.gz",
        config={
            "questions": len(questions), "folds": FOLDS, "budget": BUDGET, "penalties": list(PENALTIES),
            "small_accuracy": float(np.mean([q.small for q in questions])),
            "large_accuracy": float(np.mean([q.large for q in questions])),
        },
        what="fold",
    )  # fmt: skip
    plan = Plan(tuple(ROUTERS), tuple(range(FOLDS)), CONTROLS, claims=CLAIMS)
    summary = write_study(given.output, about, plan, measure(questions, FOLDS, seed=0))
    for row in summary["rows"]:
        if row["metric"] == "apgr" and row["control"] in (None, "random"):
            print(
                f"{row['method']:<16} APGR {row['mean']:.3f}  per fold {[round(v, 3) for v in row['per_seed']]}"
            )
    print(f"{given.output / 'report.html'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
