"""What is wrong at a site or at the server is refused before round 1, by real processes, with what to do about it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedtandem.federation.certificates import Authority
from fedtandem.federation.events import read_events

pytestmark = [
    pytest.mark.slow,
    pytest.mark.flower,
    pytest.mark.skipif("FEDTANDEM_LONG" not in os.environ, reason="set FEDTANDEM_LONG=1: some minutes more"),
]
MakeLab = Callable[..., Any]
NEWER = "import fedtandem.federation.plan as plan\n\nplan.PLAN_SCHEMA += 1\n"
"""Put on PYTHONPATH as sitecustomize: a server of the next version."""


@pytest.mark.parametrize(
    ("hosts", "days", "other_ca", "says"),
    [
        (("127.0.0.1",), 1, True, "issued by another CA: ask the server"),
        (("127.0.0.1",), -1, False, "the server needs a new certificate"),
        (("elsewhere.example",), 1, False, "must carry this name or address as SAN"),
    ],
    ids=["other-ca", "expired", "other-host"],
)
def test_a_site_does_not_join_a_server_whose_certificate_is_bad(
    make_lab: MakeLab, hosts: tuple[str, ...], days: float, other_ca: bool, says: str
) -> None:
    lab = make_lab()
    site, server = lab.folder / "sites" / "clinic-a", lab.folder / "server" / "certificates"
    authority = Authority("test")
    certificate, key = authority.issue(hosts, days=days)
    (server / "own.pem").write_bytes(certificate)
    (server / "own.key").write_bytes(key)
    (server / "ca.pem").write_bytes(authority.pem)
    if not other_ca:
        (site / "certificates" / "ca.pem").write_bytes(authority.pem)
    lab.superlink()
    lab.node("clinic-a")
    lab.wait_for(
        "the node is refused", lambda: "CERTIFICATE_VERIFY_FAILED" in lab.said("clinic-a"), "clinic-a"
    )
    hint = next(line for line in lab.said("clinic-a").splitlines() if "fedtandem doctor" in line)
    words = hint[hint.index("doctor") :].split()
    asked = subprocess.run(
        [sys.executable, "-m", "fedtandem", *words], env=lab.environment, capture_output=True, text=True
    )
    (line,) = [line for line in asked.stdout.splitlines() if line.startswith("MEND")]
    assert asked.returncode == 2
    assert says in line
    assert not (site / "state").exists()


def test_sites_that_forbid_or_have_another_name_and_a_newer_server_are_named_before_round_1(
    make_lab: MakeLab, tmp_path: Path
) -> None:
    """clinic-a forbids texts; clinic-b and clinic-c have each other's keys. Then the server is of the next version."""
    lab = make_lab()
    law = lab.folder / "sites" / "clinic-a" / "site.toml"
    law.write_text(law.read_text().replace('"texts", ', "", 1))
    keys = lab.folder / "server" / "keys"
    b, c = (keys / f"clinic-{letter}.pub" for letter in "bc")
    of_b, of_c = b.read_bytes(), c.read_bytes()
    b.write_bytes(of_c)
    c.write_bytes(of_b)
    lab.superlink()
    lab.register()
    for name in lab.sites:
        lab.node(name)
    assert lab.run().wait(lab.limit_s) == 6, lab.said("run")[-3000:]
    said = lab.said("run")
    assert "clinic-a" in said
    assert "allow.send" in said
    assert "a message for 'clinic-c' came to the site 'clinic-b'" in said
    assert "a message for 'clinic-b' came to the site 'clinic-c'" in said
    assert "bind each name to the key of its own site" in said

    (tmp_path / "newer").mkdir()
    (tmp_path / "newer" / "sitecustomize.py").write_text(NEWER)
    lab.started["superlink"].terminate()
    lab.started["superlink"].wait(lab.limit_s)
    here = lab.environment["PYTHONPATH"]
    lab.environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "newer"), here])
    lab.superlink()
    lab.environment["PYTHONPATH"] = here
    assert lab.run("--output", "newer").wait(lab.limit_s) == 6, lab.said("run")[-3000:]
    told = lab.said("run")[len(said) :]
    for name in lab.sites:
        assert name in told
    assert "Install the same fedtandem version" in told
    for run in ("run", "newer"):
        events = read_events(lab.folder / "server" / run / "events.jsonl")
        assert "round_started" not in [event["event"] for event in events]
