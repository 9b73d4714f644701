"""What a run is doing at this moment, kept in its folder for whoever watches."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from fedtandem.atomic import write_text

if TYPE_CHECKING:
    from fedtandem.algorithms.learner import Progress

FILE = "now.json"
EVERY_S = 2.0


class Now:
    """A `Progress` that passes on what it is told, and writes the newest of it every two seconds at most.

    Args:
        folder: of the run.
        told: who else is told.
    """

    def __init__(self, folder: Path, told: "Progress") -> None:
        self._path, self._told = folder / FILE, told
        self._written = time.monotonic()

    def __call__(self, what: str, done: int, of: int) -> None:
        self._told(what, done, of)
        if time.monotonic() - self._written < EVERY_S:
            return
        self._written = time.monotonic()
        at = datetime.now(UTC).isoformat(timespec="seconds")
        write_text(self._path, json.dumps({"time": at, "what": what, "done": done, "of": of}))
