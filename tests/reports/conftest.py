"""A run folder and a study summary as the program writes them, with figures like those of a real run."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PARTIES = ("server", "clinic-a", "clinic-b")
CONTROL = {"server": "server_public", "clinic-a": "standalone_public", "clinic-b": "standalone_public"}
# party, split: (before, end under FedMKT, end under its control)
SKILLS = {
    ("server", "at-1-step"): (0.0, 0.931, 0.004),
    ("server", "at-2-steps"): (0.0, 0.874, 0.002),
    ("server", "and-1-step"): (0.0, 0.958, 0.0),
    ("server", "and-2-steps"): (0.0, 0.902, 0.003),
    ("server", "old-skills"): (0.998, 0.981, 0.997),
    ("clinic-a", "own"): (0.993, 0.989, 0.991),
    ("clinic-a", "3-steps"): (0.0, 0.412, 0.037),
    ("clinic-b", "own"): (0.987, 0.981, 0.985),
    ("clinic-b", "3-steps"): (0.0, 0.365, 0.041),
}
ROUNDS = 5
N = 1000


def build_run(folder: Path, *, finished: bool = True, rounds: int = ROUNDS) -> Path:
    """Write a run folder: FedMKT and two controls, two clients, five rounds (or as many as were committed)."""
    folder.mkdir(parents=True, exist_ok=True)
    methods = ["fedmkt", "standalone_public", "server_public"] if finished else ["fedmkt"]
    events: list[dict[str, Any]] = []
    for method in methods:
        events += _method_events(method, rounds)
    models = {
        "server": {"name": "embedded:chains-server", "architecture": "LlamaForCausalLM", "parameters": 283_104,
                   "trainable": 283_104, "vocab_hash": "5ad1" * 16, "vocab_size": 64},
        "clinic-a": {"name": "embedded:chains-client-a", "architecture": "GPT2LMHeadModel", "parameters": 84_352,
                     "trainable": 84_352, "vocab_hash": "77e0" * 16, "vocab_size": 96},
        "clinic-b": {"name": "embedded:chains-client-b", "architecture": "OPTForCausalLM", "parameters": 86_912,
                     "trainable": 86_912, "vocab_hash": "c2f4" * 16, "vocab_size": 128},
    }  # fmt: skip
    about = {
        "schema": 1, "name": "chains", "algorithm": "fedmkt",
        "methods": ["fedmkt", "standalone_public", "server_public"], "config": CONFIG, "config_hash": "9b1c" * 16,
        "seed": 0, "versions": {"python": "3.11.9", "fedtandem": "0.1.0", "torch": "2.13.0"},
        "public_hash": "e3b0" * 16, "models": models, "num_threads": 1, "carrier": "local",
        "started": "2026-11-21T05:00:00+00:00", "finished": "2026-11-21T05:02:10+00:00" if finished else None,
        "status": "finished" if finished else "running",
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(about))
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    if finished:
        rows = []
        for (party, split), (before, after, control) in SKILLS.items():
            for method, value in (("zero_shot", before), ("fedmkt", after), (CONTROL[party], control)):
                rows.append({"method": method, "party": party, "split": split, "metric": "exact_match",
                             "higher_is_better": True, "value": value, "n": N, "seed": 0})  # fmt: skip
        summary = {
            "schema": 1, "rows": rows,
            "bytes": [{k: e[k] for k in ("method", "round", "party", "up", "down")} for e in events
                      if e["event"] == "bytes"],
            "cpu_seconds": [{**{k: e[k] for k in ("method", "round", "party", "phase")}, "value": e["cpu_seconds"]}
                            for e in events if e["event"] == "phase"],
        }  # fmt: skip
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


CONFIG = {
    "name": "chains", "algorithm": "fedmkt", "seed": 0, "controls": ["standalone_public", "server_public"],
    "federation": {"carrier": "local", "num_rounds": ROUNDS, "min_clients": 1},
    "distillation": {"hard_weight": 0.1, "temperature": 1.0, "replay_fraction": 0.5, "kl": None},
    "knowledge": {"top_k": 64, "top_k_mass": 0.99},
    "public": {"path": ["embedded:chains"], "labelled": False},
}  # fmt: skip


def _method_events(method: str, rounds: int) -> list[dict[str, Any]]:
    parties = [p for p in PARTIES if method == "fedmkt" or CONTROL[p] == method]
    base = {"time": "2026-11-21T05:00:00.000+00:00", "method": method}
    says = {"fedmkt": "FedMKT as configured"}.get(method, "no exchange")
    events: list[dict[str, Any]] = [{**base, "event": "method_started", "says": says}]

    def emit(event: str, number: int, party: str, **fields: Any) -> None:
        events.append({**base, "event": event, "round": number, "party": party, **fields})

    if method == "fedmkt":
        emit("alignment", 0, "server", teacher="clinic-a", aligned_share=0.97, unmapped_ids=1)
        emit("alignment", 0, "server", teacher="clinic-b", aligned_share=0.74, unmapped_ids=2)
        emit("warning", 0, "server", signature="poor alignment",
             text="74% of server's answer positions have a partner in clinic-b's tokenisation "
             "(embedded:chains-server <- embedded:chains-client-b); the others learn from labels alone")  # fmt: skip
        for party in PARTIES:
            for split, (before, _, _) in _skills_of(party):
                emit(
                    "metric",
                    0,
                    party,
                    split=split,
                    metric="exact_match",
                    value=before,
                    n=N,
                    higher_is_better=True,
                )
    for number in range(1, rounds + 1):
        reached = 1 - math.exp(-1.1 * number) if number < ROUNDS else 1.0
        for party in parties:
            for split, (before, after, control) in _skills_of(party):
                end = after if method == "fedmkt" else control
                emit("metric", number, party, split=split, metric="exact_match", n=N, higher_is_better=True,
                     value=round(before + (end - before) * reached, 3))  # fmt: skip
            emit("phase", number, party, phase="public", cpu_seconds=3.1, steps=50, loss_first=1.2, loss_last=0.3,
                 hard=0.2, soft=0.1, kd_gradient_share=0.4 + 0.05 * number)  # fmt: skip
            emit("phase", number, party, phase="evaluate", cpu_seconds=1.4)
            if method == "fedmkt":
                emit("phase", number, party, phase="pass", cpu_seconds=0.6)
                emit("phase", number, party, phase="align", cpu_seconds=0.05)
        if method == "fedmkt":
            _exchange(emit, number)
        events.append({**base, "event": "round_committed", "round": number, "skipped": False})
    if rounds == ROUNDS:
        events.append({**base, "event": "method_finished"})
    return events


def _skills_of(party: str) -> list[tuple[str, tuple[float, float, float]]]:
    return [(split, skill) for (name, split), skill in SKILLS.items() if name == party]


def _exchange(emit: Callable[..., None], number: int) -> None:
    up = 140 + 10 * number
    emit("selection", number, "server", teachers={"clinic-a": up, "clinic-b": 290 - 12 * number}, n=400,
         skipped=800 - up - (290 - 12 * number), unscored=4,
         kept_mass={"clinic-a": 0.97, "clinic-b": 0.95})  # fmt: skip
    for client in PARTIES[1:]:
        emit("selection", number, client, teachers={"server": 700 - 60 * number}, n=700, skipped=100 + 60 * number,
             unscored=0, kept_mass={"server": 0.93})  # fmt: skip
        emit("bytes", number, client, up=61_000 - 2_000 * number, down=148_000 - 9_000 * number)


def build_study(folder: Path, seeds: int = 5) -> Path:
    """Write a study's summary: bits per byte for clients, distillation against the same text without it."""
    from fedtandem.studies.cells import Cell, Figure
    from fedtandem.studies.statistics import Items
    from fedtandem.studies.summary import Plan, summarise

    rng = np.random.default_rng(0)
    clients, splits = ("austen", "melville", "dickens"), ("own", "mixed")
    effect = {"standalone_public": 0.0, "fedmkt": -0.085, "kd_hard_0.9": -0.012, "ce_best": -0.03}
    weight = np.full(120, 512.0)
    cells = []
    for seed in range(seeds):
        difficulty = {c: rng.normal(2.5, 0.3, 120) for c in clients}
        luck = rng.normal(0, 0.01)
        for row, gain in effect.items():
            figures, curves = {}, {}
            for client in clients:
                for split in splits:
                    own = gain * (1 if split == "mixed" else 0.25) + luck + rng.normal(0, 0.006)
                    bits = (difficulty[client] + own + rng.normal(0, 0.05, 120)) * weight
                    items = Items(bits, weight)
                    key = (client, split, "bits_per_byte")
                    figures[key] = Figure(items.figure, False, 120, items)
                    curves[key] = tuple((r, items.figure + 0.5 * 0.5**r) for r in range(4))
            record = {
                "public_hash": f"{seed}abc" * 16, "versions": {"python": "3.11.9", "fedtandem": "0.1.0"},
                "models": {"server": {"name": "scratch:llama-160x4", "parameters": 1_500_000, "trainable": 1_500_000},
                           **{c: {"name": "scratch:gpt2-64x2", "parameters": 200_000, "trainable": 200_000}
                              for c in clients}},
            }  # fmt: skip
            traffic = dict.fromkeys(clients, (20000, 900000)) if row != "standalone_public" else {}
            updates = dict.fromkeys(clients, 600 if row != "ce_best" else 480)
            cpu = dict.fromkeys(clients, 40.0)
            cells.append(Cell(row, seed, figures, curves, updates, traffic, 120.0, cpu, record))
    controls = {"fedmkt": ("standalone_public", "ce_best"), "kd_hard_0.9": ("standalone_public",)}
    plan = Plan(tuple(effect), tuple(range(seeds)), controls)
    summary = {"name": "novels", "algorithm": "fedmkt", **summarise(plan, cells, draws=2000),
               "config": {**CONFIG, "name": "novels"}, "config_hash": "77aa" * 16}  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_run(tmp_path_factory.mktemp("run") / "chains")


@pytest.fixture
def unfinished_run(tmp_path: Path) -> Path:
    return build_run(tmp_path / "unfinished", finished=False, rounds=2)


@pytest.fixture(scope="session")
def study_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_study(tmp_path_factory.mktemp("study") / "novels")
