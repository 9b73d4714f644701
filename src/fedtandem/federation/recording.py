"""An unfinished recording on disk: one small trace per batch, in a folder beside the trace it will become."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedtandem.atomic import write_text
from fedtandem.data.traces import Trace, joined, read_trace, write_trace
from fedtandem.errors import ConfigError

KEY_FILE = "recording.json"


class Recording:
    """Batches that were recorded.

    Args:
        folder: where they lie.
        key: what was asked; a recording goes on only where it is the same.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self._key = folder, key
        self._parts: list[Trace] = []

    def open(self, *, resume: bool) -> None:
        """Take up what is there, or begin.

        Raises:
            ConfigError: an unfinished recording without `resume`, or one of something else.
        """
        kept = self.folder / KEY_FILE
        if not kept.is_file():
            write_text(kept, self._key)
            return
        if not resume:
            raise ConfigError(
                f"{self.folder} holds an unfinished recording. Give --resume to go on with it, or delete it."
            )
        if kept.read_text(encoding="utf-8") != self._key:
            raise ConfigError(
                f"{self.folder} holds a recording of other models, rows or settings; delete it, or give another "
                "--output."
            )
        self._parts = [read_trace(file) for file in sorted(self.folder.glob("*.parquet"))]

    def done(self) -> set[str]:
        """Ids of the items that are recorded."""
        return {str(name) for part in self._parts for name in np.unique(part.session)}

    def add(self, part: Trace) -> None:
        """Keep a batch."""
        write_trace(self.folder / f"{len(self._parts):06d}.parquet", part)
        self._parts.append(part)

    def whole(self, order: Sequence[str]) -> Trace:
        """All batches as one trace, its rows in the order of these ids, then by position."""
        trace = joined(self._parts)
        place = {name: i for i, name in enumerate(order)}
        rows = np.array([place[str(name)] for name in trace.session])
        return trace.rows(np.lexsort((trace.position, rows)))

    def remove(self) -> None:
        """The trace is written; the batches are no longer needed."""
        shutil.rmtree(self.folder)
