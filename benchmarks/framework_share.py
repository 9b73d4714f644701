"""What the protocol costs beside the training it serves: its share of a run's CPU time from round 2 on.

    python benchmarks/framework_share.py [--config FILE] [-o KEY=VALUE] [--method NAME] [--json FILE]
    python benchmarks/framework_share.py --run FOLDER

Without arguments the setting of the novels study is run once (seed 0, three rounds, two clients); models it has to make
first are kept in the cache and not counted. `--run` reads a run that is already there. Training is measured in the
same run and the same process, so the share needs no second baseline.

Definitions (CPU seconds of the whole process, all parties; from the commit of round 1 to the end of the method)
- models: private and public tuning with the optimiser, public passes, writing answers.
- evaluation: test sets.
- transport: alignment, selection, carrying rows over.
- coding and I/O: all the rest: frames, checks, commits, events, adapters.
- framework share: (transport + coding and I/O) / (models + transport + coding and I/O). Target: at most 5 %.
Tokenising happens once, before round 2, and the report after the run: neither is in the window.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

TARGET = 0.05
MODELS = ("private", "public", "pass", "write")
DEFAULT = Path(__file__).parent.parent / "studies" / "novels" / "authors.toml"


def main() -> None:
    parser = argparse.ArgumentParser(description="the protocol's share of a run's CPU time")
    parser.add_argument("--config", type=Path, default=DEFAULT, help="what to run")
    parser.add_argument("-o", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--method", action="append", help="default: llm2slm and fedmkt")
    parser.add_argument("--run", type=Path, help="read this run folder in place of running anything")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    arguments = parser.parse_args()
    if arguments.run is not None:
        figures = [share for share in shares(arguments.run) if share["rounds"]]
    else:
        figures = run_and_measure(
            arguments.config, arguments.overrides, arguments.method or ["llm2slm", "fedmkt"]
        )
    for figure in figures:
        print(
            f"{figure['method']:<20} rounds 2-{figure['last_round']}: models {figure['models']:.1f} s, evaluation "
            f"{figure['evaluation']:.1f} s, transport {figure['transport']:.2f} s, coding and I/O "
            f"{figure['coding_and_io']:.2f} s: share {figure['share']:.1%} (target <= {TARGET:.0%})"
        )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=1))


def run_and_measure(config_file: Path, overrides: list[str], methods: list[str]) -> list[dict[str, Any]]:
    """Run the methods one after the other in a folder that is thrown away."""
    from fedtandem import load_config
    from fedtandem.errors import FedtandemError
    from fedtandem.federation.runs import run_methods

    with tempfile.TemporaryDirectory() as folder:
        try:
            run_methods(load_config(config_file, overrides), methods, Path(folder) / "run")
        except FedtandemError as error:
            print(f"SKIPPED: {error}")  # the study's data is not part of the package
            return []
        return shares(Path(folder) / "run")


def shares(run: Path) -> list[dict[str, Any]]:
    """One figure per method of a run folder that had at least two rounds."""
    from fedtandem.federation.events import read_events

    events = read_events(run / "events.jsonl")
    figures = []
    for done in (event for event in events if event["event"] == "method_finished"):
        own = [event for event in events if event.get("method") == done["method"]]
        committed = {e["round"]: e["cpu_seconds"] for e in own if e["event"] == "round_committed"}
        last = max(committed, default=0)
        if last < 2:
            continue
        first = next(at for at, e in enumerate(own) if e["event"] == "round_committed" and e["round"] == 1)
        phases = [e for e in own[first:] if e["event"] == "phase" and not e.get("remembered")]
        spent = {name: sum(e["cpu_seconds"] for e in phases if e["phase"] == name) for name in
                 (*MODELS, "evaluate", "transport", "select", "align")}  # fmt: skip
        models = sum(spent[name] for name in MODELS)
        transport = spent["transport"] + spent["select"] + spent["align"]
        window = done["cpu_seconds"] - committed[1]
        rest = max(0.0, window - models - spent["evaluate"] - transport)
        figures.append({
            "method": done["method"], "rounds": last, "last_round": last, "models": models,
            "evaluation": spent["evaluate"], "transport": transport, "coding_and_io": rest,
            "share": (transport + rest) / (models + transport + rest),
        })  # fmt: skip
    return figures


if __name__ == "__main__":
    main()
