from pathlib import Path

from fedtandem.federation.store import RoundStore


def test_the_newest_states_are_kept_and_others_forgotten(tmp_path: Path) -> None:
    store = RoundStore(tmp_path / "clinic-a", keep=2)
    assert store.committed() == []
    for number in range(1, 12):
        store.save(f"{number:04d}-a", {"state": bytes([number])})
    assert store.committed() == ["0010-a", "0011-a"]
    assert store.load("0011-a") == {"state": bytes([11])}


def test_a_draft_left_by_a_killed_process_is_no_state(tmp_path: Path) -> None:
    store = RoundStore(tmp_path)
    store.save("0001", {"state": b"1"})
    (tmp_path / ".0002.draft").mkdir()
    assert store.committed() == ["0001"]


def test_a_lasting_file_outlives_the_states(tmp_path: Path) -> None:
    store = RoundStore(tmp_path, keep=1)
    assert store.get("card") is None
    store.put("card", b"hello")
    for number in range(3):
        store.save(f"{number:04d}", {"state": b""})
    assert store.get("card") == b"hello"
    assert store.committed() == ["0002"]
