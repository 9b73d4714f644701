"""Chains: the built-in playground. Arithmetic modulo 10, worked out from left to right, every step written down.

    prompt  Q 3 + 5 * 2 A
    answer   3 + 5 = 8 ; 8 * 2 = 6 ; # 6        (the space before it belongs to the answer)

Everybody may know + - * and m (the larger of two digits). `@` and `&` are private operators: their tables are drawn
at random from a secret seed, so that nobody can know one without having seen it used. Each step can be checked.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from fedtandem.data.public import Sample
from fedtandem.errors import DataError

Table = npt.NDArray[np.int64]
"""What an operator makes of two digits: table[left, right]; (10, 10) int64 in [0, 10)."""

BASE_OPERATORS = ("+", "-", "*", "m")
PRIVATE_OPERATORS = ("@", "&")
ALPHABET = "Q A0123456789+-*m@&=;#"
"""Every character a chain can hold; a tokenizer for the playground must be able to write all of them."""

_RULES: Mapping[str, Callable[[int, int], int]] = {
    "+": lambda left, right: (left + right) % 10,
    "-": lambda left, right: (left - right) % 10,
    "*": lambda left, right: (left * right) % 10,
    "m": max,
}
STEP_LENGTH = len(" 3 + 5 = 8 ;")
"""Characters of one step of a path."""
_TEST_SHARE = 0.2


@dataclass(frozen=True)
class ChainsSource:
    """A set of chains, as plain values; the same values always make the same set."""

    n: int = 1000
    """How many prompts."""
    operators: tuple[str, ...] = BASE_OPERATORS
    """Drawn evenly for every step."""
    steps: tuple[int, ...] = (1, 2, 3, 4)
    """Lengths of the chains, each equally often."""
    must_contain: tuple[str, ...] = ()
    """Prompts take turns: prompt i holds must_contain[i % len] at least once, beside the `operators`."""
    noisy: tuple[str, ...] = ()
    """Operators with a new random table in every prompt: nobody can know them, and who learns from such prompts
    stays unsure of them. Without that a client may be as sure of a sign it never saw as of its own."""
    seed: int = 0
    """Of the prompts."""
    table_seed: int = 0
    """The secret that private operators are drawn from."""
    part: Literal["train", "test"] | None = None
    """Chains of two steps and more fall to one of two parts by a hash of the prompt (80 / 20), so that none of a
    test part was ever in a train part. One step has only 100 prompts per operator, all in both parts."""
    labelled: bool = True
    """False: prompts without answers."""

    def samples(self) -> list[Sample]:
        """The set itself: `n` samples, in a fixed random order.

        Raises:
            DataError: an operator is unknown, or the lengths are not positive.
        """
        return make_chains(
            self.n,
            operators=self.operators,
            steps=self.steps,
            must_contain=self.must_contain,
            noisy=self.noisy,
            seed=self.seed,
            tables=operator_tables((*self.operators, *self.must_contain), self.table_seed),
            part=self.part,
            labelled=self.labelled,
        )


def operator_tables(operators: Sequence[str], table_seed: int) -> dict[str, Table]:
    """The table of every operator; a private one depends on (table_seed, operator) alone.

    Raises:
        DataError: an operator is neither public nor private here.
    """
    tables: dict[str, Table] = {}
    for operator in operators:
        if operator in _RULES:
            rule = _RULES[operator]
            tables[operator] = np.array([[rule(left, right) for right in range(10)] for left in range(10)])
        elif operator in PRIVATE_OPERATORS:
            generator = np.random.default_rng([table_seed, ord(operator)])
            tables[operator] = generator.integers(0, 10, size=(10, 10))
        else:
            known = " ".join((*BASE_OPERATORS, *PRIVATE_OPERATORS))
            raise DataError(f"chains: unknown operator {operator!r}; the playground has {known}.")
    return tables


def make_chains(
    n: int,
    *,
    operators: Sequence[str],
    steps: Sequence[int],
    seed: int,
    tables: Mapping[str, Table],
    must_contain: Sequence[str] = (),
    noisy: Sequence[str] = (),
    part: Literal["train", "test"] | None = None,
    labelled: bool = True,
) -> list[Sample]:
    """Draw `n` chains.

    Args:
        operators: drawn evenly for every step; may be empty only where `must_contain` is not.
        steps: lengths to take turns with, each >= 1.
        tables: operator -> its table, for every operator named.
        must_contain: operators to take turns with; the one whose turn it is stands in at least one step.
        noisy: operators with a new random table in every prompt, in place of theirs in `tables`.
        part: keep only the prompts of one part (see `ChainsSource.part`).
        labelled: False leaves the answers out.

    Returns:
        Samples with ids "chain-000000", ...; `fields` holds "steps" (int), "operators" (str, as used) and "stratum"
        (str, e.g. "3 steps with @"), of a set without answers also "gold", the right path.

    Raises:
        DataError: no operator, a length below 1, a negative n.
    """
    if n < 0 or not steps or min(steps) < 1:
        raise DataError(f"chains: n = {n} and steps = {list(steps)}; n must be >= 0 and every length >= 1.")
    if not operators and not must_contain:
        raise DataError("chains: `operators` and `must_contain` are both empty; name at least one operator.")
    generator = np.random.default_rng(seed)
    samples: list[Sample] = []
    for i in range(n):
        # Lengths and required operators take turns independently of each other.
        length = steps[i % len(steps)]
        required = must_contain[(i // len(steps)) % len(must_contain)] if must_contain else None
        digits, used = _draw(generator, length, operators, required, part)
        prompt = chain_prompt(digits, used)
        drawn = {name: generator.integers(0, 10, size=(10, 10)) for name in noisy if name in used}
        path = chain_path(digits, used, {**tables, **drawn})
        fields = {"steps": length, "operators": "".join(used), "stratum": _stratum(length, used)}
        if not labelled:
            fields["gold"] = path  # for a ceiling and for checks at home; no part of what parties share
        answer = path if labelled else None
        samples.append(Sample(id=f"chain-{i:06d}", prompt=prompt, answer=answer, fields=fields))
    return [samples[int(i)] for i in generator.permutation(n)]


def _stratum(length: int, used: Sequence[str]) -> str:
    """The kind of a prompt, for reports: its length and the private operators in it."""
    private = "".join(name for name in PRIVATE_OPERATORS if name in used)
    return f"{length} step{'s' * (length > 1)}" + (f" with {private}" if private else "")


def _draw(
    generator: np.random.Generator,
    length: int,
    operators: Sequence[str],
    required: str | None,
    part: Literal["train", "test"] | None,
) -> tuple[list[int], list[str]]:
    """Digits and operators of one chain of the wanted part."""
    choices = [*operators] if required is None else [*dict.fromkeys((*operators, required))]
    while True:
        digits = [int(digit) for digit in generator.integers(0, 10, size=length + 1)]
        used = [choices[int(i)] for i in generator.integers(0, len(choices), size=length)]
        if required is not None and required not in used:
            used[int(generator.integers(0, length))] = required
        if part is None or part in chain_parts(chain_prompt(digits, used)):
            return digits, used


def chain_parts(prompt: str) -> tuple[str, ...]:
    """The parts a prompt belongs to: ("train",) or ("test",); both for a chain of one step."""
    if len(prompt.split()) <= 5:  # Q a + b A
        return ("train", "test")
    share = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big") / 2**64
    return ("test",) if share < _TEST_SHARE else ("train",)


def chain_prompt(digits: Sequence[int], operators: Sequence[str]) -> str:
    """The prompt of one chain, e.g. "Q 3 + 5 * 2 A"."""
    middle = " ".join(f"{operator} {digit}" for operator, digit in zip(operators, digits[1:], strict=True))
    return f"Q {digits[0]} {middle} A"


def chain_path(digits: Sequence[int], operators: Sequence[str], tables: Mapping[str, Table]) -> str:
    """The answer with its leading space, e.g. " 3 + 5 = 8 ; 8 * 2 = 6 ; # 6"."""
    carried, pieces = digits[0], []
    for operator, digit in zip(operators, digits[1:], strict=True):
        result = int(tables[operator][carried, digit])
        pieces.append(f" {carried} {operator} {digit} = {result} ;")
        carried = result
    return "".join(pieces) + f" # {carried}"


@dataclass(frozen=True)
class Step:
    """One step of a path: `left operator right = result`."""

    left: int
    operator: str
    right: int
    result: int


def read_prompt(prompt: str) -> tuple[list[int], list[str]]:
    """Digits and operators of a prompt.

    Raises:
        DataError: the string is no chain's prompt.
    """
    words = prompt.split(" ")
    body = words[1:-1]
    digits, operators = body[0::2], body[1::2]
    well_formed = (
        len(words) >= 5
        and words[0] == "Q"
        and words[-1] == "A"
        and len(digits) == len(operators) + 1
        and all(len(digit) == 1 and digit in "0123456789" for digit in digits)
        and all(operator in (*BASE_OPERATORS, *PRIVATE_OPERATORS) for operator in operators)
    )
    if not well_formed:
        raise DataError(f"chains: {prompt!r} is no chain; a prompt looks like 'Q 3 + 5 * 2 A'.")
    return [int(digit) for digit in digits], operators


def read_path(prompt: str, path: str) -> list[Step] | None:
    """The steps of a path that fits its prompt in form, else None.

    The form: the path repeats each operator and operand of its prompt in order, starts from the prompt's first
    digit, carries each result on, and ends with "# " and the last result. No table is needed.

    Raises:
        DataError: the prompt is no chain's prompt.

    Source: path check (a) of the reasoning-transfer prototype.
    """
    digits, operators = read_prompt(prompt)
    words = path.split(" ")
    if len(words) != 1 + 6 * len(operators) + 2 or words[0] != "":
        return None
    steps: list[Step] = []
    carried = str(digits[0])
    for operator, right, piece in zip(operators, digits[1:], _groups(words[1:-2]), strict=True):
        left, written, operand, equals, result, end = piece
        if (left, written, operand, equals, end) != (carried, operator, str(right), "=", ";"):
            return None
        if len(result) != 1 or result not in "0123456789":
            return None
        steps.append(Step(int(left), operator, right, int(result)))
        carried = result
    return steps if words[-2:] == ["#", carried] else None


def _groups(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The words six by six."""
    for start in range(0, len(words), 6):
        yield tuple(words[start : start + 6])


def check_path(prompt: str, path: str, tables: Mapping[str, Table]) -> bool:
    """Whether a path is right: well formed for its prompt, and every step that `tables` can judge is true.

    Args:
        tables: operators that the checker knows; steps with other operators are judged by form alone.

    Raises:
        DataError: the prompt is no chain's prompt.
    """
    steps = read_path(prompt, path)
    if steps is None:
        return False
    return all(
        int(tables[step.operator][step.left, step.right]) == step.result
        for step in steps
        if step.operator in tables
    )
