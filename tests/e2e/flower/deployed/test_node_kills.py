"""A SuperNode and all it has started get SIGKILL in every phase of a round, and are started again: the same bits."""

import json
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fedtandem.atomic import DRAFT
from fedtandem.federation.events import read_events

BACK_S = 61.0
"""After so long Flower admits a node again whose session was cut off."""


@dataclass(frozen=True)
class Kill:
    """An instant at a site.

    Attributes:
        after: the last reply that left it, (kind, round); None: none has.
        seen: what has been seen of the next message: "taken" (nothing was done yet), a phase of the site's record that
            has ended, "draft" (its state is being committed) or "sent" (its reply is in the log).
        of_round: of that phase.
    """

    after: tuple[str, int] | None
    seen: str
    of_round: int = 0


CARD, WORK_1, FETCH_1, WORK_2, FETCH_2 = ("card", 0), ("work", 1), ("fetch", 1), ("work", 2), ("fetch", 2)
KILLS = {
    "clinic-a": (
        Kill(None, "taken"),  # card
        Kill(CARD, "taken"),  # work: loading
        Kill(WORK_1, "taken"),  # fetch
        Kill(FETCH_1, "transport", 1),  # work: distilling
        Kill(FETCH_2, "taken"),  # finish: loading
    ),
    "clinic-b": (
        Kill(CARD, "evaluate", 0),  # work: private tuning
        Kill(CARD, "draft"),  # work: committing
        Kill(FETCH_1, "public", 1),  # work: evaluating, then private tuning
        Kill(WORK_2, "sent"),  # work: its reply may be on the way
        Kill(FETCH_2, "transport", 2),  # finish: distilling
    ),
    "clinic-c": (
        Kill(CARD, "private", 1),  # work: writing to the public prompts
        Kill(CARD, "write", 1),  # work: the public pass
        Kill(FETCH_1, "sent"),  # fetch: its reply may be on the way
        Kill(FETCH_1, "private", 2),  # work
        Kill(FETCH_2, "public", 2),  # finish: the model is to be saved
    ),
}


class Watched:
    """A site seen through its state folder, its SuperNode killed where `kills` say so."""

    def __init__(self, lab: Any, name: str) -> None:
        self.lab, self.name, self.home = lab, name, lab.folder / "sites" / name / "state"
        self.to_come = deque(KILLS[name])
        self.told: list[str] = []
        self._lines = 0
        self._start_at = 0.0

    def step(self) -> None:
        """Kill it if the instant has come; start it again once it may come back."""
        if self.lab.started[self.name].poll() is not None:
            if time.monotonic() >= self._start_at:
                self.lab.node(self.name)
                self._start_at = time.monotonic() + 5
        elif self.to_come and self._has_come(self.to_come[0]):
            self.lab.kill_with_children(self.name)
            kill = self.to_come.popleft()
            self._lines = len(self._record())
            self._start_at = time.monotonic() + BACK_S
            assert (self._last() == kill.after) or kill.seen == "sent", f"{self.name}: too late for {kill}"
            self.told.append(f"{time.strftime('%H:%M:%S')} {self.name}: killed {kill}")
            print(self.told[-1], flush=True)

    def _has_come(self, kill: Kill) -> bool:
        if self._last() != kill.after:
            return False
        if kill.seen == "sent":
            return True
        if kill.seen == "taken":
            lock, log = self.home / ".lock", self.home / "audit.jsonl"
            return lock.is_file() and (kill.after is None or lock.stat().st_mtime_ns > log.stat().st_mtime_ns)
        if kill.seen == "draft":
            return any(DRAFT.fullmatch(path.name) for path in self.home.glob("runs/*/fedmkt/state/.0*"))
        ended = [
            (event["phase"], event["round"])
            for event in self._record()[self._lines :]
            if event["event"] == "phase"
        ]
        return (kill.seen, kill.of_round) in ended

    def _record(self) -> list[dict[str, Any]]:
        return [event for path in self.home.glob("runs/*/fedmkt/events.jsonl") for event in read_events(path)]

    def _last(self) -> tuple[str, int] | None:
        log = self.home / "audit.jsonl"
        lines = log.read_bytes().split(b"\n")[:-1] if log.is_file() else []
        if not lines:
            return None
        entry = json.loads(lines[-1])
        return entry["kind"], entry["round"]


@pytest.mark.slow
@pytest.mark.flower
@pytest.mark.skipif("FEDTANDEM_LONG" not in os.environ, reason="set FEDTANDEM_LONG=1: a quarter of an hour")
def test_nodes_killed_in_every_phase_give_the_bits_of_one_process(
    make_lab: Callable[..., Any], tmp_path: Path
) -> None:
    lab = make_lab(overrides=["federation.num_rounds=2", "knowledge.exchange=two_phase"])
    lab.superlink()
    lab.register()
    for name in lab.sites:
        lab.node(name)
    sites = [Watched(lab, name) for name in lab.sites]
    run = lab.run()
    while run.poll() is None:
        for site in sites:
            site.step()
        time.sleep(0.01)
    assert run.returncode == 0, lab.said("run")[-3000:]
    assert not [kill for site in sites for kill in site.to_come]
    assert lab.adapters() == lab.of_one_process(tmp_path / "alone")[0]
    assert [p for site in sites for p in site.home.rglob(".*") if DRAFT.fullmatch(p.name)] == []
