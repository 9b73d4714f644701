"""The page's example runs as it stands, and so do its commands on what the example wrote."""

import re
import shlex
from pathlib import Path

import pytest

from fedtandem import cli

PAGE = Path(__file__).resolve().parents[2] / "docs" / "fedhlm.md"


def test_the_example_and_the_commands_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        exec(compile(example, str(PAGE), "exec"), {})
    assert len((tmp_path / "test.jsonl").read_text().splitlines()) == 200
    (tmp_path / "test.parquet").write_bytes((tmp_path / "calibration.parquet").read_bytes())
    commands = re.search(r"```\n(fedtandem .*?)```", text, re.DOTALL)
    assert commands is not None
    lines = commands.group(1).splitlines()
    assert len(lines) == 3
    for line in lines:
        assert cli.main(shlex.split(line)[1:]) == 0, line
