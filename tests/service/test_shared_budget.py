"""One budget of four workers, on a real Redis and a real PostgreSQL, one of them killed meanwhile."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from genops_ctx.books import Books
from genops_ctx.core.accounts import Account
from genops_ctx.ledger import open_ledger
from genops_ctx.stores.redis import RedisStore
from tests.service.shared_servers import CALL_NANOS, shared_servers

pytestmark = pytest.mark.slow

CALLS = 200
"""what the budget is enough for"""


@pytest.mark.parametrize(
    ("admission", "at_a_time", "max_cost"),
    [("expected", 16, ""), ("expected", 64, "0.00005"), ("strict", 32, "")],
)
def test_it_is_never_passed_and_nearly_all_of_it_is_used(
    tmp_path: Path, admission: str, at_a_time: int, max_cost: str
) -> None:
    limit = CALLS * CALL_NANOS
    settings = (
        f'[[budget]]\nname = "shared"\nlimit = "{limit / 1e9:.9f}/total"\nby = "team"\n'
        f'admission = "{admission}"\n'
    )
    with shared_servers(tmp_path, settings=settings, latency=0.05) as shared:
        headers = {**shared.headers, **({"X-GenOps-Max-Cost": max_cost} if max_cost else {})}
        killed = threading.Event()
        answered = [time.monotonic() + 5]  # when the last was; until then the first ones start

        def call_until_nothing_is_left(number: int) -> list[str]:
            ends: list[str] = []
            choice = random.Random(number)
            while ends[-1:] != ["refused"] or time.monotonic() - answered[0] < 3:
                body = {"question": "hi", "streaming": choice.random() < 0.5}
                try:
                    answer = requests.post(shared.url, json=body, headers=headers, timeout=60)
                except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
                    assert killed.is_set()
                    ends.append("lost")
                    continue
                if answer.status_code == 402 or "x-genops-refused" in answer.headers:
                    ends.append("refused")
                    time.sleep(0.1)
                else:
                    assert answer.status_code == 200, answer.text
                    ends.append("answered")
                    answered[0] = time.monotonic()
            return ends

        def kill_one() -> None:
            while len(shared.flowise.model.calls) < CALLS // 3:
                assert time.monotonic() - answered[0] < 90, f"only {len(shared.flowise.model.calls)} calls"
                time.sleep(0.01)
            killed.set()
            os.kill(max(shared.service.pids(), key=shared.service.processor_seconds), signal.SIGKILL)

        with ThreadPoolExecutor(at_a_time + 1) as pool:
            killing = pool.submit(kill_one)
            ends = [end for some in pool.map(call_until_nothing_is_left, range(at_a_time)) for end in some]
            killing.result()
        assert shared.service.stop() == 0

        books = Books(RedisStore(shared.redis.url, clock="caller"), open_ledger(shared.ledger_url))
        try:
            books.catch_up(time.time())  # as a worker that is started next does
            booked = sum(charge.nanos for charge in books.ledger.charges())
            reserved = account(books).reserved
            books.catch_up(time.time() + 3600)  # and as one that runs when the reservations have expired
            charges = list(books.ledger.charges())
            after = account(books)
        finally:
            books.close()
        losses = [charge for charge in charges if charge.outcome == "expired"]
        lost = sum(charge.nanos for charge in losses)
        billed = shared.billed()
        print(f"\nbilled {billed}, booked {booked}, lost {lost} in {len(losses)}, limit {limit}")
        assert reserved == lost
        assert (after.spent, after.reserved) == (booked + lost, 0)
        # By a worker that does not know yet what a call costs, an expected amount may be cut to less.
        cut = sum(max(charge.nanos - charge.reserved_nanos, 0) for charge in charges)
        assert billed <= booked + lost <= limit + cut
        if admission == "strict" or max_cost:
            assert cut == 0
        # A strict budget sets aside the most that a call can cost; less than that is left unused.
        most = max(charge.reserved_nanos for charge in charges)
        assert limit - booked - lost < (most if admission == "strict" else 0.05 * limit)
        # What was answered is booked, or for some seconds the killed worker's to book (test_killed_booking).
        assert ends.count("lost") <= at_a_time
        assert len(charges) >= ends.count("answered")


def test_calls_of_known_cost_do_not_pass_what_is_left(tmp_path: Path) -> None:
    """Ten calls fit, and a part of another: of fifty, at sixteen at a time, ten are answered.

    What a call costs is known from the ledger: other owners have made some before.
    """
    limit = 10 * CALL_NANOS + CALL_NANOS // 3
    settings = f'[[budget]]\nname = "shared"\nlimit = "{limit / 1e9:.9f}/total"\nby = "team"\n'
    with shared_servers(tmp_path, settings=settings, latency=0.05, earlier=20) as shared:

        def call(headers: dict[str, str]) -> int:
            return requests.post(shared.url, json={"question": "hi"}, headers=headers, timeout=60).status_code

        with ThreadPoolExecutor(16) as pool:
            for headers in (shared.headers, shared.new_client(team="sales")):
                ends = list(pool.map(call, [headers] * 50))
                assert (ends.count(200), ends.count(402)) == (10, 40)
        assert shared.service.stop() == 0
        assert shared.billed() == 20 * CALL_NANOS
        books = Books(RedisStore(shared.redis.url, clock="caller"), open_ledger(shared.ledger_url))
        try:
            books.catch_up(time.time())
            assert list(books.store.accounts().values()) == [Account(10 * CALL_NANOS, 0)] * 2
        finally:
            books.close()


def account(books: Books) -> Account:
    (found,) = [one for key, one in books.store.accounts().items() if "team=help" in key]
    return found
