"""Kill clients' processes at random instants and ask again: the bits of an undisturbed run in one process.

    python benchmarks/site_kills.py --kills 30 --seed 0

As across sites every message is handled by a process of its own (forked here, so that no instant falls into imports).
Each gets SIGKILL at a CPU time drawn evenly from twice what such a message takes: half of them live to answer.
The server is not killed here; benchmarks/kills.py does that.
"""

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kills import SMALL, asked, bits, cpu_seconds

from fedtandem.atomic import write_bytes
from fedtandem.config import RunConfig, load_config
from fedtandem.exchange.carrier import Answers, Envelope, Party
from fedtandem.federation.consent import exactly
from fedtandem.federation.events import read_events
from fedtandem.federation.plan import plan_of, site_of_client
from fedtandem.federation.remote import Count, Emit, Remote
from fedtandem.federation.runs import run_methods
from fedtandem.federation.site import Order, Site


class Chance:
    """Draws when a process dies, and remembers where those that did stood."""

    def __init__(self, kills: int, seed: int) -> None:
        self.left, self.places = kills, Counter[str]()
        self._draw = random.Random(seed)
        self._takes: dict[str, list[float]] = defaultdict(list)

    def instant(self, kind: str) -> float:
        """CPU seconds after which to kill; the first message of a kind shows how long it takes."""
        if not self.left or not self._takes[kind]:
            return float("inf")
        return self._draw.uniform(0.0, 2 * max(self._takes[kind]))

    def lived(self, kind: str, cpu_s: float) -> None:
        self._takes[kind].append(cpu_s)

    def died(self, place: str) -> None:
        self.left -= 1
        self.places[place] += 1


class Processes:
    """A carrier: each message goes to a new process of its site, and again when that was killed."""

    def __init__(self, config: RunConfig, folder: Path, order: Order, chance: Chance, emit: Emit) -> None:
        self._order, self._chance, self._emit, self._folder = order, chance, emit, folder
        allow = exactly(config, max_bytes_per_round=1 << 50)
        self._sites = {
            client.name: Site(site_of_client(config, client.name, str(folder / client.name), allow))
            for client in config.clients
        }

    def parties(self) -> Sequence[Party]:
        return [Party(name) for name in sorted(self._sites)]

    def ask(self, requests: Mapping[str, Envelope], *, deadline_s: float) -> Answers:
        replies: dict[str, Envelope] = {}
        for name, request in sorted(requests.items()):
            told = None
            while told is None:
                told = self._try(name, request)
            if told["refusal"]:
                sys.exit(f"{name} refused: {told['refusal']}")
            for line in told["events"]:
                self._emit(**line)
            replies[name] = Envelope.from_bytes(bytes.fromhex(told["envelope"]), party=name)
        return Answers(replies, {})

    def _try(self, name: str, request: Envelope) -> dict[str, Any] | None:
        """What a new process answers; None: it was killed."""
        answer = self._folder / "answer"
        kill_at = self._chance.instant(request.kind)
        pid = os.fork()
        if pid == 0:
            order = Order(**{**vars(self._order), "party": name})
            reply = self._sites[name].answer(order, request.to_bytes())
            told = {"refusal": reply.refusal, "envelope": reply.envelope.hex(), "events": reply.events}
            write_bytes(answer, json.dumps(told, default=float).encode())
            os._exit(0)
        spent = 0.0
        while True:
            spent = max(spent, cpu_seconds(pid))
            if spent >= kill_at:
                os.kill(pid, signal.SIGKILL)
            if os.waitpid(pid, os.WNOHANG)[0]:
                break
            time.sleep(0.002)
        if not answer.is_file():
            if spent < kill_at:
                sys.exit(f"{name}: its process ended by itself")
            self._chance.died(f"{request.kind}, {self._where(name)}")
            return None
        self._chance.lived(request.kind, spent)
        told = json.loads(answer.read_bytes())
        answer.unlink()
        return dict(told)

    def _where(self, name: str) -> str:
        events = [e for file in self._folder.glob(f"{name}/runs/*/*/events.jsonl") for e in read_events(file)]
        return f"last in its record: {events[-1]['event']} {events[-1].get('phase', '')}" if events else "new"


def run(config: RunConfig, folder: Path, chance: Chance) -> dict[str, str]:
    """One run with its clients in processes; party -> hash of its final weights."""

    def connect(experiment: str, method: str, count: Count, emit: Emit) -> Processes:
        order = Order("", experiment, method, untouched=True, plan=json.dumps(plan_of(config)))
        return Processes(config, folder / "sites", order, chance, emit)

    run_methods(config, config.methods, folder / "run", remote=Remote("processes", connect))
    found = bits(folder / "run" / "adapters")
    for client in config.clients:
        found[client.name] = bits(folder / "sites" / client.name / "runs")["adapter"]
    return found


def main() -> None:
    arguments = asked(__doc__)
    config = load_config("recipe:sites", SMALL)
    chance = Chance(arguments.kills, arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        run_methods(config, config.methods, Path(name) / "calm")
        expected = bits(Path(name) / "calm" / "adapters")
        print(f"undisturbed, in one process: weights of {', '.join(sorted(expected))}", flush=True)
        runs = 0
        while chance.left:
            found = run(config, Path(name) / str(runs), chance)
            if found != expected:
                sys.exit(f"run {runs}: the weights differ: {found} {expected}")
            runs += 1
            print(f"run {runs} ended in the same bits; {chance.places.total()} kills so far", flush=True)
    print(f"{chance.places.total()} kills, {runs} runs, every one ended in the same bits")
    for place, times in chance.places.most_common():
        print(f"{times:>4} {place}")


if __name__ == "__main__":
    main()
