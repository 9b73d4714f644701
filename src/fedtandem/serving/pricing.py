"""A device holds back when the cloud is busy: calls get dearer, so that only more doubtful tokens are worth one."""

import threading
import time
from collections.abc import Callable

ROUND_S = 1.0
"""Between two steps of the price."""


class Price:
    """What a call costs beyond the policy's λ; may be used from several threads.

        λ ← max(0, λ + η (rate - budget) / budget)

    once a second. A cloud behind which more than one pass waits, or which refuses (429), counts as a budget overrun;
    whichever is further over its bound decides. The surcharge stays in [0, 1]: β is at most 1, so at λ = 1 nothing is
    worth a call.

    Args:
        step: η per second.
        calls_per_s: the budget; None: the cloud's queue decides alone.
        now_s: the clock.

    Source: specification of FedHLM, section 10 (overload). That it lies upon the policy's λ, and how a queue counts,
    are choices.
    """

    def __init__(
        self, step: float, calls_per_s: float | None, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._now_s, self._lock = now_s, threading.Lock()
        self.set(step, calls_per_s)
        self._surcharge, self._then = 0.0, now_s()
        self._calls, self._queue, self._refused = 0, 0.0, False

    def set(self, step: float, calls_per_s: float | None) -> None:
        """Take other bounds; the surcharge goes on from where it is."""
        self._step, self._budget = step, calls_per_s

    def called(self, queue: float) -> None:
        """A verification was answered; `queue` passes of the LLM waited behind it."""
        with self._lock:
            self._calls += 1
            self._queue = max(self._queue, queue)

    def refused(self) -> None:
        """One was told to come back."""
        with self._lock:
            self._calls += 1
            self._refused = True

    @property
    def surcharge(self) -> float:
        """In [0, 1], as of now."""
        with self._lock:
            elapsed = self._now_s() - self._then
            if elapsed >= ROUND_S:
                self._surcharge = min(
                    1.0, max(0.0, self._surcharge + self._step * elapsed * self._over(elapsed))
                )
                self._then += elapsed
                self._calls, self._queue, self._refused = 0, 0.0, False
            return self._surcharge

    def _over(self, elapsed_s: float) -> float:
        """How far over the bound, in [-1, 1]."""
        over = -1.0 if self._budget is None else self._calls / elapsed_s / self._budget - 1
        queue = 1.0 if self._refused else self._queue - 1
        return min(1.0, max(-1.0, over, queue))
