"""Fifty at once in one process: threads and tasks."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import pytest

from genops_ctx import governance_context, metered_call
from genops_ctx.core.errors import BudgetExceeded
from genops_ctx.core.ports import AccountStore
from genops_ctx.ledger.memory import MemoryLedger
from genops_ctx.runtime import Runtime, reset_runtime
from genops_ctx.settings import Settings
from genops_ctx.stores.memory import MemoryStore
from genops_ctx.stores.sqlite import SQLiteStore
from tests.stores.redis_server import RedisServer

from .workers import CENT, account_of, know, runtime_of


@pytest.fixture(params=["memory", "sqlite", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AccountStore]:
    if request.param == "memory":
        yield MemoryStore()
    elif request.param == "sqlite":
        yield SQLiteStore(tmp_path / "store.db", timeout=60)
    else:
        with RedisServer(tmp_path) as server:
            from genops_ctx.stores.redis import RedisStore

            store = RedisStore(server.url, command_timeout=20.0)
            yield store
            store.close()


@pytest.fixture
def runtime(store: AccountStore) -> Runtime:
    runtime = runtime_of(store)
    reset_runtime(runtime)
    return runtime


def at_once(number: int, call: Callable[[int], bool]) -> int:
    ready = threading.Barrier(number, timeout=30)

    def one(index: int) -> bool:
        ready.wait()
        return call(index)

    with ThreadPoolExecutor(number) as threads:
        return sum(threads.map(one, range(number)))


def test_of_fifty_threads_exactly_ten_run(runtime: Runtime) -> None:
    def call(_: int) -> bool:
        try:
            with metered_call("flow", max_cost="0.01") as one:
                time.sleep(0.1)
                one.record_cost("0.01")
        except BudgetExceeded:
            return False
        return True

    assert at_once(50, call) == 10
    assert account_of(runtime.books.store) == (10 * CENT, 0)
    assert sum(charge.nanos for charge in runtime.books.ledger.charges()) == 10 * CENT


def test_of_fifty_tasks_exactly_ten_run(runtime: Runtime) -> None:
    async def call() -> bool:
        try:
            async with metered_call("flow", max_cost="0.01") as one:
                await asyncio.sleep(0.1)
                one.record_cost("0.01")
        except BudgetExceeded:
            return False
        return True

    async def all_of_them() -> int:
        return sum(await asyncio.gather(*(call() for _ in range(50))))

    assert asyncio.run(all_of_them()) == 10
    until = time.monotonic() + 60
    while account_of(runtime.books.store)[1] and time.monotonic() < until:
        time.sleep(0.01)  # a server is told by a thread, for which no task waits
    assert account_of(runtime.books.store) == (10 * CENT, 0)


def test_what_cheaper_calls_leave_is_used_by_later_ones(runtime: Runtime) -> None:
    """A cent is promised and half a cent used: the 19th call still fits, and is not refused."""
    refused = []
    for _ in range(25):
        try:
            with metered_call("flow", max_cost="0.01") as one:
                one.record_cost("0.005")
        except BudgetExceeded as error:
            refused.append(error)
    assert len(refused) == 6
    assert all(error.remaining < error.wanted for error in refused)
    assert account_of(runtime.books.store) == (19 * CENT // 2, 0)


def test_without_max_cost_the_overspend_keeps_its_bound_and_nobody_starves(runtime: Runtime) -> None:
    """Overspend is at most what the calls in flight cost more than was set aside for them."""
    costs = random.Random(4).choices(["0.002", "0.004", "0.01", "0.02"], k=50)

    def call(index: int) -> bool:
        try:
            with metered_call("flow") as one:
                time.sleep(0.1)
                one.record_cost(costs[index])
        except BudgetExceeded:
            return False
        return True

    ran = at_once(50, call)
    charges = list(runtime.books.ledger.charges())
    spent, reserved = account_of(runtime.books.store)
    assert len(charges) == ran
    assert ran >= 10
    assert reserved == 0
    assert spent == sum(charge.nanos for charge in charges)
    over = sum(max(0, charge.nanos - charge.reserved_nanos) for charge in charges)
    assert spent - 10 * CENT <= over
    assert all(charge.reserved_nanos <= CENT // 2 for charge in charges), "a 20th of the limit is set aside"


def spend_a_part(runtime: Runtime) -> None:
    """0.4 cents: nine more calls of a cent fit, and a part of a tenth."""
    with metered_call("other") as one:
        one.record_cost("0.004")


def test_of_fifty_threads_as_many_run_as_are_known_to_fit(runtime: Runtime) -> None:
    """Nothing is promised: what the flow cost before is not cut to what is left."""
    know(runtime, CENT)
    spend_a_part(runtime)
    floors: set[tuple[Decimal | None, str]] = set()

    def call(_: int) -> bool:
        try:
            with metered_call("flow") as one:
                time.sleep(0.05)
                one.record_cost("0.01")
        except BudgetExceeded as refusal:
            floors.add((refusal.floor, refusal.floor_because.partition(" of ")[0]))
            return False
        return True

    assert at_once(50, call) == 9
    assert floors == {(Decimal("0.01"), "10th percentile")}
    assert at_once(10, call) == 0, "nor does a later one"
    assert account_of(runtime.books.store) == (94 * CENT // 10, 0)


def test_of_fifty_tasks_as_many_run_as_are_known_to_fit(runtime: Runtime) -> None:
    know(runtime, CENT)
    spend_a_part(runtime)

    async def call() -> bool:
        try:
            async with metered_call("flow") as one:
                await asyncio.sleep(0.05)
                one.record_cost("0.01")
        except BudgetExceeded:
            return False
        return True

    async def all_of_them() -> int:
        return sum(await asyncio.gather(*(call() for _ in range(50))))

    assert asyncio.run(all_of_them()) == 9
    runtime.books.close()  # what threads still book
    assert account_of(runtime.books.store) == (94 * CENT // 10, 0)


def test_of_fifty_threads_in_a_context_as_many_run_as_are_known_to_fit() -> None:
    runtime = Runtime(Settings(), store=MemoryStore(), ledger=MemoryLedger())
    before = reset_runtime(runtime)
    know(runtime, CENT)
    with governance_context("job", budget="0.094") as job:

        def call(_: int) -> bool:
            try:
                with metered_call("flow") as one:
                    time.sleep(0.05)
                    one.record_cost("0.01")
            except BudgetExceeded:
                return False
            return True

        assert at_once(50, call) == 9
    reset_runtime(before)
    assert job.total_cost == Decimal("0.09")


def test_a_call_inside_another_may_use_what_that_one_has_set_aside(runtime: Runtime) -> None:
    """2.4 cents are left, half a cent of them with the outer one: enough for two known calls inside it."""
    know(runtime, CENT)
    with metered_call("other", max_cost="0.076") as one:
        one.record_cost("0.076")
    ran = 0
    with metered_call("outer"), pytest.raises(BudgetExceeded, match="such a call costs"):
        while True:
            with metered_call("flow") as inner:
                inner.record_cost("0.01")
            ran += 1
    assert ran == 2
    assert account_of(runtime.books.store) == (96 * CENT // 10, 0)
