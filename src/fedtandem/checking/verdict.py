"""What a checker says of one path."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Verdict:
    """A judgement of one path.

    Attributes:
        ok: True: it holds; False: it is refuted; None: this checker cannot tell.
        reason: in a few words, for people.
        failed: the checker itself failed (it raised, timed out, answered nonsense); `ok` is None then.
        first_wrong: where the first wrong step of a refuted path stands: (first character, one behind its last); None
            where the checker cannot tell.
    """

    ok: bool | None
    reason: str
    failed: bool = False
    first_wrong: tuple[int, int] | None = None


class Checker(Protocol):
    """A rule that judges one path; must not change anything, so that order and repetition do not matter."""

    def __call__(self, prompt: str, path: str, /) -> Verdict:
        """Judge a path.

        Args:
            prompt: what was asked, as all parties hold it.
            path: what somebody wrote, its leading separator included.
        """
        ...


def as_verdict(answer: object) -> Verdict:
    """A user's answer as a verdict: a `Verdict`, True / False / None, or (one of these, reason).

    Raises:
        TypeError: it is something else.
    """
    if isinstance(answer, Verdict):
        return answer
    if answer is None or isinstance(answer, bool):
        return Verdict(answer, {True: "accepted", False: "refused", None: "cannot tell"}[answer])
    if isinstance(answer, list | tuple) and len(answer) == 2:
        ok, reason = answer
        if (ok is None or isinstance(ok, bool)) and isinstance(reason, str):
            return Verdict(ok, reason)
    raise TypeError(f"it returned {answer!r:.80}, not a Verdict, True, False, None or (one of these, reason)")
