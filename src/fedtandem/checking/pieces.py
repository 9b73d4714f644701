"""Arithmetic inside prose: a line as numbers and operators, with units dropped and everything else a border."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

from fedtandem.checking.calculator import LONGEST_NUMBER, NUMBER, SIGNS, Number, Token, number

MOST_UNITS = 8
"""Words behind a number that may be its unit ("14 trash cans on the streets + 28 more = 42")."""
EQUALS, STOP, UNKNOWN = "=", ".", "?"
"""A sign of equality; what no expression goes across; the same, spoiling the operators beside it too."""


@dataclass(frozen=True)
class Piece:
    """A token and where it stands; the token is a Number, an operator, EQUALS, STOP or UNKNOWN."""

    token: Token
    start: int
    end: int

    @property
    def ends(self) -> bool:
        """An operand may end here."""
        return isinstance(self.token, Number) or self.token == ")"

    @property
    def begins(self) -> bool:
        """An operand may begin here."""
        return isinstance(self.token, Number) or self.token == "("


_MATCH = re.compile(
    r"(?P<fraction>(?:(?<=[/÷]\s)|\b\d+ )\d+/\d+)(?![\d.,]*\d)"  # "3 / 1/4", "1 1/2"
    rf"|(?P<number>{NUMBER.pattern})"
    r"|(?P<unit>%|¢)|(?P<money>[$€£])|(?P<equals>=+|\bequals\b)|(?P<power>\*\*)"
    r"|(?P<word>[^\W\d_]+(?:['’-][^\W\d_]+)*)|(?P<other>\S)"
)
_CENTS = frozenset({"cent", "cents"})
_JOINS = frozenset({
    "and", "or", "plus", "minus", "divided", "multiplied", "is", "are", "was", "than", "because", "since", "so", "then",
})  # fmt: skip
"""Words that no unit holds: what stands on both sides of them is two things."""


def pieces(line: str) -> Iterator[Piece]:
    """The pieces of a line, in order.

    A word behind a number is its unit and left out; "x" between numbers is "*", "of" behind a share too; any other
    word, and a letter that touches a number ("2S"), is unknown.
    """
    matches = [match for match in _MATCH.finditer(line) if not match.group("money")]
    operand: Piece | None = None
    words = 0
    skips = False
    for at, match in enumerate(matches):
        after = matches[at + 1] if at + 1 < len(matches) else None
        if skips:  # the word behind "miles /"
            skips = False
            continue
        if operand is not None:
            if (unit := _unit(match)) is not None:
                operand = _with_unit(operand, unit, match.end())
                continue
            if _goes_on(match, line) and words < MOST_UNITS and not _multiplies(match, after, operand):
                words += 1
                continue
            if match.group() == "/" and after is not None and after.group("word") and len(after.group()) > 1:
                skips = True
                continue
            yield operand
        piece = Piece(_token(match, after, operand, line), *match.span())
        operand, words = (piece, 0) if piece.ends else (None, 0)
        if operand is None:
            yield piece
    if operand is not None:
        yield operand


def _token(match: re.Match[str], after: re.Match[str] | None, before: Piece | None, line: str) -> Token:
    if match.group("word"):
        return "*" if before is not None and _multiplies(match, after, before) else UNKNOWN
    if match.group("fraction"):
        return _fraction(match.group("fraction"))
    if match.group("number"):
        text = match.group()
        # "100,0000", "19:00": the rest of something that is no number.
        is_rest = match.start() > 1 and line[match.start() - 1] in ",.:" and line[match.start() - 2].isdigit()
        return UNKNOWN if is_rest or len(text) > LONGEST_NUMBER else number(text)
    if match.group("equals"):
        return EQUALS
    if match.group("power"):
        return "^"
    return SIGNS.get(match.group(), STOP)


def _fraction(text: str) -> Token:
    """ "1/4" or "1 1/2" as one number."""
    whole, _, part = text.rpartition(" ")
    top, _, bottom = part.partition("/")
    if len(text) > LONGEST_NUMBER or not int(bottom):
        return UNKNOWN
    return Number(int(whole or 0) + Fraction(int(top), int(bottom)))


def _unit(match: re.Match[str]) -> str | None:
    """ "%" or "¢", where a piece is one of these."""
    if match.group("unit"):
        return match.group()
    return "¢" if match.group() in _CENTS else None


def _with_unit(operand: Piece, unit: str, end: int) -> Piece:
    if not isinstance(operand.token, Number):
        return operand
    return Piece(replace(operand.token, unit=unit), operand.start, end)


def _goes_on(match: re.Match[str], line: str) -> bool:
    """Whether a word behind a number may be its unit; a letter that touches the number is an unknown."""
    word = match.group("word")
    if not word or word in _JOINS:
        return False
    return len(word) > 1 or (word == "a" and line[match.start() - 1] == " ")


def _multiplies(match: re.Match[str], after: re.Match[str] | None, before: Piece) -> bool:
    """ "x" between two numbers; "of" behind a share."""
    if after is None or not (after.group("number") or after.group("fraction") or after.group() in "(["):
        return False
    if match.group() in ("x", "X"):
        return True
    share = isinstance(before.token, Number) and (before.token.unit == "%" or before.token.value < 1)
    return match.group() == "of" and share and match.start() - before.end <= 1
