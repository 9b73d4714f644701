"""Baselines that are one rule instead of a ranking: published thresholds, peers as answers, caches, learnt policies."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from fedtandem.algorithms.fedhlm import Settings
from fedtandem.data.traces import Trace
from fedtandem.evaluation.replay import replay
from fedtandem.evaluation.scored_trace import score_trace, uncertainties
from fedtandem.federation.calibrate import calibrate
from fedtandem.inference.line import fit_line, line_sums, line_threshold
from fedtandem.inference.peers import nearest_label
from fedtandem.inference.similarity import START
from fedtandem.inference.threshold import Goal
from fedtandem.inference.uncertainty import perturbation
from fedtandem.studies.routing.routers import Pair, threshold_for

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

PUBLISHED = {"U-HLM averse, as published": 0.073, "U-HLM prone, as published": 0.43,
             "CU-HLM averse, as published": 0.081, "CU-HLM prone, as published": 0.8117}  # fmt: skip
"""Thresholds on the perturbation score, as reported: specification of FedHLM, section 11."""
REFITTED = {"U-HLM averse, line refitted": 0.0, "U-HLM prone, line refitted": 0.29}
"""The price λ at which the refitted line is read."""
GOALS = {
    "learnt, budget 10 %": (Goal("share", 0.1), "probabilities"),
    "learnt, loss 0.5 points": (Goal("error", 0.005), "quality"),
    "learnt, price 0.3": (Goal("price", 0.3), "probabilities"),
}
NEAR_BUDGET = 0.1
"""Share of the decisions that peers and caches are asked about."""


def outcomes(pair: Pair, seed: int) -> dict[str, tuple[float, Floats]]:
    """Every rule's share of calls and its test answers, 1.0 where right."""
    n = len(pair.test)
    found: dict[str, tuple[float, Floats]] = {
        "SLM only": (0.0, pair.slm[1]),
        "cloud only": (1.0, pair.llm[1]),
    }
    u = [_perturbed(trace, seed + i) for i, trace in enumerate(pair.traces)]
    beta = score_trace(pair.calibration, "max_prob").beta
    line = fit_line(line_sums(u[0], beta, np.ones(len(beta))))
    taus = PUBLISHED | {name: line_threshold(line, price) for name, price in REFITTED.items()}
    found |= {name: _routed(pair, u[1] > tau) for name, tau in taus.items()}
    for name, (goal, feedback) in GOALS.items():
        found[name] = _learnt(pair, goal, feedback, seed)
    found |= _near(pair)
    return {
        name: (calls, right.astype(np.float64)) for name, (calls, right) in found.items() if len(right) == n
    }


def _routed(pair: Pair, sent: Bools) -> tuple[float, Floats]:
    return float(sent.mean()), np.where(sent, pair.llm[1], pair.slm[1])


def _perturbed(trace: Trace, seed: int) -> Floats:
    logits = torch.from_numpy(np.log(np.maximum(np.asarray(trace.slm_probs), 1e-30)))
    draft = torch.from_numpy(np.asarray(trace.draft))
    return perturbation(logits, torch.Generator().manual_seed(seed), draft).double().numpy()


def _learnt(pair: Pair, goal: Goal, feedback: str, seed: int) -> tuple[float, Floats]:
    """A policy learnt by the federation of the calibration's clients, replayed on the test; peers stay out."""
    plain = [replace(trace, context=None) for trace in pair.traces]
    scored = [score_trace(trace, "expected", feedback) for trace in plain]  # type: ignore[arg-type]
    settings = Settings(goal=goal, audit_rate=None, seed=seed, draws=0)
    policy = calibrate(plain[0], scored[0], settings, measure="expected").policy
    played = replay(plain[1], scored[1], policy)
    return _routed(pair, played.sent)


def _near(pair: Pair) -> dict[str, tuple[float, Floats]]:
    """Peers and caches in place of the cloud, for the tenth that is least sure."""
    before, test = pair.traces
    if before.embedding is None or test.embedding is None or test.label is None:
        return {}
    u = [uncertainties(trace, "expected") for trace in pair.traces]
    tau = threshold_for(u[0], NEAR_BUDGET)
    stored, sent = u[0] > tau, u[1] > tau
    right, asked = pair.slm[1].copy(), np.flatnonzero(sent)
    # Other clients' texts that the cloud already answered.
    guess = np.array([
        nearest_label(before.embedding[other], before.answer[other], test.embedding[[i]])[0]
        if (other := stored & (before.client != test.client[i])).any() else test.draft[i]
        for i in asked.tolist()
    ])  # fmt: skip
    right[asked] = guess == test.label[asked]
    cached, near = right * 0 + np.where(sent, pair.llm[1], pair.slm[1]), _cosines(test, before, sent, stored)
    hit = near.max(axis=1) >= START
    cached[asked[hit]] = before.answer[stored][near[hit].argmax(axis=1)] == test.label[asked[hit]]
    return {
        "kNN peers for a tenth": (0.0, right),
        "semantic cache for a tenth": (float((len(asked) - hit.sum()) / len(test)), cached),
    }


def _cosines(test: Trace, before: Trace, sent: Bools, stored: Bools) -> Floats:
    a, b = np.asarray(test.embedding)[sent], np.asarray(before.embedding)[stored]
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (a, b))
    return np.asarray(a @ b.T, dtype=np.float64)
