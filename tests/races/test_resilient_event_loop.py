"""Breakers, limits and caches on a Redis that hangs: the loop goes on, and what was taken is given back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from genops_ctx.core.resilience_ports import ResilienceStore
from genops_ctx.providers.flowise_async import AsyncFlowiseAdapter
from genops_ctx.resilience import CircuitBreaker, CircuitState, QueryCache, RateLimiter, resilient
from genops_ctx.runtime import Runtime
from genops_ctx.stores.resilience import open_resilience
from genops_ctx.testing import FlowiseStandIn
from tests.stores.redis_server import RedisServer

from .test_event_loop import longest_gap

pytestmark = pytest.mark.usefixtures("genops_runtime")

BOUND = 1.5
FLOW = "customer-support-v1"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as started:
        yield started


@pytest.fixture
def opened(server: RedisServer) -> Iterator[Callable[[float], ResilienceStore]]:
    made: list[ResilienceStore] = []

    def make(bound: float) -> ResilienceStore:
        made.append(open_resilience(server.url, command_timeout=bound, connect_timeout=20.0))
        until = time.monotonic() + 120
        while not made[-1].healthy:
            assert time.monotonic() < until
            time.sleep(0.05)
        return made[-1]

    yield make
    server.resume()
    for store in made:
        store.close()


def settled(runtime: Runtime) -> None:
    """What the loop did not wait for is done."""
    runtime.books.hand_off.close()


def by_decorator(**options: Any) -> Callable[[], Awaitable[object]]:
    @resilient(**options)
    async def capital(country: str) -> str:
        return "Paris"

    return lambda: capital("France")


def ways(store: ResilienceStore) -> dict[str, Callable[[], Awaitable[object]]]:
    """Everything a coroutine can ask such a store for, and what comes of it while it is away."""
    breaker = CircuitBreaker(name="b", store=store)
    limiter = RateLimiter(1000, name="l", store=store)

    async def acquire() -> bool:
        return await limiter.acquire()

    async def paris() -> str:
        return "Paris"

    return {
        "breaker=": by_decorator(breaker=CircuitBreaker(name="d", store=store)),
        "rate_limit=": by_decorator(rate_limit=RateLimiter(1000, name="d", store=store)),
        "cache=": by_decorator(cache=QueryCache(name="d", store=store)),
        "acquire": acquire,
        "wait_if_needed": limiter.wait_if_needed,
        "breaker.call": lambda: breaker.call(paris),
    }


@pytest.mark.parametrize(
    "way", ["breaker=", "rate_limit=", "cache=", "acquire", "wait_if_needed", "breaker.call"]
)
def test_a_hung_redis_stops_no_other_task(
    server: RedisServer, opened: Callable[[float], ResilienceStore], way: str
) -> None:
    ask = ways(opened(BOUND))[way]

    async def main() -> tuple[float, list[object]]:
        await ask()
        server.pause()
        return await longest_gap(asyncio.gather(*(ask() for _ in range(20))))

    gap, results = asyncio.run(main())
    assert len(results) == 20
    assert set(results) <= {"Paris", True, None}
    assert gap < BOUND * 2 / 3, "the loop waited for the store"


def test_nor_do_the_options_of_the_async_adapter(
    server: RedisServer, opened: Callable[[float], ResilienceStore], flowise_stand_in: FlowiseStandIn
) -> None:
    store = opened(BOUND)
    options: dict[str, Any] = {
        "breaker": CircuitBreaker(name="flow", store=store),
        "rate_limit": RateLimiter(1000, name="flow", store=store),
        "cache": QueryCache(name="flow", store=store),
    }

    async def main() -> tuple[float, list[Any]]:
        async with AsyncFlowiseAdapter(flowise_stand_in.url, **options) as adapter:
            await adapter.predict_flow(FLOW, "ping")
            server.pause()
            asked = [adapter.predict_flow(FLOW, f"question {number % 2}") for number in range(8)]
            return await longest_gap(asyncio.gather(*asked))

    gap, answers = asyncio.run(main())
    assert gap < BOUND * 2 / 3, "the loop waited for the store"
    assert sum(answer.cached for answer in answers) == 6, "each process has its own answers meanwhile"
    assert len(flowise_stand_in.billed) == 1 + 2


def test_tasks_that_are_cancelled_while_they_ask_keep_no_turn_no_permit_and_no_lease(
    server: RedisServer, opened: Callable[[float], ResilienceStore], genops_runtime: Runtime
) -> None:
    """The server hears of them all the same, once it goes on."""
    store = opened(10.0)
    limiter = RateLimiter(6, per=86_400, name="six", store=store)
    cache = QueryCache(name="answers", store=store)
    breaker = CircuitBreaker(1, recovery_timeout=0.2, name="one probe", store=store)

    async def failing() -> None:
        raise ConnectionRefusedError

    async def main() -> None:
        with pytest.raises(ConnectionRefusedError):
            await breaker.call(failing)
        assert breaker.state is not CircuitState.CLOSED
        await asyncio.sleep(0.3)
        asks = [
            by_decorator(rate_limit=limiter),
            limiter.wait_if_needed,
            by_decorator(cache=cache),
            by_decorator(breaker=breaker),
        ]
        server.pause()
        tasks = [asyncio.ensure_future(ask()) for ask in asks]
        await asyncio.sleep(0.2)
        for task in tasks:
            task.cancel()
        await asyncio.sleep(0.1)
        server.resume()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(one) for one in results] == [asyncio.CancelledError] * 4

    asyncio.run(main())
    settled(genops_runtime)
    assert limiter.allowance() == 6
    assert asyncio.run(longest_wait(by_decorator(cache=cache))) < 20.0, "nobody computes: no lease is out"
    # had the probe's permit been kept, this one would be refused for a minute
    assert breaker.call(len, "abc") == 3
    assert breaker.state is CircuitState.CLOSED


async def longest_wait(ask: Callable[[], Awaitable[object]]) -> float:
    begun = time.monotonic()
    assert await ask() == "Paris"
    return time.monotonic() - begun
