"""The selector's own loss inside a host's public phase: a producer's path against the receiver's, batch by batch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from fedtandem.algorithms.learner import Learner, Lesson
from fedtandem.algorithms.pool_rows import PoolScorer
from fedtandem.algorithms.sequence_scores import batch_log_probs, n_path_tokens, sequence_log_probs
from fedtandem.distillation.contrastive_reasoning import prefer
from fedtandem.models.encoded import Encoded
from fedtandem.selection.items import Floats, Ids, LossTerm

NEGATIVE_TEMPERATURE = 0.7
PeerLogProbs = Callable[[list[int], list[str]], Floats]
"""(items, paths) -> log p of each path under the producer, (n,): two numbers an item, and no tokens to align."""


@dataclass(frozen=True)
class PathPair:
    """What is preferred to what, and how likely the reference finds each; in the receiver's tokens."""

    pos: Encoded
    neg: Encoded
    ref_pos: float
    ref_neg: float
    term: LossTerm


@dataclass
class Contrast:
    """Called in every update with the lesson's places in it: notes who was in which batch, adds the loss's gradient.

    Attributes:
        pairs: place in the lesson -> its two paths; empty without a contrastive loss.
        batch_of: the update in which each place was first seen, -1 never; (n,) int64.
    """

    learner: Learner
    pairs: dict[int, PathPair]
    batch_of: np.ndarray
    _updates: int = 0
    _first: tuple[float, float] | None = None
    _now: dict[int, float] = field(default_factory=dict)

    def __call__(self, places: Sequence[int], scale: float) -> None:
        fresh = [at for at in places if self.batch_of[at] < 0]
        self.batch_of[fresh] = self._updates
        self._updates += 1
        pairs = [self.pairs[at] for at in places if at in self.pairs]
        if pairs:
            losses = self._losses(pairs)
            (pairs[0].term.weight * scale * losses.mean()).backward()  # type: ignore[no-untyped-call]

    def _losses(self, pairs: Sequence[PathPair]) -> torch.Tensor:
        """Loss of each pair, (B,), with gradient where that is on."""
        lm = self.learner.lm
        pos, neg = [pair.pos for pair in pairs], [pair.neg for pair in pairs]
        logp_pos, logp_neg = batch_log_probs(lm, pos), batch_log_probs(lm, neg)
        refs = logp_pos.new_tensor([[pair.ref_pos, pair.ref_neg] for pair in pairs])
        counts = [torch.from_numpy(n_path_tokens(texts)).to(logp_pos) for texts in (pos, neg)]
        return pairs[0].term(logp_pos, logp_neg, refs[:, 0], refs[:, 1], *counts)

    @torch.no_grad()
    def loss(self, at: np.ndarray, mean_log_probs: Floats, *, now: bool = False) -> Floats:
        """What feedback calls the loss of an item: the contrastive one, or the mean loss per token without it."""
        found: Floats = -mean_log_probs[at]
        self.learner.lm.model.eval()
        for j, place in enumerate(at):
            if int(place) in self.pairs:
                pair = self.pairs[int(place)]
                # Before training a frozen copy of itself is the reference: the margin is 0 by definition.
                found[j] = (
                    float(self._losses([pair])[0]) if now or pair.term.reference != "self" else np.log(2)
                )
        return found

    @torch.no_grad()
    def warn_of_collapse(self, round_number: int) -> None:
        """The margin may grow while both likelihoods fall (specification of LaDa, section 11)."""
        if not self.pairs:
            return
        pairs = list(self.pairs.values())
        pos = sequence_log_probs(self.learner.lm, [pair.pos for pair in pairs])
        neg = sequence_log_probs(self.learner.lm, [pair.neg for pair in pairs])
        pos_change = float(np.nanmean(pos - [pair.ref_pos for pair in pairs]))
        margin_change = pos_change - float(np.nanmean(neg - [pair.ref_neg for pair in pairs]))
        if pairs[0].term.reference == "self" and pos_change < 0 < margin_change:
            self.learner.emit(
                "warning", round=round_number, party=self.learner.name, signature="likelihood collapse",
                text=f"log p of the preferred paths fell by {-pos_change:.2f} nats while their margin grew by "
                f"{margin_change:.2f}; lower beta or contrast_weight",
            )  # fmt: skip


def make_contrast(
    learner: Learner,
    scorer: PoolScorer,
    round_number: int,
    lesson: Lesson,
    kept: Ids,
    terms: Mapping[str, LossTerm | None],
    places: Mapping[str, np.ndarray],
    peer: PeerLogProbs | None = None,
) -> Contrast:
    """Write the receiver's own paths for the lesson's items and score both sides under the reference.

    Args:
        kept: the pool's item at each place of the lesson.
        terms, places: per client its loss and the places of its pair's items.
        peer: asks the producer; needed for `reference = "peer"`.
    """
    contrast = Contrast(learner, {}, np.full(len(lesson.texts), -1, np.int64))
    wanted = [
        (int(at), term)
        for client, term in terms.items()
        if term is not None and learner.unlabelled is not None
        for at in places[client]
    ]
    if not wanted or learner.unlabelled is None:
        return contrast
    items = [int(kept[at]) for at, _ in wanted]
    written = learner.write(
        round_number, learner.unlabelled.max_new_tokens, NEGATIVE_TEMPERATURE, index=items, phase="negatives"
    )
    learnt = [_path_text(learner, lesson.texts[at]) for at, _ in wanted]
    usable = [j for j, text in enumerate(written) if text and text != learnt[j]]
    negatives = learner.answered([items[j] for j in usable], [written[j] for j in usable])
    positives = [lesson.texts[wanted[j][0]] for j in usable]
    if usable and peer is not None and wanted[0][1].reference == "peer":
        asked = [items[j] for j in usable]
        ref_pos, ref_neg = peer(asked, [learnt[j] for j in usable]), peer(asked, [written[j] for j in usable])
    else:
        ref_pos = sequence_log_probs(learner.lm, positives)
        ref_neg = sequence_log_probs(learner.lm, negatives)
    for j, pos, neg, of_pos, of_neg in zip(usable, positives, negatives, ref_pos, ref_neg, strict=True):
        at, term = wanted[j]
        side = prefer(scorer.verdict(items[j], learnt[j]), scorer.verdict(items[j], written[j]), term.prefer)
        if side == 0 or np.isnan(of_pos + of_neg):
            continue
        pair = PathPair(pos, neg, float(of_pos), float(of_neg), term)
        contrast.pairs[at] = pair if side > 0 else PathPair(neg, pos, float(of_neg), float(of_pos), term)
    return contrast


def _path_text(learner: Learner, text: Encoded) -> str:
    """The path a lesson's text teaches, read back from its tokens."""
    return learner.lm.tokenizer.decode_answer(text.targets[text.segment == 1])
