"""Kill `fedtandem run` at random instants, resume it, and see that it ends in the bits of a run nobody disturbed.

    python benchmarks/kills.py --kills 30 --seed 0

An instant is drawn in CPU seconds of the process, evenly over what an undisturbed run takes, so that a busy machine
changes nothing. A run that ends before its kill is compared, and the next one begins anew.
"""

import argparse
import hashlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from fedtandem.federation.events import read_events

TICKS = os.sysconf("SC_CLK_TCK")
SMALL = (
    "public.chains.n=20", "public.max_new_tokens=12", "clients.*.tuning.max_steps=8", "federation.num_rounds=3",
    "server.public_tuning.max_steps=8", "evaluation.sets=[]", "report.enabled=false",
)  # fmt: skip


def start(folder: Path, threads_of: str) -> subprocess.Popen[bytes]:
    words = [word for override in SMALL for word in ("-o", override)]
    resume = ["--resume"] if (folder / "run.json").is_file() else []
    command = [
        sys.executable,
        "-m",
        "fedtandem",
        "run",
        "recipe:sites",
        *words,
        "--output",
        str(folder),
        "--json",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": threads_of}
    return subprocess.Popen(
        [*command, *resume], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    )


def cpu_seconds(pid: int) -> float:
    """User and system time of a process that was not yet waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def ended(process: subprocess.Popen[bytes], kill_at: float) -> bool:
    """Wait for the end, or kill at this many CPU seconds; whether it ended by itself."""
    while process.poll() is None:
        if cpu_seconds(process.pid) >= kill_at:
            process.kill()
            process.communicate()
            return process.returncode == 0
        time.sleep(0.01)
    _, said = process.communicate()
    if process.returncode:
        sys.exit(f"the run failed by itself: {said.decode(errors='replace')[-3000:]}")
    return True


def bits(adapters: Path) -> dict[str, str]:
    """Party, as its folder is called -> SHA-256 of its final weights."""
    files = sorted(adapters.rglob("*.safetensors"))
    return {path.parent.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def where(folder: Path) -> str:
    """What the record's last line tells of the instant of a kill."""
    events = read_events(folder / "events.jsonl")
    last = events[-1] if events else {"event": "before the record"}
    return f"after {last['event']}" + (f" {last['phase']}" if last["event"] == "phase" else "")


def asked(description: str | None) -> argparse.Namespace:
    """How many kills, drawn from which seed."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    arguments = asked(__doc__)
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        calm = Path(name) / "calm"
        before = os.times()
        assert ended(start(calm, "1"), float("inf"))
        whole = (
            os.times().children_user
            + os.times().children_system
            - before.children_user
            - before.children_system
        )
        expected = bits(calm / "adapters")
        print(f"undisturbed: {whole:.1f} CPU s, weights of {', '.join(expected)}", flush=True)
        kills, runs, places = 0, 0, Counter[str]()
        folder = Path(name) / "0"
        while kills < arguments.kills or not (folder / "summary.json").is_file():
            more = kills < arguments.kills
            if ended(start(folder, "1"), draw.uniform(0.0, whole) if more else float("inf")):
                if bits(folder / "adapters") != expected:
                    sys.exit(
                        f"run {runs}, after {kills} kills: the weights differ: {bits(folder / 'adapters')} {expected}"
                    )
                runs += 1
                print(f"run {runs} ended in the same bits; {kills} kills so far", flush=True)
                if more:
                    folder = Path(name) / str(runs)
            else:
                kills += 1
                places[where(folder)] += 1
        print(f"{kills} kills, {runs} runs, every one ended in the same bits")
        for place, count in places.most_common():
            print(f"{count:>4} {place}")


if __name__ == "__main__":
    main()
