"""The lock around a connection: order, bounds, and what may interrupt it."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from genops_ctx.database.fair_lock import FairLock


def start(*functions: Callable[[], object]) -> list[threading.Thread]:
    threads = [threading.Thread(target=function, daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    return threads


def end(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()


def wait_for_queue(lock: FairLock, length: int) -> None:
    """Until so many wait behind the one who has it."""
    deadline = time.monotonic() + 120
    while len(lock._queue) - 1 != length:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_threads_take_it_in_the_order_in_which_they_asked() -> None:
    lock, order = FairLock(), list[int]()

    def take(number: int) -> Callable[[], None]:
        def run() -> None:
            with lock:
                order.append(number)

        return run

    threads = []
    with lock:
        for number in range(12):
            threads += start(take(number))
            wait_for_queue(lock, number + 1)
    end(threads)
    assert order == list(range(12))


def test_who_lets_go_and_asks_again_is_behind_those_who_waited() -> None:
    lock, order = FairLock(), list[str]()

    def wait() -> None:
        with lock:
            order.append("waited")

    lock.acquire()
    threads = start(wait)
    wait_for_queue(lock, 1)
    lock.release()
    with lock:
        order.append("again")
    end(threads)
    assert order == ["waited", "again"]


def test_its_thread_may_take_it_again() -> None:
    lock = FairLock()
    with lock:
        with lock:
            assert lock.acquire(timeout=0.01)
            lock.release()
        with ThreadPoolExecutor(1) as other:
            assert not other.submit(lock.acquire, timeout=0.01).result()
            assert not other.submit(lock.acquire, False).result()
    with ThreadPoolExecutor(1) as other:
        assert other.submit(lock.acquire, False).result()
        other.submit(lock.release).result()


def test_only_its_thread_lets_go_of_it() -> None:
    lock = FairLock()
    with pytest.raises(RuntimeError, match="another thread has, or none"):
        lock.release()
    with lock, ThreadPoolExecutor(1) as other, pytest.raises(RuntimeError, match="another thread"):
        other.submit(lock.release).result()


def test_one_who_gave_up_is_passed_over() -> None:
    lock, order = FairLock(), list[str]()

    def give_up() -> None:
        assert not lock.acquire(timeout=0.01)
        order.append("gave up")

    def stay() -> None:
        with lock:
            order.append("had it")

    with lock:
        first = start(give_up)
        second = start(stay)
        end(first)
        wait_for_queue(lock, 1)
    end(second)
    assert order == ["gave up", "had it"]


def test_hammered_with_waits_that_end_at_any_moment_one_at_a_time_has_it() -> None:
    lock = FairLock()
    inside = taken = missed = 0
    counting = threading.Lock()

    def hammer(seed: int) -> None:
        nonlocal inside, taken, missed
        draw = random.Random(seed)
        for _ in range(300):
            if lock.acquire(timeout=draw.choice([0, 0.0001, 0.001, 30])):
                inside += 1
                assert inside == 1
                if draw.random() < 0.3:
                    with lock:
                        time.sleep(0.0001)
                inside -= 1
                taken += 1
                lock.release()
            else:
                with counting:
                    missed += 1

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(hammer, range(12)))
    assert taken + missed == 3600
    assert taken >= 900
    assert lock.acquire(False)


def test_an_interrupted_wait_leaves_the_queue() -> None:
    lock = FairLock()
    let_go = threading.Event()
    has_it = threading.Event()

    def hold() -> None:
        with lock:
            has_it.set()
            assert let_go.wait(120)

    def interrupt() -> None:
        wait_for_queue(lock, 1)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    threads = start(hold)
    assert has_it.wait(120)
    threads += start(interrupt)
    with pytest.raises(KeyboardInterrupt):
        lock.acquire(timeout=120)
    assert len(lock._queue) == 1
    let_go.set()
    end(threads)
    assert lock.acquire(timeout=120)


def test_a_signals_handler_may_use_it_at_any_moment() -> None:
    """Handlers run between any two steps of an acquire or a release of the main thread."""
    lock = FairLock()
    inside = handled = 0
    over = threading.Event()

    def handle(*_: object) -> None:
        nonlocal handled
        assert lock.acquire(timeout=120)
        handled += 1
        lock.release()

    def compete() -> None:
        nonlocal inside
        while not over.is_set():
            with lock:
                inside += 1
                assert inside == 1
                inside -= 1

    before = signal.signal(signal.SIGALRM, handle)
    threads = start(compete, compete)
    try:
        deadline = time.monotonic() + 120
        while handled < 200 and time.monotonic() < deadline:
            armed = handled
            signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00001, 0.001))
            while handled == armed:
                assert lock.acquire(timeout=120)
                lock.release()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        over.set()
    end(threads)
    assert handled >= 200
    assert lock.acquire(timeout=120)
