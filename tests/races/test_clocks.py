"""Clocks that are wrong: an hour apart on two workers, and one that jumps back in the middle of a run."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from genops_ctx import Budget, BudgetExceeded, metered_call
from genops_ctx.core.errors import AlreadyCompleted
from genops_ctx.core.outcomes import Outcome
from genops_ctx.ledger.sqlite import SQLiteLedger
from genops_ctx.runtime import Runtime, reset_runtime
from genops_ctx.settings import Settings
from genops_ctx.stores.sqlite import SQLiteStore
from genops_ctx.testing import FixedClock
from tests.stores.redis_server import RedisServer

from .conftest import Run
from .workers import CENT, Elsewhere, Plan, bill, billed, run_workers, store_of

HOUR = 3600.0
spawn = multiprocessing.get_context("spawn")


# -- an hour apart -------------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "redis"])
def plan(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Plan]:
    bills = str(tmp_path / "bills")
    if request.param == "sqlite":
        yield Plan(("sqlite", str(tmp_path / "store.db")), bills)
        return
    with RedisServer(tmp_path) as server:
        yield Plan(("redis", server.url), bills)


def clear_of_the_hour() -> None:
    """Let no hour end in the middle of a test."""
    left = HOUR - time.time() % HOUR
    if left < 20:
        time.sleep(left)


@pytest.mark.slow
@pytest.mark.parametrize("apart", [HOUR, -HOUR, 400 * 86_400.0])
def test_workers_whose_clocks_are_apart_share_one_window_and_take_nothing_from_each_other(
    plan: Plan, tmp_path: Path, apart: float
) -> None:
    """Each operation is asked for by both; the second worker begins while the first one's are in flight."""
    clear_of_the_hour()
    plan = replace(plan, windows=("hour", "day"), answer_after=0.6)
    wrong = replace(plan, ahead=apart, late=0.2)
    operations = [f"op{number // 2}" for number in range(50)]
    report = run_workers([plan, wrong], operations)
    bills = billed(tmp_path / "bills")
    assert len(bills) == len(set(bills)) == len(report.ran) == 10
    assert report.lost == [], "a reservation was taken for expired"
    assert report.given_up == []
    assert len(report.repeated) + len(report.refused) == 40
    accounts = store_of(plan).accounts()
    assert sorted(key.partition(":")[2].partition(":")[0] for key in accounts) == ["|day", "|hour"]
    assert [tuple(account) for account in accounts.values()] == [(10 * CENT, 0)] * 2


# -- back by an hour -----------------------------------------------------------------------------------

HALF_PAST_TEN = 1_795_257_000.0  # 2026-11-21T10:30:00Z


def spend(cents: int, **options: Any) -> bool:
    amount = f"{cents / 100:.2f}"
    try:
        with metered_call("flow", max_cost=amount, **options) as call:
            call.record_cost(amount)
    except BudgetExceeded:
        return False
    return True


def cents(runtime: Runtime) -> dict[str, float]:
    """What each hour has spent."""
    accounts = runtime.books.store.accounts()
    return {key.removeprefix("in:|hour:"): one.spent / CENT for key, one in accounts.items()}


def test_the_hand_worked_time() -> None:
    assert time.strftime("%Y-%m-%dT%H:%M", time.gmtime(HALF_PAST_TEN)) == "2026-11-21T10:30"


def test_a_clock_that_jumps_back_resets_no_budget_and_books_nothing_twice(run_at: Run) -> None:
    clock = FixedClock(HALF_PAST_TEN)
    runtime = run_at(clock, [Budget("0.05/hour")])
    assert spend(3)
    clock.advance(40 * 60)
    assert spend(1, idempotency_key="once")
    slow = Elsewhere("slow", max_cost="0.04", timeout=600)
    assert not spend(1)

    clock.set(HALF_PAST_TEN + 600)  # it is 10:40 again
    slow.end("0.04")  # half an hour before it began
    with pytest.raises(AlreadyCompleted), metered_call("flow", idempotency_key="once"):
        pass
    assert spend(2)
    assert not spend(1), "of this hour three cents were spent the first time"
    clock.set(HALF_PAST_TEN + 1800)  # eleven o'clock, for the second time
    assert not spend(1), "nor does the next hour begin anew"
    assert cents(runtime) == {"2026-11-21T10:00Z": 5, "2026-11-21T11:00Z": 5}
    clock.set(HALF_PAST_TEN + 1800 + HOUR)
    assert spend(5)
    ledger = list(runtime.books.ledger.charges())
    assert sum(charge.nanos for charge in ledger) == 15 * CENT
    assert len(ledger) == 5 == len({charge.id for charge in ledger})
    assert all(account.reserved == 0 for account in runtime.books.store.accounts().values())


def lost(runtime: Runtime) -> list[str]:
    """The calls that were booked as never finished."""
    return [one.name for one in runtime.books.ledger.charges() if one.outcome == Outcome.EXPIRED]


