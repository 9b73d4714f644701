"""A thread tells the loop: all of it, in order, with few wake-ups."""

import asyncio
import threading

import pytest

from fedtandem.serving.mailbox import Mailbox

N = 2000


async def read(pace_s: float | None) -> tuple[list[int], int]:
    """What came from a thread that puts as fast as it can, and how often the loop was woken for it."""
    mailbox: Mailbox[int] = Mailbox(pace_s)
    woken = 0
    wake = mailbox._wake

    def counted() -> None:
        nonlocal woken
        woken += 1
        wake()

    mailbox._wake = counted  # type: ignore[method-assign]

    def tell() -> None:
        for i in range(N):
            mailbox.put(i, is_last=i == N - 1)

    teller = threading.Thread(target=tell)
    teller.start()
    got: list[int] = []
    while not got or got[-1] < N - 1:
        one = mailbox.take()
        if one is None:
            await mailbox.wait()
        else:
            got.append(one)
    teller.join()
    return got, woken


@pytest.mark.parametrize("pace_s", [None, 0.0, 0.005, 60.0])
def test_all_of_it_comes_in_order(pace_s: float | None) -> None:
    got, woken = asyncio.run(asyncio.wait_for(read(pace_s), 30))
    assert got == list(range(N))
    if pace_s is None:
        assert woken <= 1  # for the last thing alone, and not where the reader is there already
    if pace_s == 60.0:
        assert woken <= 2  # the first, the last; what lies between waits for its time and is not waited for


def test_a_slow_thread_wakes_the_loop_for_each() -> None:
    """One thing at a time: the next is put when the one before was read."""

    async def slow() -> list[int]:
        mailbox: Mailbox[int] = Mailbox(0.001)
        was_read = threading.Semaphore(0)

        def tell() -> None:
            for i in range(5):
                mailbox.put(i)
                was_read.acquire()

        threading.Thread(target=tell).start()
        got: list[int] = []
        while len(got) < 5:
            one = mailbox.take()
            if one is None:
                await mailbox.wait()
            else:
                got.append(one)
                was_read.release()
        return got

    assert asyncio.run(asyncio.wait_for(slow(), 30)) == list(range(5))
