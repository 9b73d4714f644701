"""The run's record: one JSON object a line, written as things happen."""

import json
import threading
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedtandem.atomic import cut_torn_line, disk_full_named


class EventLog:
    """Appends events to `events.jsonl`; each line is whole before the next begins.

    Args:
        path: the file; opened for appending, a torn last line of a killed run is cut off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        cut_torn_line(path)
        self._file = path.open("a", encoding="utf-8")

    def emit(self, event: str, **fields: Any) -> None:
        """Write one event.

        Raises:
            DiskFull: no space is left; the next log cuts off what was written of the line.
        """
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **fields}
        with self._lock, disk_full_named(self.path):
            self._file.write(json.dumps(line, ensure_ascii=False, default=float) + "\n")
            self._file.flush()

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
