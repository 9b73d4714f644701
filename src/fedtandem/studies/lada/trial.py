"""One trial: a client learns from the pool by one selector, for several rounds of equal budget and equal updates."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedtandem.algorithms.checked_paths import checker_of
from fedtandem.algorithms.learner import Learner, Lesson, TestSet
from fedtandem.algorithms.lessons import Choice
from fedtandem.algorithms.selecting import Selecting, SelectionSettings, per_token
from fedtandem.algorithms.settings import KnowledgeSettings, Unlabelled
from fedtandem.checking.checkers import CheckSettings
from fedtandem.checking.verdict import Checker
from fedtandem.data.public import Sample
from fedtandem.evaluation.scorer import Evaluation
from fedtandem.exchange.knowledge import Knowledge
from fedtandem.models.language_model import LanguageModel
from fedtandem.selection.items import WRONG, ItemSelector, Pool
from fedtandem.selection.rank_correlation import spearman
from fedtandem.studies.lada.mixed_pool import PATH_TOKENS, MixedPool
from fedtandem.studies.trials import Outcome
from fedtandem.tuning.phase import PhaseSettings

CLIENT = "client"
MEASURED = 100
"""Of a round's items, so many are measured before and after: what the selector expected against what came."""
Events = list[dict[str, Any]]


@dataclass(frozen=True)
class Recipe:
    """What all selectors of a study share."""

    pool: int = 1500
    rounds: int = 3
    budget: int = 300
    """Items a round."""
    updates: int = 75
    """A round, whatever was selected."""
    batch_size: int = 32
    replay: float = 0.5
    """Share of each batch that is the client's own data: 16 of 32."""
    learning_rate: float = 4e-3
    own: int = 1000
    tests: int = 1000


@dataclass(frozen=True, eq=False)
class Client:
    """A client as it stands before every trial.

    Attributes:
        lm: changed by a trial, put back by the next one.
        start: its weights.
        own: its data, replayed.
        tests: what it is measured on.
    """

    lm: LanguageModel
    start: Mapping[str, Tensor]
    own: Sequence[Sample]
    tests: Sequence[TestSet]


@dataclass(frozen=True)
class Arm:
    """One line of the table.

    Attributes:
        name: of the line.
        selector: a fresh one.
        checked: whether the client's path check refuses paths.
        shown: the share of the pool whose paths are shown to the client by the last round; 1 shows all from the first.
    """

    name: str
    selector: ItemSelector
    checked: bool = False
    shown: float = 1.0


def run_trial(client: Client, pool: MixedPool, arm: Arm, recipe: Recipe, seed: int) -> Outcome:
    """Teach the client by one selector and measure it."""
    started = time.process_time()
    events: Events = []
    learner = _learner(client, pool, recipe, seed, events)
    checker = path_checker(learner, pool) if arm.checked else None
    sees_gold = "gold" in arm.selector.needs
    of_pool = Pool(
        [sample.prompt for sample in pool.samples],
        [str(sample.fields["gold"]) if sees_gold else None for sample in pool.samples],
        pool.probe, recipe.rounds, seed,
    )  # fmt: skip
    selecting = Selecting(
        learner, arm.selector, SelectionSettings(recipe.budget, "fresh", checker=checker), of_pool, "down"
    )
    rounds = [_round(t, learner, selecting, pool, arm, recipe, seed) for t in range(1, recipe.rounds + 1)]
    measured = learner.evaluate(recipe.rounds)
    learnt = np.concatenate([taught for _, taught in rounds])
    strata = np.array(pool.strata)[learnt]
    figures = {
        **{split: found.value for split, found in measured.items()},
        "mean": float(np.mean([found.value for found in measured.values()])),
        "strata": {name: float((strata == name).mean()) for name in dict.fromkeys(pool.strata)},
        "right": float(pool.is_right[learnt].mean()),
        "items": len(learnt),
        "distinct": len(np.unique(learnt)),
        "updates": sum(e["steps"] for e in events if e["event"] == "phase" and e["phase"] == "public"),
        "bytes_learnt": _bytes(pool, np.unique(learnt)),
        "bytes_shown": _bytes(pool, _shown(arm, recipe, pool, recipe.rounds, seed)),
        "bytes_pool": _bytes(pool, np.arange(len(pool.samples))),
        "rounds": [found for found, _ in rounds],
        "cpu_seconds": {
            phase: sum(e["cpu_seconds"] for e in events if e["event"] == "phase" and e["phase"] == phase)
            for phase in ("score", "choose", "reward", "filter", "public")
        },
        "cpu_seconds_whole": time.process_time() - started,
    }  # fmt: skip
    return Outcome(figures, {split: _items(found) for split, found in measured.items()})


