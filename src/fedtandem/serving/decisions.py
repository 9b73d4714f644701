"""The device's decision log: one JSON line per answer, in a folder that does not grow beyond its bound.

Lines are written whole or not at all; the newest file is `decisions.jsonl`, older ones are `decisions.1.jsonl` and so
on. What a line holds is put together in `replying.py`; what it means is told by `explaining.py`.
"""

import fcntl
import json
import os
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedtandem.atomic import cut_torn_line
from fedtandem.errors import ConfigError

VERSION = 1
FILES = 4
"""The oldest of so many is dropped when the newest is full."""


def name_of(age: int) -> str:
    """File of an age; 0 is the one being written."""
    return "decisions.jsonl" if age == 0 else f"decisions.{age}.jsonl"


class Decisions:
    """The log being written; may be used from several threads, by one process.

    Args:
        folder: made where it is missing.
        max_bytes: all files together.

    Raises:
        ConfigError: it cannot be written, or another process does.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self._most = folder, max(1, max_bytes // FILES)
        self._lock = threading.Lock()
        self._is_closed = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._guard = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
            cut_torn_line(folder / name_of(0))
            self._open()
        except BlockingIOError as error:
            os.close(self._guard)
            raise ConfigError(
                f"decisions.folder: another device writes to {folder}; give each a folder of its own."
            ) from error
        except OSError as error:
            raise ConfigError(f"decisions.folder: {folder} cannot be written ({error.strerror}).") from error

    def keep(self, entry: Mapping[str, Any]) -> None:
        """Add a line.

        Raises:
            OSError: it could not be written; then nothing of it is there.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"v": VERSION, "time": now, **entry}, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            if self._is_closed:
                raise OSError("another folder is written to now")
            if self._size and self._size + len(line) > self._most:
                self._turn()
            try:
                if os.write(self._file, line) != len(line):
                    raise OSError("no space left")
            except OSError:
                os.ftruncate(self._file, self._size)
                raise
            self._size += len(line)

    def bound(self, max_bytes: int) -> None:
        """Another bound, from the next line on."""
        self._most = max(1, max_bytes // FILES)

    def close(self) -> None:
        """Let the folder go."""
        with self._lock:
            self._is_closed = True
            os.close(self._file)
            os.close(self._guard)

    def _open(self) -> None:
        self._file = os.open(
            self.folder / name_of(0), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600
        )  # who asked what when is nobody else's
        self._size = os.fstat(self._file).st_size

    def _turn(self) -> None:
        """Make room: every file one older, the oldest gone."""
        os.close(self._file)
        for age in reversed(range(FILES - 1)):
            if (self.folder / name_of(age)).exists():
                os.replace(self.folder / name_of(age), self.folder / name_of(age + 1))
        self._open()
