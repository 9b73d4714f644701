"""What a device has seen of (u, β), counted; texts and tokens are no part of it."""

import threading

import numpy as np
import numpy.typing as npt

from fedtandem.algorithms.threshold_parties import COUNT_NAMES
from fedtandem.exchange.calibration import CalibrationReply
from fedtandem.inference.histogram import BINS, count_feedback
from fedtandem.serving.metrics import DeviceMetrics

FOLDED = 512
"""Tokens after which rows are folded into counts: memory does not grow with traffic."""


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
        self._counts = np.zeros((len(COUNT_NAMES), BINS))
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._folded()[COUNT_NAMES.index("tokens")].sum())

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
            self._rows.append((min(1.0, max(0.0, u)), beta, sent))
            is_full = len(self._rows) >= FOLDED
        if is_full:
            self._folded()

    def _folded(self) -> npt.NDArray[np.float64]:
        """All counts since the start, (7, 64)."""
        with self._lock:
            if self._rows:
                u, beta, sent = (np.array(column) for column in zip(*self._rows, strict=True))
                counted = count_feedback(u, beta, sent, ~sent, 1.0)
                self._counts = self._counts + np.stack([getattr(counted, field) for field in COUNT_NAMES])
                self._rows = []
            return self._counts

    @property
    def audit_error(self) -> float:
        """Of audited tokens, the share the LLM would have written otherwise; 0 without any."""
        n, wrong = (
            float(self._folded()[COUNT_NAMES.index(name)].sum()) for name in ("audited", "audited_beta")
        )
        return wrong / max(1.0, n)

    def report(self, name: str, models: tuple[str, str], tau: float) -> CalibrationReply | None:
        """All since the start, as an edge takes it: a report that comes twice changes nothing. None without any."""
        counts = self._folded()
        n, kept = (float(counts[COUNT_NAMES.index(which)].sum()) for which in ("tokens", "audited"))
        if n == 0:
            return None
        return CalibrationReply(
            round=0, party=name, names=(name,), models=(models,), tokens=np.array([n]), skipped=np.array([kept]),
            tau=np.clip(np.array([tau]), 0, 1), labelled=np.array([n]), counts=counts[None], sums=np.zeros((0, 6)),
        )  # fmt: skip
