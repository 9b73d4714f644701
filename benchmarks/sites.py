"""What a deployment costs: CPU seconds and memory of every process of `recipe:sites` on loopback, beside one process.

    python benchmarks/sites.py

Wall time is printed too; it says something only on a machine with nothing else to do.
"""

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from fedtandem.config import load_config
from fedtandem.federation.deploy import Place, deploy
from fedtandem.federation.events import read_events

TICKS = os.sysconf("SC_CLK_TCK")
KINDS = ("flower-superlink", "flower-supernode", "flower-superexec", "flwr-serverapp", "flwr-clientapp")


@dataclass
class Seen:
    """One process: what it is, the most memory it held, the CPU time it took so far."""

    kind: str
    peak_mib: float = 0.0
    cpu_s: float = 0.0


def look(folder: Path, seen: dict[int, Seen], ports: set[str]) -> None:
    """Add what can be seen now of the processes that speak on these ports or name this folder."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            kind = next((kind for kind in KINDS for word in words[:2] if word.endswith(kind)), None)
            if kind is None or not any(
                str(folder) in word or word.rpartition(":")[2] in ports for word in words
            ):
                continue
            one = seen.setdefault(int(entry.name), Seen(kind))
            peak = re.search(r"VmHWM:\s+(\d+)", (entry / "status").read_text())
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if peak:
            one.peak_mib = max(one.peak_mib, int(peak[1]) / 1024)
            one.cpu_s = (int(fields[11]) + int(fields[12])) / TICKS


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def main() -> None:
    config = load_config("recipe:sites")
    with tempfile.TemporaryDirectory() as name:
        alone = Path(name) / "alone"
        before = os.times()
        command = [sys.executable, "-m", "fedtandem", "run", "recipe:sites", "--output", str(alone), "--json"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        after = os.times()
        one_process = (
            after.children_user + after.children_system - before.children_user - before.children_system
        )
        place = Place(port=free_port(), node_port=free_port())
        ports = {str(place.port), *(str(place.node_port + at) for at in range(len(config.clients)))}
        lab = Path(name) / "lab"
        deploy(config, lab, place)
        seen: dict[int, Seen] = {}
        environment = {**os.environ, "FEDTANDEM_BIN": str(Path(sys.executable).parent)}
        with (Path(name) / "log").open("wb") as log:
            run = subprocess.Popen([lab / "loopback.sh"], env=environment, stdout=log, stderr=log)
            while run.poll() is None:
                look(lab, seen, ports)
                time.sleep(0.2)
        if run.returncode:
            sys.exit((Path(name) / "log").read_text())
        report(seen, one_process, read_events(lab / "server" / "run" / "events.jsonl"), alone)


def report(seen: dict[int, Seen], one_process: float, events: list[dict[str, object]], alone: Path) -> None:
    by_kind: dict[str, list[Seen]] = defaultdict(list)
    for one in seen.values():
        by_kind[one.kind].append(one)
    print(f"{'process':<18} {'how many':>8} {'peak MiB':>9} {'CPU s each':>11} {'CPU s in all':>13}")
    for kind in KINDS:
        found = by_kind[kind]
        if found:
            total = sum(one.cpu_s for one in found)
            peak = max(one.peak_mib for one in found)
            print(f"{kind:<18} {len(found):>8} {peak:>9.0f} {total / len(found):>11.1f} {total:>13.1f}")
    print(
        f"deployed: {sum(one.cpu_s for one in seen.values()):.0f} CPU s in all; one process: {one_process:.0f} CPU s"
    )
    times = [str(e["time"]) for e in events if e["event"] in ("round_started", "round_committed")]
    print(f"rounds began and ended at {', '.join(time[11:19] for time in times)}")
    spent = [e for e in read_events(alone / "events.jsonl") if e["event"] == "phase"]
    print(f"of the one process, in phases: {sum(float(str(e['cpu_seconds'])) for e in spent):.1f} CPU s")


if __name__ == "__main__":
    main()
