"""A Redis that hangs costs a call its bound, and then ``on_store_error`` decides."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from genops_ctx import metered_call
from genops_ctx.core.errors import StoreError, StoreUnavailable
from genops_ctx.runtime import Runtime, reset_runtime
from tests.stores.redis_server import RedisServer
from tests.stores.slow_proxy import SlowProxy

from .workers import CENT, book_until, join, runtime_of

BOUND = 0.25
SLACK = 15.0  # a busy machine; a server that hangs does so for ever


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as started:
        yield started


def governed_by(server: RedisServer, on_store_error: str) -> Runtime:
    from genops_ctx.stores.redis import RedisStore

    reset_runtime(runtime_of(RedisStore(server.url, command_timeout=20.0)))
    with metered_call("flow", max_cost="0.01") as call:
        call.record_cost("0.01")
    runtime = runtime_of(RedisStore(server.url, command_timeout=BOUND), on_store_error=on_store_error)
    reset_runtime(runtime)
    join(runtime.books.store)
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
    book_until(runtime, (CENT, 0))


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
    book_until(runtime, (CENT + 4_000_000, 0))


# -- one deadline for a whole step ---------------------------------------------------------------


def test_a_slow_network_costs_a_step_the_bound_once_however_often_it_asks(server: RedisServer) -> None:
    """Joining, EVALSHA and EVAL would take 1.2 s; each alone keeps within the bound of 0.7 s."""
    from genops_ctx.stores.redis import RedisStore

    with SlowProxy(server.port, delay=0.4) as proxy:
        store = RedisStore(f"redis://127.0.0.1:{proxy.port}/0", command_timeout=0.7)
        runtime = runtime_of(store)
        reset_runtime(runtime)
        waits, ran = [], 0
        until = time.monotonic() + 120
        for number in count():
            if (ran and number >= 6) or time.monotonic() > until:
                break
            begun = time.monotonic()
            try:
                with metered_call("flow", max_cost="0.01", idempotency_key=f"op{number}") as call:
                    waits.append(time.monotonic() - begun)
                    call.record_cost("0.01")
                ran += 1
            except StoreUnavailable:
                waits.append(time.monotonic() - begun)
                time.sleep(1.5)
        assert max(waits) < 0.7 + SLACK, waits
        assert 1 <= ran < len(waits), "the first ones join, and have the server know the scripts"
        proxy.delay = 0.0
        # What was reserved and never heard of is given back, by its token: the names are the user's.
        book_until(runtime, (ran * CENT, 0))
        store.close()


def test_a_restart_that_forgot_the_scripts_is_within_the_same_bound(server: RedisServer) -> None:
    runtime = governed_by(server, "block")
    server.cli("SCRIPT", "FLUSH")
    server.pause()
    begun = time.monotonic()
    with pytest.raises(StoreUnavailable), metered_call("flow", max_cost="0.01"):
        raise AssertionError("sent")
    assert time.monotonic() - begun < BOUND + SLACK
    server.resume()
    time.sleep(4 * BOUND)
    book_until(runtime, (CENT, 0))


def test_a_password_does_not_make_a_hung_server_dearer(tmp_path: Path) -> None:
    """The connection is made anew, and its handshake meets the hung server."""
    from genops_ctx.stores.redis import RedisStore

    with RedisServer(tmp_path, "--requirepass", "secret") as server:
        store = RedisStore(f"redis://:secret@127.0.0.1:{server.port}/3", command_timeout=BOUND)
        join(store)
        store.close()
        server.pause()
        begun = time.monotonic()
        with pytest.raises(StoreError):
            store.accounts()
        assert time.monotonic() - begun < BOUND + SLACK


def test_a_refused_connection_costs_next_to_nothing(server: RedisServer) -> None:
    governed_by(server, "block")
    server.kill()
    begun = time.monotonic()
    with pytest.raises(StoreUnavailable), metered_call("flow", max_cost="0.01"):
        raise AssertionError("sent")
    assert time.monotonic() - begun < BOUND + SLACK


def test_the_first_call_of_a_process_is_not_refused_because_redis_py_is_imported_by_it(
    server: RedisServer,
) -> None:
    code = (
        "import time\n"
        "from genops_ctx.stores.redis import RedisStore\n"
        f"store = RedisStore({server.url!r}, command_timeout=20.0, connect_timeout=20.0)\n"
        "import genops_ctx.stores.redis as module\n"
        "connect, now = module.connect, time.monotonic\n"
        "def slow(*args, **named):\n"
        "    client = connect(*args, **named)\n"
        "    time.monotonic = lambda: now() + 60\n"
        "    return client\n"
        "module.connect = slow\n"
        "print(store.accounts())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout.strip(), done.stderr) == ("{}", "")
