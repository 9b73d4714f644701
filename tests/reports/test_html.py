"""The page: one file, complete in itself, well formed, and honest about what is missing."""

import json
import re
from html.parser import HTMLParser

import pytest

from fedtandem.reports.html import report_command
from fedtandem.reports.tables import print_summary

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Collects tags, ids, references and text, and checks that tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.ids, self.references, self.words = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        self._note(attributes)

    def handle_startendtag(self, tag, attributes):
        self._note(attributes)

    def _note(self, attributes):
        named = dict(attributes)
        if "id" in named:
            self.ids.append(named["id"])
        for key in ("href", "xlink:href", "src", "clip-path"):
            if key in named:
                self.references.append(named[key])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def run_page(run_folder):
    return report_command(run_folder).read_text()


@pytest.fixture(scope="module")
def study_page(study_folder):
    return report_command(study_folder).read_text()


@pytest.mark.parametrize("which", ["run_page", "study_page"])
def test_a_page_is_well_formed_and_loads_nothing(which, request):
    text = request.getfixturevalue(which)
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    for reference in page.references:
        inside = reference.removeprefix("url(").removesuffix(")")
        assert inside.startswith("#")
        assert inside[1:] in page.ids
    assert not re.search(r"<(script|link|iframe|img)|@import|url\((?!#)", text)
    assert not re.findall(r'(?:src|href)="https?:', text)


@pytest.mark.parametrize("which", ["run_page", "study_page"])
def test_drawings_take_their_colours_from_the_page(which, request):
    drawings = re.findall(r"<svg viewBox.*?</svg>", request.getfixturevalue(which), flags=re.DOTALL)
    assert drawings
    assert not re.findall(
        r"#[0-9a-f]{6}", "".join(re.sub(r"url\(#[^)]*\)|#[\w-]+\"", "", d) for d in drawings)
    )


def test_every_drawing_is_described_in_words(run_page):
    figures = re.findall(r"<figure>.*?</figure>", run_page, flags=re.DOTALL)
    assert figures
    assert all(re.search(r'role="img" aria-label="[^"]{20,}"', figure) for figure in figures)


def test_the_headline_stands_above_everything(run_page, study_page):
    assert "One seed is a figure, not a claim" in run_page.split("<main>")[0]
    assert "Of 6 comparisons" in study_page.split("<main>")[0]


def test_a_run_page_holds_all_its_parts(run_page):
    for part in ("Before and after", "What to mind", "Learning curves", "Who taught whom", "Bytes by round",
                 "What it cost", "Config", "Versions and hashes", "poor alignment", "num_rounds = 5"):  # fmt: skip
        assert part.lower() in run_page.lower()
    assert "9b1c" * 16 in run_page


def test_a_curve_is_drawn_for_the_party_a_method_trains(run_folder, tmp_path):
    # A control of the clients measures the server as well: untouched, so its line would be no control of anything.
    for name in ("run.json", "summary.json"):
        (tmp_path / name).write_text((run_folder / name).read_text())
    stray = {"event": "metric", "method": "standalone_public", "party": "server", "split": "old-skills",
             "metric": "exact_match", "value": 0.5, "n": 9, "higher_is_better": True}  # fmt: skip
    lines = "".join(json.dumps({**stray, "round": number}) + "\n" for number in (1, 2))
    (tmp_path / "events.jsonl").write_text((run_folder / "events.jsonl").read_text() + lines)
    drawing = re.search(r'aria-label="(server · old-skills[^"]*)"', report_command(tmp_path).read_text())
    assert drawing is not None
    assert "Server on public" in drawing[1]
    assert "Standalone" not in drawing[1]


def test_an_unfinished_run_says_so(unfinished_run):
    text = report_command(unfinished_run).read_text()
    assert "This run is not finished" in text
    assert "2 of 5 rounds" in text


def test_a_run_that_has_only_just_begun_has_a_page(tmp_path):
    (tmp_path / "run.json").write_text(
        json.dumps({"schema": 1, "name": "x", "methods": ["fedmkt"], "status": "running"})
    )
    Page(report_command(tmp_path, tmp_path / "page.html").read_text())


def test_text_of_the_record_is_escaped(run_folder, tmp_path):
    about = json.loads((run_folder / "run.json").read_text())
    about["name"] = "<script>alert(1)</script>"
    (tmp_path / "run.json").write_text(json.dumps(about))
    assert "<script>" not in report_command(tmp_path).read_text()


def test_the_same_record_gives_the_same_page(run_folder, run_page, tmp_path):
    assert report_command(run_folder, tmp_path / "again.html").read_text() == run_page


def test_a_checks_counts_stand_on_the_page_and_in_the_table(run_folder, tmp_path, capsys):
    event = {
        "time": "2026-11-21T05:00:00+00:00", "event": "check", "method": "fedmkt", "round": 1, "party": "server",
        "teacher": "clinic-a", "checker": "path", "written": 1234, "accepted": 1000, "refused": 231, "undecided": 2,
        "failed": 1, "used": 1000, "examples": [{"id": "chain-000042", "reason": "<does not carry on>"}],
        "strata": {"2 steps": {"written": 800, "used": 760, "right": 741},
                   "3 steps": {"written": 434, "used": 0, "right": None}},
    }  # fmt: skip
    with (run_folder / "events.jsonl").open("a") as file:
        file.write(json.dumps(event) + "\n")
    page = report_command(run_folder, tmp_path / "page.html").read_text()
    assert "What the check refused" in page
    for told in ("2 steps</th>", "3 steps</th>", "95&#8239;%", "98&#8239;%", "What was forgotten"):
        assert told in page
    for told in ("1234", "231", "chain-000042: &lt;does not carry on&gt;"):
        assert told in page
    print_summary(run_folder)
    assert "check path: 1,000 of 1,234 written paths used" in capsys.readouterr().out
