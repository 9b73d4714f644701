"""What a thread tells the event loop, in order; the loop is woken once for all that came meanwhile."""

import asyncio
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """From any thread to one reader in the loop that made it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._held: deque[T] = deque()
        self._came = asyncio.Event()
        self._is_woken = False

    def put(self, one: T) -> None:
        """From any thread."""
        self._held.append(one)
        if not self._is_woken:
            self._is_woken = True
            self._loop.call_soon_threadsafe(self._came.set)

    def take(self) -> T | None:
        """The next one, if it is there."""
        return self._held.popleft() if self._held else None

    async def wait(self, timeout_s: float) -> bool:
        """Whether something is there, after so long at most."""
        self._came.clear()
        self._is_woken = False
        if self._held:  # put before the line above, by a thread that saw the loop awake
            return True
        try:
            async with asyncio.timeout(timeout_s):
                await self._came.wait()
        except TimeoutError:
            return bool(self._held)
        return bool(self._held)
