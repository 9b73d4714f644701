"""Selection's own cost: choosing among a million candidates, and what scoring and the filter take of a round.

    python benchmarks/selection.py [--json FILE]

Definitions
- best of 10^6: `items.best` on a million random scores, k = 400 and half of them; beside it `numpy.argsort` of the
  same scores and the k last places. `cold start`: LaDa's clustering and quotas on 10^5 contexts of 25 numbers.
- share of a round: the playground's shipped client (0.05 M weights) as receiver of 3,000 unlabelled chains of 1 to
  3 steps with their right paths, k = 400, batches of 32. `scoring`: all rows before the choice, plus q before and after
  on the chosen and the probe. `filter`: choosing and training both networks. `training`: 600 updates, or one epoch over
  the 400. The share is (scoring + filter) / (scoring + filter + training); writing paths is left out, and so is private
  tuning. Round 2 of 2, so that the filter has a buffer; the last figure is for a buffer of five rounds.
CPU seconds of this process, one thread; the best of several for the small figures, one run for a round.
"""

import argparse
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from fedtandem.algorithms.lada import WIDTH, lada_named
from fedtandem.algorithms.learner import Learner, Lesson
from fedtandem.algorithms.lessons import Choice
from fedtandem.algorithms.selecting import Selecting, SelectionSettings
from fedtandem.algorithms.settings import KnowledgeSettings, Unlabelled
from fedtandem.data.chains import ChainsSource
from fedtandem.exchange.knowledge import Knowledge
from fedtandem.models.load import ModelSpec, load_model
from fedtandem.selection.heuristics import heuristic
from fedtandem.selection.items import ItemSelector, Pool, best
from fedtandem.selection.learnability import Buffer, ExploitExplore, cold_selection, k_means
from fedtandem.tuning.phase import PhaseSettings

N, POOL, K, UPDATES, BATCH = 1_000_000, 3_000, 400, 600, 32
TARGETS = {
    "best 400 of 10^6, s": 2.0,
    "best half of 10^6, s": 2.0,
    "confident_gap, scoring + filter, 600 updates, %": 20.0,
    "lada, scoring + filter, 600 updates, %": 20.0,
    "lada, filter training, 600 updates, %": 1.0,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="the cost of selecting")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures = choosing() | rounds() | filter_of_five_rounds()
    for name, value in figures.items():
        target = TARGETS.get(name)
        met = "" if target is None else f"   (target {target:g}: {'met' if value <= target else 'MISSED'})"
        print(f"{name:<58} {value:>12,.4f}{met}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """CPU seconds, the best of several."""
    took = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        took.append(time.process_time() - started)
    return min(took)


def choosing() -> dict[str, float]:
    chance = np.random.default_rng(0)
    scores = chance.random(N)
    points = chance.standard_normal((N // 10, WIDTH))

    def cold() -> object:
        centroids, clusters = k_means(points, 16, np.random.default_rng(0))
        return cold_selection(
            np.arange(len(points)), points, clusters, centroids, K, np.random.default_rng(0)
        )

    return {
        "best 400 of 10^6, s": seconds(lambda: best(scores, K, chance)),
        "best half of 10^6, s": seconds(lambda: best(scores, N // 2, chance)),
        "numpy.argsort of 10^6, s": seconds(lambda: np.sort(np.argsort(scores)[-K:])),
        "cold start on 10^5 contexts, s": seconds(cold, 1),
    }


def rounds() -> dict[str, float]:
    samples = ChainsSource(n=POOL, steps=(1, 2, 3), labelled=True).samples()
    figures = {}
    for name in ("confident_gap", "lada"):
        selector: ItemSelector = heuristic(name) if name == "confident_gap" else lada_named(name)
        for label, updates in ((f"{UPDATES} updates", UPDATES), ("one epoch", -1)):
            spent = one_round(selector if updates > 0 else fresh(name), samples, updates)
            overhead = sum(spent[phase] for phase in ("score", "choose", "reward", "filter"))
            whole = overhead + spent["public"]
            figures[f"{name}, scoring + filter, {label}, %"] = 100 * overhead / whole
            figures[f"{name}, filter training, {label}, %"] = 100 * spent["filter"] / whole
            figures[f"{name}, training, {label}, s"] = spent["public"]
    return figures


def fresh(name: str) -> ItemSelector:
    return heuristic(name) if name == "confident_gap" else lada_named(name)


def one_round(selector: ItemSelector, samples: list, updates: int) -> dict[str, float]:  # type: ignore[type-arg]
    """CPU seconds by phase of the second of two rounds."""
    spent: dict[tuple[int, str], float] = defaultdict(float)

    def emit(event: str, **fields: object) -> None:
        if event == "phase":
            spent[int(str(fields["round"])), str(fields["phase"])] += float(str(fields["cpu_seconds"]))

    lm = load_model(ModelSpec(model="embedded:chains-client-a", tuning_method="full", device="cpu"))
    learner = Learner(
        name="clinic-a", lm=lm, public=samples, own=[], tests=[], private_settings=PhaseSettings(),
        public_settings=PhaseSettings(learning_rate=1e-3, batch_size=BATCH, max_steps=updates),
        knowledge=KnowledgeSettings(), unlabelled=Unlabelled(), replay_fraction=0.0, num_rounds=2, seed=0, emit=emit,
    )  # fmt: skip
    prompts = [sample.prompt for sample in samples]
    probe = np.arange(0, POOL, 10) if "feedback" in selector.needs else np.zeros(0, np.int64)
    pool = Pool(prompts, [None] * POOL, probe, 2, 0)
    selecting = Selecting(learner, selector, SelectionSettings(K, "fresh"), pool, "down")
    texts = tuple(sample.answer or "" for sample in samples)
    scores = np.random.default_rng(0).random(POOL).astype(np.float32)
    told = Knowledge("server", 1, "v", "p", scores, np.zeros(0, np.int32), None, texts)
    for t in (1, 2):
        selecting.hold("clinic-a", told)
        selecting.choose(t, ["clinic-a"], None)
        kept = selecting.ids("clinic-a")
        encoded = learner.answered(kept, [texts[i] for i in kept])
        lesson = Lesson(encoded, [None] * len(kept), [None] * len(kept))
        choice = Choice(np.zeros(POOL, np.int64), ("server",), kept)
        selecting.learn(t, lesson, choice, {"clinic-a": "server"})
    return {phase: spent[2, phase] for phase in ("score", "choose", "reward", "filter", "public")}


def filter_of_five_rounds() -> dict[str, float]:
    """Training both networks when five rounds of 400 items are remembered."""
    chance = np.random.default_rng(0)
    buffer = Buffer.empty(WIDTH)
    for t in range(5):
        buffer.add(chance.standard_normal((K, WIDTH)), chance.random(K), t, np.zeros(K, np.int64))
    model = ExploitExplore(WIDTH)
    return {"filter training, buffer of 5 x 400, s": seconds(lambda: model.train(buffer, chance))}


if __name__ == "__main__":
    main()
