"""Vocabulary maps kept on disk."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedtandem.alignment.card import VocabularyCard
from fedtandem.models.map_cache import cached_map, map_path

BASE = VocabularyCard(("a", "b"), (b"a", b"b"), {}, frozenset(), "")
TEACHER = VocabularyCard(("b", "c", "a"), (b"b", b"c", b"a"), {}, frozenset(), "")
MAP = np.array([1, -1, 0], np.int32)


def never() -> np.ndarray:
    raise AssertionError("the map was made again")


def test_a_map_is_made_once(tmp_path):
    made = cached_map(tmp_path, BASE, TEACHER, "bytes", lambda: MAP)
    assert (made == MAP).all()
    assert (cached_map(tmp_path, BASE, TEACHER, "bytes", never) == MAP).all()
    assert [path.suffix for path in tmp_path.iterdir()] == [".npy"]


def test_another_vocabulary_mode_or_direction_is_another_map():
    asked = [
        (BASE, TEACHER, "bytes"),
        (BASE, TEACHER, "mined"),
        (TEACHER, BASE, "bytes"),
        (replace(BASE, marker="▁"), TEACHER, "bytes"),
    ]
    paths = {map_path(Path("maps"), *question) for question in asked}
    assert len(paths) == 4


@pytest.mark.parametrize("content", [b"", b"not an array", b"\x93NUMPY\x01\x00v\x00{"])
def test_a_damaged_file_is_made_anew(tmp_path, content):
    map_path(tmp_path, BASE, TEACHER, "bytes").write_bytes(content)
    assert (cached_map(tmp_path, BASE, TEACHER, "bytes", lambda: MAP) == MAP).all()
    assert (cached_map(tmp_path, BASE, TEACHER, "bytes", never) == MAP).all()


@pytest.mark.parametrize(
    "kept",
    [np.array([1, 2, 0], np.int32), np.array([1, -2, 0], np.int32), np.array([1], np.int32), np.zeros(3)],
)
def test_a_map_that_does_not_fit_is_made_anew(tmp_path, kept):
    with open(map_path(tmp_path, BASE, TEACHER, "bytes"), "wb") as file:
        np.save(file, kept)
    assert (cached_map(tmp_path, BASE, TEACHER, "bytes", lambda: MAP) == MAP).all()
