"""A site's own file is the law, and its log tells all that left."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedtandem.config import RunConfig
from fedtandem.config.site import AllowConfig, load_site
from fedtandem.errors import ConfigError, InvalidMessage, QuorumError
from fedtandem.exchange.messages import FetchRequest
from fedtandem.federation.audit import read_audit
from fedtandem.federation.certificates import site_key
from fedtandem.federation.client_app import VirtualSites
from fedtandem.federation.consent import exactly
from fedtandem.federation.deploy import Place, deploy, site_text
from fedtandem.federation.flower_names import Keys, read_public_key
from fedtandem.federation.plan import PLAN_SCHEMA, plan_of, run_at_site, site_of_client
from fedtandem.federation.site import Order, Site
from fedtandem.reports.inspect import inspect_command

Tiny = Callable[..., RunConfig]
ONE_ROUND = ("federation.num_rounds=1", "knowledge.exchange=one_phase")


class Allowing(VirtualSites):
    """Virtual sites of which clinic-b's owner allows something else."""

    changes: dict[str, object] = {}  # noqa: RUF012

    def __call__(self, context):  # type: ignore[no-untyped-def]
        site = super().__call__(context)
        if site.name != "clinic-b":
            return site
        return site.model_copy(update={"allow": site.allow.model_copy(update=self.changes)})


def allowing(config: RunConfig, folder: Path, **changes: object) -> Allowing:
    sites = Allowing(config, folder)
    object.__setattr__(sites, "changes", changes)
    return sites


@pytest.mark.parametrize(
    ("overrides", "changes", "says"),
    [
        ((), {"send": ("card", "scores")}, "asks for rows"),
        ((), {"max_rounds": 1}, "2 rounds, but allow.max_rounds = 1"),
        (("public.labelled=false",), {"send": ("card", "scores", "rows")}, "asks for texts"),
        (
            ("selection.selector=confident_gap", "selection.budget=5"),
            {"send": ("card", "scores", "rows")},
            "requests",
        ),
        (
            ("public.labelled=false", "public.check=os:system"),
            {"functions": ()},
            "public.check = 'os:system'",
        ),
    ],
)
def test_a_run_that_asks_for_more_is_refused_before_round_1(
    tiny: Tiny,
    tmp_path: Path,
    federation,
    overrides: tuple[str, ...],
    changes: dict[str, object],
    says: str,  # type: ignore[no-untyped-def]
) -> None:
    config = tiny("federation.num_rounds=2", *overrides)
    flower = federation(config, site_of=allowing(config, tmp_path / "sites", **changes))
    with pytest.raises(QuorumError, match="clinic-b") as fault:
        flower.run()
    assert says in str(fault.value)
    (entry,) = read_audit(tmp_path / "sites" / "clinic-b" / "audit.jsonl")
    assert entry["kind"] == "refusal"
    assert not (tmp_path / "sites" / "clinic-b" / "runs").exists()


def test_a_site_that_keeps_its_measurements_takes_part(tiny: Tiny, tmp_path: Path, federation) -> None:  # type: ignore[no-untyped-def]
    config = tiny(*ONE_ROUND)
    sites = allowing(config, tmp_path / "sites", send=("card", "scores", "rows"))
    summary = federation(config, site_of=sites).run()
    assert {row["party"] for row in summary["rows"]} == {"server", "clinic-a"}


def test_a_reply_larger_than_allowed_stays_at_the_site(tiny: Tiny, tmp_path: Path, federation) -> None:  # type: ignore[no-untyped-def]
    config = tiny(*ONE_ROUND, "federation.on_short=fail", "federation.min_clients=2")
    sites = allowing(config, tmp_path / "sites", max_bytes_per_round=8000)
    flower = federation(config, site_of=sites)
    with pytest.raises(QuorumError, match=r"allow\.max_bytes_per_round = 8,000"):
        flower.run()
    log = read_audit(tmp_path / "sites" / "clinic-b" / "audit.jsonl")
    assert [entry["kind"] for entry in log] == ["card", "refusal"]
    answers = [m for m in flower.grid.sent if m.metadata.message_type == "train"]
    assert len(answers) == 2


def test_the_log_names_every_envelope_and_breaks_where_it_is_changed(
    tiny: Tiny,
    tmp_path: Path,
    federation,  # type: ignore[no-untyped-def]
) -> None:
    config = tiny(*ONE_ROUND)
    flower = federation(config)
    summary = flower.run()
    log = flower.folder / "sites" / "clinic-a" / "audit.jsonl"
    entries = read_audit(log)
    assert [(entry["kind"], entry["round"]) for entry in entries] == [("card", 0), ("work", 1), ("work", 2)]
    counted = sum(row["up"] for row in summary["bytes"] if row["party"] == "clinic-a")
    beside = sum(
        int(said.split()[2].replace(",", "")) for e in entries for said in e["says"] if "beside it" in said
    )
    assert sum(entry["bytes"] for entry in entries) == counted + beside
    said = inspect_command(log.parent)
    assert "3 envelopes left this site" in said
    assert "the chain of hashes is whole" in said
    lines = log.read_text().splitlines(keepends=True)
    for changed in (
        [lines[0], lines[1].replace('"bytes":', '"bytes":1'), lines[2]],
        [lines[0], lines[2]],
        [lines[0], lines[0], lines[1], lines[2]],
    ):
        log.write_text("".join(changed))
        with pytest.raises(InvalidMessage, match="line 2: the chain of hashes breaks"):
            inspect_command(log)
    log.write_text("".join(lines) + lines[0][:40])  # killed while it wrote: that envelope was never sent
    assert len(read_audit(log)) == 3


