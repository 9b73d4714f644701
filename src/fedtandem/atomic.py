"""Write a file or a folder wholly or not at all."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fedtandem.errors import DiskFull

DRAFT = re.compile(r"\..+\.[a-z0-9_]{8}")
"""Names of drafts: a dot, what they are to become, and eight signs of `tempfile`."""


@contextmanager
def disk_full_named(target: Path) -> Iterator[None]:
    """Turn the system's "no space left" (at all, for this user, in this file) into a `DiskFull` with the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise DiskFull(
            f"the disk is full: {target} could not be written. Nothing half-written was left; free space there "
            "or name another folder with --output, then go on with --resume."
        ) from error


def write_bytes(path: Path, data: bytes) -> None:
    """Put `data` at `path`: the old file or the new one is there at any instant, never a part.

    Raises:
        DiskFull: no space is left; the old file still stands.
    """
    with disk_full_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode("utf-8"))


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends well and vanishes when it does not.

    An older folder at `path` is replaced.
    """
    with disk_full_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        try:
            yield draft
            for file in draft.rglob("*"):
                if file.is_file():
                    with open(file, "rb") as handle:
                        os.fsync(handle.fileno())
            draft.chmod(0o755)
            if path.exists():
                old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
                os.replace(path, old / "it")
                os.replace(draft, path)
                shutil.rmtree(old)
            else:
                os.replace(draft, path)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise


def write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Put a folder with these files at `path`, wholly or not at all."""
    with whole_folder(path) as draft:
        for name, data in files.items():
            (draft / name).write_bytes(data)


def remove_drafts(folder: Path) -> None:
    """Delete what writers that were killed left below a folder; nobody else may be writing there."""
    for left in [path for path in folder.rglob(".*") if DRAFT.fullmatch(path.name)]:
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def cut_torn_line(path: Path) -> None:
    """Take off a last line without its end: it was being written when the process died."""
    if path.is_file():
        data = path.read_bytes()
        if data and not data.endswith(b"\n"):
            os.truncate(path, data.rfind(b"\n") + 1)
