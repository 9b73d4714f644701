"""`fedtandem inspect`: any file or folder this program writes, in plain words."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedtandem.errors import DataError, InvalidMessage
from fedtandem.federation.audit import NAME as AUDIT
from fedtandem.federation.audit import describe_audit
from fedtandem.reports.contrasts import run_contrasts, study_contrasts
from fedtandem.reports.costs import run_costs
from fedtandem.reports.record import RunRecord, StudyRecord, is_run, is_study, read_record
from fedtandem.reports.verdicts import run_headline, study_headline
from fedtandem.reports.wording import difference, figure, listed, method_name, metric_name, payload, seconds

ENVELOPE_MAGIC = b"FTEN"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
NUMPY_MAGIC = b"\x93NUMPY"
SHOWN = 12
"""Names listed before the rest is only counted."""


def inspect_command(path: Path) -> str:
    """Say what lies there.

    Args:
        path: an envelope or a frame; an adapter or model folder; a run's or a study's folder; safetensors; a
            vocabulary map (.npy or .json); a site's audit log, or the folder that holds it.

    Raises:
        DataError: there is nothing, or nothing this program knows.
        InvalidMessage: an envelope or frame that is cut short or was tampered with.
    """
    if path.is_dir():
        return "\n".join(_folder(path))
    if path.is_file():
        return "\n".join(_file(path))
    raise DataError(f"{path} does not exist.")


# -- folders -----------------------------------------------------------------------------------------------------


def _folder(path: Path) -> list[str]:
    if (path / AUDIT).is_file():
        return describe_audit(path / AUDIT)
    if is_run(path) or is_study(path):
        record = read_record(path)
        return _run(record) if isinstance(record, RunRecord) else _study(record)
    if (path / "adapter_config.json").is_file() or (path / "config.json").is_file():
        return _model(path)
    raise DataError(
        f"{path} is no folder this program writes: it has no run.json, summary.json of a study, adapter_config.json or "
        f"config.json. It holds {_some(sorted(entry.name for entry in path.iterdir()))}."
    )


def _run(run: RunRecord) -> list[str]:
    about = run.about
    state = about.get("status", "unknown")
    progress = "" if run.finished else f", {run.rounds_done} of {run.num_rounds} rounds committed"
    lines = [
        f"a run, {run.name!r}: {method_name(run.main)}, seed {about.get('seed')}, {state}{progress}",
        f"methods: {listed(list(run.methods))}",
        f"carrier {about.get('carrier')}; torch threads: {about.get('num_threads')}",
        f"public set {about.get('public_hash')}",
    ]
    for party, model in about.get("models", {}).items():
        sizes = f"{model.get('parameters', 0):,} parameters, {model.get('trainable', 0):,} trained"
        lines.append(f"{party}: {model.get('name')}, {sizes}")
    for cost in run_costs(run):
        lines.append(
            f"{method_name(cost.method)}: {cost.updates:,.0f} updates, {seconds(cost.total)} CPU, "
            f"{payload(cost.up)} up, {payload(cost.down)} down"
        )
    contrasts = run_contrasts(run)
    for c in contrasts:
        control = (
            f", {difference(c.difference, c.metric)} against {method_name(c.control)}" if c.control else ""
        )
        before = f"{figure(c.before, c.metric)} to " if c.before is not None else ""
        lines.append(
            f"{c.party}, {c.split}: {metric_name(c.metric)} {before}{figure(c.value, c.metric)}{control}"
        )
    lines += [
        f"warning: {note.kind} ({note.party}, round {note.round}): {note.text}"
        for note in run.warnings[:SHOWN]
    ]
    lines.append(run_headline(contrasts, controls_to_come=not run.finished and len(run.methods) > 1).title)
    return lines


def _study(study: StudyRecord) -> list[str]:
    summary = study.summary
    contrasts = study_contrasts(study)
    finished = len({b["seed"] for b in summary.get("budgets", ())})
    headline = study_headline(
        contrasts,
        not_valid=summary.get("not_valid_because", ()),
        seeds=finished,
        needed=summary.get("seeds_for_a_claim", 5),
    )
    return [
        f"a study, {study.name!r}: {summary.get('cells_finished')} of {summary.get('cells')} cells finished, "
        f"seeds {summary.get('seeds')}",
        f"rows: {listed(list(dict.fromkeys(row['method'] for row in study.rows)))}",
        headline.title,
        *(f"  {line.text}" for line in headline.lines),
    ]


def _model(path: Path) -> list[str]:
    """An adapter or a whole model as `save` and `export` write them."""
    adapter = path / "adapter_config.json"
    lines = []
    if adapter.is_file():
        config = _json(adapter)
        lines.append(
            f"a PEFT adapter ({config.get('peft_type')}) for {config.get('base_model_name_or_path')!r}: "
            f"r {config.get('r')}, alpha {config.get('lora_alpha')}, "
            f"modules {_some(sorted(map(str, config.get('target_modules') or [])))}"
        )
    else:
        config = _json(path / "config.json")
        lines.append(f"a whole model: {listed(config.get('architectures') or ['unknown architecture'])}")
    for name in ("fedtandem.json", "round.json"):
        if (path / name).is_file():
            lines.append(
                f"{name}: " + ", ".join(f"{key} {value}" for key, value in _json(path / name).items())
            )
    for weights in sorted(path.glob("*.safetensors")):
        lines += _file(weights)
    return lines


# -- files -------------------------------------------------------------------------------------------------------


def _file(path: Path) -> list[str]:
    with path.open("rb") as file:
        start = file.read(16)
    if start.startswith(ENVELOPE_MAGIC):
        return _readable(path, _envelope)
    if start.startswith(ZSTD_MAGIC):
        return _readable(path, _frame)
    if start.startswith(NUMPY_MAGIC):
        return _map_array(path)
    if (
        path.suffix == ".safetensors" or start[8:9] == b"{"
    ):  # a length, then JSON: a party's state has no ending
        return _tensors(path)
    if path.suffix == ".json":
        return _table(path)
    if path.name == AUDIT:
        return describe_audit(path)
    raise DataError(
        f"{path} is no file this program writes: an envelope begins with FTEN, a frame is zstandard; known endings are "
        ".safetensors, .npy, .json and audit.jsonl. To look into a run, name its folder."
    )


def _readable(path: Path, say: Callable[[bytes], list[str]]) -> list[str]:
    try:
        return say(path.read_bytes())
    except InvalidMessage as error:
        raise InvalidMessage(f"{path}: {error}") from error


def _envelope(data: bytes) -> list[str]:
    from fedtandem.exchange.carrier import Envelope
    from fedtandem.exchange.describe import describe

    return describe(Envelope.from_bytes(data))


def _frame(data: bytes) -> list[str]:
    from fedtandem.exchange.describe import describe_frame

    return describe_frame(data)


def _map_array(path: Path) -> list[str]:
    import numpy as np

    try:
        array = np.load(path, allow_pickle=False)
    except ValueError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if array.ndim == 1 and array.dtype == np.int32:
        return _map(path, array.tolist())
    return [f"{path.name}: an array {array.dtype}{array.shape}"]


def _map(path: Path, ids: list[int]) -> list[str]:
    mapped = [id_ for id_ in ids if id_ >= 0]
    share = 100 * len(mapped) / max(1, len(ids))
    shown = ", ".join(f"{at} -> {id_}" for at, id_ in enumerate(ids[:SHOWN]))
    return [
        f"{path.name}: a vocabulary map of {len(ids):,} teacher tokens to {len(set(mapped)):,} different base tokens",
        f"{share:.1f} % have a base token; {len(ids) - len(mapped):,} have none (-1), their probability joins the tail",
        f"first: {shown}",
    ]


def _tensors(path: Path) -> list[str]:
    """Names and shapes from the header alone; the weights are not loaded."""
    with path.open("rb") as file:
        head = file.read(8)
        size = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
        if not 0 <= size <= path.stat().st_size - 8:
            raise DataError(
                f"{path} is no safetensors file: its header would be {size} bytes long. Was it cut short?"
            )
        try:
            header = json.loads(file.read(size))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise DataError(f"{path} is no safetensors file: its header is not JSON ({error}).") from error
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    numbers = sum(_product(entry["shape"]) for entry in tensors.values())
    lines = [f"{path.name}: {len(tensors)} tensors, {numbers:,} numbers, {payload(path.stat().st_size)}"]
    for name, entry in list(tensors.items())[:SHOWN]:
        lines.append(f"  {name} {entry['dtype']}{tuple(entry['shape'])}")
    if len(tensors) > SHOWN:
        lines.append(f"  ... and {len(tensors) - SHOWN} more")
    return lines


def _product(shape: list[int]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total


def _table(path: Path) -> list[str]:
    """A JSON file: a vocabulary map as `fedtandem vocabulary` writes it, else its keys."""
    table = _json(path)
    if table and all(key.isdecimal() and isinstance(value, int) for key, value in table.items()):
        return _map(path, [table[key] for key in sorted(table, key=int)])
    return [f"{path.name}: JSON with the keys {_some(list(table))}"]


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} holds a {type(value).__name__}, not an object.")
    return value


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) or "nothing") + more