def test_a_reservation_of_before_the_jump_is_not_immortal(run_at: Run) -> None:
    clock = FixedClock(HALF_PAST_TEN)
    runtime = run_at(clock, [Budget("0.05/total")])
    died = [Elsewhere("died", max_cost="0.02", timeout=10)]  # nobody ends it
    assert spend(1)
    clock.set(HALF_PAST_TEN - HOUR)
    died.append(Elsewhere("died too", max_cost="0.02", timeout=10))
    assert not spend(1)
    clock.advance(41)
    assert not spend(1), "a loss counts as spent"
    assert lost(runtime) == ["died too"], "what was lost since the jump is booked at once, not an hour later"
    clock.set(HALF_PAST_TEN + 41)
    assert not spend(1)
    assert lost(runtime) == [call.call.name for call in reversed(died)], (
        "and the other one when its own time has come"
    )
    assert runtime.books.store.accounts() == {"in:|total": (5 * CENT, 0)}


def test_what_waits_to_be_given_back_does_not_wait_for_the_old_time_to_come_again(run_at: Run) -> None:
    clock = FixedClock(HALF_PAST_TEN)
    runtime = run_at(clock, [Budget("0.05/total")])
    assert spend(0)
    release = runtime.books.store.release

    def away(*_: object) -> None:
        raise OSError("the store is away")

    runtime.books.store.release = away  # type: ignore[method-assign]
    with pytest.raises(ConnectionRefusedError), metered_call("unsent", max_cost="0.05"):
        raise ConnectionRefusedError
    runtime.books.store.release = release  # type: ignore[method-assign]
    clock.set(HALF_PAST_TEN - HOUR)
    assert spend(5)


def keep_calling(folder: str, who: int, seconds: float, reports: Any) -> None:
    """Four threads that call as fast as they are let; the clock jumps where a file says so."""
    jumped = Path(folder) / "jumped"

    def clock() -> float:
        return time.time() - (HOUR if jumped.exists() else 0.0)

    file = Path(folder) / "books.db"
    store, ledger = SQLiteStore(file, timeout=60.0, clock="caller"), SQLiteLedger(file)
    runtime = Runtime(Settings(budgets=(Budget("0.50/hour"),)), store=store, ledger=ledger, clock=clock)
    reset_runtime(runtime)
    refused = threading.Semaphore(0)

    def one(thread: int) -> None:
        until, number = time.monotonic() + seconds, 0
        while time.monotonic() < until:
            number += 1
            operation = f"{who}-{thread}-{number}"
            try:
                with metered_call("flow", max_cost="0.01", idempotency_key=operation, timeout=30) as call:
                    bill(f"{folder}/bills", operation)
                    time.sleep(0.02)
                    call.record_cost("0.01")
            except BudgetExceeded:
                refused.release()
                time.sleep(0.02)

    threads = [threading.Thread(target=one, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    runtime.books.catch_up(clock())
    reports.put(refused.acquire(blocking=False))


def wait_for(bills: Callable[[], int], number: int) -> None:
    until = time.monotonic() + 180
    while bills() < number and time.monotonic() < until:
        time.sleep(0.02)
    assert bills() >= number


def wait_until_used_up(bills: Callable[[], int]) -> None:
    """Until nothing more is billed for a while."""
    seen, since = 0, time.monotonic()
    while time.monotonic() - since < 2.0:
        if bills() != seen:
            seen, since = bills(), time.monotonic()
        time.sleep(0.02)


@pytest.mark.slow
def test_processes_whose_clock_jumps_back_and_on_again_spend_each_hour_once(tmp_path: Path) -> None:
    clear_of_the_hour()
    reports = spawn.Queue()
    workers = [
        spawn.Process(target=keep_calling, args=(str(tmp_path), who, 8.0, reports), daemon=True)
        for who in range(4)
    ]
    for worker in workers:
        worker.start()
    try:
        wait_for(lambda: len(billed(tmp_path / "bills")), 20)
        (tmp_path / "jumped").touch()  # with calls in flight
        wait_for(lambda: len(billed(tmp_path / "bills")), 50)
        os.remove(tmp_path / "jumped")
        wait_until_used_up(lambda: len(billed(tmp_path / "bills")))
        (tmp_path / "jumped").touch()
        assert [reports.get(timeout=180) for _ in workers] == [True] * 4, "the budgets were used up"
    finally:
        for worker in workers:
            worker.join(10)
            worker.kill()
    bills = billed(tmp_path / "bills")
    assert len(bills) == len(set(bills)) == 100, "fifty an hour, and there were two hours"
    file = tmp_path / "books.db"
    accounts = SQLiteStore(file).accounts()
    assert sorted(tuple(account) for account in accounts.values()) == [(50 * CENT, 0)] * 2
    charges = list(SQLiteLedger(file).charges())
    # What was in flight when the clock jumped on again was taken for lost, and corrected when it ended.
    whole = dict.fromkeys(bills, 0)
    for charge in charges:
        whole[charge.operation] += charge.nanos
    assert whole == dict.fromkeys(bills, CENT)
    ends = [charge.operation for charge in charges if charge.outcome == Outcome.COMPLETED]
    assert sorted(ends) == sorted(bills)
    for key, account in accounts.items():
        assert sum(charge.nanos for charge in charges if key in charge.accounts) == account.spent
