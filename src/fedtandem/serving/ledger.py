"""What a device has seen of (u, β), counted; texts and tokens are no part of it."""

import threading

import numpy as np

from fedtandem.algorithms.threshold_parties import COUNT_NAMES
from fedtandem.exchange.calibration import CalibrationReply
from fedtandem.inference.histogram import count_feedback
from fedtandem.serving.metrics import DeviceMetrics

MAX_ROWS = 1_000_000
"""Tokens counted; a report is of all since the start, so that a repeated one changes nothing."""


class Ledger:
    """Counts feedback from many threads.

    β is 1 where the LLM's own choice was another token (with shared noise an upper bound of the law's), else 0. Kept
    tokens that no verification came after are not in it, on either side.

    Args:
        metrics: counted into.
    """

    def __init__(self, metrics: DeviceMetrics) -> None:
        self._metrics = metrics
        self._rows: list[tuple[float, float, bool]] = []
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._rows)

    def sent(self, u: float, beta: float) -> None:
        """A draft was judged."""
        self._add(u, beta, True)
        tenth = f"{min(9, int(10 * u)) / 10:.1f}"
        self._metrics.judged.labels(tenth).inc()
        self._metrics.rejection.labels(tenth).inc(beta)

    def audited(self, u: float, beta: float) -> None:
        """A kept token was looked at afterwards."""
        self._add(u, beta, False)
        self._metrics.audited.labels("other" if beta else "same").inc()

    def _add(self, u: float, beta: float, sent: bool) -> None:
        with self._lock:
            if len(self._rows) < MAX_ROWS:
                self._rows.append((min(1.0, max(0.0, u)), beta, sent))

    @property
    def audit_error(self) -> float:
        """Of audited tokens, the share the LLM would have written otherwise; 0 without any."""
        with self._lock:
            kept = [beta for _, beta, sent in self._rows if not sent]
        return float(np.mean(kept)) if kept else 0.0

    def report(self, name: str, models: tuple[str, str], tau: float) -> CalibrationReply | None:
        """All since the start, as an edge takes it; None where nothing was seen."""
        with self._lock:
            rows = list(self._rows)
        if not rows:
            return None
        u, beta, sent = (np.array(column) for column in zip(*rows, strict=True))
        counted = count_feedback(u, beta, sent, ~sent, 1.0)
        counts = np.stack([getattr(counted, field) for field in COUNT_NAMES])[None]
        return CalibrationReply(
            round=0, party=name, names=(name,), models=(models,), tokens=np.array([float(len(u))]),
            skipped=np.array([float((~sent).sum())]), tau=np.clip(np.array([tau]), 0, 1),
            labelled=np.array([float(len(u))]), counts=counts, sums=np.zeros((0, 6)),
        )  # fmt: skip
