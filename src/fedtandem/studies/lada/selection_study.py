"""`lada-selection`: every selector on one mixed pool, with equal items and equal updates.

The null is the best selector's scores, permuted among the items: whoever wins then wins by chance. A pool of one
stratum would be no null, for items inside a stratum differ in difficulty (specification of studies, section 7).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import numpy as np

from fedtandem.algorithms.lada import lada_named
from fedtandem.models.language_model import LanguageModel
from fedtandem.selection.heuristics import Heuristic, confident_gap, heuristic
from fedtandem.selection.items import Floats, ItemSelector, ScoreRows
from fedtandem.studies.lada.chains_client import NEW, OLD, Making, make_client, own_data, server, tests
from fedtandem.studies.lada.mixed_pool import MixedPool, make_pool
from fedtandem.studies.lada.selection_tables import tables_and_bars
from fedtandem.studies.lada.trial import Arm, Client, Recipe, fresh_copy, run_trial
from fedtandem.studies.statistics import t_interval
from fedtandem.studies.trials import Cell, Outcome, Progress

RANDOM, NULL = "random", "confident_gap, permuted"
NULL_POINTS = 0.03
"""Half-width that the null's interval must reach."""


def permuted(rows: ScoreRows, generator: np.random.Generator) -> Floats:
    """The scores of `confident_gap`, each handed to another item."""
    return generator.permutation(confident_gap(rows, generator))


_LEARNING = ("lada", "lada_shuffled", "linucb")
_PLAIN = ("all_matched", "highest_loss", "gap", "rho_holdout", "confident_gap", *_LEARNING)


def _named(name: str) -> ItemSelector:
    return lada_named(name) if name in _LEARNING else heuristic(name)


def _plain(name: str) -> Arm:
    return Arm(name, _named(name))


ARMS: Mapping[str, Callable[[], Arm]] = {
    RANDOM: lambda: Arm(RANDOM, heuristic("random")),
    NULL: lambda: Arm(NULL, Heuristic(NULL, permuted)),
    **{name: partial(_plain, name) for name in _PLAIN},
    "confident_gap, half shown": lambda: Arm("confident_gap, half shown", heuristic("confident_gap"), shown=0.5),
    "verified_gap, half shown": lambda: Arm("verified_gap, half shown", heuristic("verified_gap"), True, shown=0.5),
    "random, checked": lambda: Arm("random, checked", heuristic("random"), checked=True),
    "verified_gap": lambda: Arm("verified_gap", heuristic("verified_gap"), checked=True),
    "lada, checked": lambda: Arm("lada, checked", lada_named("lada"), checked=True),
    "oracle_stratum": lambda: Arm("oracle_stratum", heuristic("oracle_stratum")),
}  # fmt: skip
"""Line of the table -> a fresh arm."""


FIRST = (RANDOM, "all_matched", "confident_gap", "verified_gap", "random, checked", "lada", "highest_loss",
         "confident_gap, half shown")  # fmt: skip
"""Lines that are run for all seeds before the others are."""


@dataclass(frozen=True)
class Settings:
    """What the figures depend on."""

    recipe: Recipe = field(default_factory=Recipe)
    making: Making = field(default_factory=Making)
    null_seeds: int = 20
    """At most so many more for the null."""
    clients: int = 5
    """Seed s of the null starts from client s mod this: the null is about draws, not about clients."""


SMALL = Settings(
    Recipe(pool=200, rounds=2, budget=20, updates=4, own=50, tests=40), Making(updates=20, rows=300), 1, 2
)
"""What a test runs."""


@dataclass(frozen=True)
class SelectionStudy:
    """See the module."""

    settings: Settings = field(default_factory=Settings)
    name: str = "lada-selection"
    version: int = 1

    def missing(self, seeds: Sequence[int], done: Mapping[Cell, Outcome]) -> Iterable[Cell]:
        """All arms of all seeds; then pairs of the null until its interval is narrow enough."""
        stages = ((line for line in ARMS if (line in FIRST) is early) for early in (True, False))
        todo = [
            (seed, line)
            for stage in map(list, stages)
            for seed in seeds
            for line in stage
            if (seed, line) not in done
        ]
        if todo:
            return todo
        pairs = sorted(seed for seed, line in done if line == NULL and (seed, RANDOM) in done)
        extra = max(seeds) + 1 - len(seeds) + len(pairs)
        if len(pairs) - len(seeds) >= self.settings.null_seeds:
            return []
        if len(pairs) >= 2:
            gaps = [done[s, NULL].figures["mean"] - done[s, RANDOM].figures["mean"] for s in pairs]
            mean, low, _ = t_interval(np.array(gaps))
            if mean - low <= NULL_POINTS:
                return []
        return [(extra, RANDOM), (extra, NULL)]

    def run(self, cell: Cell, progress: Progress) -> Outcome:
        """One trial; the pool is written once a seed."""
        seed, line = cell
        client, pool = _world(self.settings, seed)
        return run_trial(client, pool, ARMS[line](), self.settings.recipe, seed)

    def seconds(self, cells: Sequence[Cell]) -> float:
        """As measured on one shared core."""
        updates = self.settings.recipe.rounds * self.settings.recipe.updates
        making = (
            0.04 * self.settings.making.updates * min(self.settings.clients, len({seed for seed, _ in cells}))
        )
        return 0.045 * updates * len(cells) + making

    def summary(self, seeds: Sequence[int], done: Mapping[Cell, Outcome]) -> dict[str, Any]:
        """Tables and bars."""
        complete = [line for line in ARMS if all((seed, line) in done for seed in seeds)]
        return tables_and_bars(complete, list(seeds), done, self.settings.recipe)


@lru_cache(maxsize=1)
def _world(settings: Settings, seed: int) -> tuple[Client, MixedPool]:
    recipe = settings.recipe
    lm = make_client(settings.making, seed % settings.clients)
    start = _start(settings, seed % settings.clients)
    client = Client(lm, start, own_data(recipe.own, seed), tests(recipe.tests, seed))
    return client, make_pool(_server(), recipe.pool, seed)


@lru_cache(maxsize=8)
def _start(settings: Settings, seed: int) -> dict[str, Any]:
    """The client's first weights, kept apart from the model that trials change."""
    return fresh_copy(make_client(settings.making, seed).state())


@lru_cache(maxsize=1)
def _server() -> LanguageModel:
    return server()


__all__ = ["ARMS", "NEW", "OLD", "SMALL", "SelectionStudy", "Settings"]
