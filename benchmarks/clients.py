"""Up to 32 clients co-tune in one process: CPU seconds and peak memory of the whole process, by clients and by rounds.

    python benchmarks/clients.py

`recipe:sites` with its first client copied under other names, each with private samples of its own, and little of
everything. All parties are objects of one process here, so its memory is an upper bound of the server's.
"""

import os
import sys
import tempfile
import time
import tomllib
from copy import deepcopy
from importlib.resources import files
from pathlib import Path

import tomli_w

from fedtandem.federation.events import read_events

SIZES = ((4, 1), (32, 1), (32, 4))
"""(clients, rounds)"""


def document(clients: int, rounds: int) -> dict[str, object]:
    config = tomllib.loads((files("fedtandem") / "recipes" / "sites.toml").read_text())
    first = config["clients"][0]
    first["tuning"]["max_steps"] = config["server"]["public_tuning"]["max_steps"] = 4
    first["data"]["chains"]["n"] = 32
    config["clients"] = []
    for number in range(clients):
        one = deepcopy(first)
        one["name"] = f"c{number:02d}"
        one["data"]["chains"]["seed"] = number
        config["clients"].append(one)
    config["public"]["chains"]["n"] = 20
    config["public"]["max_new_tokens"] = 12
    config["federation"] = {"num_rounds": rounds, "min_clients": clients}
    config["evaluation"] = {"sets": []}
    config["report"] = {"enabled": False}
    return config


def run(clients: int, rounds: int, folder: Path) -> tuple[float, float]:
    """CPU seconds and peak MiB of one `fedtandem run`."""
    file = folder / f"{clients}-{rounds}.toml"
    file.write_text(tomli_w.dumps(document(clients, rounds)))
    output = file.with_suffix("")
    command = [sys.executable, "-m", "fedtandem", "run", str(file), "--output", str(output), "--json"]
    log = os.open(file.with_suffix(".log"), os.O_CREAT | os.O_WRONLY)
    to_log = [(os.POSIX_SPAWN_DUP2, log, 1), (os.POSIX_SPAWN_DUP2, log, 2)]
    pid = os.posix_spawn(sys.executable, command, os.environ, file_actions=to_log)
    os.close(log)
    _, status, used = os.wait4(pid, 0)
    if status:
        sys.exit(file.with_suffix(".log").read_text())
    committed = [e for e in read_events(output / "events.jsonl") if e["event"] == "round_committed"]
    assert len(committed) == rounds
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def main() -> None:
    print(f"{'clients':>7} {'rounds':>6} {'CPU s':>7} {'peak MiB':>9} {'wall s':>7}")
    with tempfile.TemporaryDirectory() as name:
        for clients, rounds in SIZES:
            started = time.monotonic()
            cpu_s, peak_mib = run(clients, rounds, Path(name))
            wall_s = time.monotonic() - started
            print(f"{clients:>7} {rounds:>6} {cpu_s:>7.1f} {peak_mib:>9.0f} {wall_s:>7.0f}", flush=True)


if __name__ == "__main__":
    main()
