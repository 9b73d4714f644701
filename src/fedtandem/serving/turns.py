"""Threads that compute take turns: more than one at a time would only fight for Python's lock."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """One at a time, in the order of asking; whoever waits for something else gives its turn away."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._line: deque[threading.Lock] = deque()
        self._is_taken = False
        self._mine = threading.local()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """For as long as this thread computes."""
        self._take()
        try:
            yield
        finally:
            self._give()

    @contextmanager
    def away(self) -> Iterator[None]:
        """While this thread waits, or lets others compute; nothing for a thread without a turn."""
        if not getattr(self._mine, "is_held", False):
            yield
            return
        self._give()
        try:
            yield
        finally:
            self._take()

    def _take(self) -> None:
        with self._lock:
            if self._is_taken:
                gate = threading.Lock()
                gate.acquire()
                self._line.append(gate)
            else:
                gate, self._is_taken = None, True
        if gate is not None:
            gate.acquire()  # until it is passed on
        self._mine.is_held = True

    def _give(self) -> None:
        self._mine.is_held = False
        with self._lock:
            if self._line:
                self._line.popleft().release()
            else:
                self._is_taken = False


TURNS = Turns()
"""Of this process: it has one lock."""
