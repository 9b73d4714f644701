"""Vocabulary maps on disk: made once for a pair of vocabularies, whoever asks."""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fedtandem.alignment.card import VocabularyCard
from fedtandem.alignment.vocabulary import MAP_VERSION, NO_TOKEN, IdMap
from fedtandem.atomic import write_bytes


def map_path(cache_dir: Path, base: VocabularyCard, teacher: VocabularyCard, mode: str) -> Path:
    """Where the map of this pair is kept; the name changes with either vocabulary, the mode and the rules."""
    key = hashlib.sha256(f"{base.hash} {teacher.hash} {mode} {MAP_VERSION}".encode()).hexdigest()
    return cache_dir / f"{mode}-{key[:32]}.npy"


def cached_map(
    cache_dir: Path, base: VocabularyCard, teacher: VocabularyCard, mode: str, build: Callable[[], IdMap]
) -> IdMap:
    """The map of this pair from disk, or made by `build` and kept.

    A file that cannot be read, or that does not fit the two vocabularies, is made anew.

    Returns:
        Base id or -1 for each teacher id; (V_teacher,) int32.

    Raises:
        DiskFull: the map was made but could not be kept.
    """
    path = map_path(cache_dir, base, teacher, mode)
    kept = _read(path)
    if kept is not None and _fits(kept, base, teacher):
        return kept
    made = build()
    buffer = io.BytesIO()
    np.save(buffer, made, allow_pickle=False)
    write_bytes(path, buffer.getvalue())
    return made


def _read(path: Path) -> IdMap | None:
    """The array in the file, None if there is no file or no array in it."""
    try:
        array: IdMap = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return array


def _fits(array: IdMap, base: VocabularyCard, teacher: VocabularyCard) -> bool:
    """Whether the array can be a map of these two vocabularies."""
    if array.dtype != np.int32 or array.shape != (len(teacher),):
        return False
    return bool(array.size == 0 or (array.min() >= NO_TOKEN and array.max() < len(base)))
