"""Thresholds learnt across real sites are those of one process."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedtandem.cli import main
from fedtandem.data.traces import Trace, TraceInfo, joined, make_trace, write_trace
from fedtandem.federation.audit import read_audit

pytestmark = [pytest.mark.slow, pytest.mark.flower]


def made_up_trace(client: str, seed: int) -> Trace:
    """300 decisions over four classes; the less sure the SLM, the more often the LLM says something else."""
    rng = np.random.default_rng(seed)
    q = rng.dirichlet(np.ones(4), 300).astype(np.float32)
    draft = q.argmax(axis=1)
    columns = {
        "client": [client] * 300, "cluster": [""] * 300, "session": [str(i) for i in range(300)],
        "position": np.zeros(300, int), "draft": draft, "slm_ids": np.tile(np.arange(4), (300, 1)), "slm_probs": q,
        "answer": np.where(rng.random(300) < q.max(axis=1), draft, (draft + 1) % 4),
    }  # fmt: skip
    return make_trace(TraceInfo("slm", "llm", 4), columns)


@pytest.mark.skipif("FEDTANDEM_LONG" not in os.environ, reason="set FEDTANDEM_LONG=1: some minutes more")
def test_three_sites_calibrate_as_one_process_does_plain_and_under_masks(
    make_lab: Callable[..., Any], tmp_path: Path
) -> None:
    """`loopback.sh calibrate` as its user starts it; every site's process is new for every message."""
    lab, traces = make_lab(), []
    for at, name in enumerate(lab.sites):
        traces.append(made_up_trace(name, at))
        own = lab.folder / "sites" / name
        write_trace(own / "calibration.parquet", traces[-1])
        text = (own / "site.toml").read_text().replace("# [calibration]\n# trace", "[calibration]\ntrace")
        (own / "site.toml").write_text(text.replace('"card"', '"card", "counts", "masked_counts"'))
    whole, policy = tmp_path / "all.parquet", tmp_path / "one.json"
    write_trace(whole, joined(traces))
    for more in ((), ("--masked",)):
        goal = ("--price", "0.2", *more)
        assert main(["calibrate", str(whole), *goal, "--output", str(policy)]) == 0
        across = lab.start("calibrate", str(lab.folder / "loopback.sh"), "calibrate", *goal)
        assert across.wait(lab.limit_s) == 0, lab.said("calibrate")[-3000:]
        assert (lab.folder / "server" / "policy.json").read_text() == policy.read_text()
    for name in lab.sites:
        home = lab.folder / "sites" / name / "state"
        kinds = [entry["kind"] for entry in read_audit(home / "audit.jsonl")]
        assert kinds == ["card", *3 * ["calibrate"], "card", *6 * ["calibrate"]]
        assert not list(home.rglob("*.key"))
