"""Arithmetic in prose: what is found, believed and refuted; measured on every rationale of GSM8K."""

import gzip
import json
import random
import re
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.checking.arithmetic import arithmetic, arithmetic_steps


def found(text: str) -> list[tuple[str, bool]]:
    return [(step.text, step.ok) for step in arithmetic_steps(text)]


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("Natalia sold 48/2 = 24 clips in May.", [("48/2 = 24", True)]),
        ("Natalia sold 48/2 = 25 clips in May.", [("48/2 = 25", False)]),
        ("Working 50 minutes, she earned 0.2 x 50 = $10.", [("0.2 x 50 = $10", True)]),
        ("22,500*20=$450,000 and $100 - $38=$62", [("22,500*20=$450,000", True), ("$100 - $38=$62", True)]),
        ("5 snakes/jaguar * 6 jaguars = 30 snakes", [("5 snakes/jaguar * 6 jaguars = 30", True)]),
        ("3 green hats + 16 pink hats = 19 hats", [("3 green hats + 16 pink hats = 19", True)]),
        ("2*(3+4) = 2*7 = 14", [("2*(3+4) = 2*7", True), ("2*7 = 14", True)]),
        ("2(3+4) = 15", [("2(3+4) = 15", False)]),
        ("20% of 50 = 10", [("20% of 50 = 10", True)]),
        ("100% - 20% = 80%", [("100% - 20% = 80%", True)]),
        ("10/50 = 20%", [("10/50 = 20%", True)]),
        ("5 * 20 cents = $1", [("5 * 20 cents = $1", True)]),
        ("28 / 1/5 = 140", [("28 / 1/5 = 140", True)]),
        ("1 1/2 * 4 = 6", [("1 1/2 * 4 = 6", True)]),
        ("10/3 = 3.33", [("10/3 = 3.33", True)]),
        ("20/3 = 6.66, 20/3 = 6.67", [("20/3 = 6.66", True), ("20/3 = 6.67", True)]),
        ("10/3 = 3", [("10/3 = 3", False)]),
        ("- 3 + 4 = 7", [("3 + 4 = 7", True)]),
        ("-3 + 4 = 1", [("-3 + 4 = 1", True)]),
        ("200 times .24 is 48. 2 + 2 equals 4", [("2 + 2 equals 4", True)]),
        # What cannot be read is no step.
        ("S + 2S + 4S = 7S = 847", []),
        ("S + 30 + 46 = S + 76", []),
        ("720 / R = 60 / 100", []),
        ("20 minutes = 2 * 60 + 20", []),
        ("x = 5, and twice that is 10", []),
        ("100 000 / 10 = 10", []),
        ("at 19:00+18 = 20", []),
        ("", []),
    ],
)
def test_steps_in_prose(text: str, steps: list[tuple[str, bool]]) -> None:
    assert found(text) == steps


@given(st.integers(0, 999), st.integers(1, 999), st.sampled_from("+-*/x×÷"), st.integers(-3, 3))
def test_a_step_is_believed_exactly_when_it_is_right(a: int, b: int, sign: str, off: int) -> None:
    value = {"+": a + b, "-": a - b}.get(sign, a // b if sign in "/÷" else a * b)
    right = off == 0 and (sign not in "/÷" or a % b == 0)
    said = value + off
    (step,) = arithmetic_steps(f"so we get {a} {sign} {b} = {said} apples")
    # A rounded quotient may be hit by an offset, too.
    assert step.ok == (right or (sign in "/÷" and a == said * b))


@given(st.text(max_size=200))
def test_any_text_has_a_verdict(text: str) -> None:
    verdict = arithmetic("", text)
    assert (verdict.ok is None) == (not found(text))


def test_the_verdict_names_the_wrong_step() -> None:
    verdict = arithmetic("?", "2 + 2 = 4\n4 * 3 = 13")
    assert (verdict.ok, verdict.reason) == (False, "4 * 3 = 13 is wrong: the left side is 12")
    assert arithmetic("?", "2 + 2 = 4").reason == "1 arithmetic step holds"
    assert arithmetic("?", "nothing to add").ok is None


def test_on_the_rationales_of_gsm8k(shared: Path) -> None:
    """97 % of the steps that the authors marked are found, 99.5 % of those are right, and a wrong one is seen."""
    with gzip.open(shared / "data" / "gsm8k" / "test.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in islice(lines, 400)]
    counts: Counter[str] = Counter()
    generator = random.Random(0)
    for row in rows:
        for marked, plain in zip(
            row["rationale"].split("\n"), row["rationale_plain"].split("\n"), strict=True
        ):
            steps = list(arithmetic_steps(plain))
            marks = re.findall(r"<<([^<>]*)=([^<>=]*)>>", marked)
            counts["marked"] += len(marks)
            counts["covered"] += min(len(marks), len(steps))
            counts["found"] += len(steps)
            counts["right"] += sum(step.ok for step in steps)
            if len(marks) == 1 and len(steps) == 1 and steps[0].ok and steps[0].text.count("=") == 1:
                left, _, right = steps[0].text.rpartition("=")
                digits = re.search(r"\d", right)
                assert digits is not None
                other = (int(digits.group()) + generator.randint(1, 8)) % 9 + 1
                broken = f"{left}={right[: digits.start()]}{other}{right[digits.end() :]}"
                if other != int(digits.group()):
                    counts["broken"] += 1
                    counts["seen"] += any(not step.ok for step in arithmetic_steps(broken))
    assert counts["covered"] >= 0.97 * counts["marked"] > 500
    assert counts["right"] >= 0.995 * counts["found"]
    assert counts["seen"] >= 0.99 * counts["broken"] > 500


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99), st.integers(0, 2)), min_size=1, max_size=5))
def test_the_verdict_says_where_the_first_wrong_step_stands(sums: list[tuple[int, int, int]]) -> None:
    lines = [f"Then there are {a}+{b} = {a + b + off} left." for a, b, off in sums]
    text = "\n".join(lines)
    verdict = arithmetic("", text)
    wrong = [i for i, (_, _, off) in enumerate(sums) if off]
    if not wrong:
        assert verdict.first_wrong is None
        return
    assert verdict.first_wrong is not None
    a, b, off = sums[wrong[0]]
    first, last = verdict.first_wrong
    assert text[first:last] == f"{a}+{b} = {a + b + off}"
    assert text[:first].count("\n") == wrong[0]
