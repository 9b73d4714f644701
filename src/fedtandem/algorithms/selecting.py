"""Selection as a host offers it: a receiver scores the pool, a selector names items, only those travel and are learnt.

Whoever selects is the receiver of its pair. With `context = "cached"` it selects one message ahead, from what it
holds: the items it names ride on the message that is due anyway. With "fresh" it is shown first and then selects.

Source: specification of LaDa, sections 2, 4 and 5.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fedtandem.algorithms.contrast import NEGATIVE_TEMPERATURE, Contrast, Told, make_contrast
from fedtandem.algorithms.learner import Learner, Lesson, phase_seed
from fedtandem.algorithms.lessons import Choice
from fedtandem.algorithms.pool_rows import PoolScorer
from fedtandem.algorithms.sequence_scores import n_path_tokens, sequence_log_probs
from fedtandem.checking.verdict import Checker
from fedtandem.exchange.knowledge import Knowledge
from fedtandem.models.encoded import Encoded
from fedtandem.selection.items import (
    WRONG,
    Direction,
    Feedback,
    Floats,
    Ids,
    ItemSelector,
    Pair,
    Path,
    Pool,
    Selection,
    count_of,
)
from fedtandem.selection.rank_correlation import spearman

NOTHING = np.zeros(0, np.int64)
LOOKED_AT = 100
"""Of a pair's items, so many are measured before and after where the selector itself asks for no feedback."""
MOST_STRATA = 12


@dataclass(frozen=True)
class SelectionSettings:
    """The `[selection]` values a host needs."""

    budget: int | float = 0.5
    """Items a pair may keep in a round: a count, or a share of the pool."""
    context: Literal["cached", "fresh"] = "fresh"
    candidates: int | None = None
    """Score only so many items, drawn anew each round."""
    checker: Checker | None = None
    """Judges paths in place of the learner's own check."""
    drafts: bool = False
    """The receiver writes its own path of every item it asks for, and the producer says how likely it finds it."""


