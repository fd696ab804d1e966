"""Each test of the account stores runs on every back end."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from genops_ctx.core.ports import AccountStore
from genops_ctx.core.resilience_ports import ResilienceStore
from genops_ctx.stores.memory import MemoryStore
from genops_ctx.stores.sqlite import SQLiteStore
from genops_ctx.stores.tombstones import TOMBSTONE_SECONDS

from .redis_server import RedisServer
from .resilience_stores import NewResilience, make_new

NewStore = Callable[[], AccountStore]
BACK_ENDS = ("memory", "sqlite", "redis")

_numbers = itertools.count()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One server without persistence for all tests that keep to a namespace of their own."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=BACK_ENDS)
def back_end(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def new_store(back_end: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NewStore]:
    """Makes empty stores that go by the time their callers say."""
    made: list[AccountStore] = []

    def make() -> AccountStore:
        number = next(_numbers)
        store: AccountStore
        if back_end == "memory":
            store = MemoryStore(remember=TOMBSTONE_SECONDS)
        elif back_end == "sqlite":
            store = SQLiteStore(tmp_path / f"{number}.db", timeout=60.0, synchronous="OFF", clock="caller")
        else:
            server: RedisServer = request.getfixturevalue("redis_server")
            from genops_ctx.stores.redis import RedisStore

            store = RedisStore(server.url, namespace=f"test{number}", command_timeout=20.0, clock="caller")
        made.append(store)
        return store

    yield make
    for store in made:
        store.close()


@pytest.fixture
def store(new_store: NewStore) -> AccountStore:
    return new_store()


@pytest.fixture
def new_resilience(back_end: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NewResilience]:
    """Makes empty stores of breakers, limits and cache."""
    yield from make_new(back_end, request, tmp_path)


@pytest.fixture
def resilience(new_resilience: NewResilience) -> ResilienceStore:
    return new_resilience()
