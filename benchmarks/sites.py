"""What a deployment costs: CPU seconds and memory of every process of `recipe:sites` on loopback, beside one process.

    python benchmarks/sites.py

Engine time of a round: its wall time without the CPU time that the server and the slowest client spent in phases.
Wall time says something only on a machine with nothing else to do.
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
from datetime import datetime
from pathlib import Path
from statistics import mean
from typing import Any

from fedtandem.config import load_config
from fedtandem.federation.deploy import Place, deploy
from fedtandem.federation.events import read_events

TICKS = os.sysconf("SC_CLK_TCK")
LIBRARIES = "import torch, transformers, peft"
NODE_MIB, CLIENT_MIB = 350 * 1e6 / 2**20, 150 * 1e6 / 2**20
"""Asked: of a SuperNode with its SuperExec; of a client's process above LIBRARIES, model excluded."""
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
                time.sleep(0.5)
        if run.returncode:
            sys.exit((Path(name) / "log").read_text())
        report(seen, one_process, read_events(lab / "server" / "run" / "events.jsonl"), alone)


def report(seen: dict[int, Seen], one_process: float, events: list[dict[str, Any]], alone: Path) -> None:
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
    peaks = {kind: max(one.peak_mib for one in by_kind[kind]) for kind in KINDS}
    node, own = peaks["flower-supernode"] + peaks["flower-superexec"], peaks["flwr-clientapp"] - libraries()
    for what, mib, most in (
        ("SuperNode + SuperExec", node, NODE_MIB),
        (f"a client's process above `{LIBRARIES}`, its model included", own, CLIENT_MIB),
    ):
        print(f"{what}: {mib:.0f} MiB, aim {most:.0f}: {'met' if mib <= most else 'MISSED'}")
    deployed, local = rounds(events), rounds(read_events(alone / "events.jsonl"))
    for number, (wall, work) in deployed.items():
        print(
            f"round {number}: {wall:.1f} s deployed, {wall - work:.1f} s of it engine; {local[number][0]:.1f} s in one "
            f"process"
        )
    print(f"engine time of a deployed round: {mean(wall - work for wall, work in deployed.values()):.1f} s")


def libraries() -> float:
    """The most memory, in MiB, of a process that has only imported the libraries."""
    command = [sys.executable, "-c", f"{LIBRARIES}\nprint(open('/proc/self/status').read())"]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(told.partition("VmHWM:")[2].split()[0]) / 1024


def rounds(events: list[dict[str, Any]]) -> dict[int, tuple[float, float]]:
    """Round -> (wall seconds; CPU seconds in phases, of the server and the slowest client)."""
    found: dict[int, tuple[float, float]] = {}
    began, spent = datetime.min, defaultdict[str, float](float)
    for event in events:
        if event["event"] == "round_started":
            began, spent = datetime.fromisoformat(event["time"]), defaultdict(float)
        elif event["event"] == "phase":
            spent[event["party"]] += event["cpu_seconds"]
        elif event["event"] == "round_committed":
            wall = (datetime.fromisoformat(event["time"]) - began).total_seconds()
            server = spent.pop("server", 0.0)
            found[event["round"]] = wall, server + max(spent.values(), default=0.0)
    return found


if __name__ == "__main__":
    main()
