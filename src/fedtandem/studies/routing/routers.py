"""Ways to rank decisions by how much they need the cloud: uncertainties, routers that are fitted, chance, an oracle."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fedtandem.data.traces import Trace
from fedtandem.evaluation.curves import apgr, at_share, calls_for, quality_curve, worst_decile
from fedtandem.evaluation.scored_trace import score_trace, uncertainties
from fedtandem.inference.scorer import fit_scorer
from fedtandem.inference.uncertainty import MEASURES
from fedtandem.models.tfidf import TfidfSpec, train_tfidf

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

BUDGETS = (0.05, 0.1, 0.2)
"""Shares of calls at which routers are compared."""
LOSSES = (0.005, 0.003)
"""Points below the cloud, as shares: what a router may lose."""
FOLDS = 5
ROUTERS = (*MEASURES, "scorer", "query", "random")
"""`max_prob` is the cascade on log-probability: one decision has one of them. `scorer` is fitted on the SLM's law,
`query` on the text alone, as RouteLLM's routers are."""


@dataclass(frozen=True, eq=False)
class Pair:
    """A calibration trace and a test trace with what is right in them.

    Attributes:
        slm, llm: 1.0 where the SLM and the cloud are right, (N,), for calibration and for test.
        texts: session -> text; for `query`.
    """

    calibration: Trace
    test: Trace
    slm: tuple[Floats, Floats]
    llm: tuple[Floats, Floats]
    texts: Mapping[str, str]

    @property
    def traces(self) -> tuple[Trace, Trace]:
        """Both."""
        return self.calibration, self.test


def pair_of(calibration: Trace, test: Trace, texts: Mapping[str, str]) -> Pair:
    """Both traces with their scores."""
    scored = [score_trace(trace, "max_prob", "agreement") for trace in (calibration, test)]
    slm, llm = (
        tuple(np.asarray(getattr(one, name), dtype=np.float64) for one in scored)
        for name in ("slm_score", "llm_score")
    )
    return Pair(calibration, test, slm, llm, texts)  # type: ignore[arg-type]


def ranks(pair: Pair, router: str, seed: int) -> tuple[Floats, Floats]:
    """How much each decision needs the cloud, by this router, for calibration and for test.

    Fitted routers rank the calibration out of fold, so that a threshold chosen there holds elsewhere.
    """
    rng = np.random.default_rng([seed, 7])
    if router == "random":
        return rng.random(len(pair.calibration)), rng.random(len(pair.test))
    if router in MEASURES:
        return uncertainties(pair.calibration, router), uncertainties(pair.test, router)
    fit = _scorer if router == "scorer" else _query
    fold = rng.permutation(np.arange(len(pair.calibration)) % FOLDS)
    own = np.zeros(len(fold))
    for f in range(FOLDS):
        own[fold == f] = fit(pair, fold != f, pair.calibration.rows(np.flatnonzero(fold == f)), seed)
    return own, fit(pair, np.ones(len(fold), dtype=bool), pair.test, seed)


def _scorer(pair: Pair, rows: Bools, asked: Trace, seed: int) -> Floats:
    """The house's learned scorer, fitted to rejections (1 where the cloud answers otherwise)."""
    mine = pair.calibration.rows(np.flatnonzero(rows))
    beta = torch.from_numpy((mine.draft != mine.answer).astype(np.float32))
    scorer = fit_scorer(_logits(mine), torch.zeros(len(mine)), beta, torch.Generator().manual_seed(seed))
    return scorer(_logits(asked), torch.zeros(len(asked))).double().numpy()


def _query(pair: Pair, rows: Bools, asked: Trace, seed: int) -> Floats:
    """TF-IDF and logistic regression from the text to "the cloud is right where the SLM is not"."""
    mine = pair.calibration.rows(np.flatnonzero(rows))
    needs = ((pair.llm[0] > pair.slm[0]) & rows)[rows].astype(int).tolist()
    if len(set(needs)) < 2:
        return np.zeros(len(asked))
    spec = TfidfSpec(ngrams=(1, 1), inverse_regularisation=1.0, seed=seed)
    router = train_tfidf(spec, [pair.texts[str(s)] for s in mine.session], needs, ("keep", "call"), "query")
    return router.read([pair.texts[str(s)] for s in asked.session]).probs[:, 1].double().numpy()


def _logits(trace: Trace) -> torch.Tensor:
    return torch.from_numpy(np.log(np.maximum(np.asarray(trace.slm_probs), 1e-30)))


def judged(pair: Pair, rank: tuple[Floats, Floats]) -> tuple[dict[str, float], dict[str, Floats]]:
    """A router's figures, thresholds chosen on the calibration and measured on the test.

    Returns:
        Figures: `apgr`; per budget `calls@`, `accuracy@` and `worst@` (decile of clients); per loss `calls-`, `loss-`
        and `hindsight-` (calls, had the threshold been chosen on the test). And the test's answers, 1.0 where right,
        by budget.
    """
    (chosen_on, asked), (slm, llm) = rank, (pair.slm[1], pair.llm[1])
    groups = np.unique(pair.test.client, return_inverse=True)[1]
    curve, calibration = quality_curve(asked, slm, llm), quality_curve(chosen_on, pair.slm[0], pair.llm[0])
    figures, items = {"apgr": apgr(curve)}, {}
    for budget in BUDGETS:
        sent = asked > threshold_for(chosen_on, budget)
        right = np.where(sent, llm, slm)
        name = f"{100 * budget:g}"
        figures |= {f"calls@{name}": float(sent.mean()), f"accuracy@{name}": float(right.mean()),
                    f"worst@{name}": worst_decile(right, groups)}  # fmt: skip
        items[name] = right
    for loss in LOSSES:
        share = settled(calibration, float(pair.llm[0].mean()) - loss)
        sent = asked > threshold_for(chosen_on, share)
        name = f"{100 * loss:g}"
        figures |= {f"calls-{name}": float(sent.mean()), f"loss-{name}": float((llm - np.where(sent, llm, slm)).mean()),
                    f"hindsight-{name}": calls_for(curve, float(llm.mean()) - loss)}  # fmt: skip
    return figures, items


def settled(curve: Floats, quality: float) -> float:
    """The smallest share of calls from which a curve stays at a quality; the first to reach it may be luck."""
    below = np.flatnonzero(curve < quality - 1e-12)
    return float((below[-1] + 1) / (len(curve) - 1)) if len(below) else 0.0


def threshold_for(rank: Floats, share: float) -> float:
    """The value above which this share of the ranks lies; -inf for all of them."""
    n = round(share * len(rank))
    return float(np.sort(rank)[::-1][n]) if n < len(rank) else -np.inf


def curve_points(pair: Pair, rank: Floats, points: int = 51) -> list[float]:
    """Accuracy on the test at evenly spaced shares of calls, from 0 to 1."""
    curve = quality_curve(rank, pair.slm[1], pair.llm[1])
    return [at_share(curve, share) for share in np.linspace(0, 1, points)]


def by_name(pair: Pair, seed: int, names: Sequence[str] = ROUTERS) -> dict[str, tuple[Floats, Floats]]:
    """The ranks of several routers, and of one who knows the answers."""
    found = {name: ranks(pair, name, seed) for name in names}
    return found | {"oracle": (pair.llm[0] - pair.slm[0], pair.llm[1] - pair.slm[1])}
