"""What server and client do alike: tell who they are, meet a teacher, and check, report or cut what was sent."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from fedtandem.algorithms.crossing import Crossing, public_ends
from fedtandem.algorithms.learner import Learner
from fedtandem.algorithms.lessons import (
    Choice,
    Classroom,
    rows_of,
    skip_rate,
)
from fedtandem.errors import InvalidMessage
from fedtandem.exchange.card import Card
from fedtandem.exchange.knowledge import Knowledge
from fedtandem.exchange.messages import FetchReply

MakeMap = Callable[[Card], np.ndarray]
"""Teacher's card -> vocabulary map into this party's ids."""


def make_card(learner: Learner, public: str) -> Card:
    """A party's card."""
    tokenizer = learner.lm.tokenizer
    ends = token_ids = None
    if learner.unlabelled is None:
        ends = public_ends(learner.public_texts)
        if learner.knowledge.mode == "mined":
            scored = [text.context_ids for text in learner.public_texts if text.scored]
            token_ids = np.concatenate(scored).astype(np.int32) if scored else np.zeros(0, dtype=np.int32)
    return Card(
        party=learner.name, vocabulary=tokenizer.card, public_hash=public, n_public=len(learner.public), ends=ends,
        token_ids=token_ids, n_private=len(learner.own), model=learner.lm.name,
        trainable_bytes=sum(value.numel() * 2 for value in learner.lm.state().values()),
    )  # fmt: skip


def meet(learner: Learner, teacher: Card, make_map: MakeMap) -> Crossing:
    """The way from a teacher into a learner's tokenisation; says how well they meet."""
    with learner.timed("align", 0):
        texts = learner.public_texts if learner.unlabelled is None else None
        crossing = Crossing(learner.lm.tokenizer, teacher, make_map(teacher), learner.knowledge, texts)
    if np.isfinite(crossing.aligned_share):
        report_alignment(learner, teacher, crossing)
    return crossing


def report_alignment(learner: Learner, teacher: Card, crossing: Crossing) -> None:
    """Record the aligned share; warn where it is poor (specification of FedMKT, section 18)."""
    unmapped = float((crossing.id_map < 0).mean())
    learner.emit(
        "alignment", round=0, party=learner.name, teacher=teacher.party, aligned_share=crossing.aligned_share,
        taught_share=crossing.taught_share, unmapped_ids=unmapped,
    )  # fmt: skip
    if crossing.aligned_share < 0.8:
        learner.emit(
            "warning", round=0, party=learner.name, signature="poor alignment",
            text=f"{crossing.aligned_share:.0%} of {learner.name}'s answer positions have a partner in "
            f"{teacher.party}'s tokenisation ({learner.lm.name} <- {teacher.model}); the others learn the labels only",
        )  # fmt: skip


def check_knowledge(knowledge: Knowledge, public: str, n_public: int) -> None:
    """Refuse knowledge about another public set.

    Raises:
        InvalidMessage: another hash or another number of samples.
    """
    if knowledge.public_hash != public or len(knowledge.scores) != n_public:
        raise InvalidMessage(
            f"{knowledge.party}, round {knowledge.round}: knowledge of public set {knowledge.public_hash[:16]} with "
            f"{len(knowledge.scores)} samples; this party holds {public[:16]} with {n_public}."
        )


def report_choice(
    learner: Learner,
    round_number: int,
    choice: Choice,
    sources: Mapping[str, Knowledge],
    classroom: Classroom,
    *,
    is_part: bool = False,
) -> None:
    """Record who teaches what; warn of one teacher for all, light rows and unscored samples."""
    teachers = {name: len(choice.won_by(name)) for name in choice.names}
    # Where a selector named some items, or clients offered some, the others have no score on purpose.
    unscored = 0 if is_part else int(sum(int(np.isinf(k.scores).sum()) for k in sources.values()))
    total = max(1, len(choice.kept))
    kept_mass = {}
    for name, knowledge in sources.items():
        if knowledge.rows is not None and knowledge.rows.n_rows:
            kept_mass[name] = float(1 - np.exp(knowledge.rows.tail_log_prob.astype(np.float64)).mean())
    learner.emit(
        "selection", round=round_number, party=learner.name, teachers=teachers, n=len(choice.kept),
        skipped=round(skip_rate(choice) * total), unscored=unscored, kept_mass=kept_mass,
    )  # fmt: skip
    for name, mass in kept_mass.items():
        if mass < 0.9:
            learner.emit(
                "warning", round=round_number, party=learner.name, signature="tail too heavy",
                text=f"{name}'s rows keep {mass:.0%} of the probability on average; raise knowledge.top_k",
            )  # fmt: skip
    if len(teachers) > 1 and max(teachers.values()) > 0.95 * total:
        winner = max(teachers, key=lambda name: teachers[name])
        learner.emit(
            "warning", round=round_number, party=learner.name, signature="one teacher wins all",
            text=f"{winner} teaches {teachers[winner]} of {total} samples",
        )  # fmt: skip
    if unscored > 0.05 * total * max(1, len(sources)):
        learner.emit(
            "warning", round=round_number, party=learner.name, signature="scores not comparable",
            text=f"{unscored} samples have no score (answers cut at max_length, refused or empty)",
        )  # fmt: skip


def only_samples(knowledge: Knowledge, sample_index: np.ndarray) -> Knowledge:
    """The same knowledge with the rows of some samples only.

    Raises:
        InvalidMessage: rows of a sample it does not hold.
    """
    if knowledge.rows is None:
        return knowledge
    index = np.asarray(sample_index, dtype=np.int32)
    return replace(knowledge, sample_index=index, rows=rows_of(knowledge, sample_index))


def without_rows(knowledge: Knowledge) -> Knowledge:
    """Scores and texts alone."""
    return replace(knowledge, sample_index=np.zeros(0, dtype=np.int32), rows=None)


def as_kept(knowledge: Knowledge) -> tuple[bytes, Knowledge]:
    """Knowledge as a file, and as that file gives it back: what stays in memory and what a resumed run reads agree."""
    envelope = FetchReply(knowledge.round, knowledge.party, knowledge).to_envelope()
    return envelope.to_bytes(), FetchReply.from_envelope(envelope).knowledge


def without_own_rows(knowledge: Knowledge, name: str) -> Knowledge:
    """A party's own paths teach it as text; its own rows would only tell it what it thought."""
    return without_rows(knowledge) if knowledge.party == name else knowledge
