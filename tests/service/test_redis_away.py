"""Redis stands still, is killed and comes back while four workers answer: bounded waits, and right books."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from genops_ctx.books import Books
from genops_ctx.ledger import open_ledger
from genops_ctx.stores.redis import RedisStore
from tests.service.shared_servers import shared_servers

pytestmark = pytest.mark.slow

AT_A_TIME = 16
AWAY = 1.5
"""seconds that Redis stands still, and then is down"""
REFUSED = {"unavailable", "503"}
"""what a stream is told, and another call, where the store has to be asked and is not there"""


@pytest.mark.parametrize("on_store_error", ["block", "allow"])
def test_calls_are_answered_and_the_books_are_right_afterwards(tmp_path: Path, on_store_error: str) -> None:
    settings = (
        '[[budget]]\nname = "shared"\nlimit = "100/total"\nby = "team"\n'
        f'on_store_error = "{on_store_error}"\n'
    )
    durable = ("--appendonly", "yes", "--appendfsync", "no")
    with shared_servers(
        tmp_path, settings=settings, latency=0.02, redis_options=durable, patient=False
    ) as shared:
        over = threading.Event()
        times_away = 0
        """also while it is: odd then"""
        ends: list[list[tuple[str, bool, float]]] = [[] for _ in range(AT_A_TIME)]
        """of each client: how each call ended, whether Redis was away all that time, and its seconds"""

        def call(number: int) -> None:
            with requests.Session() as session:
                while not over.is_set():
                    body = {"question": "hi", "streaming": number % 2 == 0}
                    begun, at_first = time.monotonic(), times_away
                    answer = session.post(shared.url, json=body, headers=shared.headers, timeout=60)
                    took = time.monotonic() - begun
                    refused = answer.headers.get("x-genops-refused", "")
                    refused = refused or ("" if answer.status_code == 200 else str(answer.status_code))
                    ends[number].append((refused, at_first % 2 == 1 and at_first == times_away, took))
                    time.sleep(0.02)

        def until(done: Callable[[], bool]) -> None:
            deadline = time.monotonic() + 120
            while not done():
                assert time.monotonic() < deadline, [some[-3:] for some in ends]
                time.sleep(0.05)

        def answered_again() -> None:
            """Each client was, twice: the first call may have begun before Redis was back."""
            before = [len(some) for some in ends]
            until(
                lambda: all(
                    [refused for refused, *_ in some[seen:]].count("") > 1
                    for some, seen in zip(ends, before, strict=True)
                )
            )

        with ThreadPoolExecutor(AT_A_TIME) as pool:
            calls = [pool.submit(call, number) for number in range(AT_A_TIME)]
            try:
                answered_again()
                shared.redis.pause()
                times_away += 1
                time.sleep(AWAY)
                times_away += 1
                shared.redis.resume()
                answered_again()
                shared.redis.kill()
                times_away += 1
                time.sleep(AWAY)
                if on_store_error == "block":
                    until(lambda: {refused for some in ends for refused, *_ in some} >= REFUSED)
                times_away += 1
                shared.redis.start()
                answered_again()
                time.sleep(1.0)
            finally:
                over.set()
            for one in calls:
                one.result()
        every = [end for some in ends for end in some]
        assert shared.service.stop() == 0
        meanwhile = Counter(refused for refused, was_away, _ in every if was_away)
        slowest = max(took for *_, took in every)
        print(f"\n{len(every)} calls, while away {dict(meanwhile)}, slowest {slowest:.2f} s")
        kinds = {refused for refused, *_ in every}
        if on_store_error == "block":
            assert kinds == {"", *REFUSED}
            assert not meanwhile.get("")
        else:
            assert kinds == {""}
        # The bound of a command and of a connection, for the call and what it waits behind; not the 60 s.
        assert slowest < 30
        assert {some[-1][0] for some in ends} == {""}

        books = Books(RedisStore(shared.redis.url, command_timeout=20.0), open_ledger(shared.ledger_url))
        try:
            books.catch_up(time.time())
            charges = list(books.ledger.charges())
            unsettled = list(books.ledger.unsettled())
            (account,) = [one for key, one in books.store.accounts().items() if "team=help" in key]
        finally:
            books.close()
        answered = sum(1 for refused, *_ in every if not refused)
        assert len(charges) == answered == len(shared.flowise.model.calls)
        assert sum(charge.nanos for charge in charges) == shared.billed()
        assert unsettled == []
        assert account.spent == shared.billed()
        # A reserve whose answer was not heard may have been made: by its token it is given back.
        assert account.reserved == 0
