"""Runtimes on each back end that go by the time of a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from genops_ctx import Budget
from genops_ctx.core.ports import AccountStore, Clock
from genops_ctx.ledger.memory import MemoryLedger
from genops_ctx.ledger.sqlite import SQLiteLedger
from genops_ctx.runtime import Runtime, reset_runtime
from genops_ctx.settings import Settings
from genops_ctx.stores.memory import MemoryStore
from genops_ctx.stores.sqlite import SQLiteStore
from genops_ctx.stores.tombstones import TOMBSTONE_SECONDS
from tests.stores.redis_server import RedisServer

Run = Callable[[Clock, Sequence[Budget]], Runtime]


@pytest.fixture(params=["memory", "sqlite", "redis"])
def run_at(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Run]:
    """Have this process run by a clock and some budgets, on an empty store and ledger."""
    made: list[Runtime] = []
    server = RedisServer(tmp_path) if request.param == "redis" else None
    if server is not None:
        server.start()

    def run(clock: Clock, budgets: Sequence[Budget]) -> Runtime:
        store: AccountStore
        if request.param == "memory":
            store, ledger = MemoryStore(remember=TOMBSTONE_SECONDS), MemoryLedger()
        elif request.param == "sqlite":
            file = tmp_path / f"{len(made)}.db"
            store, ledger = SQLiteStore(file, timeout=60, clock="caller"), SQLiteLedger(file)
        else:
            from genops_ctx.stores.redis import RedisStore

            assert server is not None
            space = f"time{len(made)}"
            store = RedisStore(server.url, namespace=space, command_timeout=20.0, clock="caller")
            ledger = MemoryLedger()
        made.append(Runtime(Settings(budgets=tuple(budgets)), store=store, ledger=ledger, clock=clock))
        reset_runtime(made[-1])
        return made[-1]

    yield run
    for runtime in made:
        runtime.books.close()
    if server is not None:
        server.kill()
