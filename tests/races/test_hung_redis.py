"""A Redis that hangs costs a call its bound, and then ``on_store_error`` decides."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from genops_ctx import metered_call
from genops_ctx.core.errors import StoreUnavailable
from genops_ctx.runtime import Runtime, reset_runtime
from tests.stores.redis_server import RedisServer

from .workers import CENT, account_of, runtime_of

BOUND = 0.05
SLACK = 0.1  # a busy machine


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as started:
        yield started


def governed_by(server: RedisServer, on_store_error: str) -> Runtime:
    from genops_ctx.stores.redis import RedisStore

    runtime = runtime_of(RedisStore(server.url, command_timeout=BOUND), on_store_error=on_store_error)
    reset_runtime(runtime)
    with metered_call("flow", max_cost="0.01") as call:
        call.record_cost("0.01")
    return runtime


def test_block_refuses_within_the_bound_and_leaves_nothing_behind(server: RedisServer) -> None:
    runtime = governed_by(server, "block")
    server.pause()
    for _ in range(3):
        begun = time.monotonic()
        with pytest.raises(StoreUnavailable), metered_call("flow", max_cost="0.01"):
            raise AssertionError("sent")
        assert time.monotonic() - begun < BOUND + SLACK
        time.sleep(4 * BOUND)
    server.resume()
    time.sleep(4 * BOUND)
    runtime.books.catch_up(time.time())
    assert account_of(runtime.books.store) == (CENT, 0)


def test_allow_lets_it_through_and_books_it_later(server: RedisServer) -> None:
    runtime = governed_by(server, "allow")
    server.pause()
    begun = time.monotonic()
    with metered_call("flow", max_cost="0.01") as call:
        call.record_cost("0.004")
    assert time.monotonic() - begun < 2 * (BOUND + SLACK), "once to admit, once to book"
    assert call.charge is not None
    assert "store_unavailable" in call.charge.flags
    server.resume()
    time.sleep(4 * BOUND)
    runtime.books.catch_up(time.time())
    assert account_of(runtime.books.store) == (CENT + 4_000_000, 0)
