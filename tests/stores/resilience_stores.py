"""Empty resilience stores of every back end, going by the time that their callers say."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from genops_ctx.core.resilience_ports import ResilienceStore
from genops_ctx.stores.resilience import MemoryResilience
from genops_ctx.stores.sqlite_resilience import SQLiteResilience

from .redis_server import RedisServer

NewResilience = Callable[[], ResilienceStore]

_numbers = itertools.count()


def make_new(back_end: str, request: pytest.FixtureRequest, folder: Path) -> Iterator[NewResilience]:
    made: list[ResilienceStore] = []

    def make() -> ResilienceStore:
        number = next(_numbers)
        store: ResilienceStore
        if back_end == "memory":
            store = MemoryResilience()
        elif back_end == "sqlite":
            store = SQLiteResilience(folder / f"{number}.db", timeout=60.0)
            store.database.synchronous = "OFF"  # no test takes the machine's power away
        else:
            server: RedisServer = request.getfixturevalue("redis_server")
            from genops_ctx.stores.redis_resilience import RedisResilience
            from genops_ctx.stores.redis_rules import RedisRules

            rules = RedisRules(server.url, namespace=f"rules{number}", command_timeout=20.0, clock="caller")
            store = RedisResilience(rules)
        made.append(store)
        return store

    yield make
    for store in made:
        store.close()
