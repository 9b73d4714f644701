"""`fedtandem doctor`: what would keep a site from taking part, found before it joins, with what to do about it."""

import http.client
import importlib.util
import json
import os
import shutil
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fedtandem.config import RunConfig, load_resolved
from fedtandem.config.site import SiteConfig, load_site
from fedtandem.data.load import load_samples
from fedtandem.data.public import public_hash
from fedtandem.data.traces import read_trace
from fedtandem.errors import ConfigError, FedtandemError
from fedtandem.evaluation.scored_trace import feedbacks_of, measures_of
from fedtandem.federation.audit import NAME, read_audit
from fedtandem.federation.preflight import PartyCheck, check
from fedtandem.federation.privacy_ledger import PrivacyLedger
from fedtandem.federation.runs import versions
from fedtandem.tuning.accountant import epsilon_of, require_opacus

TIMEOUT_S = 10.0
CLOCK_S = 60.0
"""Flower's messages carry times; clocks further apart than this lose messages."""
FLOWER = ((1, 41), (1, 43))
"""Versions of Flower that are tried: from, below."""
STATES_ON_DISK = 4
"""Two committed states, one being written, the final adapter."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: in a word.
        ok: nothing to do.
        text: what was found, and what to do where something is.
    """

    what: str
    ok: bool
    text: str


@dataclass(frozen=True)
class Visit:
    """What is examined.

    Attributes:
        file: the site's file.
        superlink: HOST:PORT; None: not tried.
        ca, key: None: `certificates/ca.pem` and `key` beside the file, where they are.
    """

    file: Path
    superlink: str | None = None
    ca: Path | None = None
    key: Path | None = None


def doctor(visit: Visit) -> list[Finding]:
    """Look at everything; a fault of one thing does not hide the next.

    Raises:
        ConfigError: the site's file itself cannot be read.
    """
    site = load_site(visit.file)
    beside = visit.file.resolve().parent
    found = [_versions()]
    found += _guarded("public set", lambda: _public(site))
    found += _guarded("model and data", lambda: _model(site))
    found += _guarded("folder", lambda: _folder(site))
    found += _guarded("privacy", lambda: _privacy(site))
    found += _guarded("recorded decisions", lambda: _calibration(site))
    found += _key(visit.key or beside / "key", asked=visit.key is not None)
    if visit.superlink is not None:
        found += _superlink(visit.superlink, visit.ca or beside / "certificates" / "ca.pem")
    return found


def doctor_command(visit: Visit, *, json_output: bool) -> tuple[str, int]:
    """`fedtandem doctor`: the text, and the exit code (2 where something must be mended)."""
    found = doctor(visit)
    amiss = sum(not one.ok for one in found)
    if json_output:
        return json.dumps([asdict(one) for one in found]), 2 if amiss else 0
    lines = [f"{'ok  ' if one.ok else 'MEND'}  {one.what}: {one.text}" for one in found]
    lines.append("nothing to mend" if not amiss else f"{amiss} of {len(found)} to mend")
    return "\n".join(lines), 2 if amiss else 0


def _guarded(what: str, look: Callable[[], Iterator[Finding]]) -> list[Finding]:
    try:
        return list(look())
    except FedtandemError as fault:
        return [Finding(what, False, str(fault))]


def _versions() -> Finding:
    told = ", ".join(f"{name} {number}" for name, number in versions().items())
    try:
        flower = version("flwr")
    except PackageNotFoundError:
        return Finding("versions", False, f"{told}; Flower is missing: pip install 'fedtandem[flower]'")
    low, high = FLOWER
    number = tuple(int(part) for part in flower.split(".")[:2])
    if not low <= number < high:
        wanted = f"flwr>={low[0]}.{low[1]},<{high[0]}.{high[1]}"
        return Finding("versions", False, f"{told}; flwr {flower} is not tried: pip install '{wanted}'")
    return Finding("versions", True, f"{told}, flwr {flower}; the server must have the same fedtandem")


