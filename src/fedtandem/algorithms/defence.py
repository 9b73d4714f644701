"""What the server does against clients whose knowledge is wrong, by fault or on purpose.

DualMinCE believes scores: who claims the lowest loss teaches. But a client's rows say what its loss can have been: the
probability they give to the known answer. So scores are held against rows on a sample of what a client won; who
claims better than its rows allow is quarantined, with the reason. And no client teaches more than a set share.

Which samples are held against rows is drawn from a key of the server's own: who knew them could lie on the others.

Not found: a client whose scores and rows agree and that is wrong only where no answer is known, and several clients
that lie alike beyond what the caps leave to the honest ones.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from fedtandem.algorithms.crossing import check_rows_lie_where_the_card_says
from fedtandem.algorithms.learner import Learner
from fedtandem.algorithms.lessons import Choice, rows_of
from fedtandem.alignment.card import VocabularyCard
from fedtandem.errors import InvalidMessage
from fedtandem.exchange.card import Card
from fedtandem.exchange.knowledge import Knowledge
from fedtandem.knowledge.sparse_logits import SparseLogits
from fedtandem.selection.dual_min_ce import NO_TEACHER
from fedtandem.tuning.secret_noise import SecretNoise


@dataclass(frozen=True)
class DefenceSettings:
    """How much is checked and what is allowed.

    Attributes:
        check_samples: of what a client won in a round, so many samples' scores are computed again.
        score_tolerance: a score may be so much better than the rows allow, in its own unit; rounding on the wire is
            below 0.04 nats per byte.
        max_wrong: share of the checked samples that may be wrong.
        influence_cap: share of the public samples that one client may teach in a round; 1: all.
    """

    check_samples: int = 64
    score_tolerance: float = 0.1
    max_wrong: float = 0.1
    influence_cap: float = 0.5


class Defence:
    """Whom the server believes.

    Args:
        settings: how strict.
        learner: the server's, for its public texts and its record.
        key: secret, 32 bytes; it decides which samples are checked.

    Attributes:
        quarantined: client -> why; for the rest of the run.
    """

    def __init__(self, settings: DefenceSettings, learner: Learner, key: bytes) -> None:
        self.settings = settings
        self.learner = learner
        self._key = key
        self.quarantined: dict[str, str] = {}
        self._spellers: dict[str, dict[bytes, list[int]]] = {}

    def heard(self, replies: Mapping[str, Knowledge]) -> dict[str, Knowledge]:
        """The replies of those who are not quarantined."""
        return {name: knowledge for name, knowledge in replies.items() if name not in self.quarantined}

    def liars(
        self, round_number: int, choice: Choice, sources: Mapping[str, Knowledge], cards: Mapping[str, Card]
    ) -> dict[str, str]:
        """Examine every teacher of this round; quarantine and return those that are caught, with the reason.

        Args:
            sources: with rows of (at least) what each of them won.
        """
        found = {}
        for name, knowledge in sources.items():
            drawn = self.checked(round_number, name, choice.won_by(name), len(knowledge.scores))
            reason = self._fault(round_number, knowledge, drawn, cards[name])
            if reason is not None:
                found[name] = reason
                self.learner.emit(
                    "warning", round=round_number, party=name, signature="quarantined",
                    text=f"{name} is not believed any more: {reason}",
                )  # fmt: skip
        self.quarantined |= found
        return found

    def checked(self, round_number: int, name: str, won: np.ndarray, n_public: int) -> np.ndarray:
        """Which samples of one client are held against its rows: `check_samples` of those it won, by secret lot.

        The lot is drawn for all samples, so that it does not depend on what the others won: the same key, round and
        client give the same.

        Args:
            won: sample indexes; (M,) int64.

        Returns:
            (min(M, check_samples),) int64, ascending.
        """
        lot = SecretNoise(self._key, f"defence/{round_number}/{name}").uniform(n_public)
        return np.sort(won[np.argsort(lot[won], kind="stable")][: self.settings.check_samples])

    def _fault(self, round_number: int, knowledge: Knowledge, drawn: np.ndarray, card: Card) -> str | None:
        scores, tolerance = knowledge.scores, self.settings.score_tolerance
        if knowledge.round != round_number:
            return f"its knowledge is of round {knowledge.round}, not {round_number}"
        if len(scores) and scores.min() < -tolerance:
            at = int(scores.argmin())
            return f"it claims a loss of {scores[at]:.3g} on sample {at}; none lies below 0"
        if knowledge.rows is None or not len(drawn):
            return None
        try:
            rows = rows_of(knowledge, drawn)
            if card.ends is not None:
                check_rows_lie_where_the_card_says(rows, drawn, card)
        except InvalidMessage as error:
            return str(error)
        least = np.array([
            least_score(rows.take_samples(np.array([i])), self._answer(knowledge, sample), card.vocabulary,
                        self._speller(card), per_token=self.learner.knowledge.mode == "mined")
            for i, sample in enumerate(drawn.tolist())
        ])  # fmt: skip
        wrong = scores[drawn] + tolerance < least
        if wrong.mean() <= self.settings.max_wrong:
            return None
        worst = int((least - scores[drawn]).argmax())
        return (
            f"{int(wrong.sum())} of {len(drawn)} of its checked scores are better than its own rows allow; on sample "
            f"{int(drawn[worst])} it claims {scores[drawn[worst]]:.3f}, its rows give {least[worst]:.3f} or more"
        )

    def _answer(self, knowledge: Knowledge, sample: int) -> bytes:
        """The bytes that were scored: the known answer, or the text the client wrote itself."""
        text = self.learner.public[sample].answer if knowledge.texts is None else knowledge.texts[sample]
        return (text or "").encode()

    def _speller(self, card: Card) -> dict[bytes, list[int]]:
        if card.party not in self._spellers:
            spelled: dict[bytes, list[int]] = {}
            for token_id, piece in enumerate(card.vocabulary.token_bytes):
                if piece:
                    spelled.setdefault(piece, []).append(token_id)
            self._spellers[card.party] = spelled
        return self._spellers[card.party]

    # -- state -----------------------------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """For the round's folder."""
        return json.dumps(self.quarantined).encode()

    def restore(self, data: bytes) -> None:
        """The inverse."""
        self.quarantined = json.loads(data)


