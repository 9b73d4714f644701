"""The recipe `mutual` in small: one short private phase, then what each party offers, checks and returns."""

from pathlib import Path

from fedtandem.config import load_config
from fedtandem.federation.events import read_events
from fedtandem.federation.runs import run_methods

SMALL = [
    *(f"clients.{name}.tuning.max_steps=280" for name in ("clinic-a", "clinic-b")),
    *(f"clients.{name}.public_tuning.max_steps=1" for name in ("clinic-a", "clinic-b")),
    *(f"clients.{name}.data.chains.steps=[1]" for name in ("clinic-a", "clinic-b")),
    *(f"clients.{name}.tuning.learning_rate=4e-3" for name in ("clinic-a", "clinic-b")),
    "server.tuning.max_steps=1",
    "federation.num_rounds=1",
    "public.chains.n=96",
    "public.chains.steps=[1, 3]",
    "selection.budget=20",
    *(
        f"evaluation.sets.{name}.data.chains.n=8"
        for name in ("a-1-step", "a-2-steps", "a-3-steps", "b-1-step", "b-2-steps", "b-3-steps", "old-skill")
    ),
]


def test_each_client_offers_what_it_alone_knows_and_all_of_it_is_right(tmp_path: Path) -> None:
    run_methods(load_config("recipe:mutual", SMALL), ["fedmkt"], tmp_path / "run")
    events = read_events(tmp_path / "run" / "events.jsonl")
    checks = [event for event in events if event["event"] == "check"]
    heard = {
        event["teacher"]: event for event in checks if event["party"] == "server" and event["round"] == 1
    }
    for name, sign, foreign in (("clinic-a", "@", "&"), ("clinic-b", "&", "@")):
        strata = heard[name]["strata"]
        assert not any(foreign in kind for kind in strata)  # nobody guesses at what another knows
        assert set(strata) == {f"1 step with {sign}"}  # nor writes a longer chain than it was taught
        offered = strata[f"1 step with {sign}"]
        assert offered["right"] >= 0.95 * offered["used"] > 0
    # A lesson is of paths that passed, and of no more than the budget.
    down = {
        (event["party"], event["round"]): event["used"] for event in checks if event["teacher"] == "server"
    }
    items = [event for event in events if event["event"] == "items"]
    assert {(event["party"], event["round"]): event["trained"] for event in items} == {
        key: min(20, used) for key, used in down.items()
    }
