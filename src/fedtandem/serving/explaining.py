"""`fedtandem explain REQUEST_ID`: one answer's entry of the decision log, found and told in plain words."""

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedtandem.errors import DataError
from fedtandem.serving.decisions import FILES, VERSION, name_of

DEFAULT = "decisions"
BREAKER = ("closed", "half open", "open")
WHOSE = {
    "k": "SLM, not verified", "a": "SLM, verified", "l": "LLM", "c": "LLM, in place of a draft", "p": "a peer's",
    "d": "SLM, alone",
}  # fmt: skip
ALONE = {
    "cloud-down": "the cloud did not answer",
    "cloud-slow": "the cloud did not answer within its deadline",
    "cloud-busy": "the cloud refused for want of room (429)",
    "cloud-breaker-open": "the cloud had failed too often and was left alone (breaker open)",
    "cloud-faulty": "the cloud's reply could not be read, or could not be true",
    "cloud-timeout": "the request's time was over",
    "cloud-model-changed": "another model was served there by now",
    "cloud-prefix-unknown": "the cloud did not take the text",
    "max-cloud-fraction": "the LLM may verify no more of this answer (max_cloud_fraction)",
    "timeout": "the request's time was over",
}


def add(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("id", metavar="REQUEST_ID", help="x-request-id of the answer")
    parser.add_argument(
        "where", type=Path, nargs="?", default=Path(DEFAULT), metavar="WHERE",
        help="folder of the decision log, or the device's CONFIG that names it (default: the folder decisions)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the entry as JSON for machines")


def call(arguments: argparse.Namespace) -> int:
    """Do it; the exit code."""
    entry = find(log_folder(arguments.where), arguments.id)
    print(json.dumps(entry) if arguments.json else "\n".join(told(entry)))
    return 0


def log_folder(where: Path) -> Path:
    """The log's folder: itself, or what a config says.

    Raises:
        ConfigError: the config cannot be read.
        DataError: it keeps no log.
    """
    if where.is_dir() or not where.suffix:
        return where
    from fedtandem.config.serve import load_serve

    folder = load_serve(where).decisions.folder
    if folder is None:
        raise DataError(f"{where} keeps no decision log: set decisions.folder in it and reload the device.")
    return Path(folder)


def find(folder: Path, request_id: str) -> dict[str, Any]:
    """The newest entry of this request.

    Raises:
        DataError: there is no log, no such entry, or its line is damaged.
    """
    if not any((folder / name_of(age)).is_file() for age in range(FILES)):
        raise DataError(
            f"there is no decision log in {folder} (no {name_of(0)}): set decisions.folder in the device's config, and "
            "name that folder, or the config, after the request's id."
        )
    n_lines, n_damaged, times = 0, 0, list[str]()
    for file, number, line in _lines(folder):
        n_lines += 1
        entry = _entry(line)
        if entry is None:
            n_damaged += 1
            if request_id.encode() in line:
                raise DataError(
                    f"{file}, line {number}: the line names {request_id} and is damaged (no whole entry of version "
                    f"{VERSION}); nothing more is known of it."
                )
            continue
        times.append(str(entry["time"]))
        if entry["id"] == request_id:
            return entry
    held = f"it holds {n_lines - n_damaged} answers" + (f", {min(times)} to {max(times)}" if times else "")
    damaged = f"; {n_damaged} damaged lines were passed over" if n_damaged else ""
    raise DataError(
        f"the decision log in {folder} has no answer {request_id}: {held}{damaged}. An older one was rotated away "
        "(decisions.max_mb keeps more); one that was refused at the door (key, rate, body) is in the device's log "
        "alone."
    )


def _lines(folder: Path) -> Iterator[tuple[Path, int, bytes]]:
    """Newest first, with their file and number."""
    for age in range(FILES):
        file = folder / name_of(age)
        if not file.is_file():
            continue
        lines = file.read_bytes().split(b"\n")
        # Without an end it is still being written, or was when the device died.
        for number in range(len(lines) - (not lines[-1]), 0, -1):
            yield file, number, lines[number - 1]


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
        whole = isinstance(entry, dict) and entry["v"] == VERSION
        return entry if whole and {"id", "time", "mode", "path", "key", "tenant"} <= entry.keys() else None
    except (ValueError, KeyError, TypeError):
        return None


def told(entry: Mapping[str, Any]) -> Iterator[str]:
    """The entry in plain words, line by line."""
    yield f"request {entry['id']} at {entry['time']}: POST {entry['path']}"
    who = f"key {entry['key']} of tenant {entry['tenant']}"
    yield f"asked with {who}" + (f" of device {entry['device']}" if "device" in entry else "")
    if "tau" in entry:
        yield from _told_plan(entry)
    if "finish" in entry:
        yield from _told_end(entry)
    if "refused" in entry:
        reason = ALONE.get(entry["refused"], entry["refused"])
        n = entry.get("tokens", 0)
        shown = f" after {n} tokens, which stand" if n else ", before anything was written"
        yield f"ended with an error{shown}: {reason}"
    if entry.get("steps"):
        yield ""
        for step in entry["steps"]:
            yield from _told_step(entry, step)
        listed = sum(len(step["tiers"]) for step in entry["steps"])
        if listed < entry["tokens"]:
            yield f"... and {entry['tokens'] - listed} tokens more, which are not listed"


def _told_plan(entry: Mapping[str, Any]) -> Iterator[str]:
    slm, llm = entry["models"]
    asked = "" if entry["asked_mode"] == entry["mode"] else f" ({entry['asked_mode']} was asked for)"
    yield f"mode {entry['mode']}{asked}; SLM {slm}; LLM {llm or 'none'}; breaker {BREAKER[entry['breaker']]}"
    if entry["mode"] in ("local", "cloud"):
        return
    source = {
        "config": "fixed by the device's config", "built-in": "built in: no policy for these models",
        "client": "this device's own", "cluster": "its cluster's", "global": "of all devices",
    }.get(entry["scope"], entry["scope"])  # fmt: skip
    policy = "" if entry["scope"] in ("config", "built-in") else f", policy: {entry['policy']}"
    yield f"threshold τ = {entry['tau']:.3f} on the uncertainty {entry['measure']!r}, {source}{policy}"
    price, now = entry["price"], entry["price_in_force"]
    if now > price + 1e-9:
        yield f"a call costs λ = {now:.3f} instead of {price:.3f} (busy cloud, or spent budget), so τ was raised"
    else:
        yield f"a call costs λ = {price:.3f}, as the policy has it"
    if entry["eps"] is not None and entry["mode"] == "bounded":
        yield f"budget ε = {entry['eps']:g} of error for the whole answer"
    without = {"degrade": "the SLM goes on alone", "stall": "the answer waits", "error": "the answer ends"}
    yield f"without the LLM {without[entry['on_outage']]}; peers: {entry['peer']}; blocks of {entry['block']}"


def _told_end(entry: Mapping[str, Any]) -> Iterator[str]:
    n, n_prompt = entry["completion_tokens"], entry["prompt_tokens"]
    yield (
        f"{n} tokens for a prompt of {n_prompt} in {entry['ms']:.0f} ms, the first "
        f"after {entry['first_ms']:.0f} ms; ended with {entry['finish']}"
    )
    route = ", ".join(f"{tier} {n}" for tier, n in entry["route"].items() if n)
    bound = "" if entry["error_bound"] is None else f"; error at most {entry['error_bound']:.4f}"
    yield (
        f"whose: {route or 'none'}; {entry['llm_passes']} passes of the LLM; {entry['uplink_bytes']} bytes up, "
        f"{entry['downlink_bytes']} down{bound}"
    )
    if entry["degraded"] != "none":
        yield f"declared as degraded: {ALONE.get(entry['degraded'], entry['degraded'])}"


def _told_step(entry: Mapping[str, Any], step: Mapping[str, Any]) -> Iterator[str]:
    at, tiers, us, tau = step["at"], step["tiers"], step["u"], entry["tau"]
    place = f"tokens {at + 1}-{at + len(tiers)}" if len(tiers) > 1 else f"token {at + 1}"
    yield f"{place}, {step['ms']:.0f} ms: {_why(entry, step)}"
    for i, (letter, u) in enumerate(zip(tiers, us, strict=True)):
        doubt = "" if u is None else f"u {u:.3f} {'>' if u > tau else '≤'} τ"
        yield f"  {at + i + 1:>5}  {doubt:<13}  {WHOSE[letter]}"


def _why(entry: Mapping[str, Any], step: Mapping[str, Any]) -> str:
    """Why these tokens went where they went."""
    mode, why, u = entry["mode"], step["why"], step["u"][0]
    if why == "kept":
        return "the SLM writes alone" if mode == "local" else "the SLM was sure enough; shown at once"
    if why == "peer":
        return "the SLM was not sure; the LLM had written this for a peer in the same place"
    if why != "verified":
        return f"{ALONE.get(why, why)}; the SLM's drafts stand"
    took = f"asked the LLM: {step.get('wait_ms', 0):.0f} ms, {step.get('up', 0)} bytes up, {step.get('down', 0)} down"
    if mode == "cloud":
        return f"the LLM writes alone; {took}"
    if mode == "exact":
        return f"every block is verified before it is shown; {took}"
    if u is None:
        return took
    if u > entry["tau"]:
        return f"the SLM was not sure; {took}, with what was drafted after it"
    return f"the error budget had no room for another unseen token; {took}"
