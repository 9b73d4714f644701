"""Answer checkers: does a path end in the answer that is known? Exact text, a number, or one of several choices."""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

from fedtandem.checking.calculator import LONGEST_NUMBER, NUMBER
from fedtandem.checking.verdict import Checker, Verdict

MARK = re.compile(
    r"(?:####|#|\banswer(?:\s+is)?\s*:?|\\boxed\{|\btherefore\b,?(?:\s+the\s+answer\s+is)?)\s*", re.I
)
"""What people and models write before a final answer."""


def exact_answer(answers: Mapping[str, str]) -> Checker:
    """A checker: the path's final answer is the known one, letter by letter but for case, spaces and a last full stop.

    Args:
        answers: prompt -> its known answer.
    """
    return _checker(answers, lambda path, known: _same_text(final_answer(path), known))


def numeric_answer(answers: Mapping[str, str]) -> Checker:
    """A checker: the path's final number equals the known one exactly: 1,200 = 1200.0 = $1200.

    Args:
        answers: prompt -> its known answer; the last number in it counts.
    """
    return _checker(answers, _same_number)


def choice_answer(answers: Mapping[str, str], choices: Mapping[str, Sequence[str]] | None = None) -> Checker:
    """A checker: the path chooses the known option, by its letter ("B", "(b)", "B.") or by its text.

    Args:
        answers: prompt -> the right option, as letter or as text.
        choices: prompt -> its options in order, from which letters and texts are matched; None compares as given.
    """

    def check(prompt: str, path: str) -> Verdict:
        if prompt not in answers:
            return _no_answer()
        options = list((choices or {}).get(prompt, ()))
        known = chosen(answers[prompt], options)
        found = chosen(final_answer(path), options)
        if found is None:
            return Verdict(False, f"the path names no choice: {final_answer(path)[:40]!r}")
        return _said(found == known, found, known or answers[prompt])

    return check


def final_answer(path: str) -> str:
    """What a path ends in: the text behind its last mark ("#### 42", "# 6", "the answer is B"), else its last line."""
    marks = list(MARK.finditer(path))
    text = path[marks[-1].end() :] if marks else path
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    found = (lines[0] if marks else lines[-1]) if lines else ""
    return found.rstrip("}").strip()


def final_number(text: str) -> Fraction | None:
    """The last number of a text, its sign included; None where it has none of a readable length."""
    found = [match for match in NUMBER.finditer(text) if len(match.group()) <= LONGEST_NUMBER]
    if not found:
        return None
    last = found[-1]
    before = text[: last.start()].rstrip("$€£ ")
    # A dash behind a word or a number is no sign: "3 - 5", "day-5".
    negative = before.endswith(("-", "−")) and not before[:-1].rstrip().endswith(tuple("0123456789)"))
    negative = negative and not (len(before) > 1 and before[-2].isalpha())
    value = Fraction(last.group().replace(",", ""))
    return -value if negative else value


def chosen(text: str, options: Sequence[str]) -> str | None:
    """The letter of the option that a text names; the text itself, folded, where there are no options.

    A letter alone ("B", "(b)", "B. because", "B)") goes before a text; a text counts where exactly one option is in it.
    """
    letter = re.match(r"\(?([A-Za-z])(?:[).:]|$|\s*$)", text.strip())
    names = [chr(ord("A") + i) for i in range(len(options))]
    if letter and (not options or letter.group(1).upper() in names):
        return letter.group(1).upper()
    if not options:
        return _folded(text) or None
    whole = [name for name, option in zip(names, options, strict=True) if _folded(option) == _folded(text)]
    within = whole or [
        name
        for name, option in zip(names, options, strict=True)
        if re.search(rf"(?<!\w){re.escape(_folded(option))}(?!\w)", _folded(text))
    ]
    return within[0] if len(within) == 1 else None


def _checker(answers: Mapping[str, str], same: Callable[[str, str], bool]) -> Checker:
    def check(prompt: str, path: str) -> Verdict:
        if prompt not in answers:
            return _no_answer()
        return _said(same(path, answers[prompt]), final_answer(path), answers[prompt])

    return check


def _same_text(found: str, known: str) -> bool:
    return _folded(found) == _folded(known)


def _same_number(path: str, known: str) -> bool:
    found, wanted = final_number(final_answer(path)), final_number(known)
    return found is not None and found == wanted


def _folded(text: str) -> str:
    """Case, width and spaces made equal; a last full stop dropped."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(".")


def _no_answer() -> Verdict:
    return Verdict(None, "no answer is known for this prompt")


def _said(same: bool, found: str, known: str) -> Verdict:
    if same:
        return Verdict(True, f"the answer is {known.strip()[:40]}")
    return Verdict(False, f"the path ends in {found[:40]!r}, the answer is {known.strip()[:40]!r}")
