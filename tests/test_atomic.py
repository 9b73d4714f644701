import errno
import os
from pathlib import Path

import pytest

from fedtandem.atomic import remove_drafts, whole_folder, write_bytes, write_folder
from fedtandem.errors import DiskFull


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_the_old_one_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.bin"
    write_bytes(target, b"old")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull, match=r"a\.bin.*--resume"):
        write_bytes(target, b"new, and longer")
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_a_folder_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    def write_half() -> None:
        with whole_folder(tmp_path / "state") as draft:
            (draft / "one").write_bytes(b"1")
            raise ValueError("killed in the middle")

    with pytest.raises(ValueError, match="killed"):
        write_half()
    assert names(tmp_path) == []


def test_a_folder_replaces_the_older_one_wholly(tmp_path: Path) -> None:
    write_folder(tmp_path / "state", {"old": b"1", "both": b"1"})
    write_folder(tmp_path / "state", {"both": b"2"})
    assert names(tmp_path) == ["state"]
    assert {p.name: p.read_bytes() for p in (tmp_path / "state").iterdir()} == {"both": b"2"}


def test_a_full_disk_keeps_the_older_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "state", {"a": b"1"})

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull):
        write_folder(tmp_path / "state", {"a": b"2"})
    assert (tmp_path / "state" / "a").read_bytes() == b"1"
    assert names(tmp_path) == ["state"]


def test_drafts_of_killed_writers_go_and_nothing_else(tmp_path: Path) -> None:
    kept = [".lock", ".lasting-card/data", "rounds/0003/state", ".hidden.toml", "clinic.a.b/x"]
    drafts = [".clinic-b.dtxf1ab_/adapter.bin", "deep/.run.json.k3j_9x0a", ".clinic-b.old.abcdefgh/it/w"]
    for name in (*kept, *drafts):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    remove_drafts(tmp_path)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()) == sorted(kept)
