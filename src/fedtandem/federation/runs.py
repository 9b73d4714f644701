"""One run: methods one after the other over the same data and models, recorded in one folder."""

import json
import logging
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save

from fedtandem.algorithms.fedmkt import run_fedmkt
from fedtandem.algorithms.learner import Progress, Remembered, Timed
from fedtandem.atomic import write_bytes, write_text
from fedtandem.config import RunConfig
from fedtandem.data.public import public_hash
from fedtandem.errors import ConfigError, FedtandemError
from fedtandem.evaluation.scorer import Evaluation
from fedtandem.exchange.carrier import Carrier
from fedtandem.federation.alone import alone
from fedtandem.federation.build import SERVER, Parts, assemble, load_parts
from fedtandem.federation.events import EventLog, read_events
from fedtandem.federation.local import FaultPlan, LocalCarrier
from fedtandem.federation.methods import METHODS, Method, method_named
from fedtandem.federation.now import Now
from fedtandem.federation.processes import is_first, part, run_folder
from fedtandem.federation.remote import Count, Emit, Remote, check_methods, new_experiment
from fedtandem.federation.strategy import RoundPolicy, Strategy
from fedtandem.federation.tracking import Tracking

if TYPE_CHECKING:
    from fedtandem.federation.progress import Watch

_LOG = logging.getLogger(__name__)


def _silent(what: str, done: int, of: int) -> None:
    return None


def run_methods(
    config: RunConfig,
    methods: Sequence[str],
    output: Path,
    *,
    resume: bool = False,
    progress: Progress = _silent,
    faults: FaultPlan | None = None,
    measure_untouched: bool = True,
    remote: Remote | None = None,
    memo: dict[str, Remembered] | None = None,
) -> dict[str, Any]:
    """Run methods and write the run folder.

    Args:
        config: the run.
        methods: names of `METHODS`, the first being the one the report is about.
        output: the run folder; must be new or empty unless `resume`.
        resume: go on with what this folder holds; the config must be the same.
        progress: told (what, done, of).
        faults: what the network does wrong (tests).
        measure_untouched: evaluate the models before round 1 too; the method `zero_shot` always does.
        remote: the clients are elsewhere, behind this engine; None: all parties are here.
        memo: private phases that other runs of this process have done from the very same state; None: only
            those of this run, where it has several methods.

    Returns:
        The summary, as in `summary.json`.

    Raises:
        ConfigError: the folder holds another run; a method is unknown.
    """
    with run_folder(output) as folder, alone(folder):
        return _run_methods(
            config, methods, folder, resume, progress, faults, measure_untouched, remote, memo
        )


def _run_methods(
    config: RunConfig,
    methods: Sequence[str],
    output: Path,
    resume: bool,
    progress: Progress,
    faults: FaultPlan | None,
    measure_untouched: bool,
    remote: Remote | None,
    memo: dict[str, Remembered] | None,
) -> dict[str, Any]:
    chosen = {name: method_named(name) for name in methods}
    if remote is not None:
        check_methods(methods)
    elif config.federation.carrier != "local":
        raise ConfigError(
            f'federation.carrier is "{config.federation.carrier}": start the run with `fedtandem run FILE '
            '--connection NAME`, or set it to "local".'
        )
    tracking = Tracking(config.report.report_to, output, config.name, config.resolved())
    record = open_record(config, list(methods), output, resume, remote.name if remote else "local")
    transformers.utils.logging.disable_progress_bar()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_num_threads(record["num_threads"])
    log, progress = EventLog(output / "events.jsonl", tracking), Now(output, progress)
    try:
        log.emit("run_started", methods=list(methods), resumed=resume)
        with Timed(partial(_loaded, log)):
            parts = load_parts(config, progress, None if remote is None else {SERVER})
        if memo is not None or len(chosen) > 1:  # of one method no phase comes twice
            parts.memo = {} if memo is None else memo
        record["public_hash"] = public_hash(parts.public)
        record["models"] = {name: _about(parts, name) for name in parts.parties}
        _write_record(output, record)
        for at, (name, method) in enumerate(chosen.items()):
            starts = method.no_rounds or (measure_untouched and at == 0 and "zero_shot" not in chosen)
            reach = None if remote is None else partial(remote.connect, record["experiment"], name)
            _run_one(parts, name, method, output, log, progress, faults, reach, measure_untouched=starts)
        summary = _summarise(output, list(methods), config.seed)
        write_text(output / "summary.json", json.dumps(summary, indent=1))
        record["status"], record["finished"] = "finished", _now()
        _write_record(output, record)
        log.emit("run_finished")
        return summary
    except BaseException as fault:
        # A full disk takes no last word either; the fault itself is what the caller must hear.
        with suppress(OSError, FedtandemError):
            log.emit("run_failed", kind=type(fault).__name__, text=str(fault))
        raise
    finally:
        log.close()