def _items(found: Evaluation) -> np.ndarray:
    if (found.item_weights == 1).all():
        return found.item_values
    return np.stack([found.item_values, found.item_weights])


def _learner(client: Client, pool: MixedPool, recipe: Recipe, seed: int, events: Events) -> Learner:
    client.lm.load_state(dict(client.start))
    return Learner(
        name=CLIENT, lm=client.lm, public=[replace(s, fields={}) for s in pool.samples], own=client.own,
        tests=client.tests, private_settings=PhaseSettings(),
        public_settings=PhaseSettings(
            learning_rate=recipe.learning_rate, batch_size=recipe.batch_size, max_steps=recipe.updates,
            weight_decay=0.01, lr_scheduler_type="linear", warmup_ratio=0.02,
        ),
        knowledge=KnowledgeSettings(batch_size=128), unlabelled=Unlabelled(PATH_TOKENS),
        replay_fraction=recipe.replay, num_rounds=recipe.rounds, seed=seed, eval_batch_size=128,
        check=CheckSettings("path"), emit=lambda event, **fields: events.append({"event": event, **fields}),
    )  # fmt: skip


def _round(
    t: int, learner: Learner, selecting: Selecting, pool: MixedPool, arm: Arm, recipe: Recipe, seed: int
) -> tuple[dict[str, Any], np.ndarray]:
    """Select, learn, tell: figures of the round, and the items it trained on."""
    selecting.hold(CLIENT, _told(pool, _shown(arm, recipe, pool, t, seed), t))
    selecting.choose(t, [CLIENT], None)
    chosen = selecting.chosen[CLIENT]
    kept = np.array(
        [i for i in chosen.ids if selecting.scorer.verdict(int(i), pool.paths[i]) != WRONG], np.int64
    )
    texts = learner.answered(kept, [pool.paths[i] for i in kept])
    lesson = Lesson(texts, [None] * len(texts), [None] * len(texts))
    choice = Choice(np.zeros(len(pool.samples), np.int64), ("server",), kept)
    looked_at = np.random.default_rng([seed, 4, t]).permutation(len(kept))[:MEASURED]
    some = [texts[i] for i in looked_at]
    before = np.exp(per_token(learner, some))
    selecting.learn(t, lesson, choice, {CLIENT: "server"})
    gain = np.exp(per_token(learner, some)) - before
    scores = chosen.scores[np.isin(chosen.ids, kept)][looked_at]
    strata = np.array(pool.strata)[kept]
    agreement = spearman(scores, gain) if len(kept) and np.isfinite(scores).all() else float("nan")
    return {
        "strata": {name: int((strata == name).sum()) for name in dict.fromkeys(pool.strata)},
        "right": float(pool.is_right[kept].mean()) if len(kept) else 0.0,
        "gain": float(gain.mean()) if len(kept) else 0.0,
        "predicted_realised": None if np.isnan(agreement) else agreement,
        "spearman": selecting.selector.report(selecting.pair(CLIENT)).get("spearman"),
    }, kept  # fmt: skip


def _shown(arm: Arm, recipe: Recipe, pool: MixedPool, t: int, seed: int) -> np.ndarray:
    """Items whose paths the client has seen by round t: the probe, and a part of the others that grows by round."""
    if arm.shown == 1:
        return np.arange(len(pool.samples))
    others = np.setdiff1d(np.arange(len(pool.samples)), pool.probe)
    order = np.random.default_rng([seed, 3]).permutation(others)
    n = round((arm.shown * len(pool.samples) - len(pool.probe)) * t / recipe.rounds)
    return np.union1d(order[: max(n, recipe.budget)], pool.probe)


def _told(pool: MixedPool, shown: np.ndarray, t: int) -> Knowledge:
    """The server's message: the paths of these items, and nats per byte."""
    n_bytes = np.array([max(1, len(path.encode())) for path in pool.paths])
    scores = np.full(len(pool.paths), np.inf, np.float32)
    scores[shown] = (-pool.log_probs / n_bytes)[shown]
    texts = tuple(path if np.isfinite(score) else "" for path, score in zip(pool.paths, scores, strict=True))
    return Knowledge("server", t, "v", "p", scores, np.zeros(0, np.int32), None, texts)


def _bytes(pool: MixedPool, items: np.ndarray) -> int:
    """Texts of these items with a log-probability each."""
    return sum(len(pool.paths[i].encode()) + 8 for i in items)


def path_checker(learner: Learner, pool: MixedPool) -> Checker:
    """The label-free path check with the facts of the client as it stands now, all asked in one batch."""
    checker = checker_of(learner, 0)
    checker.prepare(zip((s.prompt for s in pool.samples), pool.paths, strict=True))  # type: ignore[attr-defined]
    return checker


def fresh_copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights that later training does not touch."""
    return {name: torch.clone(value) for name, value in state.items()}
