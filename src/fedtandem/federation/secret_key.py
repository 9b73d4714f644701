"""A key that one party keeps to itself: drawn once, kept in a file that nobody else may read."""

import os
import secrets
import tempfile
from pathlib import Path

from fedtandem.atomic import disk_full_named
from fedtandem.errors import DataError
from fedtandem.tuning.secret_noise import KEY_BYTES


def secret_key(path: Path) -> bytes:
    """The key in this file; drawn from the system's randomness (and put there, mode 600) when it is first asked for.

    Returns:
        32 bytes.

    Raises:
        DataError: the file holds something else.
        DiskFull: it could not be written; nothing half-written is left.
    """
    if not path.is_file():
        with disk_full_named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 600
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(secrets.token_bytes(KEY_BYTES))
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(draft, path)
            except BaseException:
                Path(draft).unlink(missing_ok=True)
                raise
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise DataError(f"{path} has {len(key)} bytes; a key has {KEY_BYTES}. Restore it.")
    return key