def open_record(
    config: RunConfig, methods: list[str], output: Path, resume: bool, carrier: str
) -> dict[str, Any]:
    """Begin a run's record, or take up the one that is there.

    Raises:
        ConfigError: the folder holds a run and `resume` is false, or it holds another run.
    """
    path = output / "run.json"
    threads = config.num_threads or torch.get_num_threads()
    if path.is_file():
        old = json.loads(path.read_text())
        if not resume:
            raise ConfigError(
                f"{output} already holds a run ({old['status']}). Give --resume to go on with it, or another --output."
            )
        if old["config_hash"] != config.hash or old["methods"] != methods:
            raise ConfigError(
                f"{output} holds another run: {_difference(old, config, methods)}. Resume with the same file, or give "
                "another --output."
            )
        if old["carrier"] != carrier:
            raise ConfigError(
                f"{output} was begun with the carrier {old['carrier']!r}, not {carrier!r}: its clients' states lie "
                "elsewhere. Resume with the same carrier, or give another --output."
            )
        if config.num_threads is None:
            threads = old["num_threads"]
        if old["num_threads"] != threads:
            raise ConfigError(
                f"num_threads is {threads}, the run was begun with {old['num_threads']}; other threads give other "
                "bits. Set num_threads to the old value to resume."
            )
        old["status"] = "running"
        _write_record(output, old)
        return dict(old)
    record = {
        "schema": 1, "name": config.name, "algorithm": config.algorithm, "methods": methods,
        "config": config.resolved(), "config_hash": config.hash, "seed": config.seed, "versions": versions(),
        "public_hash": None, "models": {}, "num_threads": threads, "carrier": carrier,
        "started": _now(), "finished": None, "status": "running",
    }  # fmt: skip
    if carrier != "local":
        record["experiment"] = new_experiment(config.name)
    _write_record(output, record)
    return record


def _difference(old: Mapping[str, Any], config: RunConfig, methods: list[str]) -> str:
    if old["methods"] != methods:
        return f"its methods are {', '.join(old['methods'])}, asked for are {', '.join(methods)}"
    before, now = _flat(old["config"]), _flat(config.resolved())
    keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    return (
        "; ".join(f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in keys[:5])
        or "its config differs"
    )


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {
            k: v for key, inner in value.items() for k, v in _flat(inner, f"{path}.{key}".strip(".")).items()
        }
    if isinstance(value, list):
        return {k: v for at, inner in enumerate(value) for k, v in _flat(inner, f"{path}[{at}]").items()}
    return {path: value}


def _write_record(output: Path, record: Mapping[str, Any]) -> None:
    write_text(output / "run.json", json.dumps(record, indent=1, default=str))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """What the run ran on."""
    names = ("fedtandem", "torch", "transformers", "peft", "tokenizers", "numpy", "safetensors")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _about(parts: Parts, name: str) -> dict[str, Any]:
    party = parts.parties[name]
    return {
        "name": party.config.model,
        "vocab_hash": party.lm.tokenizer.card.hash,
        "vocab_size": party.lm.tokenizer.vocab_size,
        "parameters": sum(p.numel() for p in party.lm.model.parameters()),
        "trainable": sum(tensor.numel() for tensor in party.untouched.values()),
        "architecture": type(party.lm.model).__name__ if not hasattr(party.lm.model, "get_base_model")
        else type(party.lm.model.get_base_model()).__name__,
        "own_samples": len(party.own),
    }  # fmt: skip


def _loaded(log: EventLog, cpu_seconds: float) -> None:
    log.emit("phase", phase="load", round=0, party="all", cpu_seconds=cpu_seconds)


