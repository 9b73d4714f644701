"""A site whose privacy budget is spent says so; the run goes on without it, or ends with exit code 7 and its name."""

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("opacus", reason="the extra `dp` is not installed")

from flwr.app import ConfigRecord, Context, Message

from fedtandem.config import RunConfig
from fedtandem.config.privacy import DPConfig, PrivacyConfig
from fedtandem.config.site import SiteConfig
from fedtandem.errors import PrivacyBudgetError
from fedtandem.federation.client_app import VirtualSites
from fedtandem.federation.events import read_events
from fedtandem.federation.server_app import serve
from fedtandem.federation.submission import fault_of, read_end, write_submission
from fedtandem.reports.record import read_run

Tiny = Callable[..., RunConfig]
SMALL = ("knowledge.exchange=one_phase", "clients.*.tuning.max_steps=2", "federation.on_short=wait")


class Careful(VirtualSites):
    """Virtual sites of which clinic-b's owner grants a budget."""

    epsilon = 1.0

    def __call__(self, context: Context) -> SiteConfig:
        site = super().__call__(context)
        if site.name != "clinic-b":
            return site
        dp = DPConfig(target_delta=1e-3, noise_multiplier=1.0, target_epsilon=self.epsilon)
        client = site.client.model_copy(update={"privacy": PrivacyConfig(dp=dp)})
        return site.model_copy(update={"client": client})


def test_a_spent_budget_ends_the_run_with_exit_code_7_until_more_is_granted(
    tiny: Tiny,
    tmp_path: Path,
    federation,
    monkeypatch: pytest.MonkeyPatch,  # type: ignore[no-untyped-def]
) -> None:
    config = tiny(*SMALL, "federation.min_clients=2", "federation.num_rounds=2")
    flower = federation(config, site_of=Careful(config, tmp_path / "flower" / "sites"))
    monkeypatch.setattr(Careful, "epsilon", 4.0)
    server = flower.folder / "server"
    submitted = write_submission(server, config, resume=False, carrier="in-process grid", keys=None)
    with pytest.raises(
        PrivacyBudgetError, match=r"round 2: the privacy budget of clinic-b is spent.*epsilon 3\."
    ):
        serve(flower.grid, server, submitted)
    ended = read_end(server, submitted.id)
    assert ended is not None
    told = fault_of(*ended)  # what `fedtandem run --connection`, in a process of its own, ends with
    assert isinstance(told, PrivacyBudgetError)
    assert told.exit_code == 7
    assert "clinic-b says: clinic-b, round 2" in str(told)
    absences = [event for event in read_events(server / "events.jsonl") if event["event"] == "absence"]
    assert [(a["round"], a["party"], a["reason"]) for a in absences] == [(2, "clinic-b", "spent")]
    monkeypatch.setattr(Careful, "epsilon", 40.0)
    flower.run(resume=True)
    (one, two) = [cost for cost in read_run(server).spent if cost.party == "clinic-b"]
    assert (one.round, two.round) == (1, 2)
    assert 0 < one.epsilon <= 4 < two.epsilon <= 40


def test_the_others_go_on_where_they_are_enough(
    tiny: Tiny,
    tmp_path: Path,
    federation,
    monkeypatch: pytest.MonkeyPatch,  # type: ignore[no-untyped-def]
) -> None:
    config = tiny(*SMALL, "federation.min_clients=1", "federation.num_rounds=1")
    flower = federation(config, site_of=Careful(config, tmp_path / "flower" / "sites"))
    monkeypatch.setattr(Careful, "epsilon", 1e-3)
    flower.run()
    events = read_events(flower.folder / "server" / "events.jsonl")
    assert {(e["party"], e["reason"]) for e in events if e["event"] == "absence"} == {("clinic-b", "spent")}


def test_a_reply_that_is_spent_without_a_reason_is_invalid(tiny: Tiny, federation) -> None:  # type: ignore[no-untyped-def]
    config = tiny(*SMALL, "federation.min_clients=1", "federation.num_rounds=1")

    def meddle(request: Message, client: Callable[[Message], Message]) -> list[Message]:
        reply = client(request)
        if request.metadata.message_type == "train" and request.metadata.dst_node_id == 102:
            told = dict(reply.content.config_records["answer"])
            reply.content["answer"] = ConfigRecord({**told, "spent": True})
        return [reply]

    flower = federation(config, meddle=meddle)
    flower.run()
    events = read_events(flower.folder / "server" / "events.jsonl")
    absences = [e for e in events if e["event"] == "absence"]
    assert {(e["party"], e["reason"]) for e in absences} == {("clinic-b", "invalid")}
    assert "spent = 'True' and not why" in absences[0]["text"]
