"""A study makes each cell once, compares what it was told to, and says what it may."""

import json

import numpy as np
import pytest

from fedtandem.errors import ConfigError, DataError, InvalidMessage
from fedtandem.studies.cells import cell_folder
from fedtandem.studies.study import in_words, run_study


def rows_of(summary, **wanted):
    return [row for row in summary["rows"] if all(row[key] == value for key, value in wanted.items())]


def test_every_cell_is_made_once_seed_by_seed(tmp_path, study, fake_run):
    said: list[str] = []
    run_study(study(), tmp_path / "out", run_methods=fake_run, say=said.append)
    rows = ["standalone_public", "server_public", "fedmkt"]
    assert fake_run.calls == [(row, seed, False) for seed in range(5) for row in rows]
    # The first finished cell took 2 parties x 2 s; 14 are left.
    assert any("14 cells left: 56 s" in text for text in said)
    # What one row of a seed has done, its other rows find; another seed finds nothing of it.
    assert [memo is fake_run.memos[at // 3 * 3] for at, memo in enumerate(fake_run.memos)] == [True] * 15
    assert all(set(memo.values()) == {at // 3} for at, memo in enumerate(fake_run.memos))
    fake_run.calls.clear()
    run_study(study(), tmp_path / "out", run_methods=fake_run)
    assert not fake_run.calls


def test_an_interrupted_study_resumes_the_cell_and_ends_in_the_same_summary(tmp_path, study, fake_run):
    whole = run_study(study(), tmp_path / "whole", run_methods=fake_run)
    fake_run.fails_at = ("server_public", 2)
    with pytest.raises(KeyboardInterrupt):
        run_study(study(), tmp_path / "cut", run_methods=fake_run)
    partial = json.loads((tmp_path / "cut" / "summary.json").read_text())
    assert not partial["complete"]
    assert partial["cells_finished"] == 6  # seeds 0 and 1, whole
    fake_run.fails_at = None
    fake_run.calls.clear()
    assert run_study(study(), tmp_path / "cut", run_methods=fake_run) == whole
    assert fake_run.calls[0] == ("server_public", 2, True)


def test_the_table_holds_what_the_interface_promises(tmp_path, study, fake_run):
    summary = run_study(study(), tmp_path / "out", run_methods=fake_run)
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
    (clients,) = rows_of(summary, method="fedmkt", party="clients")
    assert clients["control"] == "standalone_public"
    assert clients["seeds"] == [0, 1, 2, 3, 4]
    assert clients["mean"] == pytest.approx(np.mean(clients["per_seed"]))
    assert clients["ci_low"] < clients["mean"] < clients["ci_high"]
    assert clients["difference"] == pytest.approx(0.3, abs=0.05)
    low, high = clients["difference_ci"]
    assert low < clients["difference"] < high
    assert clients["claim"]
    (control,) = rows_of(summary, method="standalone_public", party="clients")
    assert (control["control"], control["difference"], control["difference_ci"]) == (None, None, None)
    # The mean over clients is the mean of their rows, seed by seed.
    a, b = rows_of(summary, method="fedmkt", party="a")[0], rows_of(summary, method="fedmkt", party="b")[0]
    np.testing.assert_allclose(clients["per_seed"], np.mean([a["per_seed"], b["per_seed"]], axis=0))


def test_each_side_meets_its_own_control(tmp_path, study, fake_run):
    summary = run_study(study(), tmp_path / "out", run_methods=fake_run)
    (server,) = rows_of(summary, method="fedmkt", party="server")
    assert server["control"] == "server_public"
    assert server["equal_updates"]


def test_single_clients_are_shown_without_a_claim_where_their_mean_is_compared(tmp_path, study, fake_run):
    summary = run_study(study(), tmp_path / "out", run_methods=fake_run)
    (one,) = rows_of(summary, method="fedmkt", party="a")
    assert one["difference"] is not None
    assert not one["claim"]
    assert {row["family"] for row in rows_of(summary, method="fedmkt")} == {0, 2}  # server, clients


def test_named_claims_are_the_whole_family(tmp_path, study, fake_run):
    config = study('[[study.claims]]\nparty = "a"\nmethod = "fedmkt"\n')
    summary = run_study(config, tmp_path / "out", run_methods=fake_run)
    assert [row["party"] for row in summary["rows"] if row.get("claim")] == ["a"]


def test_four_seeds_give_figures_and_no_claim(tmp_path, study, fake_run):
    summary = run_study(study(**{"study.seeds": [0, 1, 2, 3]}), tmp_path / "out", run_methods=fake_run)
    (row,) = rows_of(summary, method="fedmkt", party="server")
    assert row["difference_ci"] is not None
    assert not row["claim"]
    assert "a claim needs 5" in row["why_no_claim"]


def test_an_unmet_requirement_leaves_no_comparison(tmp_path, study, fake_run):
    gate = (
        '[[study.require]]\nmethod = "standalone_public"\nparty = "clients"\nsplit = "own"\n'
        'metric = "exact_match"\nat_least = 0.9\n'
    )
    summary = run_study(study(gate), tmp_path / "out", run_methods=fake_run)
    assert not summary["valid"]
    assert "it must be at least 0.9" in summary["not_valid_because"][0]
    assert all(row["difference"] is None for row in summary["rows"])


def test_a_changed_study_file_is_not_mixed_with_old_cells(tmp_path, study, fake_run):
    run_study(study(), tmp_path / "out", run_methods=fake_run)
    with pytest.raises(ConfigError, match="other settings"):
        run_study(study(**{"distillation.hard_weight": 0.7}), tmp_path / "out", run_methods=fake_run)


def test_a_failing_cell_is_named(tmp_path, study, fake_run):
    fake_run.fails_at, fake_run.error = ("fedmkt", 1), InvalidMessage("a: round 2 holds NaN")
    with pytest.raises(InvalidMessage, match=r"study cell fedmkt, seed 1 .*: a: round 2 holds NaN"):
        run_study(study(), tmp_path / "out", run_methods=fake_run)


def test_items_that_do_not_make_the_figure_are_refused(tmp_path, study, fake_run):
    run_study(study(), tmp_path / "out", run_methods=fake_run)
    path = cell_folder(tmp_path / "out", "fedmkt", 0) / "summary.json"
    tampered = json.loads(path.read_text())
    tampered["rows"][0]["value"] = 0.999
    path.write_text(json.dumps(tampered))
    with pytest.raises(DataError, match="per-item values"):
        run_study(study(), tmp_path / "out", run_methods=fake_run)


def test_a_summary_names_no_folder_of_this_machine(tmp_path, study, fake_run):
    summary = run_study(study(), tmp_path / "out", run_methods=fake_run)
    assert str(tmp_path) not in json.dumps(summary)


def test_durations_are_in_words():
    assert [in_words(s) for s in (5, 300, 7260)] == ["5 s", "5 min", "2 h 01 min"]
