"""docs/defects.md names a test for each of the reference's 17 defects; every one of them must exist."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_every_defect_has_a_test_that_exists() -> None:
    rows = re.findall(
        r"^\| (\d+) \|.*\|(.*)\|$", (ROOT / "docs" / "defects.md").read_text(), flags=re.MULTILINE
    )
    assert [int(number) for number, _ in rows] == list(range(1, 18))
    for number, cell in rows:
        named = re.findall(r"`(tests/[^`]+)::(\w+)`", cell)
        assert named, f"defect {number} names no test"
        for file, function in named:
            assert f"def {function}(" in (ROOT / file).read_text(), (
                f"defect {number}: {file} has no {function}"
            )
