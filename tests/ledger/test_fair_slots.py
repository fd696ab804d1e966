"""Few places for many threads: order, bounds, and that none goes missing."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from genops_ctx.ledger.fair_slots import FairSlots


def wait_for(slots: FairSlots, number: int) -> None:
    deadline = time.monotonic() + 30
    while len(slots._waiting) != number:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_who_has_waited_longest_is_next_also_before_one_who_asks_just_now() -> None:
    slots, order = FairSlots(2), list[str]()
    assert slots.acquire(0)
    assert slots.acquire(0)

    def wait(name: str) -> None:
        assert slots.acquire(30)
        order.append(name)
        slots.release()

    threads = []
    for number, name in enumerate(("first", "second", "third"), 1):
        threads.append(threading.Thread(target=wait, args=(name,)))
        threads[-1].start()
        wait_for(slots, number)
    slots.release()
    assert slots.acquire(30)  # behind all three
    assert order == ["first", "second", "third"]
    for thread in threads:
        thread.join(30)


def test_a_wait_has_its_bound_and_leaves_no_trace() -> None:
    slots = FairSlots(1)
    assert slots.acquire(0)
    assert not slots.acquire(0.01)
    slots.release()
    assert slots.acquire(0)
    assert not slots.acquire(0)


def test_hammered_with_waits_that_end_at_any_moment_no_more_have_one_and_none_is_lost() -> None:
    slots, lock = FairSlots(3), threading.Lock()
    inside = most = 0

    def work(seed: int) -> int:
        nonlocal inside, most
        mine, had = random.Random(seed), 0
        for _ in range(200):
            if slots.acquire(mine.choice((0.0, 0.0001, 0.001, 0.01))):
                with lock:
                    inside += 1
                    most = max(most, inside)
                time.sleep(mine.choice((0.0, 0.0005)))
                with lock:
                    inside -= 1
                slots.release()
                had += 1
        return had

    with ThreadPoolExecutor(12) as threads:
        assert sum(threads.map(work, range(12))) > 0
    assert most == 3
    assert [slots.acquire(0) for _ in range(4)] == [True, True, True, False]
