"""Selectors that are one formula: what is known of an item -> how much it is wanted. No memory, no random floor.

Source: specification of LaDa, section 6; studies, sections 2 and 7 (`confident_gap`, `verified_gap`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from fedtandem.errors import ConfigError
from fedtandem.selection.items import (
    RIGHT,
    WRONG,
    Feedback,
    Floats,
    LossTerm,
    Need,
    Pair,
    Pool,
    ScoreRows,
    Selection,
    best,
    draw,
)
from fedtandem.user_code import import_function

Score = Callable[[ScoreRows, np.random.Generator], Floats]
"""`score(rows, generator)` -> (n,) float64: higher is kept, -inf never, NaN (unknown) last."""

CONFIDENT_SHARE = 0.6
"""`confident_gap` looks at this share of the items, those with the lowest producer self-loss."""


def random(rows: ScoreRows, generator: np.random.Generator) -> Floats:
    """Uniform."""
    return generator.random(len(rows))


def everything(rows: ScoreRows, generator: np.random.Generator) -> Floats:
    """All alike."""
    return np.zeros(len(rows))


def highest_loss(rows: ScoreRows, generator: np.random.Generator) -> Floats:
    """The receiver's loss on y+ per token."""
    return -rows.receiver_pos / np.maximum(rows.n_tokens, 1)


def lowest_loss(rows: ScoreRows, generator: np.random.Generator) -> Floats:
    """The same with the other sign."""
    return -highest_loss(rows, generator)


def rho_holdout(rows: ScoreRows, generator: np.random.Generator) -> Floats:
    """What training can still remove: the receiver's loss less that of its architecture trained on held-out items.

    Source: RHO-loss, arXiv:2206.07137.
    """
    return (rows.holdout - rows.receiver_pos) / np.maximum(rows.n_tokens, 1)


def gap(rows: ScoreRows, generator: np.random.Generator) -> Floats:
    """How much better the producer knows its path than the receiver does, nats per byte."""
    return rows.gap


def gap_band(rows: ScoreRows, generator: np.random.Generator) -> Floats:
    """A middling gap: neither mastered nor out of reach."""
    known = rows.gap[np.isfinite(rows.gap)]
    return -np.abs(rows.gap - (np.median(known) if len(known) else 0.0))


def confident_gap(rows: ScoreRows, generator: np.random.Generator) -> Floats:
    """`gap` among the 60 % of the items whose producer is surest of its path; needs no right answers."""
    loss = rows.producer_loss
    known = np.flatnonzero(np.isfinite(loss))
    surest = best(-loss[known], int(np.ceil(CONFIDENT_SHARE * len(known))), generator)
    scores = np.where(np.isfinite(loss), -np.inf, np.nan)
    scores[known[surest]] = rows.gap[known[surest]]
    return scores


def verified_gap(rows: ScoreRows, generator: np.random.Generator) -> Floats:
    """`gap` among the paths the checker accepts; a path it cannot judge is not accepted."""
    return np.where(rows.verdict == RIGHT, rows.gap, np.where(rows.has_path, -np.inf, np.nan))


def ifd(rows: ScoreRows, generator: np.random.Generator) -> Floats:
    """Instruction-following difficulty: NLL(y | x) / NLL(y); from 1 on the prompt does not help, so excluded.

    Source: arXiv:2308.12032.
    """
    ratio = rows.receiver_pos / np.minimum(rows.alone, -1e-12)
    return np.where(ratio >= 1, -np.inf, ratio)


def oracle_stratum(rows: ScoreRows, generator: np.random.Generator) -> Floats:
    """The ceiling where right paths are known: y+ is right, and the receiver would not write it itself (p < 1/2)."""
    if not any(gold is not None for gold in rows.gold):
        raise ConfigError(
            "selection.selector is 'oracle_stratum', which needs the right path of every public item; it is a ceiling "
            "for the playground (or rows with a column `gold`), not a selector for real data."
        )
    right = np.array([bool(p) and p == g for p, g in zip(rows.paths, rows.gold, strict=True)], bool)
    learnable = right & (np.exp(rows.receiver_pos) < 0.5)
    return np.where(rows.has_path, learnable.astype(np.float64), np.nan)


