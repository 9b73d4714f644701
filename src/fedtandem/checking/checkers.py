"""Checkers by name, and the judging of many paths at once."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedtandem.checking.answers import choice_answer, exact_answer, numeric_answer
from fedtandem.checking.arithmetic import arithmetic
from fedtandem.checking.path import Ask, Fact, Form, PathCheck, chains_form
from fedtandem.checking.user import UserChecker
from fedtandem.checking.verdict import Checker, Verdict
from fedtandem.errors import ConfigError
from fedtandem.user_code import import_function

BY_ANSWER = {"exact": exact_answer, "numeric": numeric_answer, "choice": choice_answer}
"""Checkers that must know the answers."""
BUILT_IN = ("none", *BY_ANSWER, "arithmetic", "path")
FORMS: Mapping[str, Form] = {"chains": chains_form}
"""Forms of paths that are built in."""


@dataclass(frozen=True)
class CheckSettings:
    """Which checker, and what it needs; plain values of the config's `public.check*`.

    Attributes:
        name: of `BUILT_IN`, or "package.module:function".
        form: of `FORMS`, or "package.module:function"; for `path`.
        sureness: for `path`: probability from which on an own answer counts as knowledge.
        undecided: what becomes of a path of which the checker cannot tell.
        timeout_s: for a user's own.
    """

    name: str = "none"
    form: str = "chains"
    sureness: float = 0.9
    undecided: str = "refuse"
    timeout_s: float = 10.0

    def accepts(self, verdict: Verdict) -> bool:
        """Whether a path with this verdict is used; one whose checker failed never is."""
        return verdict.ok is True or (verdict.ok is None and not verdict.failed and self.undecided == "keep")


def find_form(name: str) -> Form:
    """A form by name.

    Raises:
        ConfigError: there is none of this name.
    """
    if name in FORMS:
        return FORMS[name]
    found: Form = import_function(
        name, "public.check_form", "(prompt, path) -> a sequence of Claim, or why there are none"
    )
    return found


def find_checker(
    settings: CheckSettings,
    *,
    answers: Mapping[str, str] | None = None,
    choices: Mapping[str, Sequence[str]] | None = None,
    ask: Ask | None = None,
    topics: Sequence[str] | frozenset[str] = (),
) -> Checker | None:
    """The checker that settings name; None for "none".

    Args:
        answers: prompt -> known answer, for `exact`, `numeric`, `choice`.
        choices: prompt -> options, for `choice`.
        ask, topics: the receiver's own facts, for `path`; without them the form alone is looked at.

    Raises:
        ConfigError: answers are needed and not there; a user's own cannot be imported.
    """
    name = settings.name
    if name == "none":
        return None
    if name == "arithmetic":
        return arithmetic
    if name == "path":
        return PathCheck(find_form(settings.form), ask or _nobody, topics if ask else (), settings.sureness)
    if name in BY_ANSWER:
        if not answers:
            raise ConfigError(
                f"the check {name!r} compares with known answers, and none are given: name their column."
            )
        return choice_answer(answers, choices) if name == "choice" else BY_ANSWER[name](answers)
    return UserChecker(name, settings.timeout_s)


def _nobody(questions: Sequence[str]) -> Sequence[Fact]:
    raise RuntimeError(f"{len(questions)} questions, but nobody to ask")


def judge(checker: Checker, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
    """Verdicts of many (prompt, path); an empty path is refused unasked. Never raises what a checker raises."""
    if isinstance(checker, PathCheck):
        checker.prepare([pair for pair in pairs if pair[1]])
    return [_judged(checker, prompt, path) for prompt, path in pairs]


def _judged(checker: Checker, prompt: str, path: str) -> Verdict:
    if not path:
        return Verdict(False, "nothing was written")
    try:
        return checker(prompt, path)
    except Exception as error:  # a checker's fault is a verdict, whatever it raises
        return Verdict(None, f"raised {type(error).__name__}: {error}"[:300], failed=True)


def counts(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """How many were accepted, refused, undecided; and of how many the checker itself failed."""
    found = Counter(_kind(verdict) for verdict in verdicts)
    return {kind: found[kind] for kind in ("accepted", "refused", "undecided", "failed")}


def _kind(verdict: Verdict) -> str:
    if verdict.failed:
        return "failed"
    return {True: "accepted", False: "refused", None: "undecided"}[verdict.ok]