def least_score(
    rows: SparseLogits,
    answer: bytes,
    card: VocabularyCard,
    speller: Mapping[bytes, list[int]],
    *,
    per_token: bool,
) -> float:
    """The lowest loss that one sample's rows allow on its answer.

    A row tells the probability of every token it kept and of all others together; a row whose token is not known
    (no byte boundary) counts as certain. So an honest score is never below this but for rounding.

    Args:
        rows: of one sample, in its producer's tokens; P rows.
        answer: what was scored.
        card, speller: the producer's vocabulary, and the ids that spell given bytes.
        per_token: nats per token with the closing EOS (`mined`), else nats per byte without it.
    """
    is_answer = rows.segment == 1
    ends = rows.end_byte[is_answer].astype(np.int64)
    total = 0.0
    for place, row in enumerate(np.flatnonzero(is_answer)):
        start = int(ends[place])
        stop = int(ends[place + 1]) if place + 1 < len(ends) else len(answer)
        if start < 0 or stop < start:
            continue
        if start == len(answer):  # the closing EOS
            wanted = [card.roles["eos"]] if per_token and "eos" in card.roles else []
        else:
            wanted = speller.get(answer[start:stop], [])
        if wanted:
            total -= _log_prob_at_most(rows, int(row), wanted)
    return total / max(1, len(ends) if per_token else len(answer))


def _log_prob_at_most(rows: SparseLogits, row: int, wanted: list[int]) -> float:
    first, last = rows.row_splits[row], rows.row_splits[row + 1]
    kept, log_probs = rows.token_ids[first:last], rows.log_probs[first:last]
    if first == last:
        return 0.0
    known = log_probs[np.isin(kept, wanted)]
    bounds = [*known.tolist()]
    if len(known) < len(wanted):  # it may be any of the tokens that were not kept
        bounds.append(float(rows.tail_log_prob[row]))
    return float(max(max(bounds), -100.0))


def capped(choice: Choice, cap: float, generator: np.random.Generator) -> Choice:
    """No client teaches more than `cap` of the kept samples; what it won beyond that, by lot, is left to the labels."""
    limit = int(np.floor(cap * len(choice.kept)))
    teacher_of = choice.teacher_of.copy()
    for name in choice.names:
        won = choice.won_by(name)
        if len(won) > limit:
            teacher_of[generator.permutation(won)[limit:]] = NO_TEACHER
    return replace(choice, teacher_of=teacher_of)
