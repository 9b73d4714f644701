"""The study on real answers: its measure is the area it claims to be, its features see what they name."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.errors import ConfigError, DataError
from fedtandem.evaluation.curves import apgr, quality_curve
from fedtandem.studies import gsm8k_routing
from fedtandem.studies.gsm8k_routing import answer_features, apgr_items, main, question_features

scores = st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.booleans()), min_size=2, max_size=30)


@given(scores)
def test_apgr_is_the_sum_over_its_questions(rows):
    rank, slm, llm = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    if llm.mean() == slm.mean():
        return
    assert apgr_items(rank, llm - slm).figure == pytest.approx(apgr(quality_curve(rank, slm, llm)))


def test_an_oracle_s_apgr_is_above_chance_and_its_opposite_below():
    slm, llm = np.array([0.0, 0, 1, 1]), np.array([1.0, 1, 1, 1])
    assert apgr_items(llm - slm, llm - slm).figure == pytest.approx(0.75)
    assert apgr_items(slm - llm, llm - slm).figure == pytest.approx(0.25)
    assert apgr_items(np.zeros(4), llm - slm).figure == pytest.approx(0.5)


@pytest.mark.parametrize(("sum_", "slips"), [("45*10=450", 0), ("45*10=455", 1), ("2+3*4=14", 0), ("10-4/2=8", 0),
                                             ("7/3=2.33", 0), ("(2+3)*4=19", 0), ("1-.5=.5", 0)])  # fmt: skip
def test_slips_in_the_small_model_s_sums_are_seen(sum_, slips):
    assert answer_features(f"so <<{sum_}>> it is\n#### 7")[3] == slips


def test_features_count_what_they_name():
    short = question_features("Ann has 3 apples. How many?")
    longer = question_features("Ann has 3,000 apples and half of 2.5 each. How many more than Bob?")
    assert len(short) == len(longer)
    assert (short[3], longer[3]) == (1, 2)
    assert longer[4] == pytest.approx(np.log1p(3000))
    assert answer_features("I cannot say")[4] == 1  # no final answer


def test_the_small_form(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("sklearn")
    kept = ("random", "length", "gate")
    monkeypatch.setattr(gsm8k_routing, "ROUTERS", {name: gsm8k_routing.ROUTERS[name] for name in kept})
    monkeypatch.setattr(gsm8k_routing, "CONTROLS", {"gate": ("random", "length")})
    monkeypatch.setattr(gsm8k_routing, "PENALTIES", (0.01, 1.0))
    data = shared / "data" / "gsm8k_routellm" / "test.jsonl.gz"
    assert main(["--data", str(data), "--limit", "100", "--output", str(tmp_path)]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    means = {(r["method"], r["metric"]): r["mean"] for r in summary["rows"]}
    assert means["random", "apgr"] == pytest.approx(0.5)
    assert 0 < means["gate", "apgr"] < 1
    assert 0 <= means["gate", "calls"] <= 0.6
    assert summary["seeds_are"] == "fold"
    page = (tmp_path / "report.html").read_text()
    assert "http" not in page.replace("http://www.w3.org/", "")


def test_too_few_questions_and_wrong_rows(tmp_path: Path, shared: Path):
    data = shared / "data" / "gsm8k_routellm" / "test.jsonl.gz"
    with pytest.raises(ConfigError, match="20 questions"):
        main(["--data", str(data), "--limit", "20", "--output", str(tmp_path)])
    (tmp_path / "d.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(DataError, match="no column 'question'"):
        main(["--data", str(tmp_path / "d.jsonl")])
    assert not (tmp_path / "summary.json").exists()