def _public(site: SiteConfig) -> Iterator[Finding]:
    samples = load_samples(site.public.to_source(), where="public set")
    yield Finding(
        "public set",
        True,
        f"{len(samples):,} samples, hash {public_hash(samples)}; the server's must be the same",
    )


def _privacy(site: SiteConfig) -> Iterator[Finding]:
    """What is left of the site's own budget; nothing where it set none."""
    dp = site.client.privacy.dp
    if dp is None:
        return
    require_opacus()
    spent = PrivacyLedger(site.home).read()
    epsilon = epsilon_of(spent, dp.target_delta, dp.accountant)
    text = f"{len(spent)} private phases have cost epsilon {epsilon:.3f} at delta {dp.target_delta:g}"
    if dp.target_epsilon is not None and epsilon >= dp.target_epsilon:
        yield Finding(
            "privacy", False, f"{text}; nothing is left of {dp.target_epsilon:g}: grant more, or stay away"
        )
    else:
        yield Finding("privacy", True, f"{text}; the budget is {dp.target_epsilon or 'not bounded'}")


def _calibration(site: SiteConfig) -> Iterator[Finding]:
    """What thresholds would be learnt from; nothing where the site has no trace."""
    if site.calibration is None:
        return
    trace = read_trace(Path(site.calibration.trace))
    others = sorted({str(name) for name in trace.client} - {site.name})
    text = f"{len(trace):,}, uncertainty {', '.join(measures_of(trace))}, feedback {', '.join(feedbacks_of(trace))}"
    if others:
        named = ", ".join(others[:3]) + ", ..." * (len(others) > 3)
        text += f"; they name {named}, and count as {site.name}'s all the same"
    yield Finding("recorded decisions", True, text)
    allowed = [word for word in ("counts", "masked_counts") if word in site.allow.send]
    if not allowed:
        yield Finding(
            "recorded decisions",
            False,
            "allow.send has neither counts nor masked_counts: nobody may ask about them",
        )
    if "masked_counts" in allowed and importlib.util.find_spec("cryptography") is not None:
        from fedtandem.federation.registered_keys import public_keys

        known = sorted(public_keys(Path(site.calibration.keys)).keys() - {site.name})
        yield Finding(
            "keys of other sites", len(known) >= 2, f"{', '.join(known) or 'none'}; a masked sum needs two"
        )


def _model(site: SiteConfig) -> Iterator[Finding]:
    found = next(party for party in check(_alone(site)).parties if party.party == site.name)
    yield Finding(
        "model and data",
        True,
        f"{found.model}, {found.parameters:,} parameters, {found.own_samples:,} private samples",
    )
    yield _memory(found)
    yield _disk(site, found)


def _alone(site: SiteConfig) -> RunConfig:
    """A run with nothing but this site in it, for what can be estimated without the server's rules."""
    client = {**site.client.model_dump(mode="json"), "name": site.name}
    return load_resolved(
        {
            "name": "doctor",
            "server": {key: value for key, value in client.items() if key != "name"},
            "clients": [client],
            "public": site.public.model_dump(mode="json"),
            "evaluation": {
                "sets": [{**test.model_dump(mode="json"), "parties": ["*"]} for test in site.tests]
            },
        }
    )


def _memory(found: PartyCheck) -> Finding:
    available = _available_bytes()
    text = f"about {found.memory_bytes / 2**30:.1f} GiB while it trains"
    if available is None:
        return Finding("memory", True, f"{text}; how much is free cannot be told here")
    if found.memory_bytes > available:
        remedy = 'use smaller batches, method = "lora" or gradient_checkpointing'
        return Finding("memory", False, f"{text}, but {available / 2**30:.1f} GiB are free: {remedy}")
    return Finding("memory", True, f"{text}; {available / 2**30:.1f} GiB are free")


def _available_bytes() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None


