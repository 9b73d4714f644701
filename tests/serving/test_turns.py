"""Threads that compute do so one after the other; who waits lets the next one in."""

import threading

from fedtandem.serving.turns import Turns


def test_one_at_a_time_and_none_is_left_out() -> None:
    turns, inside, most, done = Turns(), 0, 0, []

    def work(name: int) -> None:
        nonlocal inside, most
        for _ in range(50):
            with turns.taken():
                inside += 1
                most = max(most, inside)
                inside -= 1
                with turns.away():
                    ...
                inside += 1
                most = max(most, inside)
                inside -= 1
        done.append(name)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == 1
    assert sorted(done) == list(range(8))


def test_who_waits_holds_up_nobody() -> None:
    turns, is_let_go, came = Turns(), threading.Event(), threading.Event()

    def waits() -> None:
        with turns.taken(), turns.away():
            assert is_let_go.wait(30)

    waiting = threading.Thread(target=waits)
    waiting.start()

    def passes() -> None:
        with turns.taken():
            came.set()

    threading.Thread(target=passes).start()
    assert came.wait(30)
    is_let_go.set()
    waiting.join(30)
    assert not waiting.is_alive()


def test_the_turn_goes_on_after_a_fault_and_in_the_order_of_asking() -> None:
    turns, order = Turns(), []

    def work(name: int) -> None:
        with turns.taken():
            order.append(name)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    try:
        with turns.taken():
            for i, thread in enumerate(threads):
                thread.start()
                while len(turns._line) <= i:
                    ...
            raise KeyError
    except KeyError:
        for thread in threads:
            thread.join(30)
    assert order == [0, 1, 2, 3]


def test_without_a_turn_away_does_nothing() -> None:
    turns = Turns()
    with turns.away(), turns.taken():
        assert turns._is_taken
    assert not turns._is_taken
