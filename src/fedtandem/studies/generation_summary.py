"""From the cells of the study of generation to one row per way of answering, with intervals.

Intervals are two-level bootstraps, seeds first and then prompts (`statistics`). Speeds are simulated from the counted
passes and round trips, one answer at a time, nothing overlapping: 12 ms a pass of the SLM, 30 ms one of the LLM
(specification of FedHLM, section 9); LLM-only streaming waits for the line once.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedtandem.studies.statistics import Items, PairedItems, percentile_interval, two_level_bootstrap

SLM_MS, LLM_MS = 12.0, 30.0
RTT_MS = (10, 50, 100)
KEY = ("text", "drafter", "bridge", "mode", "uplink", "block")

Records = Sequence[Mapping[str, Any]]


def summarise(cells: Sequence[Mapping[str, Any]], size: Mapping[str, Any]) -> dict[str, Any]:
    """What `summary.json` holds; cells that only calibrate are left out."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for cell in cells:
        if not cell["cell"]["calibration"]:
            groups.setdefault(tuple(cell["cell"][name] for name in KEY), []).append(cell)
    rows = [dict(zip(KEY, key, strict=True)) | row_of(group) for key, group in groups.items()]
    return {
        "study": "generation",
        "size": dict(size),
        "simulated_ms": {"slm": SLM_MS, "llm": LLM_MS, "rtt": list(RTT_MS)},
        "rows": rows,
    }


def row_of(group: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One way of answering over its seeds."""
    seeds: list[Records] = [cell["records"] for cell in group]
    every = [record for records in seeds for record in records]
    agreement = [word for cell in group for word in cell["agreement"]]
    tokens = _sum(every, "tokens")
    kept = _sum(every, "kept")
    per_answer = [record["audited_error"] for record in every]
    return {
        "seeds": len(seeds),
        "answers": len(every),
        "tokens": int(tokens),
        "saved": 1 - _sum(every, "llm_passes") / tokens,
        "saved_ci": ratio_interval(seeds, lambda r: r["tokens"] - r["llm_passes"], lambda r: r["tokens"]),
        "accepted": _sum(every, "accepted") / max(1.0, _sum(every, "drafted")),
        "accepted_ci": ratio_interval(seeds, lambda r: r["accepted"], lambda r: r["drafted"]),
        "kept": kept / tokens,
        "error_per_answer": float(np.mean(per_answer)) if kept else None,
        "error_ci": ratio_interval(seeds, lambda r: r["audited_error"], lambda r: 1) if kept else None,
        "up_bytes_per_token": _sum(every, "uplink_bytes") / tokens,
        "down_bytes_per_token": _sum(every, "downlink_bytes") / tokens,
        "tokens_per_s": {str(rtt): tokens / seconds(every, rtt) for rtt in RTT_MS},
        "streaming_tokens_per_s": {
            str(rtt): tokens / ((tokens * LLM_MS + len(every) * rtt) / 1000) for rtt in RTT_MS
        },
        **{f"answers_{word}": agreement.count(word) for word in ("equal", "tie", "fault")},
        "near_ties": int(_sum(every, "near_ties")),
        "compared": len(agreement),
    }  # fmt: skip


def seconds(records: Records, rtt_ms: float) -> float:
    """Simulated time of these answers, one after the other."""
    passes = SLM_MS * _sum(records, "slm_passes") + LLM_MS * _sum(records, "llm_passes")
    return (passes + rtt_ms * _sum(records, "round_trips")) / 1000


def ratio_interval(seeds: Sequence[Records], value: Any, weight: Any) -> tuple[float, float] | None:
    """95 % of Σ value / Σ weight; None where most weights are 0: a resample might hold nothing else."""
    pairs = []
    for records in seeds:
        items = Items(_of(records, value), _of(records, weight))
        if np.count_nonzero(items.weight) < len(records) / 2:
            return None
        nothing = Items(np.zeros(len(records)), np.ones(len(records)))
        pairs.append([PairedItems(items, nothing)])
    return percentile_interval(two_level_bootstrap(pairs, np.random.default_rng(0)))


def _of(records: Records, number: Any) -> npt.NDArray[np.float64]:
    return np.array([number(record) for record in records], dtype=np.float64)


def _sum(records: Records, name: str) -> float:
    return float(sum(record[name] for record in records))
