"""The receiving side of an exchange, at the server and at a client: check, select, choose who teaches, learn."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from fedtandem.algorithms.checked_paths import accepted_only
from fedtandem.algorithms.learner import Learner, phase_seed
from fedtandem.algorithms.lessons import Choice, Classroom, choose, choose_paths, generator_of
from fedtandem.algorithms.meeting import report_choice
from fedtandem.algorithms.selecting import Selecting
from fedtandem.exchange.knowledge import Knowledge
from fedtandem.knowledge.sparse_logits import SparseLogits
from fedtandem.selection.selectors import Selector

Told = Mapping[str, Knowledge]
"""Producer -> its knowledge."""
RowsOf = Callable[[np.ndarray], SparseLogits]
"""Samples, (M,) ascending -> their rows."""


@dataclass
class Receiver:
    """Turns what others tell into a lesson.

    Attributes:
        learner: who is taught.
        classroom: carries rows into its tokenisation.
        selector: who teaches which sample.
        selecting: names the items it learns; None: all.
        is_told: whether others teach at all; then who taught what is recorded.
        client_of: the client of the pair that a producer and the learner make.
        of_offers: producers tell of some items alone, on purpose.
        vouched: sample -> text of the paths last heard of which the check verified every step.

    Source: FedMKT, arXiv:2406.02224v4, algorithm DualMinCE; specification of LaDa, sections 2 and 5.
    """

    learner: Learner
    classroom: Classroom
    selector: Selector
    selecting: Selecting | None
    is_told: bool
    client_of: Callable[[str], str]
    of_offers: bool = False
    vouched: dict[int, str] = field(default_factory=dict)

    def choose(
        self, round_number: int, own: Knowledge | None, told: Told
    ) -> tuple[Choice, dict[str, Knowledge]]:
        """Check, select, then choose who teaches; on an unlabelled set the surest writer of each prompt.

        The check comes first: a budget is not spent on paths that it refuses.

        Args:
            own: what the learner itself makes of the public set; None: nothing, so that everybody knows more.
            told: what it may learn from.

        Returns:
            Who teaches what, and what was told of the items that were selected.
        """
        learner, selecting = self.learner, self.selecting
        labelled = learner.unlabelled is None
        heard: dict[str, Knowledge] = dict(told)
        if not labelled:
            heard, self.vouched = accepted_only(learner, round_number, told)
        if selecting is not None:
            heard = self._only_selected(selecting, round_number, own, heard)
        with learner.timed("select", round_number):
            if learner.unlabelled is not None:
                keep = learner.unlabelled.confidence_keep if selecting is None else 1.0
                choice = choose_paths(heard, len(learner.public), keep)
                return choice, dict(told) if selecting is None else heard
            scores = np.full(len(learner.public), np.inf, np.float32) if own is None else own.scores
            generator = generator_of(phase_seed(learner.seed, learner.name, round_number, "select"))
            choice = choose(scores, heard, self.selector, generator)
            if selecting is not None:
                kept = [selecting.ids(self.client_of(name)) for name in heard]
                choice = replace(choice, kept=np.unique(np.concatenate(kept)) if kept else choice.kept[:0])
            return choice, heard

    def _only_selected(
        self, selecting: Selecting, round_number: int, own: Knowledge | None, heard: Told
    ) -> dict[str, Knowledge]:
        """What was told of the items each pair kept; where they were not asked for, they are named now."""
        for name, knowledge in heard.items():
            selecting.hold(self.client_of(name), knowledge)
        if not selecting.asks_ahead:
            selecting.choose(round_number, sorted(map(self.client_of, heard)), own)
        return {
            name: selecting.only_chosen(self.client_of(name), knowledge) for name, knowledge in heard.items()
        }

    def learn(self, round_number: int, choice: Choice, sources: Told, own_rows: RowsOf | None) -> None:
        """Bring the rows over and train.

        Args:
            sources: with (at least) the rows and texts of what each of them won.
            own_rows: the learner's own stale rows of samples nobody teaches, for `on_self = "self"`; None: none.
        """
        learner = self.learner
        if learner.knowledge.on_self != "self" or learner.unlabelled is not None:
            own_rows = None
        with learner.timed("transport", round_number):
            lesson = self.classroom.lesson(choice, sources, own_rows)
        if self.is_told:
            is_part = self.selecting is not None or self.of_offers
            report_choice(learner, round_number, choice, sources, self.classroom, is_part=is_part)
        if self.selecting is None:
            learner.learn(round_number, lesson)
        else:
            pairs = {self.client_of(name): name for name in sources}
            self.selecting.learn(round_number, lesson, choice, pairs)


def rows_of_samples(knowledge: Knowledge | None) -> RowsOf:
    """A party's own rows of given samples; empty ones where it has none."""

    def take(samples: np.ndarray) -> SparseLogits:
        if knowledge is None or knowledge.rows is None:
            return SparseLogits.empty(len(samples))
        return knowledge.rows.take_samples(samples)

    return take
