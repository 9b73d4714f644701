"""The traces all routing studies run on: every SLM beside the cloud, per seed and skew; recorded once, then read."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedtandem.atomic import write_text
from fedtandem.data.items import Item
from fedtandem.data.traces import Trace, TraceInfo, make_trace, read_trace, write_trace
from fedtandem.errors import DataError
from fedtandem.evaluation.record_classes import ClassRecorder, LocalCloud
from fedtandem.federation.calibrate import clustered
from fedtandem.models.classifier import Classifier, Vote, balanced_weights
from fedtandem.models.embedding_bag import BagSpec, EmbeddingBag, new_bag
from fedtandem.models.tfidf import TfidfSpec, train_tfidf
from fedtandem.studies.routing.federated_bag import federated
from fedtandem.studies.routing.news import LABELS, News, files_hash, read_news, shared_out
from fedtandem.studies.trials import Progress

SLMS = ("federated", "personalised", "pooled", "weak")
"""By FedAvg over all clients' texts; the same after one more epoch on the client's own texts; trained on all texts in
one place; trained on one in a hundred."""
PARTS = ("calibration", "test")


@dataclass(frozen=True)
class TraceSettings:
    """Models and sizes; chosen on the calibration set of seed 0.

    Attributes:
        clients, edges: of the federation.
        calibration: decisions that thresholds are learnt on.
        rounds: of the federated SLM's FedAvg.
        weak: share of the texts that the weak SLM sees.
        cloud_bags: bags of word pairs that vote with TF-IDF in the cloud.
        most: rows of each file at most, for small forms.
    """

    clients: int = 20
    edges: int = 4
    calibration: int = 2500
    rounds: int = 12
    weak: float = 0.01
    cloud_bags: int = 2
    slm: BagSpec = field(default_factory=BagSpec)
    local: BagSpec = field(
        default_factory=lambda: BagSpec(epochs=2, batch_size=32, learning_rate=1e-2, word_dropout=0.0)
    )
    personal: BagSpec = field(default_factory=lambda: BagSpec(epochs=1, batch_size=32, word_dropout=0.0))
    cloud_bag: BagSpec = field(
        default_factory=lambda: BagSpec(pairs=True, vocabulary=40_000, epochs=5, word_dropout=0.3)
    )
    tfidf: TfidfSpec = field(default_factory=TfidfSpec)
    most: int | None = None


class _Remembered:
    """The cloud's decisions, made once: every SLM is recorded beside the same ones."""

    def __init__(self, cloud: Classifier, texts: Sequence[str]) -> None:
        self.fingerprint = cloud.fingerprint
        judged = LocalCloud(cloud, LABELS).judge(texts)
        self._of = dict(zip(texts, judged, strict=True))

    def judge(self, texts: Sequence[str]) -> list[Any]:
        return [self._of[text] for text in texts]


def trace_file(folder: Path, seed: int, skew: str, slm: str, part: str) -> Path:
    """Where a trace lies."""
    return folder / f"seed-{seed}" / f"{skew}-{slm}-{part}.parquet"


def load_traces(folder: Path, seed: int, skew: str, slm: str) -> tuple[Trace, Trace]:
    """The calibration trace and the test trace of one cell."""
    calibration, test = (read_trace(trace_file(folder, seed, skew, slm, part)) for part in PARTS)
    return calibration, test


def record_seed(
    folder: Path, data: Path, seed: int, skews: Sequence[str], settings: TraceSettings, progress: Progress
) -> Mapping[str, Any]:
    """Train all models of a seed and record every cell, unless the folder has them.

    Returns:
        What was made: hashes, sizes of the models, CPU seconds.

    Raises:
        DataError: no data, or the folder holds traces of other settings.
    """
    made = folder / f"seed-{seed}" / "made.json"
    key = json.loads(
        json.dumps({"settings": asdict(settings), "skews": list(skews), "data": files_hash(data)})
    )
    if made.is_file():
        found: dict[str, Any] = json.loads(made.read_text(encoding="utf-8"))
        if found["key"] != key:
            raise DataError(
                f"{made.parent} holds traces of other settings or data; delete it to record again, or give another "
                "--output."
            )
        return found
    started = time.process_time()
    news = read_news(data, seed, calibration=settings.calibration, most=settings.most)
    told = _record(folder, news, seed, skews, settings, progress)
    record = {"key": key, "seed": seed, **told, "cpu_seconds": time.process_time() - started}
    write_text(made, json.dumps(record, indent=1))
    return record