def _run_one(
    parts: Parts,
    name: str,
    method: Method,
    output: Path,
    log: EventLog,
    progress: Progress,
    faults: FaultPlan | None,
    reach: Callable[[Count, Emit], Carrier] | None,
    *,
    measure_untouched: bool,
) -> None:
    """One method from its first to its last round, or from where it stopped."""
    done = output / "methods" / name / "done"
    if done.is_file():
        return

    started = time.process_time()

    def emit(event: str, **fields: Any) -> None:
        if event == "round_committed":
            fields["cpu_seconds"] = time.process_time() - started  # of the method so far, all parties
        log.emit(event, method=name, **fields)
        if event == "warning":
            _LOG.warning("%s: %s", fields.get("signature"), fields.get("text"))

    def report(party: str, round_number: int, results: Mapping[str, Evaluation]) -> None:
        _keep_evaluations(output, name, party, round_number, results)
        for split, result in results.items():
            emit(
                "metric", round=round_number, party=party, split=split, metric=result.metric, value=result.value,
                n=result.n, higher_is_better=result.higher_is_better,
            )  # fmt: skip

    traffic: dict[tuple[int, str], list[int]] = {}

    def count(party: str, round_number: int, up: int, down: int) -> None:
        total = traffic.setdefault((round_number, party), [0, 0])
        total[0] += up
        total[1] += down
        emit("bytes", round=round_number, party=party, up=total[0], down=total[1])

    emit("method_started", says=method.says)
    folder = output / "methods" / name / "state"
    server, clients = assemble(
        parts, method, folder, emit, lambda what, at, of: progress(f"{name} · {what}", at, of), report,
        measure_untouched=measure_untouched,
    )  # fmt: skip
    federation = parts.config.federation
    strategy = Strategy(
        LocalCarrier(clients, count=count, faults=faults) if reach is None else reach(count, emit),
        RoundPolicy(
            federation.fraction_train, federation.min_clients, federation.deadline_s, federation.on_short,
            parts.config.seed, tuple(client.name for client in parts.config.clients),
        ),
        emit,
    )  # fmt: skip
    if method.no_rounds:
        server.report(0, server.learner.evaluate(0))
        for client in clients.values():
            client.report(0, client.learner.evaluate(0))
    else:
        run_fedmkt(server, strategy, emit)
        for client in clients.values():
            client.wake()  # one that only repeated its stored reply has not loaded its last state
    _save_adapters(parts, output, name, method, clients.keys())
    write_text(done, _now())
    emit("method_finished", cpu_seconds=time.process_time() - started)


def _save_adapters(
    parts: Parts, output: Path, method_name: str, method: Method, clients: Sequence[str] | Any
) -> None:
    """Final states as PEFT folders (or whole models), with a `round.json` beside them."""
    flow = method.flow
    trained = list(clients) if flow.asks_clients else []
    if flow.server_learns or flow.server_private:
        trained.append(SERVER)
    for name in trained:
        save_adapter(parts, name, method_name, output / "adapters" / method_name / name)


def save_adapter(parts: Parts, name: str, method_name: str, folder: Path) -> None:
    """A party's state as a PEFT folder (or a whole model), with a `round.json` beside it."""
    party = parts.parties[name]
    party.lm.save(folder)
    about = {
        "method": method_name, "party": name, "round": parts.config.federation.num_rounds, "seed": parts.config.seed,
        "base_model": party.config.model, "vocab_hash": party.lm.tokenizer.card.hash,
    }  # fmt: skip
    write_text(folder / "round.json", json.dumps(about, indent=1))


# -- evaluations and the summary ---------------------------------------------------------------------------------


def _keep_evaluations(
    output: Path, method: str, party: str, round_number: int, results: Mapping[str, Evaluation]
) -> None:
    """Per-item values of one evaluation, committed before the state that made them."""
    arrays = {}
    for split, result in results.items():
        arrays[f"{party}|{split}|{result.metric}|value"] = np.asarray(result.item_values, dtype=np.float32)
        arrays[f"{party}|{split}|{result.metric}|weight"] = np.asarray(result.item_weights, dtype=np.float32)
    if arrays:
        write_bytes(
            output / "methods" / method / "evaluations" / f"{party}-{round_number:04d}.safetensors",
            save(arrays),
        )


