"""A trace as routing sees it: uncertainty, rejection and quality of every decision."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from fedtandem.data.traces import Trace
from fedtandem.errors import ConfigError
from fedtandem.inference.scorer import LearnedScorer, fit_scorer
from fedtandem.inference.uncertainty import MEASURES, expected

Floats = npt.NDArray[np.float64]
Feedback = Literal["auto", "probabilities", "agreement", "quality"]

RECORDED = "recorded"
"""The measure of a trace that brought its own uncertainties."""
LEARNED = "learned"
"""The measure that a policy brings with it."""
MEASURE_NAMES = (*MEASURES, RECORDED, LEARNED)
ROWS = 8192


@dataclass(frozen=True, eq=False)
class Scored:
    """N decisions.

    Attributes:
        u: uncertainty, (N,) in [0, 1].
        beta: what keeping the draft costs, (N,) in [-1, 1].
        slm_score, llm_score: how good each answer is, (N,); None where the truth is unknown.
        feedback: what `beta` was made of.
        known: rows of the trace with a known truth, (N,) bool.
    """

    u: Floats
    beta: Floats
    slm_score: Floats | None
    llm_score: Floats | None
    feedback: str
    known: npt.NDArray[np.bool_]

    def rows(self, index: npt.NDArray[np.int64]) -> "Scored":
        """Some decisions, in the order of the index."""
        slm, llm = (None if scores is None else scores[index] for scores in (self.slm_score, self.llm_score))
        return Scored(self.u[index], self.beta[index], slm, llm, self.feedback, self.known[index])


def score_trace(
    trace: Trace, measure: str, feedback: Feedback = "auto", scorer: LearnedScorer | None = None
) -> Scored:
    """Work out u, β and scores.

    Args:
        trace: the decisions.
        measure: a name in `MEASURE_NAMES`.
        feedback: `probabilities` is 1 - p(d)/q(d); `agreement` 1 where the LLM answers otherwise; `quality` how much
            better the LLM's answer is, which is below 0 where it is worse; `auto` takes the first of probabilities
            and agreement that the trace allows.
        scorer: of the measure `learned`.

    Raises:
        ConfigError: the trace lacks what was asked for.
    """
    beta, kind = rejections(trace, feedback)
    slm, llm, known = _scores(trace)
    return Scored(uncertainties(trace, measure, scorer), beta, slm, llm, kind, known)


def rejections(trace: Trace, feedback: Feedback) -> tuple[Floats, str]:
    """β of every decision, (N,) in [-1, 1], and what it is made of.

    Raises:
        ConfigError: the trace lacks what was asked for.
    """
    slm, llm, known = _scores(trace)
    kind = feedback if feedback != "auto" else "probabilities" if trace.llm_probs is not None else "agreement"
    if kind == "probabilities":
        beta = _rejections(trace)
    elif kind == "agreement":
        beta = (trace.draft != trace.answer).astype(np.float64)
    elif kind == "quality":
        if slm is None or llm is None or not known.all():
            raise ConfigError(
                "feedback = quality needs a label, or slm_score and llm_score, in every row of the trace."
            )
        beta = llm - slm
    else:
        raise ConfigError(f"feedback = {feedback!r}; choose auto, probabilities, agreement or quality.")
    return beta, kind


def uncertainties(trace: Trace, measure: str, scorer: LearnedScorer | None = None) -> Floats:
    """u of every decision by a named measure, (N,).

    Raises:
        ConfigError: no such measure, or the trace did not record what it is made of.
    """
    if measure not in MEASURE_NAMES:
        raise ConfigError(f"measure = {measure!r}; choose one of {', '.join(MEASURE_NAMES)}.")
    if measure == RECORDED:
        if trace.uncertainty is None:
            raise ConfigError("measure = recorded, but the trace has no column `uncertainty`.")
        return trace.uncertainty.astype(np.float64)
    if trace.slm_probs is None or trace.slm_ids is None:
        raise ConfigError(
            f"measure = {measure}, but the trace recorded no law of the SLM; with its column `uncertainty` the measure "
            "is `recorded`."
        )
    if measure == LEARNED and scorer is None:
        raise ConfigError(
            "measure = learned, but the policy holds no scorer; `calibrate --measure learned` fits one."
        )
    parts = []
    for start in range(0, len(trace), ROWS):
        rows = slice(start, start + ROWS)
        logits = slm_logits(trace, rows)
        if scorer is not None and measure == LEARNED:
            parts.append(scorer(logits, torch.from_numpy(trace.position[rows])).clamp(0, 1))
        elif measure == "expected":
            at = torch.from_numpy(trace.slm_ids[rows] == trace.draft[rows, None])
            place = at.int().argmax(dim=-1)
            u = expected(logits, place)
            # A draft beyond the recorded top k has next to no probability.
            parts.append(torch.where(at.any(dim=-1), u, 1.0))
        else:
            parts.append(MEASURES[measure](logits))
    return torch.cat(parts).double().numpy()


def slm_logits(trace: Trace, rows: Any) -> torch.Tensor:
    """The recorded law of some rows as logits, (R, K) float32.

    Raises:
        ConfigError: none was recorded.
    """
    if trace.slm_probs is None:
        raise ConfigError("the trace recorded no law of the SLM (slm_ids, slm_probs).")
    return torch.from_numpy(np.log(np.maximum(trace.slm_probs[rows], 1e-30)))


def fit_on(trace: Trace, feedback: Feedback, seed: int) -> LearnedScorer:
    """The learned uncertainty of a trace with every answer recorded."""
    beta = torch.from_numpy(np.clip(rejections(trace, feedback)[0], 0, 1)).float()
    logits = slm_logits(trace, slice(None))
    return fit_scorer(logits, torch.from_numpy(trace.position), beta, torch.Generator().manual_seed(seed))


def measures_of(trace: Trace) -> tuple[str, ...]:
    """Measures that need nothing but this trace."""
    laws = tuple(MEASURES) if trace.slm_probs is not None else ()
    return (*laws, RECORDED) if trace.uncertainty is not None else laws


def feedbacks_of(trace: Trace) -> tuple[str, ...]:
    """What β can be made of with this trace."""
    laws = trace.llm_probs is not None and (trace.info.draft == "greedy" or trace.slm_probs is not None)
    return (
        *(("probabilities",) if laws else ()),
        "agreement",
        *(("quality",) if truth_is_known(trace) else ()),
    )


def truth_is_known(trace: Trace) -> bool:
    """Whether every decision says how good both answers are."""
    return trace.slm_score is not None or (trace.label is not None and bool((trace.label >= 0).all()))


def default_measure(trace: Trace) -> str:
    """`expected` where the SLM's law was recorded."""
    return "expected" if trace.slm_probs is not None else RECORDED


