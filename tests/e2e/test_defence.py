"""Which samples the server recomputes is known to nobody else, outlives a kill, and changes nothing for the honest."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedtandem.algorithms.defence import Defence
from fedtandem.config import RunConfig
from fedtandem.exchange.carrier import Envelope
from fedtandem.exchange.frame import decode_frame
from fedtandem.federation.runs import run_methods
from fedtandem.federation.store import RoundStore
from fedtandem.reports.html import report_command

Tiny = Callable[..., RunConfig]
KEY = Path("methods") / "fedmkt" / "state" / "server" / "defence.key"
Drawn = dict[tuple[int, str], list[tuple[list[int], list[int]]]]


class Killed(BaseException):
    """Nothing catches it, nothing cleans up after it."""


def weights(folder: Path) -> dict[str, bytes]:
    return {p.parent.name: p.read_bytes() for p in sorted((folder / "adapters").rglob("*.safetensors"))}


def test_the_choice_is_the_servers_secret_and_outlives_a_kill(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny("defence.check_samples=3", "knowledge.exchange=one_phase", "server.scratch.max_steps=2")
    drawn: Drawn = {}
    sent: list[bytes] = []
    checked, to_bytes, save, saves, kill_at = Defence.checked, Envelope.to_bytes, RoundStore.save, [0], [-1]

    def noted(self: Defence, round_number: int, name: str, won: np.ndarray, n_public: int) -> np.ndarray:
        found = checked(self, round_number, name, won, n_public)
        drawn.setdefault((round_number, name), []).append((won.tolist(), found.tolist()))
        return found

    def recorded(self: Envelope) -> bytes:
        header, arrays = decode_frame(self.body)
        sent.append(json.dumps(header).encode() + b"".join(array.tobytes() for array in arrays.values()))
        return to_bytes(self)

    def fragile(self: RoundStore, key: str, files: dict[str, bytes]) -> None:
        saves[0] += self.root.name == "server"
        if saves[0] == kill_at[0]:
            raise Killed
        save(self, key, files)

    monkeypatch.setattr(Defence, "checked", noted)
    monkeypatch.setattr(Envelope, "to_bytes", recorded)
    monkeypatch.setattr(RoundStore, "save", fragile)
    kill_at[0] = 3  # round 2 is done but for its commit
    with pytest.raises(Killed):
        run_methods(config, ["fedmkt"], tmp_path / "one")
    run_methods(config, ["fedmkt"], tmp_path / "one", resume=True)
    twice = {at: found for at, found in drawn.items() if len(found) == 2}
    assert twice
    assert all(first == second for first, second in twice.values())
    one = {at: found[-1] for at, found in drawn.items()}

    drawn.clear()
    run_methods(config, ["fedmkt"], tmp_path / "other")
    other = {at: found[0] for at, found in drawn.items()}
    assert {at: won for at, (won, _) in one.items()} == {at: won for at, (won, _) in other.items()}
    assert max(len(won) for won, _ in one.values()) > 9, [len(won) for won, _ in one.values()]
    assert one != other
    assert weights(tmp_path / "one") == weights(tmp_path / "other")  # nobody lied

    report_command(tmp_path / "one")
    assert (tmp_path / "one" / KEY).stat().st_mode & 0o777 == 0o600
    key = (tmp_path / "one" / KEY).read_bytes()
    assert key != (tmp_path / "other" / KEY).read_bytes()
    written = [p.read_bytes() for p in (tmp_path / "one").rglob("*") if p.is_file() and p.name != KEY.name]
    assert len(sent) > 8
    assert len(written) > 8
    for data in (*sent, *written):
        assert key not in data
        assert key.hex().encode() not in data
