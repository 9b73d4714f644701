"""The study of generation in small: every cell once, resumable, and a page of it."""

import json
from pathlib import Path

import pytest

from fedtandem.reports.generation_page import table, write_page
from fedtandem.studies import generation
from fedtandem.studies.generation import SMALL, Study, cells


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("study")
    Study([], SMALL, output).run(say=lambda _: None)
    return output


def test_exact_answers_are_the_llms_and_spare_it(finished: Path) -> None:
    rows = json.loads((finished / "summary.json").read_text())["rows"]
    exact = [row for row in rows if row["mode"] == "exact" and row["block"] == 6]
    assert {row["uplink"] for row in exact} == {"greedy", "shared_noise", "scalar", "sparse"}
    assert {row["bridge"] for row in exact} == {"same", "slem", "tli"}
    for row in exact:
        assert row["answers_fault"] == 0
        assert row["saved_ci"][0] <= row["saved"] <= row["saved_ci"][1]
    assert sum(row["saved"] for row in exact) / len(exact) > 0.3
    (alone,) = (row for row in rows if row["mode"] == "cloud" and row["uplink"] == "greedy")
    assert alone["saved"] == 0
    assert alone["tokens_per_s"] == pytest.approx(alone["streaming_tokens_per_s"])


def test_bounded_keeps_what_a_copy_of_the_llm_is_sure_of(finished: Path) -> None:
    rows = json.loads((finished / "summary.json").read_text())["rows"]
    kept = {row["drafter"]: row for row in rows if row["mode"] == "bounded"}
    assert kept["client-a"]["kept"] < 0.05
    assert kept["copy"]["kept"] > 0.1  # few prompts calibrate here: wide bounds
    assert kept["copy"]["error_per_answer"] < 0.1


def test_a_finished_cell_is_not_measured_again(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (finished / "summary.json").read_bytes()
    monkeypatch.setattr(generation, "generate", None)
    Study([], SMALL, finished).run(say=lambda _: None)
    assert (finished / "summary.json").read_bytes() == before
    assert len(list((finished / "cells").iterdir())) == len(cells(SMALL))


def test_the_page_holds_every_table(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    write_page(summary, finished / "report.html")
    page = (finished / "report.html").read_text()
    assert "http" not in page.replace("http://www.w3.org", "")
    for kind in ("exact", "blocks", "uplinks", "kept", "speed"):
        titles, lines = table(summary["rows"], kind)
        assert lines
        assert all(len(line) == len(titles) for line in lines)
        assert all(str(cell) in page for cell in lines[-1])
