"""Breakers, limits and caches on a server, asked from an event loop: it goes on, and nothing is lost."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from genops_ctx.core.cache import Busy, Lease
from genops_ctx.resilience import CircuitBreaker, QueryCache, RateLimiter, resilient
from genops_ctx.runtime import Runtime
from genops_ctx.stores.resilience import MemoryResilience

pytestmark = pytest.mark.usefixtures("genops_runtime")


class Slow:
    """Part of a store, as far away as a server: each question is known to have begun, and takes a while."""

    def __init__(self, part: Any, server: Server) -> None:
        self._part = part
        self._server = server

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._part, name)

        def asked(*args: Any, **named: Any) -> Any:
            self._server.begun.set()
            self._server.go_on()
            return method(*args, **named)

        return asked


class Server:
    remote = True

    def __init__(self) -> None:
        self.near = MemoryResilience()
        self.begun = threading.Event()
        self.go_on: Callable[[], object] = partial(time.sleep, 0.05)
        self.breakers = Slow(self.near.breakers, self)
        self.limits = Slow(self.near.limits, self)
        self.cache = Slow(self.near.cache, self)


@pytest.fixture
def server() -> Any:
    return Server()


def options(server: Any) -> dict[str, Any]:
    return {
        "breaker": {"breaker": CircuitBreaker(1, recovery_timeout=0.001, name="b", store=server)},
        "limit": {"rate_limit": RateLimiter(1, 3600, name="l", store=server)},
        "cache": {"cache": QueryCache(name="c", store=server)},
    }


def test_an_event_loop_goes_on_while_a_server_is_asked(server: Any) -> None:
    kinds = options(server)

    @resilient(**kinds["breaker"], **kinds["limit"], **kinds["cache"])
    async def answer() -> int:
        return 42

    turned = threading.Semaphore(0)
    went_on: list[bool] = []
    # Each question takes five turns of the loop, however long they take.
    server.go_on = lambda: went_on.append(all(turned.acquire(timeout=60) for _ in range(5)))

    async def main() -> int:
        asked = asyncio.ensure_future(answer())
        while not asked.done():
            await asyncio.sleep(0.001)
            turned.release()
        return await asked

    assert asyncio.run(main()) == 42
    assert went_on == [True] * 5, "claim, take, enter, leave, keep"


@pytest.mark.parametrize("kind", ["breaker", "limit", "cache"])
def test_a_cancelled_question_takes_nothing(server: Any, kind: str, genops_runtime: Runtime) -> None:
    """Cancelled while the server is asked: the probe, the turn and the lease go to the next caller."""
    given = options(server)[kind]

    @resilient(**given)
    async def answer() -> int:
        return 42

    if kind == "breaker":
        given["breaker"].call(lambda: None)  # known to the store
        with pytest.raises(TimeoutError):
            given["breaker"].call(_fail)
        time.sleep(0.01)

    async def main() -> int:
        server.begun.clear()
        first = asyncio.ensure_future(answer())
        while not server.begun.is_set():
            await asyncio.sleep(0.001)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        genops_runtime.books.hand_off.close()  # waits for what is undone
        return await asyncio.wait_for(answer(), 60)

    assert asyncio.run(main()) == 42


def _fail() -> None:
    raise TimeoutError


class Never:
    def __await__(self) -> Any:
        yield


def test_a_call_that_is_dropped_gives_its_lease_back(server: Any, genops_runtime: Runtime) -> None:
    cache = QueryCache(name="c", store=server)

    @resilient(cache=cache, name="answer")
    async def answer() -> None:
        await Never()

    async def main() -> object:
        coroutine = answer()
        server.remote = False
        coroutine.send(None)  # to where its function waits
        server.remote = True
        key = cache.key("answer", [["customer_id", None], ["team", None]], [], {})
        assert isinstance(cache.claim(key), Busy)
        coroutine.close()
        genops_runtime.abandoned.drain()
        return cache.claim(key)

    assert isinstance(asyncio.run(main()), Lease)
