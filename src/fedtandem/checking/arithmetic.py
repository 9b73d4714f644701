"""Arithmetic steps in running text: "Natalia sold 48/2 = 24 clips" is found, recalculated, and believed or refuted."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from fedtandem.checking.calculator import Number, Token, value_of
from fedtandem.checking.pieces import EQUALS, STOP, UNKNOWN, Piece, pieces
from fedtandem.checking.verdict import Verdict

LONGEST_LINE = 5000
"""Characters of a line that are looked at."""


@dataclass(frozen=True)
class ArithmeticStep:
    """One equation of a text.

    Attributes:
        text: as written, "48/2 = 24".
        left, right: exact values of its sides, in the reading that agrees best.
        ok: whether they agree; a rounded right side does.
        start: its first character in the text.
    """

    text: str
    left: Fraction
    right: Fraction
    ok: bool
    start: int


def arithmetic(prompt: str, path: str) -> Verdict:
    """The checker `arithmetic`: every arithmetic step of the path is recalculated; the prompt is not looked at.

    Returns:
        False where a step is wrong, True where all are right, None where the path has none.
    """
    steps = list(arithmetic_steps(path))
    for step in steps:
        if not step.ok:
            where = (step.start, step.start + len(step.text))
            reason = f"{step.text} is wrong: the left side is {_plain(step.left)}"
            return Verdict(False, reason, first_wrong=where)
    if not steps:
        return Verdict(None, "no arithmetic step found")
    return Verdict(
        True, "1 arithmetic step holds" if len(steps) == 1 else f"{len(steps)} arithmetic steps hold"
    )


def arithmetic_steps(text: str) -> Iterator[ArithmeticStep]:
    """The equations of a text whose both sides are arithmetic, in order.

    A side is numbers joined by + - * x × / ÷ ^ and parentheses, with currency, per cent, thousands separators,
    "1 1/2" and units ("5 snakes/jaguar * 6 jaguars = 30 snakes"). Unknowns, and words between operators, are left
    alone: what cannot be read is no step. The right side may be rounded or cut to its decimals: 10/3 = 3.33 holds,
    10/3 = 3 does not. Per cent and cents count as hundredths or as they stand, whichever makes the step right.
    """
    begin = 0
    for line, whole in zip(text.splitlines(), text.splitlines(keepends=True), strict=True):
        sides: list[list[Piece]] = [[]]
        for piece in pieces(line[:LONGEST_LINE]):
            if piece.token == EQUALS:
                sides.append([])
            else:
                sides[-1].append(piece)
        for left, right in pairwise(sides):
            step = _step(line, begin, _end_of(left), _start_of(right))
            if step is not None:
                yield step
        begin += len(whole)


def _plain(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.6g}"


# -- sides ---------------------------------------------------------------------------------------------------------


def _end_of(side: Sequence[Piece]) -> list[Piece]:
    """The longest expression that a side ends with; empty where it ends with none."""
    kept: list[Piece] = []
    depth = 0
    border: Piece | None = None
    for piece in reversed(side):
        if piece.token in (STOP, UNKNOWN) or (piece.token == "(" and depth == 0):
            border = piece
            break
        if kept and piece.ends and kept[0].begins and not _touch(piece, kept[0]):
            border = piece
            break
        depth += (piece.token == ")") - (piece.token == "(")
        kept.insert(0, piece)
    if border is not None and kept:
        if border.token == UNKNOWN and not kept[0].begins:
            return []  # "S + 3": the unknown belongs to it
        if border.ends and kept[0].start - border.end <= 2:
            return []  # "100 000": no number of one piece
    if len(kept) > 1 and kept[0].token == "-" and kept[0].end < kept[1].start:
        kept = kept[1:]  # the dash of a list
    return kept if kept and (kept[0].begins or kept[0].token == "-") else []


def _start_of(side: Sequence[Piece]) -> list[Piece]:
    """The longest expression that a side begins with; empty where it begins with none."""
    kept: list[Piece] = []
    depth = 0
    for piece in side:
        if piece.token in (STOP, UNKNOWN) or (piece.token == ")" and depth == 0):
            break
        if kept and kept[-1].ends and piece.begins and not _touch(kept[-1], piece):
            break
        depth += (piece.token == "(") - (piece.token == ")")
        kept.append(piece)
    border = side[len(kept)].token if len(kept) < len(side) else None
    if border == UNKNOWN and kept and not kept[-1].ends:
        return []  # "= 5 + S"
    while kept and not kept[-1].ends:
        kept.pop()
    return kept


def _touch(left: Piece, right: Piece) -> bool:
    """Whether two operands are a product without its sign: "2(3 + 4)"."""
    return right.token == "(" and left.end == right.start


# -- comparing -----------------------------------------------------------------------------------------------------

_READINGS = tuple(
    {"%": percent, "¢": cents}
    for percent in (Fraction(1, 100), Fraction(1))
    for cents in (Fraction(1), Fraction(1, 100))
)


def _step(line: str, line_start: int, left: Sequence[Piece], right: Sequence[Piece]) -> ArithmeticStep | None:
    """The equation of two sides; None where a side is no arithmetic, or the left one calculates nothing."""
    ours, theirs = _with_products(left), _with_products(right)
    if not set("+-*/^") & {token for token in ours[1:] if isinstance(token, str)} or not theirs:
        return None
    begin = left[0].start
    begin -= begin > 0 and line[begin - 1] in "$€£"
    text = line[begin : right[-1].end]
    first: ArithmeticStep | None = None
    for scale in _READINGS:
        for other in _READINGS:
            try:
                a, b = value_of(ours, scale), value_of(theirs, other)
            except ValueError:
                return None
            step = ArithmeticStep(text, a, b, _agree(a, b, theirs), line_start + begin)
            if step.ok:
                return step
            first = first or step
    return first


def _with_products(pieces: Sequence[Piece]) -> list[Token]:
    """The tokens, with the sign that "2(3 + 4)" leaves out."""
    tokens: list[Token] = []
    for piece in pieces:
        if piece.token == "(" and tokens and (isinstance(tokens[-1], Number) or tokens[-1] == ")"):
            tokens.append("*")
        tokens.append(piece.token)
    return tokens


def _agree(left: Fraction, right: Fraction, written: Sequence[Token]) -> bool:
    """Equal, or equal up to the decimals that are written, rounded or cut."""
    decimals = max((token.decimals for token in written if isinstance(token, Number)), default=0)
    return left == right or (decimals > 0 and abs(left - right) < Fraction(1, 10**decimals))