class Selecting:
    """The receiving side of one or several pairs.

    Args:
        learner: the receiver.
        selector: names the items; already made for this party alone.
        settings: how.
        pool: the shared items.
        direction: of the receiver's pairs.
    """

    def __init__(
        self,
        learner: Learner,
        selector: ItemSelector,
        settings: SelectionSettings,
        pool: Pool,
        direction: Direction,
    ) -> None:
        self.learner = learner
        self.selector = selector
        self.settings = settings
        self.pool = pool
        self.direction: Direction = direction
        self.scorer = PoolScorer(learner, pool, selector.needs, settings.checker)
        self.held: dict[str, dict[int, Path]] = {}
        self.drafts: dict[str, dict[int, str]] = {}
        self._of_drafts: dict[str, Floats] = {}
        self.chosen: dict[str, Selection] = {}
        selector.setup(pool)

    @property
    def asks_ahead(self) -> bool:
        """Whether items are named before they are exchanged."""
        return self.settings.context == "cached"

    def pair(self, client: str) -> Pair:
        return Pair(client, self.direction)

    # -- which items -------------------------------------------------------------------------------------------

    def hold(self, client: str, knowledge: Knowledge) -> None:
        """Keep the newest path of every item this producer told about; where all is shown anew, that alone."""
        if not self.asks_ahead:
            self.held[client] = {}
        held = self.held.setdefault(client, {})
        if knowledge.of_drafts is not None:
            self._of_drafts[client] = knowledge.of_drafts.astype(np.float64)
        labelled = knowledge.texts is None
        for i in np.flatnonzero(np.isfinite(knowledge.scores)).tolist():
            text = (self.learner.public[i].answer or "") if labelled else (knowledge.texts or ())[i]
            if text:
                n_bytes = len(text.encode())
                log_prob = -float(knowledge.scores[i]) * n_bytes
                held[i] = Path(text, log_prob, n_bytes, knowledge.party, knowledge.round)

    def choose(
        self,
        round_number: int,
        clients: Sequence[str],
        own: Knowledge | None,
        refuse: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """Name the items of each pair.

        Args:
            round_number: the round in which they are learnt.
            clients: the pairs.
            own: what the receiver itself makes of the pool, by its present weights.
            refuse: true for an own path that must not be sent (it repeats private text).
        """
        n_wanted = count_of(self.settings.budget, self.pool.n_items)
        rows = {}
        judging = self.scorer.judging(round_number) if "verdict" in self.selector.needs else nullcontext()
        with self.learner.timed("score", round_number), judging:
            for client in clients:
                ids = self._candidates(round_number, client)
                rows[client] = self.scorer.rows(round_number, ids, self.held.get(client, {}), own)
        with self.learner.timed("choose", round_number):
            for client in clients:
                self.chosen[client] = self.selector.select(
                    round_number, self.pair(client), rows[client], n_wanted
                )
        self.scorer.report_failures(round_number)
        if self.settings.drafts and self.learner.unlabelled is not None:
            for client in clients:
                ids = self.ids(client).tolist()
                drafts = self.learner.write(
                    round_number,
                    self.learner.unlabelled.max_new_tokens,
                    NEGATIVE_TEMPERATURE,
                    index=ids,
                    phase="drafts",
                )
                self.drafts[client] = {
                    i: text for i, text in zip(ids, drafts, strict=True) if text and not refuse(text)
                }

    def drafts_of_wanted(self, client: str) -> tuple[str, ...] | None:
        """The receiver's own path of each item of `wanted`, "" for none; None where none are to be scored."""
        if not self.settings.drafts:
            return None
        drafts = self.drafts.get(client, {})
        return tuple(drafts.get(int(i), "") for i in self.wanted(client))

    def _candidates(self, round_number: int, client: str) -> Ids:
        """What is scored: all items, or a draw of them; the probe always, where the selector needs one.

        Where everything was shown first, only what has a path can be chosen.
        """
        ids = np.setdiff1d(np.arange(self.pool.n_items), self.pool.probe)
        if not self.asks_ahead:
            ids = np.intersect1d(ids, np.array(sorted(self.held.get(client, {})), np.int64))
        m = self.settings.candidates
        if m is not None and m < len(ids):
            seed = phase_seed(self.pool.seed, f"{client}/{self.direction}", round_number, "candidates")
            ids = np.random.default_rng(seed).choice(ids, m, replace=False)
        return np.union1d(ids, self.pool.probe).astype(np.int64)

    def ids(self, client: str) -> Ids:
        """The pair's newest selection; nothing where none was made."""
        selection = self.chosen.get(client)
        return NOTHING if selection is None else selection.ids

    def wanted(self, client: str) -> Ids:
        """What to ask the producer for: the selection, and once the paths that are only measured on."""
        if self.learner.unlabelled is None:
            return self.ids(client)
        held = np.array(sorted(self.held.get(client, {})), np.int64)
        return np.union1d(self.ids(client), np.setdiff1d(self.pool.probe, held)).astype(np.int64)

    def only_chosen(self, client: str, knowledge: Knowledge) -> Knowledge:
        """What came of the chosen items: others count as not scored, and so do paths the checker refuses."""
        keep = np.zeros(self.pool.n_items, bool)
        keep[self.ids(client)] = True
        if knowledge.texts is not None:
            for i in self.ids(client):
                if knowledge.texts[i] and self.scorer.verdict(int(i), knowledge.texts[i]) == WRONG:
                    keep[i] = False
        scores = np.where(keep, knowledge.scores, np.inf).astype(np.float32)
        return replace(knowledge, scores=scores)

    # -- learning ----------------------------------------------------------------------------------------------

    def learn(self, round_number: int, lesson: Lesson, choice: Choice, clients: Mapping[str, str]) -> None:
        """Train on the lesson, add the selector's loss, and tell the selector what it was worth.

        Args:
            clients: pair's client -> the producer's name in `choice`.

        Raises:
            RuntimeError: a probe item is about to be trained on.
        """
        learner, selector = self.learner, self.selector
        leaked = np.intersect1d(choice.kept, self.pool.probe)
        if len(leaked):
            raise RuntimeError(
                f"{learner.name}, round {round_number}: probe item {leaked[0]} is in the lesson."
            )
        mine = {client: self._places(client, producer, choice) for client, producer in clients.items()}
        limits = [self.chosen[client].updates_of for client in clients if client in self.chosen]
        known = [limit for limit in limits if limit is not None]
        if "feedback" not in selector.needs:
            looked_at, was = self._looked_at(round_number, lesson, clients, mine)
            learner.learn(round_number, lesson, updates_of=sum(known) if known else None)
            with learner.timed("reward", round_number):
                realised = {
                    client: np.exp(per_token(learner, [lesson.texts[at] for at in places])) - was[client]
                    for client, places in looked_at.items()
                }
            self._report(round_number, clients, mine, {
                client: self._agreement(client, choice.kept[looked_at[client]], gain)
                for client, gain in realised.items()
            })  # fmt: skip
            return
        contrast = self._contrast(round_number, lesson, choice, clients, mine)
        with learner.timed("reward", round_number):
            before, probe, probe_before = self._measure(lesson.texts, clients)
        learner.learn(round_number, lesson, on_batch=contrast)
        with learner.timed("reward", round_number):
            after, _, probe_after = self._measure(lesson.texts, clients)
        with learner.timed("filter", round_number):
            for client in clients:
                at = mine[client][contrast.batch_of[mine[client]] >= 0]
                if client not in self.chosen or len(at) == 0:
                    continue
                told = Feedback(
                    ids=choice.kept[at],
                    batch=contrast.batch_of[at],
                    loss_before=contrast.loss(at, before),
                    loss_after=contrast.loss(at, after, now=True),
                    q_before=np.exp(before[at]),
                    q_after=np.exp(after[at]),
                    probe=probe[client],
                    probe_before=np.exp(probe_before[client]),
                    probe_after=np.exp(probe_after[client]),
                )
                selector.feedback(round_number, self.pair(client), told)
        self._report(round_number, clients, mine)
        contrast.warn_of_collapse(round_number)

    def _looked_at(
        self, round_number: int, lesson: Lesson, clients: Mapping[str, str], mine: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], dict[str, Floats]]:
        """Some places of each pair's items, and how likely their paths are before training: for the report alone."""
        places, before = {}, {}
        with self.learner.timed("reward", round_number):
            for client in clients:
                seed = phase_seed(self.pool.seed, f"{client}/{self.direction}", round_number, "looked at")
                places[client] = np.random.default_rng(seed).permutation(mine[client])[:LOOKED_AT]
                before[client] = np.exp(per_token(self.learner, [lesson.texts[at] for at in places[client]]))
        return places, before

    def _agreement(self, client: str, items: Ids, gain: Floats) -> dict[str, float | None]:
        """What was expected of the items against what came: rank correlation of scores and gains; mean gain."""
        chosen = self.chosen.get(client)
        if chosen is None or len(items) == 0:
            return {}
        scores = chosen.scores[np.searchsorted(chosen.ids, items)]
        rho = spearman(scores, gain) if np.isfinite(scores).all() and len(items) > 2 else float("nan")
        return {"spearman": None if np.isnan(rho) else rho, "gain": float(gain.mean())}

    def _strata(self, selection: Selection) -> dict[str, list[int]]:
        """Stratum -> [chosen, in the pool], where the public rows name theirs: column `stratum`, else `steps`."""
        named = [sample.fields.get("stratum", sample.fields.get("steps")) for sample in self.learner.public]
        if any(name is None for name in named):
            return {}
        chosen, pool = Counter(str(named[i]) for i in selection.ids), Counter(map(str, named))
        return {name: [chosen[name], pool[name]] for name in sorted(pool)} if len(pool) <= MOST_STRATA else {}

    def _places(self, client: str, producer: str, choice: Choice) -> np.ndarray:
        """Where the pair's items stand in the lesson: those it kept, on an unlabelled set those it teaches."""
        if self.learner.unlabelled is None:
            return np.flatnonzero(np.isin(choice.kept, self.ids(client)))
        return np.flatnonzero(np.isin(choice.kept, choice.won_by(producer)))

    def _contrast(
        self,
        round_number: int,
        lesson: Lesson,
        choice: Choice,
        clients: Mapping[str, str],
        mine: Mapping[str, np.ndarray],
    ) -> Contrast:
        terms = {
            client: self.selector.loss_term(round_number, self.pair(client))
            for client in clients
            if client in self.chosen
        }
        places = {client: mine[client] for client in terms}
        told = self._told(choice.kept, places) if self.settings.drafts else None
        with self.scorer.judging(round_number) if any(terms.values()) else nullcontext():
            return make_contrast(
                self.learner, self.scorer, round_number, lesson, choice.kept, terms, places, told=told
            )

    def _told(self, kept: Ids, places: Mapping[str, np.ndarray]) -> dict[int, Told]:
        """Place in the lesson -> what the producer said of its own path and of the receiver's draft."""
        told = {}
        for client, at in places.items():
            scores, held = self._of_drafts.get(client), self.held.get(client, {})
            drafts = self.drafts.get(client, {})
            for place, item in zip(at.tolist(), kept[at].tolist(), strict=True):
                if scores is not None and item in drafts and item in held and np.isfinite(scores[item]):
                    draft = drafts[item]
                    log_prob = -float(scores[item]) * len(draft.encode())
                    told[place] = Told(draft, held[item].seq_log_prob, log_prob)
        return told

    def _measure(
        self, texts: Sequence[Encoded], clients: Mapping[str, str]
    ) -> tuple[Floats, dict[str, Ids], dict[str, Floats]]:
        """Mean log-probability per token of the lesson's texts and of each pair's probe."""
        of_lesson = per_token(self.learner, texts)
        probes, of_probes = {}, {}
        for client in clients:
            held = self.held.get(client, {})
            labelled = self.learner.unlabelled is None
            probes[client] = np.array([i for i in self.pool.probe if labelled or int(i) in held], np.int64)
            shown = (
                [self.learner.public_texts[i] for i in probes[client]]
                if labelled
                else self.learner.answered(probes[client], [held[int(i)].text for i in probes[client]])
            )
            of_probes[client] = per_token(self.learner, shown)
        return of_lesson, probes, of_probes

    def _report(
        self,
        round_number: int,
        clients: Mapping[str, str],
        mine: Mapping[str, np.ndarray],
        realised: Mapping[str, Mapping[str, float | None]] | None = None,
    ) -> None:
        """One line of the record per pair, and its failure signatures as warnings."""
        for client, producer in clients.items():
            selection = self.chosen.get(client)
            if selection is None:
                continue
            report = {**(realised or {}).get(client, {}), **self.selector.report(self.pair(client))}
            signatures = report.pop("signatures", [])
            reasons = {reason: selection.reasons.count(reason) for reason in dict.fromkeys(selection.reasons)}
            self.learner.emit(
                "items", round=round_number, party=self.learner.name, teacher=producer, selector=self.selector.name,
                direction=self.direction, pool=self.pool.n_items, selected=len(selection.ids),
                trained=len(mine[client]), reasons=reasons, strata=self._strata(selection),
                ids=selection.ids.tolist(), **report,
            )  # fmt: skip
            found = [*signatures, *self.scorer.signatures(producer, selection.ids, self.held.get(client, {}))]
            for signature, text in found:
                self.learner.emit(
                    "warning", round=round_number, party=self.learner.name, teacher=producer, signature=signature,
                    text=f"{producer} to {self.learner.name}: {text}",
                )  # fmt: skip

    # -- state -------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Mapping[str, Tensor]]:
        """What a resumed run needs to select the same items."""
        about = {
            "held": {
                client: [[item, *vars(path).values()] for item, path in sorted(paths.items())]
                for client, paths in sorted(self.held.items())
            },
            "chosen": {
                client: [s.ids.tolist(), s.scores.tolist(), s.propensity.tolist(), s.reasons, s.updates_of]
                for client, s in sorted(self.chosen.items())
            },
            "drafts": {client: sorted(drafts.items()) for client, drafts in sorted(self.drafts.items())},
        }
        text = np.frombuffer(json.dumps(about).encode(), np.uint8).copy()
        return {"selection": {"about": torch.from_numpy(text)}, "selector": self.selector.state_dict()}

    def load_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Go back to what `state()` gave."""
        about: dict[str, Any] = json.loads(state["selection"]["about"].numpy().tobytes())
        self.held = {
            client: {int(item): Path(*values) for item, *values in paths}
            for client, paths in about["held"].items()
        }
        self.drafts = {
            client: {int(i): text for i, text in drafts} for client, drafts in about["drafts"].items()
        }
        self.chosen = {
            client: Selection(
                np.array(ids, np.int64), np.array(scores), np.array(propensity), tuple(reasons), updates_of
            )
            for client, (ids, scores, propensity, reasons, updates_of) in about["chosen"].items()
        }
        self.selector.load_state_dict(state.get("selector", {}))


def per_token(learner: Learner, texts: Sequence[Encoded]) -> Floats:
    """Mean log-probability of each path's tokens; (n,), -inf where it did not fit into max_length."""
    if not texts:
        return np.zeros(0)
    log_probs = sequence_log_probs(learner.lm, texts, learner.knowledge.batch_size)
    mean: Floats = np.nan_to_num(log_probs, nan=-np.inf) / np.maximum(n_path_tokens(texts), 1)
    return mean
