"""Stores by URL."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from genops_ctx.core.errors import ConfigurationError
from genops_ctx.stores import open_store
from genops_ctx.stores.memory import MemoryStore
from genops_ctx.stores.redis_urls import parse_address
from genops_ctx.stores.sqlite import SQLiteStore


def test_memory() -> None:
    assert isinstance(open_store("memory://"), MemoryStore)


def test_sqlite_relative_and_absolute(empty_directory: Path) -> None:
    relative, absolute = open_store("sqlite:///a.db"), open_store(f"sqlite:///{empty_directory}/b%20c.db")
    assert isinstance(relative, SQLiteStore)
    assert isinstance(absolute, SQLiteStore)
    assert (relative.path, absolute.path) == ("a.db", f"{empty_directory}/b c.db")


@pytest.mark.parametrize(
    "url", ["", "memory", "postgresql://me:hunter2@host/db", "sqlite://x", "sqlite:///", "hunter2"]
)
def test_what_is_no_store_is_refused_without_showing_a_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_store(url)
    assert "hunter2" not in str(caught.value)


def test_redis_is_loaded_only_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    store = open_store("redis://:hunter2@localhost:1/0")
    with pytest.raises(ConfigurationError, match=r"pip install 'genops_ctx\[redis\]'"):
        store.accounts()
    assert "hunter2" not in repr(store)


def test_a_bad_parameter_of_redis_is_refused_without_showing_a_password() -> None:
    pytest.importorskip("redis")
    store = open_store("redis://:hunter2@localhost:1/0?no_such_parameter=1")
    with pytest.raises(ConfigurationError) as caught:
        store.accounts()
    assert "hunter2" not in str(caught.value)


def test_addresses_of_several_nodes() -> None:
    sentinel = parse_address("rediss+sentinel://me:p%40ss@a,b:26380/budgets/2?sentinel_password=guard")
    assert sentinel.nodes == (("a", 26379), ("b", 26380))
    assert sentinel.service == "budgets"
    assert sentinel.options == {
        "username": "me",
        "password": "p@ss",
        "db": 2,
        "ssl": True,
        "sentinel_password": "guard",
    }
    cluster = parse_address("redis+cluster://:secret@a:7000,b/")
    assert (cluster.kind, cluster.nodes) == ("cluster", (("a", 7000), ("b", 6379)))
    assert "p@ss" not in repr(sentinel)
    assert "secret" not in repr(cluster) + cluster.shown
