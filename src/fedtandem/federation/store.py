"""A party's committed states on disk: each is a folder that exists wholly or not at all."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from fedtandem.atomic import write_folder


class RoundStore:
    """Named states under one folder, in the order they were committed (`0003-work` after `0002-work`).

    Args:
        root: the party's folder; made when the first state is saved.
        keep: how many of the newest states stay on disk.

    Source: specification of the federation, section 6 (atomic rounds; the last two are kept).
    """

    def __init__(self, root: Path, keep: int = 2) -> None:
        self.root = root
        self.keep = keep

    def committed(self) -> list[str]:
        """The committed states, oldest first."""
        if not self.root.is_dir():
            return []
        return sorted(
            path.name for path in self.root.iterdir() if path.is_dir() and not path.name.startswith(".")
        )

    def save(self, key: str, files: Mapping[str, bytes]) -> None:
        """Commit a state and forget all but the newest `keep`.

        Raises:
            DiskFull: no space is left; the states committed before still stand.
        """
        write_folder(self.root / key, files)
        for old in self.committed()[: -self.keep]:
            shutil.rmtree(self.root / old)

    def load(self, key: str) -> dict[str, bytes]:
        """The files of one committed state."""
        return {path.name: path.read_bytes() for path in sorted((self.root / key).iterdir())}

    def put(self, name: str, data: bytes) -> None:
        """Keep one lasting file beside the states (a card, a map, the untouched model's answers)."""
        write_folder(self.root / f".lasting-{name}", {"data": data})

    def get(self, name: str) -> bytes | None:
        """A lasting file, or None."""
        path = self.root / f".lasting-{name}" / "data"
        return path.read_bytes() if path.is_file() else None
