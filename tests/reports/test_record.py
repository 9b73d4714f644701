"""Reading back what a run or a study left, whole or not."""

import json

import pytest

from fedtandem.errors import ConfigError, DataError
from fedtandem.reports.record import read_record, read_run


def test_a_finished_run_is_read_whole(run_folder):
    run = read_run(run_folder)
    assert run.finished
    assert run.main == "fedmkt"
    assert run.parties == ("server", "clinic-a", "clinic-b")
    assert (run.rounds_done, run.num_rounds) == (5, 5)
    assert {lesson.learner for lesson in run.lessons} == set(run.parties)
    assert run.warnings[0].kind == "poor alignment"


def test_an_unfinished_run_is_read_as_far_as_it_came(unfinished_run):
    run = read_run(unfinished_run)
    assert not run.finished
    assert run.rounds_done == 2
    # Round 0 is the untouched models'; the newest round stands for the method.
    scores = {(s.method, s.party, s.split): s.value for s in run.scores}
    newest = {(p.party, p.split): p.value for p in run.points if p.round == 2}
    assert scores["zero_shot", "server", "old-skills"] == 0.998
    assert scores["fedmkt", "server", "at-1-step"] == newest["server", "at-1-step"]


def test_a_run_that_has_only_just_begun_is_read(tmp_path):
    (tmp_path / "run.json").write_text(
        json.dumps({"schema": 1, "name": "x", "methods": ["fedmkt"], "status": "running"})
    )
    run = read_run(tmp_path)
    assert (run.scores, run.points, run.rounds_done) == ((), (), 0)


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="neither a run"):
        read_record(tmp_path)


def test_a_torn_record_is_named(tmp_path):
    (tmp_path / "run.json").write_text('{"schema": 1, "na')
    with pytest.raises(DataError, match=r"run\.json cannot be read"):
        read_record(tmp_path)