def _rejections(trace: Trace) -> Floats:
    if trace.llm_probs is None or trace.llm_ids is None:
        raise ConfigError(
            "feedback = probabilities, but the trace recorded no law of the LLM; use agreement."
        )
    p = _of_draft(trace.llm_ids, trace.llm_probs, trace.draft)
    if trace.info.draft == "greedy":
        return np.clip(1 - p, 0, 1)
    if trace.slm_ids is None or trace.slm_probs is None:
        raise ConfigError("sampled drafts need the SLM's law: record slm_ids and slm_probs.")
    q = _of_draft(trace.slm_ids, trace.slm_probs, trace.draft)
    # Beyond the top k of q: the draft was drawn all the same, with a probability nobody wrote down.
    return np.where(q > 0, np.clip(1 - p / np.where(q > 0, q, 1), 0, 1), 1.0)


def _of_draft(ids: npt.NDArray[Any], probs: npt.NDArray[Any], draft: npt.NDArray[Any]) -> Floats:
    return np.asarray((probs * (ids == draft[:, None])).sum(axis=1), dtype=np.float64)


def _scores(trace: Trace) -> tuple[Floats | None, Floats | None, npt.NDArray[np.bool_]]:
    everything = np.ones(len(trace), dtype=bool)
    if trace.slm_score is not None and trace.llm_score is not None:
        return trace.slm_score.astype(np.float64), trace.llm_score.astype(np.float64), everything
    if trace.label is None or not (trace.label >= 0).any():
        return None, None, ~everything
    known = trace.label >= 0
    slm, llm = ((answer == trace.label).astype(np.float64) for answer in (trace.draft, trace.answer))
    return slm, llm, known