@dataclass(frozen=True)
class Heuristic:
    """A scoring formula as a selector: the `budget` highest scores, ties drawn.

    Before any path is held (first round, `context = "cached"`) nothing tells the items apart and they are drawn at
    random, with the reason `cold`. Paths a checker refused are never chosen.
    """

    name: str
    score: Score
    needs: frozenset[Need] = frozenset()
    takes_all: bool = False
    """Ignore the budget; `all_matched` still makes only as many updates as the budget's items would take."""
    _pool: list[Pool] = field(default_factory=list, repr=False)

    def setup(self, pool: Pool) -> None:
        self._pool[:] = [pool]

    def select(self, round: int, pair: Pair, rows: ScoreRows, budget: int) -> Selection:
        """The best rows; see `items.ItemSelector`."""
        pool = self._pool[0]
        rows = rows.take(~np.isin(rows.ids, pool.probe) & (rows.verdict != WRONG))
        if len(rows) == 0:
            return Selection(rows.ids, np.zeros(0), np.zeros(0), ())
        scores = self._checked(self.score(rows, draw(pool.seed, pair, round, "score")), len(rows))
        k = len(rows) if self.takes_all else budget
        at = best(scores, k, draw(pool.seed, pair, round, "ties"))
        is_cold = bool(np.isnan(scores).all())
        return Selection(
            ids=rows.ids[at],
            scores=scores[at],
            propensity=np.full(len(at), len(at) / len(rows) if is_cold or self.name == "random" else 1.0),
            reasons=("cold" if is_cold else "score",) * len(at),
            updates_of=min(budget, len(rows)) if self.name == "all_matched" else None,
        )

    def _checked(self, scores: Any, n: int) -> Floats:
        """A user's own formula may return anything; say what is wrong with it."""
        try:
            found = np.asarray(scores, np.float64)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"selector {self.name!r} returned no numbers ({error}); expected {n} scores."
            ) from error
        if found.shape != (n,):
            raise ConfigError(
                f"selector {self.name!r} returned scores of shape {found.shape}; expected ({n},), one for each row."
            )
        return found

    def loss_term(self, round: int, pair: Pair) -> LossTerm | None:
        return None

    def feedback(self, round: int, pair: Pair, feedback: Feedback) -> None:
        return None

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        return None

    def report(self, pair: Pair) -> Mapping[str, Any]:
        return {}


_FORMULAS: dict[str, tuple[Score, frozenset[Need]]] = {
    "all": (everything, frozenset()),
    "all_matched": (everything, frozenset()),
    "random": (random, frozenset()),
    "confident_gap": (confident_gap, frozenset()),
    "verified_gap": (verified_gap, frozenset({"verdict"})),
    "gap": (gap, frozenset()),
    "gap_band": (gap_band, frozenset()),
    "highest_loss": (highest_loss, frozenset()),
    "lowest_loss": (lowest_loss, frozenset()),
    "rho_holdout": (rho_holdout, frozenset({"holdout"})),
    "ifd": (ifd, frozenset({"alone"})),
    "oracle_stratum": (oracle_stratum, frozenset({"gold"})),
}  # fmt: skip


def heuristic(name: str) -> Heuristic:
    """The built-in selector of this name; one of `names.HEURISTICS`."""
    score, needs = _FORMULAS[name]
    return Heuristic(name, score, needs, takes_all=name.startswith("all"))


def own_heuristic(reference: str) -> Heuristic:
    """A user's `score(rows, generator)` named as "package.module:function".

    Raises:
        ConfigError: the module cannot be imported or has no such function.
    """
    return Heuristic(
        reference, import_function(reference, "selection.selector", "(rows, generator) -> (n,) scores")
    )
