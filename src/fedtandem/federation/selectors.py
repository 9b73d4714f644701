"""From `[selection]` to a selector for each party, and to the two sides of the exchange."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedtandem.algorithms.lada import Lada, lada_named
from fedtandem.algorithms.learner import Learner
from fedtandem.algorithms.offering import Offering
from fedtandem.algorithms.selecting import Selecting, SelectionSettings
from fedtandem.algorithms.settings import Flow
from fedtandem.config import RunConfig, SelectionConfig
from fedtandem.data.public import Sample
from fedtandem.distillation.contrastive_reasoning import ContrastiveTerm
from fedtandem.errors import ConfigError
from fedtandem.selection.heuristics import Heuristic, heuristic, own_heuristic
from fedtandem.selection.items import ItemSelector, Pool
from fedtandem.selection.names import HEURISTICS, LEARNING


@dataclass(frozen=True)
class Sides:
    """What the parties of one method need to select; nothing where everything is transferred."""

    clients: Callable[[Learner], Selecting | None] = lambda _: None
    server: Callable[[Learner], Selecting | None] = lambda _: None
    offering: Offering | None = None


def selection_sides(
    config: RunConfig, public: list[Sample], flow: Flow, selector: str | None = None
) -> Sides:
    """Both sides of both directions.

    Args:
        flow: the method's arrows; a selector decides only where something crosses.
        selector: replaces the configured one.

    Raises:
        ConfigError: the selector needs what this run does not have.
    """
    section = config.selection
    name = selector or section.selector
    if name == "all":
        return Sides()
    labelled = config.public.labelled
    needs = make_selector(name, section).needs
    context: Literal["cached", "fresh"] = section.context or ("cached" if name in LEARNING else "fresh")
    _check(config, name, labelled)
    pool = make_pool(
        public, labelled=labelled, gold="gold" in needs, seed=config.seed, num_rounds=config.federation.num_rounds,
        probe=section.probe if needs & {"feedback", "holdout"} else 0.0,
    )  # fmt: skip
    settings = SelectionSettings(
        section.budget, context, section.candidates, drafts=section.asks_for_drafts(name)
    )
    down = flow.down and flow.clients_learn and section.direction in ("both", "down")
    up = flow.up and flow.server_learns and section.direction in ("both", "up")

    def client_side(learner: Learner) -> Selecting:
        return Selecting(learner, make_selector(name, section), settings, pool, "down")

    def server_side(learner: Learner) -> Selecting:
        return Selecting(learner, make_selector(name, section), settings, pool, "up")

    offering = None
    if down:
        # A formula over known losses can be repeated by the server; whatever looks into the client's model cannot.
        repeats = context == "fresh" and not needs - {"verdict", "gold"} and section.candidates is None
        repeated = make_selector(name, section) if repeats or context == "fresh" else None
        offering = Offering(repeated, section.budget, pool, can_repeat=repeats)
    return Sides(client_side if down else (lambda _: None), server_side if up else (lambda _: None), offering)


def make_selector(name: str, section: SelectionConfig) -> ItemSelector:
    """A fresh selector by its name.

    Raises:
        ConfigError: a function of the user's own that cannot be imported.
    """
    if name in HEURISTICS:
        return heuristic(name)
    if name in LEARNING:
        return _learning(name, section)
    return own_heuristic(name)


def _learning(name: str, section: SelectionConfig) -> Lada:
    knobs = section.lada
    term = None
    if knobs.contrast_weight > 0 and name in ("lada", "lada_shuffled"):
        term = ContrastiveTerm(
            knobs.contrast_weight, knobs.reference, knobs.prefer, knobs.beta, negative=knobs.negative
        )
    return lada_named(
        name, explore_weight=knobs.explore_weight, reward=knobs.reward, keep=knobs.keep,
        random_floor=knobs.random_floor, term=term,
    )  # fmt: skip


def make_pool(
    public: list[Sample], *, labelled: bool, gold: bool, probe: float, seed: int, num_rounds: int
) -> Pool:
    """The public set as selectors see it.

    Args:
        gold: let the selector see right paths of an unlabelled set (column `gold`): a ceiling, not a method.
        probe: share that is measured and never trained on.
    """
    n = len(public)
    drawn = np.random.default_rng([seed, 0x70726F6265]).permutation(n)[: round(probe * n)]
    right: list[str | None] = [sample.answer for sample in public]
    if not labelled and gold:
        right = [str(s.fields["gold"]) if s.fields.get("gold") is not None else None for s in public]
    return Pool([s.prompt for s in public], right, np.sort(drawn).astype(np.int64), num_rounds, seed)


def _check(config: RunConfig, name: str, labelled: bool) -> None:
    section = config.selection
    checked = config.public.check != "none"
    if name == "verified_gap" and (not checked or labelled):
        raise ConfigError(
            "selection.selector is 'verified_gap', which keeps paths that a checker accepts: name one in "
            "public.check, and use an unlabelled public set (public.labelled = false), where paths are written."
        )
    if name in LEARNING and section.lada.contrast_weight > 0:
        if labelled:
            raise ConfigError(
                f"selection.lada.contrast_weight is {section.lada.contrast_weight}, but the public set has answers: "
                "the contrastive loss compares written paths. Set public.labelled = false, or contrast_weight = 0."
            )
        if section.lada.reference == "peer" and section.context == "fresh":
            raise ConfigError(
                'selection.lada.reference is "peer" and selection.context "fresh": the receiver\'s own paths travel '
                'with what it asks for, and with "fresh" it asks for nothing. Use "cached".'
            )
        if section.lada.reference == "peer" and section.lada.negative == "first_wrong_step":
            raise ConfigError(
                'selection.lada.reference is "peer" and selection.lada.negative "first_wrong_step": the producer tells '
                'how likely it finds a whole path, not one step of it. Use reference = "self".'
            )
        for key, value in (("prefer", "verified"), ("negative", "first_wrong_step")):
            if getattr(section.lada, key) == value and not checked:
                raise ConfigError(
                    f'selection.lada.{key} is "{value}", but there is no public.check to verify by.'
                )


__all__ = ["Heuristic", "Sides", "make_pool", "make_selector", "selection_sides"]