def _record(
    folder: Path, news: News, seed: int, skews: Sequence[str], settings: TraceSettings, progress: Progress
) -> dict[str, Any]:
    texts, label = [item.text for item in news.fit], [item.label for item in news.fit]
    weight = balanced_weights(torch.tensor(label), len(LABELS))
    steps, done = 4 + 2 * len(skews), 0

    def told(what: str) -> None:
        nonlocal done
        progress(f"seed {seed}: {what}", done, steps)
        done += 1

    told("cloud")
    cloud = _cloud(texts, label, weight, seed, settings)
    judge = _Remembered(cloud, list(dict.fromkeys(item.text for item in (*news.calibration, *news.test))))
    told("pooled")
    spec = replace(settings.slm, seed=seed)
    start = new_bag(spec, texts, LABELS)
    pooled = start.trained(texts, label, class_weight=weight)
    told("weak")
    few = max(2 * len(LABELS), round(settings.weak * len(texts)))
    weak = new_bag(replace(spec, epochs=60), texts[:few], LABELS).trained(
        texts[:few], label[:few], class_weight=balanced_weights(torch.tensor(label[:few]), len(LABELS))
    )
    for skew in skews:
        mine = shared_out(news, settings.clients, skew, seed)
        told(f"{skew}, federated")
        local = replace(settings.local, seed=seed)
        shared = federated(
            start, _by_client(mine.fit, settings.clients), local, settings.rounds, class_weight=weight
        )
        told(f"{skew}, traces")
        own = {
            f"client-{k:02d}": shared.trained(*held, **vars(replace(settings.personal, seed=seed)))
            for k, held in enumerate(_by_client(mine.fit, settings.clients))
        }
        for name, slm in (("federated", shared), ("pooled", pooled), ("weak", weak), ("personalised", own)):
            _write_cell(folder, seed, skew, name, slm, shared, judge, mine, settings)
    told("done")
    sizes = {"pooled": pooled.parameters, "weak": weak.parameters, "federated": start.parameters}
    return {"models": {"cloud": cloud.fingerprint, "pooled": pooled.fingerprint, "weak": weak.fingerprint},
            "parameters": sizes, "fit": len(news.fit), "calibration": len(news.calibration),
            "test": len(news.test)}  # fmt: skip


def _cloud(
    texts: Sequence[str], label: Sequence[int], weight: torch.Tensor, seed: int, settings: TraceSettings
) -> Classifier:
    members: list[Classifier] = [train_tfidf(replace(settings.tfidf, seed=seed), texts, label, LABELS)]
    for i in range(settings.cloud_bags):
        spec = replace(settings.cloud_bag, seed=1000 + 100 * i + seed)
        members.append(new_bag(spec, texts, LABELS).trained(texts, label, class_weight=weight))
    return Vote(members, "cloud")


def _by_client(items: Sequence[Item], clients: int) -> list[tuple[list[str], list[int]]]:
    held: list[tuple[list[str], list[int]]] = [([], []) for _ in range(clients)]
    for item in items:
        mine = held[int(item.client.removeprefix("client-"))]
        mine[0].append(item.text)
        mine[1].append(item.label)
    return held


def _write_cell(
    folder: Path,
    seed: int,
    skew: str,
    name: str,
    slm: EmbeddingBag | Mapping[str, EmbeddingBag],
    shared: EmbeddingBag,
    judge: _Remembered,
    news: News,
    settings: TraceSettings,
) -> None:
    """Record both parts; the edges are made of like clients of the calibration part."""
    label = f"news, {skew}, {name} SLM, seed {seed}"
    parts = [
        _decisions(slm, shared, judge, items, f"{label}, {part}")
        for part, items in zip(PARTS, (news.calibration, news.test), strict=True)
    ]
    grouped = clustered(parts[0], settings.edges, np.random.default_rng(seed))
    edge = dict(zip(grouped.client.tolist(), grouped.cluster.tolist(), strict=True))
    for part, trace in zip(PARTS, parts, strict=True):
        placed = replace(trace, cluster=np.array([edge[client] for client in trace.client.tolist()]))
        write_trace(trace_file(folder, seed, skew, name, part), placed)


def _decisions(
    slm: EmbeddingBag | Mapping[str, EmbeddingBag],
    shared: EmbeddingBag,
    judge: _Remembered,
    items: Sequence[Item],
    name: str,
) -> Trace:
    """One trace; with a model per client, each decides on its own client's texts."""
    if isinstance(slm, EmbeddingBag):
        recorder = ClassRecorder(slm, judge, name)
        return make_trace(recorder.info, recorder.record(items).columns, where=name)
    columns: dict[str, list[Any]] = {}
    for client, own in slm.items():
        mine = [item for item in items if item.client == client]
        if not mine:
            continue
        came = {
            **ClassRecorder(own, judge, name).record(mine).columns,
            "slm_model": [own.fingerprint] * len(mine),
        }
        for key, values in came.items():
            columns.setdefault(key, []).extend(values)
    info = TraceInfo(shared.fingerprint, judge.fingerprint, len(LABELS), "greedy", shared.fingerprint, name)
    return make_trace(info, {key: np.array(values) for key, values in columns.items()}, where=name)