def test_no_private_text_leaves(tiny: Tiny, federation) -> None:  # type: ignore[no-untyped-def]
    """Canary: not one private answer stands in any payload, packed or unpacked, or in what travels beside it."""
    from fedtandem.data.load import load_samples
    from fedtandem.exchange.carrier import Envelope
    from fedtandem.exchange.frame import decode_frame

    config = tiny(*ONE_ROUND)
    replies: list[bytes] = []

    def listen(request, client):  # type: ignore[no-untyped-def]
        reply = client(request)
        if "answer" in reply.content:
            replies.append(json.dumps(dict(reply.content["answer"])).encode())
            header, arrays = decode_frame(
                Envelope.from_bytes(reply.content["envelope"]["body"].numpy().tobytes()).body
            )
            replies.append(
                json.dumps(header).encode() + b"".join(array.tobytes() for array in arrays.values())
            )
        return [reply]

    federation(config, meddle=listen).run()
    assert len(replies) == 12
    for client in config.clients:
        assert client.data is not None
        for sample in load_samples(client.data.to_source(), where="test"):
            assert not [reply for reply in replies if (sample.prompt + " ").encode() in reply]


def test_a_message_for_another_name_or_with_a_made_up_path_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(*ONE_ROUND)
    site = Site(site_of_client(config, "clinic-a", str(tmp_path / "site"), AllowConfig()))
    order = Order("clinic-a", "run-1", "fedmkt", True, json.dumps(plan_of(config)))
    assert "bind each name" in site.answer(replace(order, party="clinic-b"), b"").refusal
    assert "experiment is '../up'" in site.answer(replace(order, experiment="../up"), b"").refusal
    assert "too few for an envelope" in site.answer(order, b"").refusal
    old = json.dumps({**plan_of(config), "schema": PLAN_SCHEMA - 1})
    fetch = FetchRequest(1, np.zeros(1, np.int32)).to_envelope().to_bytes()
    assert f"schema {PLAN_SCHEMA - 1}" in site.answer(replace(order, plan=old), fetch).refusal
    assert "keeps those of no round" in site.answer(order, fetch).refusal
    assert sorted(path.name for path in (tmp_path / "site").iterdir()) == [
        ".lock",
        "audit.jsonl",
    ]  # nothing was made


def test_the_plan_tells_nothing_of_paths_or_other_clients(tiny: Tiny) -> None:
    config = tiny("clients.clinic-b.data.path=/secret/rows.jsonl", "clients.clinic-b.data.chains=null")
    told = json.dumps(plan_of(config))
    assert "secret" not in told
    assert "clinic" not in told


def test_deployed_files_make_the_run_they_were_made_from(tiny: Tiny, tmp_path: Path) -> None:
    from fedtandem.config import load_config

    config = tiny()
    deploy(config, tmp_path / "lab", Place())
    server = load_config(tmp_path / "lab" / "server" / "run.toml")
    for client in config.clients:
        site = load_site(tmp_path / "lab" / "sites" / client.name / "site.toml")
        assert site.home == tmp_path / "lab" / "sites" / client.name / "state"
        seen = run_at_site(plan_of(server), site)
        assert seen.clients == (client,)
        assert (seen.seed, seen.num_threads, seen.knowledge, seen.distillation) == (
            config.seed, config.num_threads, config.knowledge, config.distillation,
        )  # fmt: skip
        assert seen.public == config.public
        key = tmp_path / "lab" / "sites" / client.name / "key"
        assert key.stat().st_mode & 0o077 == 0
        assert read_public_key(key.with_suffix(".pub")) == read_public_key(
            tmp_path / "lab" / "server" / "keys" / f"{client.name}.pub"
        )
    with pytest.raises(ConfigError, match="exists already"):
        deploy(config, tmp_path / "lab", Place())


def test_a_site_file_survives_being_written(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny("public.labelled=false")
    site = site_of_client(config, "clinic-a", str(tmp_path / "state"), exactly(config, max_bytes_per_round=5))
    (tmp_path / "site.toml").write_text(site_text(site))
    assert load_site(tmp_path / "site.toml").model_dump(exclude={"data"}) == site.model_dump(exclude={"data"})
    (tmp_path / "bad.toml").write_text(site_text(site).replace("max_rounds", "max_round"))
    with pytest.raises(ConfigError, match='did you mean "max_rounds"'):
        load_site(tmp_path / "bad.toml")


def test_names_are_bound_to_keys(tiny: Tiny, tmp_path: Path, federation) -> None:  # type: ignore[no-untyped-def]
    for name in ("clinic-a", "clinic-b", "stranger"):
        (tmp_path / f"{name}.pub").write_bytes(site_key()[1])
    known = {name: read_public_key(tmp_path / f"{name}.pub") for name in ("clinic-a", "clinic-b", "stranger")}
    config = tiny(*ONE_ROUND, "federation.deadline_s=1.5", "federation.min_clients=2")
    keys = Keys(tmp_path, ["clinic-a", "clinic-b"])
    right = federation(config, keys={101: known["clinic-a"], 102: known["clinic-b"]})
    assert keys.online(right.grid) == {"clinic-a": 101, "clinic-b": 102}
    swapped = federation(config, name="swapped", keys={101: known["clinic-b"], 102: known["clinic-a"]})
    swapped.keys = tmp_path
    with pytest.raises(QuorumError, match="bind each name to the key"):
        swapped.run()
    stranger = federation(config, name="stranger", keys={101: known["clinic-a"], 102: known["stranger"]})
    stranger.keys = tmp_path
    with pytest.raises(QuorumError, match="Missing: clinic-b"):
        stranger.run()
    (tmp_path / "clinic-b.pub").write_bytes((tmp_path / "clinic-a.pub").read_bytes())
    with pytest.raises(ConfigError, match="are the same key"):
        Keys(tmp_path, ["clinic-a", "clinic-b"])
