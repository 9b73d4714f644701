"""The path check, which needs no answers: the form must hold, and no step may contradict what the receiver knows."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from fedtandem.checking.verdict import Verdict
from fedtandem.data.chains import STEP_LENGTH, chain_prompt, read_path
from fedtandem.errors import DataError


@dataclass(frozen=True)
class Claim:
    """One step of a path as a question of its own.

    Attributes:
        question: a prompt that asks for this step alone, "Q 3 @ 5 A".
        answer: what the path says to it, as a model would write it: " 3 @ 5 = 8 ; # 8".
        topic: what one must know to judge it, "@".
        where: the step's characters in the path, (first, one behind the last); None where a form does not say.
    """

    question: str
    answer: str
    topic: str
    where: tuple[int, int] | None = None


@dataclass(frozen=True)
class Fact:
    """The receiver's own answer to a question, and how probable it holds that answer; in [0, 1]."""

    answer: str
    sureness: float


Form = Callable[[str, str], "Sequence[Claim] | str"]
"""`form(prompt, path)`: the path's claims, or why its form is wrong."""
Ask = Callable[[Sequence[str]], Sequence[Fact]]
"""`ask(questions)`: what the receiver itself answers, one fact per question."""


class PathCheck:
    """A checker: form, then own facts.

    (a) The path uses what its prompt gives and carries each result on. (b) The receiver asks itself every step it
    claims to know: one whose topic is in its own data and whose answer it is sure of. A step it does not know is
    judged by form alone.

    Args:
        form: reads a path of this kind of data.
        ask: the receiver's model; asked each question once.
        topics: what the receiver's own data are about.
        sureness: probability from which on its own answer counts as knowledge.

    Source: the path check of the reasoning-transfer prototype (specification of studies, section 7).
    """

    def __init__(self, form: Form, ask: Ask, topics: Collection[str], sureness: float = 0.9) -> None:
        self.form = form
        self.ask = ask
        self.topics = frozenset(topics)
        self.sureness = sureness
        self._facts: dict[str, Fact] = {}

    def __call__(self, prompt: str, path: str) -> Verdict:
        """Judge a path; True also where no step could be re-asked, and the reason says so."""
        claims = self.form(prompt, path)
        if isinstance(claims, str):
            return Verdict(False, claims)
        asked = self._known(claims)
        for claim in asked:
            if self._facts[claim.question].answer != claim.answer:
                own = self._facts[claim.question].answer
                reason = f"{claim.answer.strip()!r} contradicts what this party knows, {own.strip()!r}"
                return Verdict(False, reason, first_wrong=claim.where)
        return Verdict(True, f"the form holds, {len(asked)} of {len(claims)} steps asked again")

    def vouches(self, prompt: str, path: str) -> bool:
        """Whether the form holds and *every* step was asked again and agrees."""
        claims = self.form(prompt, path)
        if isinstance(claims, str):
            return False
        asked = self._known(claims)
        return len(asked) == len(claims) and all(self._facts[c.question].answer == c.answer for c in asked)

    def prepare(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Ask all questions that these (prompt, path) will raise, in one batch."""
        self._known(list(chain.from_iterable(self._claims(prompt, path) for prompt, path in pairs)))

    def _claims(self, prompt: str, path: str) -> Sequence[Claim]:
        """What can be asked; a form that fails is met again, and told, when the path is judged."""
        try:
            claims = self.form(prompt, path)
        except Exception:
            return ()
        return () if isinstance(claims, str) else claims

    def _known(self, claims: Sequence[Claim]) -> list[Claim]:
        """The claims this party says it knows; asks what was not asked yet."""
        mine = [claim for claim in claims if claim.topic in self.topics]
        new = list(dict.fromkeys(claim.question for claim in mine if claim.question not in self._facts))
        if new:
            self._facts.update(zip(new, self.ask(new), strict=True))
        return [claim for claim in mine if self._facts[claim.question].sureness >= self.sureness]


def chains_form(prompt: str, path: str) -> Sequence[Claim] | str:
    """The form of the built-in playground's chains (`data/chains.py`)."""
    try:
        steps = read_path(prompt, path)
    except DataError:
        return f"{prompt!r:.60} is no chain"
    if steps is None:
        return "the path does not use what its prompt gives, or does not carry each result on"
    return [
        Claim(
            chain_prompt([step.left, step.right], [step.operator]),
            f" {step.left} {step.operator} {step.right} = {step.result} ; # {step.result}",
            step.operator,
            (at * STEP_LENGTH, (at + 1) * STEP_LENGTH),
        )
        for at, step in enumerate(steps)
    ]


def known_topics(
    form: Form, examples: Iterable[tuple[str, str]], ask: Ask, agreement: float = 0.9
) -> frozenset[str]:
    """What a party's own (prompt, answer) pairs are about, as far as it answers their steps as they do.

    So a sign that its data hold but do not explain is none of its topics, however sure it was made of it by others.

    Args:
        form: reads a pair; one of another form says nothing.
        examples: the party's own data.
        ask: its present model.
        agreement: share of a topic's steps from which on it is known.
    """
    claims = [
        claim
        for prompt, answer in examples
        for found in [form(prompt, answer)]
        if not isinstance(found, str)
        for claim in found
    ]
    questions = list(dict.fromkeys(claim.question for claim in claims))
    facts = dict(zip(questions, ask(questions) if questions else (), strict=True))
    agrees: dict[str, list[bool]] = {}
    for claim in claims:
        agrees.setdefault(claim.topic, []).append(facts[claim.question].answer == claim.answer)
    return frozenset(topic for topic, each in agrees.items() if sum(each) >= agreement * len(each))


def remembering(ask: Ask) -> Ask:
    """The same, with every question asked once."""
    known: dict[str, Fact] = {}

    def answer(questions: Sequence[str]) -> list[Fact]:
        new = [question for question in dict.fromkeys(questions) if question not in known]
        if new:
            known.update(zip(new, ask(new), strict=True))
        return [known[question] for question in questions]

    return answer
