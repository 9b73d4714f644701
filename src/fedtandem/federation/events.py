"""The run's record: one JSON object a line, written as things happen."""

import json
import os
import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedtandem.atomic import cut_torn_line, disk_full_named

Told = Callable[[dict[str, Any]], list[dict[str, Any]]]


class EventLog:
    """Appends events to `events.jsonl`; each line is whole before the next begins.

    Args:
        path: the file; opened for appending, a torn last line of a killed run is cut off.
        told: gets every line once it is written; what it gives back is written after it.
    """

    def __init__(self, path: Path, told: Told = lambda _: []) -> None:
        self.path = path
        self._told = told
        self._lock = threading.Lock()
        cut_torn_line(path)
        self._file = path.open("ab", buffering=0)

    def emit(self, event: str, **fields: Any) -> None:
        """Write one event.

        Raises:
            DiskFull: no space is left; nothing of the line stands.
        """
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **fields}
        data = json.dumps(line, ensure_ascii=False, default=float).encode() + b"\n"
        with self._lock, disk_full_named(self.path):
            end = self._file.seek(0, os.SEEK_END)
            try:
                while data:  # a disk that fills up takes a part first
                    data = data[self._file.write(data) :]
            except OSError:
                self._file.truncate(end)
                raise
        for more in self._told(line):
            self.emit(**more)

    def close(self) -> None:
        """No more events."""
        self._file.close()


def read_events(path: Path) -> list[dict[str, Any]]:
    """All whole lines; what a resumed run did again counts once (the newest)."""
    return newest_of_each(read_lines(path))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines as they were written, repetitions too."""
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]  # what no newline ends is still being written, or was torn
    return [json.loads(line) for line in lines if line]


_IDENTITY = ("event", "method", "round", "party", "phase", "teacher", "split", "metric", "signature")


def newest_of_each(events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep the last event of each identity (event, method, round, party, ...), in order of first appearance."""
    kept: dict[tuple[object, ...], dict[str, Any]] = {}
    for event in events:
        if event["event"] == "absence":
            kept[("absence", len(kept))] = event
        else:
            kept[tuple(event.get(key) for key in _IDENTITY)] = event
    return list(kept.values())
