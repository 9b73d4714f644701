"""The study of caches: its changes change, its other clothes do not; the small form finds what the large one claims."""

import json
from pathlib import Path

import numpy as np
import pytest

from fedtandem.inference.gates import content_key
from fedtandem.studies.altered import CHANGED, KEPT, names_in
from fedtandem.studies.peers import draw_stream, hashed_embedding, main

ASKED = "Yesterday, Betty gave Carl 15 apples, and Carl is happy. How many does Betty have now?"


@pytest.mark.parametrize(("kind", "becomes"), [
    ("reversal", "Yesterday, Carl gave Betty 15 apples, and Betty is happy. How many does Carl have now?"),
    ("negation", "Yesterday, Betty gave Carl 15 apples, and Carl is not happy. How many does Betty have now?"),
])  # fmt: skip
def test_a_change_is_what_its_name_says(kind, becomes):
    assert CHANGED[kind](ASKED, ["Dora"], np.random.default_rng(0)) == becomes


def test_numbers_names_and_relations_change():
    rng = np.random.default_rng(0)
    renumbered = CHANGED["number"](ASKED, [], rng)
    assert renumbered != ASKED
    assert "15" not in renumbered
    assert CHANGED["entity"](ASKED, ["Dora"], rng) == ASKED.replace("Betty", "Dora")
    assert CHANGED["reversal"]("is milk part of cheese", [], rng) == "is cheese part of milk"
    assert CHANGED["negation"]("is it not so", [], rng) == "is it so"
    assert CHANGED["number"]("none here", [], rng) is None
    assert names_in([ASKED]) == ["Betty", "Carl"]


def test_other_clothes_hide_the_same_words():
    for seed in range(40):
        altered = KEPT["near"](ASKED, [], np.random.default_rng(seed))
        said = [piece.casefold() for piece in content_key(altered)]
        assert said == [piece.casefold() for piece in content_key(ASKED)]


def test_equal_texts_of_a_stream_have_equal_answers():
    stream = draw_stream(
        [ASKED, ASKED.replace("15", "16"), "is milk part of cheese"], 400, np.random.default_rng(1)
    )
    of: dict[str, set[int]] = {}
    for text, kind, answer in zip(stream.text, stream.kind, stream.answer, strict=True):
        if kind != "near":
            of.setdefault(text, set()).add(int(answer))
    assert all(len(answers) == 1 for answers in of.values())
    assert set(stream.kind) >= {"same", "near", "reversal", "negation", "number"}


def test_hashed_words_are_near_where_texts_are():
    a, b, c = hashed_embedding([ASKED, ASKED.replace("15", "16"), "is milk part of cheese"])

    def cosine(x, y):
        return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))

    assert cosine(a, b) > 0.92 > cosine(a, c)


def test_the_small_form(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fedtandem.studies.peers.SEEDS", (0, 1))
    data = shared / "data" / "gsm8k" / "test.jsonl.gz"
    words = ["--questions", str(data), "--bases", "40", "--asks", "300", "--output", str(tmp_path)]
    assert main(words) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    means = {(r["method"], r["split"], r["metric"]): r["mean"] for r in summary["rows"]}
    assert means["cosine", "all", "wrong"] > 0.1  # the danger is there
    assert means["gated", "all", "wrong"] == 0
    assert means["gated", "near", "served"] > means["equal_text", "near", "served"]
    assert "http" not in (tmp_path / "report.html").read_text().replace("http://www.w3.org/", "")
