"""The awaiting Redis store beside the other one: the same data, the same bound."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from genops_ctx.core.accounts import Account, Control, Reserve
from genops_ctx.core.errors import StoreDataLost, StoreError
from genops_ctx.core.ports import Held
from tests.strategies import watch

from .redis_server import RedisServer

pytest.importorskip("redis", reason="redis-py is not here: pip install 'genops_ctx[redis]'")

from genops_ctx.stores.redis import RedisStore
from genops_ctx.stores.redis_async import AsyncRedisStore

CENT = 10_000_000


def wish(name: str, amount: int = CENT, limit: int = 10 * CENT) -> Reserve:
    return Reserve(name, amount, (watch("a", limit),), time.time() + 60)


def test_of_fifty_tasks_ten_are_admitted_and_both_kinds_of_client_see_them(tmp_path: Path) -> None:
    async def story(store: RedisStore) -> None:
        client = AsyncRedisStore(store)
        now = time.time()
        answers = await asyncio.gather(*(client.reserve(wish(f"op{n}#1"), now) for n in range(50)))
        admitted = [n for n, answer in enumerate(answers) if isinstance(answer, Held)]
        assert len(admitted) == 10
        first, second, third, *rest = (f"op{n}#1" for n in admitted)
        await client.settle(first, 3, (), now, True)
        await client.release(second, now)
        await client.extend(third, now + 1000, now)
        assert await client.accounts(["a"]) == {"a": Account(3, 8 * CENT)}
        await client.adjust("a", -3)
        await client.set_control("team=a", grant=(5, 9.5))
        assert await client.control("team=a") == Control(granted=5, granted_until=9.5)
        assert await client.mark("alert", now, now + 60)
        assert not await client.mark("alert", now, now + 60)
        assert await client.reap(now) == ()
        await client.acknowledge(rest)
        await client.close()

    with RedisServer(tmp_path) as server:
        store = RedisStore(server.url, command_timeout=5.0)
        asyncio.run(story(store))
        assert store.accounts() == {"a": Account(0, 8 * CENT)}
        store.close()


def test_silence_costs_the_bound_and_lost_data_is_noticed(tmp_path: Path) -> None:
    async def story(server: RedisServer) -> None:
        client = AsyncRedisStore(RedisStore(server.url, command_timeout=0.05))
        assert await client.accounts() == {}
        await client.reserve(wish("op#1"), time.time())
        server.pause()
        begun = time.monotonic()
        with pytest.raises(StoreError, match="did not answer within"):
            await client.reserve(wish("op#2"), time.time())
        with pytest.raises(StoreError, match="a moment ago"):
            await client.release("op#2", time.time())
        assert time.monotonic() - begun < 0.2
        server.resume()
        await asyncio.sleep(0.2)
        assert await client.accounts() == {"a": Account(0, CENT)}
        server.cli("SCRIPT", "FLUSH")
        server.cli("FLUSHALL")
        with pytest.raises(StoreDataLost):
            await client.accounts()
        await client.close()
        await asyncio.sleep(0.01)  # a loop that ends at once leaves closed sockets behind

    with RedisServer(tmp_path) as server:
        asyncio.run(story(server))
