"""A user's own checker: whatever it does, the caller gets a verdict."""

import sys
from pathlib import Path

import pytest

from fedtandem.checking.checkers import BUILT_IN, CheckSettings, counts, find_checker, judge
from fedtandem.checking.user import UserChecker
from fedtandem.checking.verdict import Verdict, as_verdict
from fedtandem.errors import ConfigError
from fedtandem.user_code import known_or_own

OWN = """
import os, time

def kind(prompt, path):
    print("something on stdout, which must not disturb")
    if path == "raise": raise KeyError("x")
    if path == "hang":
        while True: pass
    if path == "die": os._exit(3)
    if path == "nonsense": return 7
    if path == "pair": return True, "as I like it"
    if path == "where":
        from fedtandem.checking.verdict import Verdict
        return Verdict(False, "the second word", first_wrong=(3, 5))
    return {"yes": True, "no": False}.get(path)

NOT = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The reference of a checker in a module of the user's own."""
    (tmp_path / "own_checks.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("own_checks", None)
    return "own_checks:kind"


def test_where_the_first_wrong_step_stands_comes_through(own: str) -> None:
    with UserChecker(own, timeout_s=20.0) as check:
        assert check("q", "where") == Verdict(False, "the second word", first_wrong=(3, 5))
        assert check("q", "no").first_wrong is None


def test_a_fault_of_the_function_is_a_verdict_and_the_next_path_is_judged(own: str) -> None:
    with UserChecker(own, timeout_s=20.0) as check:
        paths = ["yes", "raise", "no", "die", "yes", "nonsense", "pair", "maybe", ""]
        verdicts = judge(check, [("q", path) for path in paths])
    assert [verdict.ok for verdict in verdicts] == [True, None, False, None, True, None, True, None, False]
    assert [verdict.failed for verdict in verdicts] == [
        False, True, False, True, False, True, False, False, False,
    ]  # fmt: skip
    assert "raised KeyError: 'x'" in verdicts[1].reason
    assert "ended its process" in verdicts[3].reason
    assert "raised TypeError: it returned 7, not a Verdict" in verdicts[5].reason
    assert verdicts[6].reason == "as I like it"
    assert counts(verdicts) == {"accepted": 3, "refused": 2, "undecided": 1, "failed": 3}


def test_one_that_never_ends_is_ended(own: str) -> None:
    with UserChecker(own, timeout_s=20.0) as check:
        assert check("q", "yes").ok is True  # its process has begun
        check.timeout_s = 0.2
        slow = check("q", "hang")
        check.timeout_s = 20.0
        assert (slow.ok, slow.failed) == (None, True)
        assert slow.reason == "own_checks:kind took more than 0.2 s"
        assert check("q", "no").ok is False


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("own_checks:missing", "has no such name"),
        ("own_checks:NOT", "holds a int"),
        ("no_such_module:f", "cannot be imported"),
    ],
)
def test_a_reference_that_leads_nowhere_is_said_at_once(own: str, reference: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        UserChecker(reference)


def test_names() -> None:
    assert known_or_own("arithmetic", BUILT_IN) == "arithmetic"
    assert known_or_own("a.b:c", BUILT_IN) == "a.b:c"
    with pytest.raises(ValueError, match=r'did you mean "arithmetic"\?'):
        known_or_own("arithmetics", BUILT_IN)
    assert find_checker(CheckSettings("none")) is None
    with pytest.raises(ConfigError, match="name their column"):
        find_checker(CheckSettings("numeric"))
    assert find_checker(CheckSettings("exact"), answers={"q": "a"})("q", "a").ok is True  # type: ignore[misc]


def test_what_is_accepted() -> None:
    yes, no, unknown, failed = (
        Verdict(True, ""), Verdict(False, ""), Verdict(None, ""), Verdict(None, "", failed=True),
    )  # fmt: skip
    cautious, trusting = CheckSettings("path"), CheckSettings("path", undecided="keep")
    assert [cautious.accepts(v) for v in (yes, no, unknown, failed)] == [True, False, False, False]
    assert [trusting.accepts(v) for v in (yes, no, unknown, failed)] == [True, False, True, False]


def test_a_checker_that_raises_in_this_process_is_no_end_either() -> None:
    def broken(prompt: str, path: str) -> Verdict:
        raise RuntimeError("boom")

    (verdict,) = judge(broken, [("q", "p")])
    assert (verdict.ok, verdict.failed, verdict.reason) == (None, True, "raised RuntimeError: boom")


@pytest.mark.parametrize("answer", [True, False, None, (True, "why"), [None, "why"], Verdict(False, "why")])
def test_answers_that_are_verdicts(answer: object) -> None:
    assert isinstance(as_verdict(answer), Verdict)


@pytest.mark.parametrize("answer", [1, "yes", (1, "why"), (True, 3), (True,), object()])
def test_answers_that_are_none(answer: object) -> None:
    with pytest.raises(TypeError, match="it returned"):
        as_verdict(answer)
