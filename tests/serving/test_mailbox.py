"""A thread tells the loop: all of it, in order, with few wake-ups."""

import asyncio
import threading

import pytest

from fedtandem.serving.mailbox import Mailbox, Office

N = 2000


async def read(pace_s: float, *, is_whole: bool = False, n_threads: int = 1) -> tuple[list[list[int]], int]:
    """What came from threads that put as fast as they can, and how often the loop was woken for all of them."""
    office = Office(asyncio.get_running_loop(), pace_s)
    woken = 0
    deliver = office._deliver

    def counted() -> None:
        nonlocal woken
        woken += 1
        deliver()

    office._deliver = counted  # type: ignore[method-assign]

    async def all_of(mailbox: Mailbox[int]) -> list[int]:
        got: list[int] = []
        while not got or got[-1] < N - 1:
            one = mailbox.take()
            if one is None:
                await mailbox.wait()
            else:
                got.append(one)
        return got

    def tell(mailbox: Mailbox[int]) -> None:
        for i in range(N):
            mailbox.put(i, is_last=i == N - 1)

    mailboxes: list[Mailbox[int]] = [Mailbox(office, is_whole=is_whole) for _ in range(n_threads)]
    tellers = [threading.Thread(target=tell, args=(mailbox,)) for mailbox in mailboxes]
    for teller in tellers:
        teller.start()
    got = await asyncio.gather(*map(all_of, mailboxes))
    for teller in tellers:
        teller.join()
    return list(got), woken


@pytest.mark.parametrize("is_whole", [False, True])
@pytest.mark.parametrize("pace_s", [0.0, 0.005, 60.0])
def test_all_of_it_comes_in_order(pace_s: float, is_whole: bool) -> None:
    got, woken = asyncio.run(asyncio.wait_for(read(pace_s, is_whole=is_whole, n_threads=3), 30))
    assert got == [list(range(N))] * 3
    if is_whole:
        assert woken <= 6  # for the last things alone, and for what is left at the end of a pause
    if pace_s == 60.0:
        assert woken <= 4  # the first of all, and three last ones; what lies between is not waited for


def test_a_slow_thread_wakes_the_loop_for_each() -> None:
    """One thing at a time: the next is put when the one before was read."""

    async def slow() -> list[int]:
        mailbox: Mailbox[int] = Mailbox(Office(asyncio.get_running_loop(), 0.001))
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
