"""What threads tell the event loop, in order; the loop is woken once for all that came meanwhile, from all of them."""

import asyncio
from collections import deque
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")

PACE_S = 0.005
"""Between two wake-ups of a loop."""


class Office:
    """Wakes one event loop for all mailboxes in it.

    Waking a loop costs both sides more than a token of a small model: after one wake-up the next comes `pace_s` later
    at the earliest, with all that was put in between. Only what cannot wait wakes it whenever it comes.

    Args:
        loop: is woken.
        pace_s: between two wake-ups.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, pace_s: float) -> None:
        self._loop, self._pace_s = loop, pace_s
        self._full: deque[Mailbox[Any]] = deque()
        self._wakes, self._rests = True, False

    def tell(self, mailbox: "Mailbox[Any]", *, at_once: bool) -> None:
        """From any thread: something lies in this mailbox."""
        self._full.append(mailbox)
        if at_once or self._wakes:
            self._wakes = False
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        while self._full:
            self._full.popleft().ring()
        if not self._rests:
            self._rests = True
            self._loop.call_later(self._pace_s, self._listen)

    def _listen(self) -> None:
        """Be woken by the next thing put; now, where something is there."""
        self._rests, self._wakes = False, True
        if self._full:  # put before the line above, by a thread that saw the loop resting
            self._wakes = False
            self._deliver()


_OFFICES: WeakKeyDictionary[asyncio.AbstractEventLoop, Office] = WeakKeyDictionary()


def running_office() -> Office:
    """The running loop's."""
    loop = asyncio.get_running_loop()
    if loop not in _OFFICES:
        _OFFICES[loop] = Office(loop, PACE_S)
    return _OFFICES[loop]


class Mailbox(Generic[T]):
    """From one thread to one reader in the loop that made it.

    Args:
        office: wakes the reader.
        is_whole: the reader has no use for a part; it is woken by the last thing alone.
    """

    def __init__(self, office: Office, *, is_whole: bool = False) -> None:
        self._office, self._is_whole = office, is_whole
        self._held: deque[T] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._is_told = self._has_last = False

    def put(self, one: T, *, is_last: bool = False) -> None:
        """From the thread."""
        self._held.append(one)
        self._has_last |= is_last
        if is_last or not (self._is_told or self._is_whole):
            self._is_told = True
            self._office.tell(self, at_once=is_last)

    def take(self) -> T | None:
        """The next one, if it is there."""
        return self._held.popleft() if self._held else None

    async def wait(self) -> None:
        """Until there is something to take, and its time has come."""
        if self._has_last and self._held:
            return
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def ring(self) -> None:
        """In the loop: let the reader look."""
        self._is_told = False
        if self._waiter is not None and not self._waiter.done() and self._held:
            self._waiter.set_result(None)
