"""A check on written paths in whole runs: off changes nothing, refused paths are never learnt, faults end nothing."""

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from fedtandem.algorithms.lessons import Choice, Classroom
from fedtandem.config import RunConfig
from fedtandem.errors import ConfigError
from fedtandem.exchange.knowledge import Knowledge
from fedtandem.federation.events import read_events
from fedtandem.federation.runs import run_methods

Tiny = Callable[..., RunConfig]

UNLABELLED = ("public.labelled=false", "public.max_new_tokens=24", "federation.num_rounds=2")
OWN = """
def everything(prompt, path):
    return True

def no_three(prompt, path):
    return "3" not in prompt, "it holds a three" if "3" in prompt else "none"

def touchy(prompt, path):
    if "7" in prompt:
        raise ValueError("no sevens")
    return True
"""


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(folder / "events.jsonl") if event["event"] == kind]


def adapters(folder: Path) -> dict[str, bytes]:
    """Every party's final tensors, byte for byte."""
    found = (folder / "adapters").rglob("*.safetensors")
    return {str(file.relative_to(folder)): file.read_bytes() for file in found}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Checkers in a module of the user's own."""
    (tmp_path / "run_checks.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("run_checks", None)
    return importlib.import_module("run_checks")


def test_a_check_that_accepts_everything_is_bit_identical_to_none(
    tiny: Tiny, tmp_path: Path, own: Any
) -> None:
    """So the check only ever takes paths away; by default there is none."""
    off = tiny(*UNLABELLED)
    assert off.public.check == "none"
    plain = run_methods(off, ["fedmkt"], tmp_path / "off")
    checked = run_methods(
        tiny(*UNLABELLED, "public.check=run_checks:everything"), ["fedmkt"], tmp_path / "on"
    )
    assert plain["rows"] == checked["rows"]
    assert adapters(tmp_path / "off") == adapters(tmp_path / "on") != {}
    assert events(tmp_path / "off", "check") == []
    for event in events(tmp_path / "on", "check"):
        assert event["accepted"] == event["used"] == event["written"] > 0
        assert event["refused"] == event["undecided"] == event["failed"] == 0


def test_a_refused_path_is_never_learnt(
    tiny: Tiny, tmp_path: Path, own: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt: list[tuple[str, str]] = []
    lesson = Classroom.lesson

    def spied(self: Classroom, choice: Choice, rows_from: Mapping[str, Knowledge], own_rows: Any) -> Any:
        learnt.extend((self.learner.name, self.learner.public[i].prompt) for i in choice.kept)
        return lesson(self, choice, rows_from, own_rows)

    monkeypatch.setattr(Classroom, "lesson", spied)
    methods = ["fedmkt", "standalone_public", "server_public", "llm2slm"]
    run_methods(
        tiny(*UNLABELLED, "public.check=run_checks:no_three", "public.confidence_keep=1.0"),
        methods,
        tmp_path / "run",
    )
    assert {name for name, _ in learnt} == {"server", "clinic-a", "clinic-b"}
    assert all(own.no_three(prompt, "")[0] for _, prompt in learnt)
    told = events(tmp_path / "run", "check")
    assert sum(event["refused"] for event in told) > 0
    assert {event["method"] for event in told} == set(methods)
    # Per receiver and producer: the server hears both clients, the clients hear the server.
    heard = {(event["party"], event["teacher"]) for event in told if event["method"] == "fedmkt"}
    assert heard == {
        ("server", "clinic-a"),
        ("server", "clinic-b"),
        ("clinic-a", "server"),
        ("clinic-b", "server"),
    }
    for event in told:
        assert event["accepted"] + event["refused"] == event["written"]


def test_a_checker_that_raises_is_reported_by_prompt_and_ends_nothing(
    tiny: Tiny, tmp_path: Path, own: Any
) -> None:
    config = tiny(*UNLABELLED, "public.check=run_checks:touchy", "federation.num_rounds=1")
    run_methods(config, ["fedmkt"], tmp_path / "run")
    told = events(tmp_path / "run", "check")
    assert sum(event["failed"] for event in told) > 0
    for event in told:
        assert event["used"] == event["accepted"] == event["written"] - event["failed"]
    warned = [e for e in events(tmp_path / "run", "warning") if e["signature"] == "the checker failed"]
    assert warned
    assert "prompt chain-0000" in warned[0]["text"]
    assert "raised ValueError: no sevens" in warned[0]["text"]


def test_what_a_client_verified_goes_back_to_the_server(
    tiny: Tiny, tmp_path: Path, own: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(*UNLABELLED, "public.check=run_checks:no_three", "public.check_returns=true")
    run_methods(config, ["fedmkt"], tmp_path / "run")
    returned = {(e["party"], e["round"]): e["returned"] for e in events(tmp_path / "run", "paths")}
    passed = {
        (e["party"], e["round"] + 1): e["accepted"]
        for e in events(tmp_path / "run", "check")
        if e["teacher"] == "server" and e["round"] < 2
    }
    assert {key: returned[key] for key in passed} == passed
    assert sum(passed.values()) > 0
    assert all(count == 0 for (_, number), count in returned.items() if number == 1)


def test_a_client_offers_only_what_it_verified_and_tunes_alone_in_the_first_rounds(
    tiny: Tiny, tmp_path: Path, own: Any
) -> None:
    config = tiny(
        *UNLABELLED,
        "public.check=run_checks:no_three",
        "public.check_offers=true",
        "federation.private_rounds=1",
    )
    run_methods(config, ["fedmkt"], tmp_path / "run")
    at_server = [event for event in events(tmp_path / "run", "check") if event["party"] == "server"]
    assert all(event["refused"] == 0 for event in at_server)  # both hold the same check
    assert sum(event["written"] for event in at_server) > 0
    written = {(e["party"], e["round"]): e["written"] for e in events(tmp_path / "run", "paths")}
    assert written == {(e["teacher"], e["round"]): e["written"] for e in at_server}
    private = [event for event in events(tmp_path / "run", "phase") if event["phase"] == "private"]
    assert {(event["party"], event["round"]) for event in private} == {("clinic-a", 1), ("clinic-b", 1)}


def test_a_budget_is_not_spent_on_refused_paths(tiny: Tiny, tmp_path: Path, own: Any) -> None:
    """The check comes before the choice: of what passes, as many as the budget allows, and all of them are learnt."""
    config = tiny(
        *UNLABELLED, "public.check=run_checks:no_three", "selection.selector=random", "selection.budget=5"
    )
    run_methods(config, ["fedmkt"], tmp_path / "run")
    used = {(e["party"], e["teacher"], e["round"]): e["used"] for e in events(tmp_path / "run", "check")}
    chosen = events(tmp_path / "run", "items")
    assert chosen
    for event in chosen:
        assert event["selected"] == min(5, used[event["party"], event["teacher"], event["round"]])
        if event["direction"] == "down":  # up, two clients may name one prompt, and one of them teaches it
            assert event["trained"] == event["selected"] > 0


def test_the_record_tells_kinds_of_prompts_and_how_many_of_the_used_paths_were_right(
    tiny: Tiny, tmp_path: Path, own: Any
) -> None:
    run_methods(tiny(*UNLABELLED, "public.check=run_checks:no_three"), ["fedmkt"], tmp_path / "run")
    for event in events(tmp_path / "run", "check"):
        assert set(event["strata"]) <= {f"{n} with {sign}" for n in ("1 step", "2 steps") for sign in "@&"}
        for key in ("written", "used"):
            assert sum(of[key] for of in event["strata"].values()) == event[key]
        for of in event["strata"].values():
            assert of["right"] is None if of["used"] == 0 else 0 <= of["right"] <= of["used"]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("public.labelled=false", "public.check=arithmetics"), 'did you mean "arithmetic"?'),
        (("public.check=arithmetic",), "set public.labelled = false"),
        (("public.labelled=false", "public.check=numeric"), "needs the column with the right answers"),
        (("public.labelled=false", "public.check_answers=gold"), "used by the checks exact, numeric, choice"),
        (("public.labelled=false", "public.check_returns=true"), "name a check"),
        (("public.labelled=false", "public.check_offers=true"), "name a check"),
        (("public.labelled=false", "public.check=path", "public.check_form=chain"), 'did you mean "chains"?'),
    ],
)
def test_a_check_that_cannot_be_carried_out_is_said_at_once(
    tiny: Tiny, overrides: tuple[str, ...], says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny(*overrides)
    assert says in str(caught.value)


def test_a_function_that_is_not_there_is_said_before_any_training(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere_at_all"):
        run_methods(tiny(*UNLABELLED, "public.check=nowhere_at_all:f"), ["fedmkt"], tmp_path / "run")
    assert not (tmp_path / "run" / "methods").exists()
