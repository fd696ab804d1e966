"""Redis stands still, is killed and comes back while four workers answer: bounded waits, and right books."""

from __future__ import annotations

import threading
import time
from collections import Counter
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


@pytest.mark.parametrize("on_store_error", ["block", "allow"])
def test_calls_are_answered_and_the_books_are_right_afterwards(tmp_path: Path, on_store_error: str) -> None:
    settings = (
        '[[budget]]\nname = "shared"\nlimit = "100/total"\nby = "team"\n'
        f'on_store_error = "{on_store_error}"\n'
    )
    durable = ("--appendonly", "yes", "--appendfsync", "no")
    with shared_servers(tmp_path, settings=settings, latency=0.02, redis_options=durable) as shared:
        over = threading.Event()
        away = threading.Event()

        def call(number: int) -> list[tuple[str, bool, float]]:
            """How each ended, whether Redis was away when it began and ended, and its seconds."""
            ends = []
            with requests.Session() as session:
                while not over.is_set():
                    body = {"question": "hi", "streaming": number % 2 == 0}
                    begun, was_away = time.monotonic(), away.is_set()
                    answer = session.post(shared.url, json=body, headers=shared.headers, timeout=60)
                    took = time.monotonic() - begun
                    refused = answer.headers.get("x-genops-refused", "")
                    refused = refused or ("" if answer.status_code == 200 else str(answer.status_code))
                    ends.append((refused, was_away and away.is_set(), took))
                    time.sleep(0.02)
            return ends

        with ThreadPoolExecutor(AT_A_TIME) as pool:
            calls = [pool.submit(call, number) for number in range(AT_A_TIME)]
            time.sleep(1.0)
            shared.redis.pause()
            away.set()
            time.sleep(AWAY)
            away.clear()
            shared.redis.resume()
            time.sleep(1.0)
            away.set()
            shared.redis.kill()
            time.sleep(AWAY)
            away.clear()
            shared.redis.start()
            time.sleep(2.0)
            over.set()
            ends = [end for some in calls for end in some.result()]
        assert shared.service.stop() == 0
        meanwhile = Counter(refused for refused, was_away, _ in ends if was_away)
        slowest = max(took for *_, took in ends)
        print(f"\n{len(ends)} calls, while away {dict(meanwhile)}, slowest {slowest:.2f} s")
        kinds = {refused for refused, *_ in ends}
        if on_store_error == "block":
            assert kinds == {"", "unavailable", "503"}
            assert not meanwhile.get("")
        else:
            assert kinds == {""}
        # The bound of a command and of a connection, for the call and what it waits behind; not the 60 s.
        assert slowest < 20
        assert ends[-1][0] == ""

        books = Books(RedisStore(shared.redis.url, command_timeout=20.0), open_ledger(shared.ledger_url))
        try:
            books.catch_up(time.time())
            charges = list(books.ledger.charges())
            unsettled = list(books.ledger.unsettled())
            (account,) = [one for key, one in books.store.accounts().items() if "team=help" in key]
        finally:
            books.close()
        answered = sum(1 for refused, *_ in ends if not refused)
        assert len(charges) == answered == len(shared.flowise.model.calls)
        assert sum(charge.nanos for charge in charges) == shared.billed()
        assert unsettled == []
        assert account.spent == shared.billed()
        # A reserve whose answer was not heard may have been made: by its token it is given back.
        assert account.reserved == 0
