"""One process works in a run folder, and whoever watches can tell whether one does."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedtandem.atomic import remove_drafts
from fedtandem.errors import ConfigError

LOCK = ".lock"
GLANCE_S = 1.0
"""A glance of somebody who watches holds the lock for an instant; so long it is tried again."""


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder, rid of what a killed process left half-written; free again when this one ends, however it ends.

    Raises:
        ConfigError: another process works there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        end = time.monotonic() + GLANCE_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > end:
                    raise ConfigError(
                        f"another process still works in {folder}. Wait until it ends, or stop it (`flwr list`, "
                        "`flwr stop` where it runs at a SuperLink)."
                    ) from error
                time.sleep(0.05)
        remove_drafts(folder)
        yield


def is_worked_in(folder: Path) -> bool:
    """Whether a process of this machine works in the folder now; writes nothing."""
    try:
        with (folder / LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:
        return False
