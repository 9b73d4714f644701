"""LaDa as a plug-in: for each client, direction and round, which public items are worth transferring.

It owns no model, optimiser, message or data. A host calls it, for every round and pair, in this order:

    setup (once) -> select -> [paths are exchanged, the reference is snapshotted] -> loss_term -> feedback

Source: LaDa, arXiv:2602.18749v1; an implementation of the published idea with its own documented choices
(specification of LaDa, sections 4, 5 and 9).
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fedtandem.selection.bandits import ClusterUCB, LinUCB
from fedtandem.selection.items import (
    EMBEDDING,
    WRONG,
    Feedback,
    Floats,
    Ids,
    LossTerm,
    Need,
    Pair,
    Pool,
    ScoreRows,
    Selection,
    draw,
)
from fedtandem.selection.learnability import (
    N_SCALARS,
    Buffer,
    ExploitExplore,
    ValueModel,
    cold_selection,
    contexts,
    k_means,
    keep_budget,
    keep_threshold,
    n_clusters,
    nearest,
    progress_reward,
    round_sum,
    squash,
)
from fedtandem.selection.rank_correlation import spearman

WIDTH = EMBEDDING + N_SCALARS


@dataclass
class _PairState:
    """What is remembered of one pair; everything in `plain` goes through JSON."""

    model: ValueModel
    buffer: Buffer
    cluster_of: Ids
    centroids: Floats
    contexts: Floats
    """Of the newest selection, (k, d)."""
    plain: dict[str, Any] = field(default_factory=lambda: {
        "selected": -1, "asked_term": -1, "fed": -1, "ids": [], "u": [], "reasons": [], "times": {}, "losses": [],
        "rounds": [], "report": {},
    })  # fmt: skip


class Lada:
    """Learns from feedback which items are learnable for whom.

    Args:
        name: of the selector.
        make_model: seed -> the value model of one pair.
        reward: "progress" or "round_sum".
        keep: "budget" or "threshold".
        random_floor: share of the budget drawn from the items that were not chosen.
        term: the contrastive loss; None adds none.
        shuffle: permute the rewards among a round's items: the negative control.
    """

    needs: frozenset[Need] = frozenset({"embedding", "feedback"})

    def __init__(
        self,
        name: str,
        make_model: Callable[[int], ValueModel],
        *,
        reward: Literal["progress", "round_sum"] = "progress",
        keep: Literal["budget", "threshold"] = "budget",
        random_floor: float = 0.1,
        term: LossTerm | None = None,
        shuffle: bool = False,
    ) -> None:
        self.name = name
        self.make_model = make_model
        self.reward = reward
        self.keep = keep
        self.random_floor = random_floor
        self.term = term
        self.shuffle = shuffle
        self.pool: Pool | None = None
        self.pairs: dict[Pair, _PairState] = {}

    # -- the calls, in their order -----------------------------------------------------------------------------

    def setup(self, pool: Pool) -> None:
        """Take the pool.

        Raises:
            RuntimeError: called twice.
        """
        if self.pool is not None:
            raise RuntimeError(f"{self.name}: setup was called twice; make a new selector for a new run.")
        self.pool = pool

    def select(self, round: int, pair: Pair, rows: ScoreRows, budget: int) -> Selection:
        """Name exactly min(budget, n) items (fewer under `keep = "threshold"`); never one of the probe.

        Raises:
            RuntimeError: before `setup`, or for a round that was already selected for.
        """
        pool = self._pool("select")
        state = self._state(pair)
        self._order(
            round > state.plain["selected"], "select", round, pair, "select once for each round, in order"
        )
        times = np.array([state.plain["times"].get(str(i), 0) for i in rows.ids], np.float64)
        c = contexts(rows, times, round / max(1, pool.num_rounds))
        clusters = self._clusters(state, pair, rows.ids, c)
        free = ~np.isin(rows.ids, pool.probe) & (rows.verdict != WRONG)
        generator = draw(pool.seed, pair, round, "select")
        ids, at = rows.ids[free], np.flatnonzero(free)
        report: dict[str, Any] = {}
        if not state.model.trained:
            chosen = cold_selection(ids, c[at], clusters[at], state.centroids, budget, generator)
        else:
            u = state.model.score(c[at], clusters[at])
            if self.keep == "budget":
                chosen = keep_budget(ids, u, budget, self.random_floor, generator)
            else:
                chosen, report["above_threshold"] = keep_threshold(ids, u, budget, pool.n_items, generator)
        state.contexts = c[np.searchsorted(rows.ids, chosen.ids)]
        for i in chosen.ids:
            state.plain["times"][str(i)] = state.plain["times"].get(str(i), 0) + 1
        state.plain |= {
            "selected": round, "ids": chosen.ids.tolist(), "u": chosen.scores.tolist(), "reasons": chosen.reasons,
            "report": report,
        }  # fmt: skip
        return chosen

    def loss_term(self, round: int, pair: Pair) -> LossTerm | None:
        """The contrastive loss, or None where its weight is 0.

        Raises:
            RuntimeError: this round's items were not selected, or feedback on them was already given.
        """
        self._pool("loss_term")
        plain = self._state(pair).plain
        right = plain["selected"] == round and plain["fed"] < round
        self._order(right, "loss_term", round, pair, "call it after select and before feedback")
        plain["asked_term"] = round
        return self.term

    def feedback(self, round: int, pair: Pair, feedback: Feedback) -> None:
        """Turn what happened into rewards and retrain; the second call for a round changes nothing.

        Raises:
            RuntimeError: before this round's `loss_term`.
            ValueError: feedback about an item that was not selected, or about a probe item as if it were trained on.
        """
        pool = self._pool("feedback")
        state = self._state(pair)
        plain = state.plain
        if plain["fed"] == round:
            return
        self._order(plain["asked_term"] == round, "feedback", round, pair, "call it after loss_term")
        selected = np.array(plain["ids"], np.int64)
        foreign = np.setdiff1d(feedback.ids, selected)
        if len(foreign):
            raise ValueError(
                f"{_who(pair)}, round {round}: feedback on item {foreign[0]}, which was not selected."
            )
        started = time.process_time()
        at = np.searchsorted(selected, feedback.ids)
        rewards = self._rewards(state, feedback)
        u, was_cold = np.array(plain["u"])[at], "cold_cluster" in plain["reasons"]
        agreement = float("nan") if was_cold else spearman(u, rewards)
        rho = None if np.isnan(agreement) else agreement
        reasons = np.array(plain["reasons"])[at]
        if self.shuffle:
            rewards = draw(pool.seed, pair, round, "shuffle").permutation(rewards)
        state.buffer.add(state.contexts[at], rewards, round, state.cluster_of[feedback.ids])
        figures = state.model.train(state.buffer, draw(pool.seed, pair, round, "train"))
        plain["losses"] = feedback.loss_after.tolist()
        plain["fed"] = round
        plain["rounds"].append({
            "n": len(feedback.ids), "reward": float(rewards.mean()) if len(rewards) else 0.0, "spearman": rho,
            "ids": selected.tolist(), "floor": _mean(rewards[reasons == "random_floor"]),
            "chosen": _mean(rewards[reasons == "exploit_explore"]),
        })  # fmt: skip
        plain["report"] |= {
            **figures, "spearman": rho, "mean_reward": _mean(rewards),
            "gain": _mean(feedback.q_after - feedback.q_before),
            "probe_gain": _mean(feedback.probe_after - feedback.probe_before),
            "filter_seconds": time.process_time() - started,
            "signatures": self._signatures(plain, rewards),
        }  # fmt: skip

    def report(self, pair: Pair) -> Mapping[str, Any]:
        """Of the newest round: f1's and f2's loss, Spearman(u, R) before training on R, gains, seconds, signatures."""
        found: dict[str, Any] = self._state(pair).plain["report"]
        return found

    # -- inside ------------------------------------------------------------------------------------------------

    def _pool(self, call: str) -> Pool:
        if self.pool is None:
            raise RuntimeError(f"{self.name}: {call} was called before setup.")
        return self.pool

    def _state(self, pair: Pair) -> _PairState:
        pool = self._pool("a call")
        if pair not in self.pairs:
            seed = int(draw(pool.seed, pair, 0, "weights").integers(1 << 62))
            self.pairs[pair] = _PairState(
                self.make_model(seed), Buffer.empty(WIDTH), np.full(pool.n_items, -1, np.int64),
                np.zeros((0, WIDTH)), np.zeros((0, WIDTH)),
            )  # fmt: skip
        return self.pairs[pair]

    def _order(self, right: bool, call: str, round_number: int, pair: Pair, rule: str) -> None:
        if not right:
            plain = self._state(pair).plain
            raise RuntimeError(
                f"{self.name}, {_who(pair)}: {call} for round {round_number} is out of order: {rule} (selected for "
                f"round {plain['selected']}, feedback up to round {plain['fed']})."
            )

    def _clusters(self, state: _PairState, pair: Pair, ids: Ids, c: Floats) -> Ids:
        """Each row's cluster; made in the first round, kept for good, later items join the nearest."""
        pool = self._pool("select")
        if len(ids) == 0:
            return np.zeros(0, np.int64)
        if len(state.centroids) == 0:
            state.centroids, found = k_means(
                c, n_clusters(pool.n_items), draw(pool.seed, pair, 0, "clusters")
            )
            state.cluster_of[ids] = found
        new = state.cluster_of[ids] < 0
        state.cluster_of[ids[new]] = nearest(c[new], state.centroids)
        return state.cluster_of[ids]

    def _rewards(self, state: _PairState, feedback: Feedback) -> Floats:
        if self.reward == "round_sum":
            value = round_sum(feedback.loss_after, np.array(state.plain["losses"]))
            return np.full(len(feedback.ids), value)
        return squash(progress_reward(feedback, state.cluster_of))

    def _signatures(self, plain: Mapping[str, Any], rewards: Floats) -> list[tuple[str, str]]:
        """Specification of LaDa, section 11: those that show in the filter itself."""
        past = plain["rounds"]
        found = []
        rho = past[-1]["spearman"]
        if len(past) > 3 and not (rho is not None and rho > 0.1):
            found.append((
                "filter learns nothing",
                f"after {len(past)} rounds the filter's scores and the rewards agree no better than chance "
                f"(Spearman {rho if rho is None else round(rho, 2)}): no better than random",
            ))  # fmt: skip
        if len(rewards) and np.mean(np.abs(rewards - 0.5) <= 0.01) > 0.9:
            found.append((
                "constant reward",
                f"{len(rewards)} items have nearly one reward: too few items, or training had no effect",
            ))  # fmt: skip
        sizes, values = [r["n"] for r in past], [r["reward"] for r in past]
        if self.reward == "round_sum" and len(past) >= 3 and np.ptp(sizes) > 0 and np.ptp(values) > 0:
            correlation = float(np.corrcoef(sizes, values)[0, 1])
            if correlation > 0.5:
                found.append((
                    "count artefact",
                    f"the round's reward follows the number of items (r = {correlation:.2f}), as a sum must; use "
                    'reward = "progress"',
                ))  # fmt: skip
        if _is_locked_in(past):
            found.append((
                "lock-in",
                "over 80 % of the items stayed the same for three rounds, and items drawn at random were worth as "
                "much; raise random_floor",
            ))  # fmt: skip
        above = plain["report"].get("above_threshold")
        if above is not None and not 0.05 <= above <= 0.95:
            found.append((
                "threshold keeps nothing or all", f"{above:.0%} of the items score above 0.5; use keep = \"budget\"",
            ))  # fmt: skip
        return found

    # -- state -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Everything later selections depend on, as named tensors."""
        state: dict[str, Tensor] = {}
        for pair, of in sorted(self.pairs.items(), key=lambda item: (item[0].client, item[0].direction)):
            arrays = {
                "cluster_of": of.cluster_of, "centroids": of.centroids, "contexts": of.contexts,
                "plain": np.frombuffer(json.dumps(of.plain).encode(), np.uint8),
                **{f"buffer.{name}": value for name, value in vars(of.buffer).items()},
            }  # fmt: skip
            tensors = {name: torch.from_numpy(value.copy()) for name, value in arrays.items()}
            tensors |= {f"model.{name}": value for name, value in of.model.state_dict().items()}
            state |= {f"{pair.direction}/{pair.client}/{name}": value for name, value in tensors.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from `state_dict()`; call `setup` first."""
        self._pool("load_state_dict")
        self.pairs = {}
        parts: dict[Pair, dict[str, Tensor]] = {}
        for key, value in state.items():
            direction, rest = key.split("/", 1)
            client, name = rest.rsplit("/", 1)
            pair = Pair(client, "down" if direction == "down" else "up")
            parts.setdefault(pair, {})[name] = value
        for pair, tensors in parts.items():
            of = self._state(pair)
            of.model.load_state_dict(
                {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
            )
            of.buffer = Buffer(**{
                name.removeprefix("buffer."): t.numpy().copy()
                for name, t in tensors.items() if name.startswith("buffer.")
            })  # fmt: skip
            of.cluster_of, of.centroids = (
                tensors["cluster_of"].numpy().copy(),
                tensors["centroids"].numpy().copy(),
            )
            of.contexts = tensors["contexts"].numpy().copy()
            of.plain = json.loads(tensors["plain"].numpy().tobytes())


def _is_locked_in(past: list[dict[str, Any]]) -> bool:
    """Three rounds of nearly one selection, while what was drawn at random was worth at least as much."""
    if len(past) < 3:
        return False
    sets = [set(r["ids"]) for r in past[-3:]]
    overlap = [len(a & b) / max(1, len(b)) for a, b in pairwise(sets)]
    floor, chosen = past[-1]["floor"], past[-1]["chosen"]
    return min(overlap) > 0.8 and floor is not None and chosen is not None and floor >= chosen


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if len(values) else None


def _who(pair: Pair) -> str:
    return f"{pair.client}, {pair.direction}"


def lada_named(
    name: str,
    *,
    explore_weight: float = 0.1,
    reward: Literal["progress", "round_sum"] = "progress",
    keep: Literal["budget", "threshold"] = "budget",
    random_floor: float = 0.1,
    term: LossTerm | None = None,
) -> Lada:
    """LaDa, or one of the controls that share its contexts and rewards.

    Args:
        name: "lada", "lada_shuffled" (rewards permuted), "linucb" or "cluster_ucb" (plain bandits, no random floor).
        explore_weight: of the explore network, or of LinUCB's bound.

    Raises:
        ValueError: another name.
    """
    networks = partial(_networks, explore_weight)
    makers: dict[str, Callable[[int], ValueModel]] = {
        "lada": networks, "lada_shuffled": networks,
        "linucb": lambda seed: LinUCB(explore_weight), "cluster_ucb": lambda seed: ClusterUCB(),
    }  # fmt: skip
    if name not in makers:
        raise ValueError(f"{name!r} is none of {', '.join(makers)}.")
    is_bandit = makers[name] is not networks
    return Lada(
        name, makers[name], reward=reward, keep="budget" if is_bandit else keep,
        random_floor=0.0 if is_bandit else random_floor, term=None if is_bandit else term,
        shuffle=name == "lada_shuffled",
    )  # fmt: skip


def _networks(explore_weight: float, seed: int) -> ExploitExplore:
    return ExploitExplore(WIDTH, explore_weight=explore_weight, seed=seed)
