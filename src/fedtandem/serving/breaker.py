"""A circuit breaker: who has failed too often is left alone for a while, then tried by one request at a time."""

import threading
import time
from collections import deque
from collections.abc import Callable

from fedtandem.serving.logs import log

CLOSED, HALF_OPEN, OPEN = 0, 1, 2


class Breaker:
    """Of one upstream; may be used from several threads.

    Args:
        failures: so many in `window_s` open it.
        window_s: how long a failure counts.
        probe_s: while open, one request in so many seconds is let through; its success closes it.
        now_s: the clock.
        name: of the upstream, for the log.

    Source: specification of FedHLM, section 10 (5 failures in 10 s, probes every 5 s).
    """

    def __init__(
        self,
        *,
        failures: int = 5,
        window_s: float = 10.0,
        probe_s: float = 5.0,
        now_s: Callable[[], float] = time.monotonic,
        name: str = "",
    ) -> None:
        self._name, self._why = name, ""
        self._most, self._window_s, self._probe_s, self._now_s = failures, window_s, probe_s, now_s
        self._failed: deque[float] = deque()
        self._next_probe: float | None = None
        self._lock = threading.Lock()

    @property
    def state(self) -> int:
        """CLOSED, HALF_OPEN (a probe is due) or OPEN."""
        if self._next_probe is None:
            return CLOSED
        return HALF_OPEN if self._now_s() >= self._next_probe else OPEN

    @property
    def probe_in_s(self) -> float:
        """How long until a request is let through; 0 while closed."""
        return 0.0 if self._next_probe is None else max(0.0, self._next_probe - self._now_s())

    def lets_through(self) -> bool:
        """Whether this request may be sent; while open, the probe's turn is taken by asking."""
        with self._lock:
            if self._next_probe is None:
                return True
            if self._now_s() < self._next_probe:
                return False
            self._next_probe = self._now_s() + self._probe_s
            return True

    def succeeded(self) -> None:
        """An answer came."""
        with self._lock:
            was_lost, self._why = bool(self._why), ""
            self._failed.clear()
            self._next_probe = None
        if was_lost:
            log("upstream back", level=30, upstream=self._name)

    def failed(self, why: str = "no answer") -> None:
        """None came.

        Args:
            why: goes into the log where it is news; no text of a request.
        """
        with self._lock:
            is_news, self._why = why != self._why, why
            now = self._now_s()
            self._failed.append(now)
            while self._failed and self._failed[0] < now - self._window_s:
                self._failed.popleft()
            if self._next_probe is not None or len(self._failed) >= self._most:
                self._next_probe = now + self._probe_s
        if is_news:
            log("upstream lost", level=30, upstream=self._name, why=why)
