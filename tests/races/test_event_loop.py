"""A Redis under an event loop: it keeps the budget of many tasks, and where it hangs the loop goes on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from genops_ctx import Budget, BudgetExceeded, metered_call
from genops_ctx import governed as governed_function
from genops_ctx.core.errors import StoreUnavailable
from genops_ctx.core.ports import Quote
from genops_ctx.core.records import Charge
from genops_ctx.ledger.sqlite import SQLiteLedger
from genops_ctx.providers.flowise_async import AsyncFlowiseAdapter
from genops_ctx.runtime import Runtime, get_runtime, reset_runtime
from genops_ctx.settings import Settings
from genops_ctx.testing import Flow, FlowiseStandIn
from tests.stores.redis_server import RedisServer

from .workers import CENT, book_until, join

BOUND = 1.0


class OneCent:
    """Each model call costs exactly one cent."""

    def quote(self, usage: object, at: float) -> Quote:
        return Quote(CENT, "test")

    def provider_of(self, name: str) -> str:
        return "openai"


@pytest.fixture(scope="module")
def flowise() -> Iterator[FlowiseStandIn]:
    with FlowiseStandIn([Flow("graph", "agentflow")]) as running:
        yield running


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as started:
        yield started


@pytest.fixture
def governed(server: RedisServer, tmp_path: Path) -> Iterator[Callable[..., Runtime]]:
    made: list[Runtime] = []

    def make(bound: float, **budget: Any) -> Runtime:
        from genops_ctx.stores.redis import RedisStore

        runtime = Runtime(
            Settings(budgets=(Budget("0.10", "total", **budget),)),
            store=RedisStore(server.url, command_timeout=bound),
            ledger=SQLiteLedger(tmp_path / "ledger.sqlite3"),
            prices=OneCent(),
        )
        reset_runtime(runtime)
        made.append(runtime)
        return runtime

    yield make
    for runtime in made:
        runtime.books.close()


async def call(adapter: AsyncFlowiseAdapter, question: str = "Hello") -> str:
    try:
        answer = await adapter.predict_flow("graph", question, max_cost="0.01")
    except BudgetExceeded:
        return "refused"
    except StoreUnavailable:
        return "unavailable"
    return "unheard" if "store_unavailable" in answer.charge.flags else "ran"


async def longest_gap(work: Any) -> tuple[float, Any]:
    """Seconds that a task which wants to run every 5 ms had to wait at most, while others work.

    As another thread counts them, which stands still where the whole process does.
    """
    turns, over = 0, threading.Event()

    def take_turns() -> None:
        nonlocal turns
        while not over.wait(0.02):
            turns += 1

    counting = threading.Thread(target=take_turns)
    counting.start()
    longest, done = 0, asyncio.ensure_future(work)
    while not done.done():
        begun = turns
        await asyncio.sleep(0.005)
        longest = max(longest, turns - begun)
    over.set()
    counting.join()
    return 0.02 * longest, await done


def settled(runtime: Runtime, account: tuple[int, int]) -> None:
    """With what the loop did not wait for, so much is spent and reserved."""
    runtime.books.hand_off.close()
    book_until(runtime, account)


def test_ten_of_fifty_tasks_fit_a_budget_for_ten(
    flowise: FlowiseStandIn, governed: Callable[..., Runtime]
) -> None:
    runtime = governed(20.0)

    async def main() -> list[str]:
        async with AsyncFlowiseAdapter(flowise.url) as adapter:
            return await asyncio.gather(*(call(adapter, "[[sleep:0.1]] Hello") for _ in range(50)))

    results = asyncio.run(main())
    assert (results.count("ran"), results.count("refused")) == (10, 40)
    settled(runtime, (10 * CENT, 0))
    assert list(runtime.books.ledger.unsettled()) == []


@pytest.mark.parametrize(("on_store_error", "result"), [("block", "unavailable"), ("allow", "unheard")])
def test_a_hung_redis_stops_no_other_task(
    server: RedisServer,
    flowise: FlowiseStandIn,
    governed: Callable[..., Runtime],
    on_store_error: str,
    result: str,
) -> None:
    governed(20.0)

    async def main() -> tuple[float, list[str]]:
        async with AsyncFlowiseAdapter(flowise.url) as adapter:
            assert await call(adapter) == "ran"
            runtime = governed(BOUND, on_store_error=on_store_error)
            join(runtime.books.store)
            server.pause()
            return await longest_gap(asyncio.gather(*(call(adapter) for _ in range(20))))

    gap, results = asyncio.run(main())
    assert results == [result] * 20
    assert gap < BOUND * 3 / 4, "the loop waited for the store"
    server.resume()
    settled(get_runtime(), (21 * CENT if result == "unheard" else CENT, 0))


async def in_a_block() -> Charge | None:
    async with metered_call("flow", max_cost="0.01") as metered:
        metered.record_cost("0.01")
    return metered.charge


@governed_function(name="flow", max_cost="0.01", meter=lambda result: Decimal("0.01"))
async def in_a_function() -> None:
    await asyncio.sleep(0)


@pytest.mark.parametrize("made", [in_a_block, in_a_function])
@pytest.mark.parametrize(("on_store_error", "result"), [("block", "unavailable"), ("allow", "ran")])
def test_a_metered_call_on_a_hung_redis_stops_no_other_task(
    server: RedisServer,
    governed: Callable[..., Runtime],
    made: Callable[[], Coroutine[Any, Any, Charge | None]],
    on_store_error: str,
    result: str,
) -> None:
    governed(20.0)

    async def one() -> str:
        try:
            await made()
        except StoreUnavailable:
            return "unavailable"
        return "ran"

    async def main() -> tuple[float, list[str]]:
        assert await one() == "ran"
        join(governed(BOUND, on_store_error=on_store_error).books.store)
        server.pause()
        return await longest_gap(asyncio.gather(*(one() for _ in range(8))))

    gap, results = asyncio.run(main())
    assert results == [result] * 8
    assert gap < BOUND * 3 / 4, "the loop waited for the store"
    server.resume()
    runtime = get_runtime()
    settled(runtime, ((9 if result == "ran" else 1) * CENT, 0))
    charges = list(runtime.books.ledger.charges())
    unheard = [one for one in charges if "store_unavailable" in one.flags]
    assert (len(charges), len(unheard)) == ((9, 8) if result == "ran" else (1, 0))


def test_metered_calls_that_are_cancelled_while_they_reserve_leave_nothing_reserved(
    server: RedisServer, governed: Callable[..., Runtime]
) -> None:
    """Inside another one, whose reservation is whole again."""
    runtime = governed(20.0)

    async def inside() -> None:
        async with metered_call("inside", max_cost="0.01"):
            raise AssertionError("sent")

    async def main() -> None:
        async with metered_call("outer", max_cost="0.04") as outer:
            server.pause()
            tasks = [asyncio.create_task(inside()) for _ in range(3)]
            await asyncio.sleep(0.1)
            for task in tasks:
                task.cancel()
            await asyncio.sleep(0.1)
            server.resume()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(one, asyncio.CancelledError) for one in results)
            await asyncio.to_thread(book_until, runtime, (0, 4 * CENT))
            outer.record_cost("0.03")

    asyncio.run(main())
    settled(runtime, (3 * CENT, 0))
    assert [one.name for one in runtime.books.ledger.charges()] == ["outer"]


def test_tasks_that_are_cancelled_while_they_reserve_leave_nothing_reserved(
    server: RedisServer, flowise: FlowiseStandIn, governed: Callable[..., Runtime]
) -> None:
    runtime = governed(20.0)

    async def main() -> None:
        async with AsyncFlowiseAdapter(flowise.url) as adapter:
            await adapter.get_chatflows()
            runtime.books.store.accounts()
            server.pause()
            tasks = [asyncio.create_task(call(adapter)) for _ in range(6)]
            await asyncio.sleep(0.1)
            for task in tasks:
                task.cancel()
            await asyncio.sleep(0.1)
            server.resume()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(one, asyncio.CancelledError) for one in results)

    asyncio.run(main())
    settled(runtime, (0, 0))
    assert list(runtime.books.ledger.charges()) == []
