"""What a thread tells the event loop, in order; the loop is woken once for all that came meanwhile."""

import asyncio
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """From one thread to one reader in the loop that made it.

    Waking a loop costs both sides more than a token of a small model: after one wake-up the next comes `pace_s` later
    at the earliest, with all that was put in between. Only the last thing put wakes it whenever it comes.

    Args:
        pace_s: between two wake-ups; None wakes for the last thing alone.
    """

    def __init__(self, pace_s: float | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._pace_s = pace_s
        self._held: deque[T] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._wakes = pace_s is not None
        self._has_last = False

    def put(self, one: T, *, is_last: bool = False) -> None:
        """From the thread."""
        self._held.append(one)
        self._has_last |= is_last
        if is_last or self._wakes:
            self._wakes = False
            self._loop.call_soon_threadsafe(self._wake)

    def take(self) -> T | None:
        """The next one, if it is there."""
        return self._held.popleft() if self._held else None

    async def wait(self) -> None:
        """Until there is something to take, and its time has come."""
        if self._has_last and self._held:
            return
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._pace_s is not None and not self._has_last:
            self._loop.call_later(self._pace_s, self._listen)
        if self._waiter is not None and not self._waiter.done() and self._held:
            self._waiter.set_result(None)

    def _listen(self) -> None:
        """Be woken by the next thing put; now, where something is there."""
        self._wakes = True
        if self._held:  # put before the line above, by a thread that saw the loop resting
            self._wakes = False
            self._wake()
