"""The selector's own loss inside a host's public phase: a producer's path against the receiver's, batch by batch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from fedtandem.algorithms.learner import Learner, Lesson
from fedtandem.algorithms.pool_rows import PoolScorer
from fedtandem.algorithms.sequence_scores import batch_log_probs, n_path_tokens, sequence_log_probs
from fedtandem.distillation.contrastive_reasoning import prefer
from fedtandem.models.encoded import ANSWER, PROMPT, Encoded
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
    paths: tuple[str, str]


@dataclass(frozen=True)
class Told:
    """What the producer said of an item's two paths.

    Attributes:
        draft: the receiver's own path, written before the exchange.
        of_path, of_draft: log-probability of the producer's path and of the draft under the producer, in nats.
    """

    draft: str
    of_path: float
    of_draft: float


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
    told: Mapping[int, Told] | None = None,
) -> Contrast:
    """Write the receiver's own paths for the lesson's items and score both sides under the reference.

    Args:
        kept: the pool's item at each place of the lesson.
        terms, places: per client its loss and the places of its pair's items.
        peer: asks the producer; for `reference = "peer"` where that can be done now.
        told: place -> what the producer said already; then its drafts are the receiver's paths, and none is written.
    """
    contrast = Contrast(learner, {}, np.full(len(lesson.texts), -1, np.int64))
    wanted = [
        (int(at), term)
        for client, term in terms.items()
        if term is not None and learner.unlabelled is not None
        for at in places[client]
        if told is None or int(at) in told
    ]
    if not wanted or learner.unlabelled is None:
        return contrast
    items = [int(kept[at]) for at, _ in wanted]
    written = (
        [told[int(at)].draft for at, _ in wanted]
        if told is not None
        else learner.write(
            round_number,
            learner.unlabelled.max_new_tokens,
            NEGATIVE_TEMPERATURE,
            index=items,
            phase="negatives",
        )
    )
    scorer.verdicts(items, [_path_text(learner, lesson.texts[at]) for at, _ in wanted])
    scorer.verdicts(items, written)
    for (at, term), item, own in zip(wanted, items, written, strict=True):
        learnt = _path_text(learner, lesson.texts[at])
        if own and own != learnt:
            side = prefer(scorer.verdict(item, learnt), scorer.verdict(item, own), term.prefer)
            found = _pair(learner, scorer, item, (learnt, own) if side > 0 else (own, learnt), term)
            if side != 0 and found is not None:
                contrast.pairs[at] = found if told is None else _as_told(found, told[at])
    if told is not None:
        return contrast
    _refer(contrast.pairs, learner, {at: item for (at, _), item in zip(wanted, items, strict=True)}, peer)
    return contrast


def _pair(
    learner: Learner, scorer: PoolScorer, item: int, paths: tuple[str, str], term: LossTerm
) -> PathPair | None:
    """The better and the worse path as texts, still without reference; None where one does not fit or cannot be cut."""
    pos, neg = learner.answered([item, item], paths)
    if not (pos.scored and neg.scored):
        return None
    if term.negative == "first_wrong_step":
        where = scorer.first_wrong(item, paths[1])
        cut = None if where is None else wrong_step(neg, paths[1], where)
        if cut is None:
            return None
        neg = cut
    return PathPair(pos, neg, 0.0, 0.0, term, paths)


def _as_told(pair: PathPair, told: Told) -> PathPair:
    """The pair with the producer as reference; the draft may be the better path."""
    if pair.paths[0] == told.draft:
        return replace(pair, ref_pos=told.of_draft, ref_neg=told.of_path)
    return replace(pair, ref_pos=told.of_path, ref_neg=told.of_draft)


def _refer(
    pairs: dict[int, PathPair], learner: Learner, item_at: Mapping[int, int], peer: PeerLogProbs | None
) -> None:
    """Fill in what the reference thinks of each pair; a pair it cannot judge is dropped."""
    for_peer = peer is not None and any(pair.term.reference == "peer" for pair in pairs.values())
    places = list(pairs)
    if for_peer and peer is not None:
        asked = [item_at[at] for at in places]
        refs = [peer(asked, [pairs[at].paths[side] for at in places]) for side in (0, 1)]
    else:
        refs = [
            sequence_log_probs(learner.lm, texts)
            for texts in ([pairs[at].pos for at in places], [pairs[at].neg for at in places])
        ]
    for at, of_pos, of_neg in zip(places, *refs, strict=True):
        if np.isnan(of_pos + of_neg):
            del pairs[at]
        else:
            pairs[at] = replace(pairs[at], ref_pos=float(of_pos), ref_neg=float(of_neg))


def wrong_step(text: Encoded, path: str, where: tuple[int, int]) -> Encoded | None:
    """The same text, of which only one step of its path counts, given all that stands before it.

    Args:
        text: prompt and path in some tokenisation.
        where: the step's first character in the path, and one behind its last.

    Returns:
        A text that ends with the step; None where no token of it begins inside the step.
    """
    first, last = (len(path[:character].encode()) for character in where)
    begins = np.maximum.accumulate(np.where(text.segment == ANSWER, text.end_byte, -1))
    counts = (text.segment == ANSWER) & (begins >= first) & (begins < last) & ~text.is_eos
    at = np.flatnonzero(counts)
    if len(at) == 0:
        return None
    kept = np.arange(at[-1] + 1)
    return replace(
        text,
        input_ids=text.input_ids[: text.positions[at[-1]] + 2],
        positions=text.positions[kept],
        end_byte=text.end_byte[kept],
        segment=np.where(counts, ANSWER, PROMPT).astype(np.uint8)[kept],
        is_eos=text.is_eos[kept],
    )


def _path_text(learner: Learner, text: Encoded) -> str:
    """The path a lesson's text teaches, read back from its tokens."""
    return learner.lm.tokenizer.decode_answer(text.targets[text.segment == 1])
