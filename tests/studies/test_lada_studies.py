"""The studies of LaDa: small forms run whole, what they rest on holds, and what they count is counted right."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedtandem.algorithms.lada import lada_named
from fedtandem.data.chains import chain_path, operator_tables, read_prompt
from fedtandem.errors import DataError
from fedtandem.selection.heuristics import confident_gap
from fedtandem.selection.items import ScoreRows
from fedtandem.studies.lada import contrast_study, selection_study, text_study
from fedtandem.studies.lada.mixed_pool import FOREIGN, KNOWN, LEARNABLE, SHARES, TOO_LONG, mixed_prompts
from fedtandem.studies.lada.paired import paired, told
from fedtandem.studies.trials import Outcome, run

BASE = operator_tables(("+", "-", "*", "m"), 0)


def test_the_pool_holds_every_stratum_and_no_prompt_twice() -> None:
    samples, strata = mixed_prompts(500, 3)
    assert len({s.prompt for s in samples}) == len(samples) == 500
    for name, share in SHARES.items():
        assert strata.count(name) == round(share * 500)
    for sample, stratum in zip(samples, strata, strict=True):
        _, used = read_prompt(sample.prompt)
        assert len(used) == 5 if stratum == TOO_LONG else len(used) <= 2
        assert ("m" in used) == (stratum == LEARNABLE)
        assert ("@" in used) == (stratum == FOREIGN)
        if stratum == KNOWN:
            assert set(used) <= {"+", "-", "*"}
    again, _ = mixed_prompts(500, 3)
    assert [s.prompt for s in again] == [s.prompt for s in samples]


def test_the_null_hands_the_same_scores_to_other_items() -> None:
    chance = np.random.default_rng(0)
    rows = ScoreRows.of(
        range(40),
        n_bytes=np.full(40, 10),
        receiver_pos=-chance.random(40) * 9,
        producer_pos=-chance.random(40),
    )
    before = confident_gap(rows, np.random.default_rng(1))
    after = selection_study.permuted(rows, np.random.default_rng(1))
    assert sorted(before) == sorted(after)
    assert list(before) != list(after)


@pytest.mark.parametrize(
    ("path", "step"),
    [(" 3 + 5 = 9 ; 9 * 2 = 8 ; # 8", 0), (" 3 + 5 = 8 ; 8 * 2 = 7 ; # 7", 1), (" 3 + 5 = 8 ; # 8", 1)],
)
def test_the_first_wrong_step_of_an_own_path(path: str, step: int) -> None:
    right = chain_path([3, 5, 2], ["+", "*"], BASE)
    verdict = contrast_study.KnownPaths({"Q 3 + 5 * 2 A": right})("Q 3 + 5 * 2 A", path)
    assert verdict.ok is False
    assert verdict.first_wrong == (12 * step, 12 * step + 12)
    assert contrast_study.KnownPaths({"Q": right})("Q", right).ok is True


def test_a_comparison_is_paired_and_read_out_plainly() -> None:
    def outcome(value: float) -> Outcome:
        items = np.array([1.0] * round(100 * value) + [0.0] * round(100 * (1 - value)))
        return Outcome({"mean": value}, {"a": items})

    done = {
        (seed, line): outcome(0.5 + 0.01 * seed + gain)
        for seed in range(5)
        for line, gain in (("x", 0.2), ("y", 0))
    }
    found = paired(done, range(5), "x", "y", "mean", ["a"])
    assert found.mean == pytest.approx(0.2)
    assert told(found, claim=True).startswith("**+20.0** (+20.0 to +20.0; ")


def _whole(folder: Path, seeds: list[int]) -> dict[str, object]:
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["seeds"] == seeds
    assert summary["bars"]
    for table in summary["tables"].values():
        assert all(len(row) == len(table["head"]) for row in table["rows"])
    page = (folder / "report.html").read_text()
    assert "http" not in page.replace("http://www.w3.org", "")
    assert summary["rests_on"].split(".")[0] in page
    return summary  # type: ignore[no-any-return]


def test_selection_runs_whole_with_equal_budgets_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {
        name: arm
        for name, arm in selection_study.ARMS.items()
        if name not in ("gap", "highest_loss", "linucb", "lada_shuffled")
    }
    monkeypatch.setattr(selection_study, "ARMS", few)
    study = selection_study.SelectionStudy(replace(selection_study.SMALL, null_seeds=0))
    run(study, tmp_path, [1], quiet=True)
    kept = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "cells").iterdir()}
    run(study, tmp_path, [1, 2], quiet=True)
    assert all((tmp_path / "cells" / name).stat().st_mtime_ns == at for name, at in kept.items())
    summary = _whole(tmp_path, [1, 2])
    assert summary["tables"]["selectors"]["rows"]  # type: ignore[index]
    for cell in summary["cells"].values():  # type: ignore[attr-defined]
        assert len({figures["updates"] for figures in cell.values()}) == 1
        one = {
            line: f["items"] for line, f in cell.items() if "checked" not in line and line != "all_matched"
        }
        assert max(one.values()) == study.settings.recipe.rounds * study.settings.recipe.budget
        assert cell["confident_gap, half shown"]["bytes_shown"] <= 0.52 * cell["random"]["bytes_pool"]
        assert cell["verified_gap"]["right"] >= cell["random"]["right"]
    other = replace(study, settings=replace(study.settings, clients=3))
    with pytest.raises(DataError, match="other settings"):
        run(other, tmp_path, [1], quiet=True)


def test_contrast_runs_whole_at_equal_compute(tmp_path: Path) -> None:
    study = contrast_study.ContrastStudy(contrast_study.SMALL)
    run(study, tmp_path, [1, 2], quiet=True)
    summary = _whole(tmp_path, [1, 2])
    for cell in summary["cells"].values():  # type: ignore[attr-defined]
        for kind in contrast_study.STUDENTS:
            assert cell[f"{kind}: sft"]["compute"] == 1
            paid = cell[f"{kind}: {contrast_study.LONGER}"]
            assert paid["compute"] > 1
            assert paid["updates"] >= cell[f"{kind}: sft"]["updates"]


@pytest.mark.slow
def test_text_runs_whole(shared: Path, tmp_path: Path) -> None:
    run(text_study.TextStudy(shared / "data", text_study.SMALL), tmp_path, [1, 2], quiet=True)
    summary = _whole(tmp_path, [1, 2])
    assert all(
        1 < figures["bits per byte"] < 12 for cell in summary["cells"].values() for figures in cell.values()
    )  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="--data"):
        text_study.rationales(tmp_path, 100)


def test_a_learning_arm_is_fresh_every_time() -> None:
    assert selection_study.ARMS["lada"]().selector is not selection_study.ARMS["lada"]().selector
    assert lada_named("lada").name == selection_study.ARMS["lada"]().selector.name
