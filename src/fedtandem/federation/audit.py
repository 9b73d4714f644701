"""A site's own log of what left it: one line per envelope in plain words, each line sealed by the hash of the last.

A changed, removed or inserted line breaks the chain from there on. Lines cut off at the end leave a whole chain: keep
the last hash elsewhere to notice that.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedtandem.atomic import cut_torn_line, disk_full_named
from fedtandem.errors import InvalidMessage
from fedtandem.exchange.frame import canonical_json

FIRST = "0" * 64
"""What the first line is chained to."""
NAME = "audit.jsonl"
"""The file in a site's folder."""


def read_audit(path: Path) -> list[dict[str, Any]]:
    """All lines, checked; none where there is no file.

    Raises:
        InvalidMessage: a line is not what was written, with its number.
    """
    if not path.is_file():
        return []
    entries: list[dict[str, Any]] = []
    last = FIRST
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        entry = _entry(line)
        if (
            entry is None
            or entry["n"] != number
            or entry["previous"] != last
            or entry["hash"] != _seal(entry)
        ):
            raise InvalidMessage(
                f"{path}, line {number}: the chain of hashes breaks here; the line was changed, or lines before it "
                "were removed or added. What stands above it is as it was written. Find out who wrote to this file; "
                "move it away to begin a new log."
            )
        last = entry["hash"]
        entries.append(entry)
    return entries


def append_audit(path: Path, entries: Sequence[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    """Add a line and bring it to the disk before anything is sent.

    Args:
        entries: what `read_audit` gave.
        fields: JSON values.

    Raises:
        DiskFull: no space is left; then nothing may be sent.
    """
    entry = {
        "n": len(entries) + 1,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        **fields,
        "previous": entries[-1]["hash"] if entries else FIRST,
    }
    entry["hash"] = _seal(entry)
    with disk_full_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        cut_torn_line(path)  # its envelope was never sent
        with path.open("ab") as file:
            file.write(canonical_json(entry) + b"\n")
            file.flush()
            os.fsync(file.fileno())
    return entry


def describe_audit(path: Path) -> list[str]:
    """The log in plain words, for `fedtandem inspect`.

    Raises:
        InvalidMessage: the chain is broken.
    """
    entries = read_audit(path)
    total = sum(entry["bytes"] for entry in entries)
    lines = [
        f"{len(entries)} envelopes left this site, {total:,} bytes in all; the chain of hashes is whole",
        f"last hash {entries[-1]['hash'] if entries else FIRST}",
    ]
    for entry in entries:
        lines.append(
            f"{entry['n']}. {entry['time']} {entry['experiment']}, {entry['method']}, round {entry['round']}: "
            f"{entry['kind']}, {entry['bytes']:,} bytes, SHA-256 {entry['sha256'][:16]}"
        )
        lines += [f"     {said}" for said in entry["says"]]
    return lines


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    needed = {
        "n",
        "time",
        "previous",
        "hash",
        "experiment",
        "method",
        "round",
        "kind",
        "bytes",
        "sha256",
        "says",
    }
    return entry if isinstance(entry, dict) and needed <= entry.keys() else None


def _seal(entry: dict[str, Any]) -> str:
    return hashlib.sha256(
        canonical_json({key: value for key, value in entry.items() if key != "hash"})
    ).hexdigest()
