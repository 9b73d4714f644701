"""What `check` prints of a set."""

import json
from pathlib import Path

from fedtandem.data.preview import preview, shortened
from fedtandem.data.source import DataSource


def test_the_preview_tells_how_rows_are_read_and_shows_one(tmp_path: Path) -> None:
    rows = [{"review": f"film {i}", "stars": i % 2} for i in range(3)]
    (tmp_path / "films.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = DataSource(
        path=str(tmp_path / "films.jsonl"),
        template="{review}\nGood?",
        columns={"answer": "stars"},
        answers={"0": "no", "1": "yes"},
    )
    found = preview(source, where="client cinema")
    assert (found.n, found.n_bytes, found.prompt_bytes, found.answer_bytes) == (3, 46, (12, 12), (3, 4))
    assert found.labels == ((" no", 2), (" yes", 1))
    text = "\n".join(found.lines())
    assert "client cinema: 3 samples, 46 bytes" in text
    assert "read as prompt_completion (a template is given); columns review, stars, answer" in text
    assert "prompt 'film 0\\nGood?'" in text
    assert "answer ' no'" in text


def test_long_texts_are_shown_by_their_ends() -> None:
    assert shortened("x" * 300) == "x" * 300
    assert shortened("a" * 200 + "b" * 200) == "a" * 150 + " … " + "b" * 150