def _summarise(output: Path, methods: list[str], seed: int) -> dict[str, Any]:
    """Rows of the final states, bytes and CPU seconds; per-item values go to `items/`."""
    events = read_events(output / "events.jsonl")
    rows = []
    for name in methods if "zero_shot" in methods else ["zero_shot", *methods]:
        latest: dict[tuple[str, str, str], dict[str, Any]] = {}
        for event in events:
            if event["event"] == "metric" and _belongs(event, name, methods):
                key = (event["party"], event["split"], event["metric"])
                if key not in latest or latest[key]["round"] <= event["round"]:
                    latest[key] = event
        parties = METHODS[name].parties
        items: dict[str, np.ndarray] = {}
        for (party, split, metric), event in sorted(latest.items()):
            if ("server" if party == SERVER else "clients") not in parties:
                continue
            rows.append({
                "method": name, "party": party, "split": split, "metric": metric,
                "higher_is_better": event["higher_is_better"], "value": event["value"], "n": event["n"], "seed": seed,
            })  # fmt: skip
            file = f"{party}-{event['round']:04d}.safetensors"
            kept_at = output / "methods" / event["method"] / "evaluations" / file
            if not kept_at.is_file():  # of a client elsewhere only the means are told
                continue
            kept = load_file(kept_at)
            items.update(
                {key: value for key, value in kept.items() if key.startswith(f"{party}|{split}|{metric}|")}
            )
        if items:
            write_bytes(output / "items" / f"{name}.safetensors", save(items))
    traffic = [
        {"method": e["method"], "round": e["round"], "party": e["party"], "up": e["up"], "down": e["down"]}
        for e in events
        if e["event"] == "bytes"
    ]
    # In order of methods, rounds and names, not as replies came.
    traffic.sort(key=lambda one: (methods.index(one["method"]), one["round"], one["party"]))
    seconds = [
        {"method": e.get("method", "all"), "round": e["round"], "party": e["party"], "phase": e["phase"],
         "value": e["cpu_seconds"]}
        for e in events
        if e["event"] == "phase"
    ]  # fmt: skip
    return {"schema": 1, "rows": rows, "bytes": traffic, "cpu_seconds": seconds}


def _belongs(event: Mapping[str, Any], name: str, methods: list[str]) -> bool:
    """Whether an evaluation is one of this method's; the untouched models are measured by the first method."""
    if name == "zero_shot" and name not in methods:
        return bool(event["method"] == methods[0] and event["round"] == 0)
    return bool(event["method"] == name)


def where_it_stopped(folder: Path) -> str:
    """What a resumed run goes on from, in words."""
    log = folder / "events.jsonl"
    done = [e for e in read_events(log) if e["event"] == "round_committed"] if log.is_file() else []
    if not done:
        return f"{folder}: no round was committed yet; the run starts over."
    return f"{folder}: goes on after {done[-1]['method']}, round {done[-1]['round']}."


Engine = Callable[[RunConfig, Path, bool, "Watch"], dict[str, Any]]
"""`engine(config, folder, resume, watch)`: runs a config's methods and returns the summary."""


def here(config: RunConfig, folder: Path, resume: bool, watch: "Watch") -> dict[str, Any]:
    """All parties in this process."""
    return run_methods(config, config.methods, folder, resume=resume, progress=watch)


def run_command(
    config: RunConfig, *, output: Path | None, resume: bool, json_output: bool, engine: Engine = here
) -> int:
    """`fedtandem run`: one method, its controls, a table and a report."""
    from fedtandem.federation.progress import Watch
    from fedtandem.reports.html import report_command
    from fedtandem.reports.tables import print_summary

    folder = output or Path("runs") / config.name
    with Watch(quiet=json_output or not is_first()) as watch:
        if resume and not watch.quiet:
            watch.console.print(where_it_stopped(folder), highlight=False)
        summary = engine(config, folder, resume, watch)
    first = is_first()
    part()
    if not first:
        return 0
    if json_output:
        print(json.dumps({"output": str(folder), **summary}))
    else:
        print_summary(folder)
    if config.report.enabled:
        page = report_command(folder)
        if not json_output:
            print(f"report: {page}")
    return 0
