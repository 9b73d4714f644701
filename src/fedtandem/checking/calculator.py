"""Exact arithmetic on text that was written by somebody else: no `eval`, bounded sizes, nothing but numbers."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

LONGEST_TEXT = 500
"""Characters of an expression."""
LONGEST_NUMBER = 24
"""Characters of one number."""
DEEPEST = 16
"""Parentheses within parentheses."""
LARGEST_POWER = 32
LARGEST_BITS = 4096
"""Of a numerator or a denominator."""


@dataclass(frozen=True)
class Number:
    """A number as it was written.

    Attributes:
        value: exact; 20 of "20%".
        decimals: digits behind the point.
        unit: "%" , "¢" (cents) or "".
    """

    value: Fraction
    decimals: int = 0
    unit: str = ""


Token = Number | str
"""A number, or one of + - * / ^ ( )."""

NUMBER = re.compile(r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+")
"""Digits, with thousands separators and a decimal point where they are written."""
SIGNS: Mapping[str, str] = {
    "+": "+", "-": "-", "−": "-", "–": "-", "*": "*", "×": "*", "·": "*", "∗": "*", "/": "/", "÷": "/", "^": "^",
    "(": "(", ")": ")", "[": "(", "]": ")",
}  # fmt: skip
"""A sign as people write it -> the sign it means."""


def number(text: str, unit: str = "") -> Number:
    """A written number.

    Raises:
        ValueError: it is none, or has more than `LONGEST_NUMBER` characters.
    """
    if len(text) > LONGEST_NUMBER or not NUMBER.fullmatch(text):
        raise ValueError(f"{text[:40]!r} is no number of at most {LONGEST_NUMBER} characters")
    return Number(Fraction(text.replace(",", "")), len(text.partition(".")[2]), unit)


def calculate(text: str) -> Fraction:
    """The exact value of an expression: + - * / ^ ( ), decimals, "1,200", "20%" (a fifth), "$5".

    Raises:
        ValueError: it is no such expression, divides by zero, or is larger than this calculator goes.
    """
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"an expression of {len(text)} characters is longer than {LONGEST_TEXT}")
    tokens: list[Token] = []
    at = 0
    while at < len(text):
        if text[at].isspace() or text[at] in "$€£":
            at += 1
        elif found := NUMBER.match(text, at):
            at = found.end()
            unit = "%" if text[at : at + 1] == "%" else ""
            tokens.append(number(found.group(), unit))
            at += len(unit)
        elif text.startswith("**", at):
            tokens.append("^")
            at += 2
        elif text[at] in SIGNS:
            tokens.append(SIGNS[text[at]])
            at += 1
        else:
            raise ValueError(f"{text[at]!r} is no arithmetic")
    return value_of(tokens, {"%": Fraction(1, 100)})


def value_of(tokens: Sequence[Token], scale: Mapping[str, Fraction] | None = None) -> Fraction:
    """The exact value of an expression in tokens.

    Args:
        scale: unit -> what a number with it is multiplied by; others count as they stand.

    Raises:
        ValueError: as `calculate`.
    """
    reader = _Reader(tokens, scale or {})
    value = reader.sum(0)
    if reader.at != len(tokens):
        raise ValueError(f"{reader.next()!r} stands where an operator should")
    return value


class _Reader:
    """Recursive descent: sum -> product -> signed -> power -> number or parentheses."""

    def __init__(self, tokens: Sequence[Token], scale: Mapping[str, Fraction]) -> None:
        self.tokens = tokens
        self.scale = scale
        self.at = 0

    def next(self) -> Token | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def take(self, signs: str) -> str | None:
        token = self.next()
        if isinstance(token, str) and token in signs:
            self.at += 1
            return token
        return None

    def sum(self, depth: int) -> Fraction:
        value = self.product(depth)
        while sign := self.take("+-"):
            other = self.product(depth)
            value = _bounded(value + other if sign == "+" else value - other)
        return value

    def product(self, depth: int) -> Fraction:
        value = self.signed(depth)
        while sign := self.take("*/"):
            other = self.signed(depth)
            if sign == "/" and other == 0:
                raise ValueError("division by zero")
            value = _bounded(value * other if sign == "*" else value / other)
        return value

    def signed(self, depth: int) -> Fraction:
        sign = 1
        while found := self.take("+-"):
            sign = -sign if found == "-" else sign
        return sign * self.power(depth)

    def power(self, depth: int) -> Fraction:
        base = self.atom(depth)
        if not self.take("^"):
            return base
        exponent = self.atom(depth)
        if exponent.denominator != 1 or not 0 <= exponent <= LARGEST_POWER:
            raise ValueError(f"the power {exponent} is not a whole number from 0 to {LARGEST_POWER}")
        return _bounded(base ** int(exponent))

    def atom(self, depth: int) -> Fraction:
        token = self.next()
        self.at += 1
        if isinstance(token, Number):
            return token.value * self.scale.get(token.unit, Fraction(1))
        if token != "(":
            raise ValueError(f"{'the end' if token is None else repr(token)} stands where a number should")
        if depth == DEEPEST:
            raise ValueError(f"more than {DEEPEST} parentheses within each other")
        value = self.sum(depth + 1)
        if not self.take(")"):
            raise ValueError("a parenthesis is not closed")
        return value


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > LARGEST_BITS:
        raise ValueError(f"a number has more than {LARGEST_BITS} bits")
    return value
