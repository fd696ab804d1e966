"""``away="refuse"``: no call passes a limit or breaker that could not be asked, whatever is wrong."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from genops_ctx import governance_context, instrument_flowise
from genops_ctx.core.errors import StoreUnavailable
from genops_ctx.providers.flowise_async import AsyncFlowiseAdapter
from genops_ctx.resilience import CircuitBreaker, RateLimiter
from genops_ctx.stores.resilience import open_resilience
from genops_ctx.stores.sqlite_resilience import SQLiteResilience
from genops_ctx.testing import Flow, FlowiseStandIn
from tests.patience import once_it_answers
from tests.stores.redis_server import RedisServer

BOUND = 1.0 + 0.5
"""Seconds: a command and a connection."""


@pytest.fixture(scope="module")
def flowise() -> Iterator[FlowiseStandIn]:
    with FlowiseStandIn([Flow("one", "agentflow")]) as running:
        yield running


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as running:
        yield running


def full(server: RedisServer) -> None:
    server.cli("CONFIG", "SET", "maxmemory-policy", "noeviction")
    server.cli("CONFIG", "SET", "maxmemory", "1")


def not_allowed(server: RedisServer) -> None:
    server.cli("ACL", "SETUSER", "default", "-eval", "-evalsha")


def replica(server: RedisServer) -> None:
    server.cli("REPLICAOF", "127.0.0.1", "1")


def without_replicas(server: RedisServer) -> None:
    server.cli("CONFIG", "SET", "min-replicas-to-write", "1")


def of_another_type(server: RedisServer) -> None:
    for key in server.cli("KEYS", "*").split():
        if key.startswith("{"):
            server.cli("DEL", key)
            server.cli("SADD", key, "something else")


TROUBLES: dict[str, Callable[[RedisServer], object]] = {
    "paused": RedisServer.pause,
    "killed": RedisServer.kill,
    "full": full,
    "not allowed": not_allowed,
    "replica": replica,
    "without replicas": without_replicas,
    "of another type": of_another_type,
}


SILENT = ("paused", "killed", "not allowed")
"""The others still answer who only reads, as a breaker that is closed does."""


@pytest.fixture(params=TROUBLES)
def trouble(request: pytest.FixtureRequest) -> Callable[[RedisServer], object]:
    return TROUBLES[request.param]


def refused(call: Callable[[], Any]) -> None:
    begun = time.monotonic()
    with pytest.raises(StoreUnavailable, match="away='refuse'"):
        call()
    assert time.monotonic() - begun < BOUND + 10.0, "some seconds for a busy machine"


@pytest.mark.parametrize(
    ("kind", "what"), [*[("limit", what) for what in TROUBLES], *[("breaker", what) for what in SILENT]]
)
def test_no_call_passes(flowise: FlowiseStandIn, server: RedisServer, what: str, kind: str) -> None:
    flowise.reset()
    store = open_resilience(server.url, away="refuse", command_timeout=1.0)
    limiter = RateLimiter(1000, name="all", store=store)
    breaker = CircuitBreaker(name="all", store=store)
    guard: dict[str, Any] = {"rate_limit": limiter} if kind == "limit" else {"breaker": breaker}
    adapter = instrument_flowise(flowise.url, **guard)
    with governance_context("test", budget=1) as context:
        once_it_answers(lambda: adapter.predict_flow("one", "hello"))
        assert bool(once_it_answers(limiter.acquire))
        assert once_it_answers(lambda: breaker.call(int)) == 0
        TROUBLES[what](server)
        for _ in range(3):
            refused(lambda: adapter.predict_flow("one", "hello"))
        refused(limiter.acquire)
        refused(limiter.wait)
        if what in SILENT:
            refused(lambda: breaker.call(int))

        async def main() -> None:
            async with AsyncFlowiseAdapter(flowise.url, **guard) as adapter:
                with pytest.raises(StoreUnavailable, match="away='refuse'"):
                    await adapter.predict_flow("one", "hello")

        asyncio.run(main())
        assert (context.calls, context.reserved) == (1, 0)
    assert len(flowise.billed) == 1
    store.close()


def test_a_call_before_which_nobody_could_ever_ask_is_refused_too(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        url = server.url
    limiter = RateLimiter(1000, name="all", store=open_resilience(url, away="refuse"))
    refused(limiter.acquire)


def test_calls_pass_again_once_redis_answers(server: RedisServer) -> None:
    store = open_resilience(server.url, away="refuse", command_timeout=1.0)
    breaker = CircuitBreaker(name="all", store=store)
    assert once_it_answers(lambda: breaker.call(int)) == 0
    server.pause()
    refused(lambda: breaker.call(int))
    server.resume()
    assert once_it_answers(lambda: breaker.call(int)) == 0
    store.close()


def test_with_local_each_process_goes_by_its_own(
    server: RedisServer, trouble: Callable[[RedisServer], object]
) -> None:
    limiter = RateLimiter(2, name="all", store=open_resilience(server.url, command_timeout=5.0))
    assert bool(limiter.acquire())
    trouble(server)
    assert [bool(limiter.acquire()) for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize("away", ["local", "refuse"])
def test_a_file_that_stays_locked(tmp_path: Path, away: str) -> None:
    store = SQLiteResilience(tmp_path / "store.db", timeout=0.2, away=away)
    limiter = RateLimiter(2, name="all", store=store)
    assert bool(limiter.acquire())
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    if away == "refuse":
        refused(limiter.acquire)
    else:
        assert [bool(limiter.acquire()) for _ in range(3)] == [True] * 3, "and says so in the log"
    other.execute("ROLLBACK")
    other.close()
    store.close()