def _disk(site: SiteConfig, found: PartyCheck) -> Finding:
    # Weights and AdamW's two moments in 32 bits, and the knowledge kept with each state.
    state = 6 * found.adapter_bytes + found.up_bytes
    needed = STATES_ON_DISK * state
    place = next(path for path in (site.home, *site.home.parents) if path.exists())
    free = shutil.disk_usage(place).free
    text = f"about {needed / 2**20:,.0f} MiB per run and method in {site.home}"
    if free < needed:
        return Finding(
            "disk", False, f"{text}, but {free / 2**20:,.0f} MiB are free: free some, or set `folder`"
        )
    return Finding("disk", True, f"{text}; {free / 2**20:,.0f} MiB are free")


def _folder(site: SiteConfig) -> Iterator[Finding]:
    place = next(path for path in (site.home, *site.home.parents) if path.exists())
    if not os.access(place, os.W_OK):
        yield Finding(
            "folder", False, f"{site.home} cannot be written: give this user the right, or set `folder`"
        )
    entries = read_audit(site.home / NAME)
    yield Finding("audit log", True, f"{len(entries)} envelopes so far; the chain is whole")


def _key(path: Path, *, asked: bool) -> list[Finding]:
    if not path.is_file() and not asked:
        return []
    if importlib.util.find_spec("cryptography") is None:
        return []  # the extra is missing, which is said already
    from fedtandem.federation.registered_keys import signing_key

    try:
        signing_key(path)
    except ConfigError as fault:
        return [Finding("key", False, str(fault))]
    admitted = "until the server has registered key.pub, the SuperNode ends with code 305"
    return [Finding("key", True, f"P-384, readable by its owner alone; {admitted}")]


def _superlink(address: str, ca: Path) -> list[Finding]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return [Finding("superlink", False, f"--superlink is {address!r}; give HOST:PORT")]
    if not ca.is_file():
        return [
            Finding(
                "superlink", False, f"there is no {ca}: ask the server for the certificate of its CA (--ca)"
            )
        ]
    try:
        context = ssl.create_default_context(cafile=str(ca))
    except ssl.SSLError as error:
        return [Finding("superlink", False, f"{ca} is no certificate in PEM ({error})")]
    line = http.client.HTTPSConnection(host.strip("[]"), int(port), timeout=TIMEOUT_S, context=context)
    try:
        line.request("HEAD", "/")
        told = line.getresponse().getheader("date")
    except ssl.SSLCertVerificationError as error:
        return [Finding("superlink", False, _certificate_fault(address, error))]
    except (OSError, http.client.HTTPException) as error:
        return [Finding("superlink", False, _connection_fault(address, error))]
    finally:
        line.close()
    return [Finding("superlink", True, f"{address} answers, and its certificate is good"), _clock(told)]


def _certificate_fault(address: str, error: ssl.SSLCertVerificationError) -> str:
    said = error.verify_message
    if "expired" in said or "not yet valid" in said:
        remedy = "the server needs a new certificate; compare the clocks too"
    elif "mismatch" in said or "doesn't match" in said:
        remedy = "the server's certificate must carry this name or address as SAN; or reach it by one that it carries"
    else:
        remedy = "it was issued by another CA: ask the server for the certificate of its own (--ca)"
    return f"{address} answers, but its certificate is refused ({said}): {remedy}"


def _connection_fault(address: str, error: Exception) -> str:
    if isinstance(error, socket.gaierror):
        remedy = "the name is unknown: check it, or give the address"
    elif isinstance(error, ConnectionRefusedError):
        remedy = "nobody listens there: is the SuperLink running, on this port and not on loopback only?"
    elif isinstance(error, TimeoutError):
        remedy = "no answer: a firewall between? Outgoing connections to that port are needed, none comes in"
    else:
        remedy = "is it the SuperLink's port, and does it speak TLS?"
    return f"{address} cannot be reached ({error}): {remedy}"


def _clock(told: str | None) -> Finding:
    if told is None:
        return Finding("clock", True, "the server does not tell its time")
    apart = abs((datetime.now(UTC) - parsedate_to_datetime(told)).total_seconds())
    if apart > CLOCK_S:
        return Finding("clock", False, f"{apart:.0f} s apart from the server's: synchronise both (NTP)")
    return Finding("clock", True, f"{apart:.0f} s apart from the server's")
