"""What a worker of the service holds after many requests: nothing that grows with them.

``GENOPS_MEMORY=100000 pytest tests/bench/test_service_memory.py -s`` sends so many; unset, it is some
thousands. JSON and streams in turn, from many keys, sessions and users.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import aiohttp

from genops_ctx.ledger import open_ledger
from genops_ctx.service.key_store import open_keys
from genops_ctx.service.keys import new_key
from genops_ctx.stores import open_store
from tests.service.replayed_flowise import ReplayedFlowise
from tests.service.served import Served
from tests.stores.redis_server import RedisServer

REMEMBERED = 10_000
"""calls that a worker remembers, for evidence that comes late; some KiB each"""
REQUESTS = int(os.environ.get("GENOPS_MEMORY", "2000"))
WARM_UP = max(REQUESTS // 4, 1000)
"""until what is kept once, and what is bounded, is there"""
CLIENTS = 16
KEYS = 200
MIB = 2**20


async def send(url: str, secrets: list[str], first: int, number: int) -> None:
    """Each of another session and user; every other one streamed."""
    waiting = iter(range(first, first + number))

    async def client(session: aiohttp.ClientSession) -> None:
        for one in waiting:
            body = {
                "question": "hi",
                "streaming": one % 2 == 0,
                "overrideConfig": {"sessionId": f"session-{one}"},
            }
            headers = {
                "Authorization": f"Bearer {secrets[one % len(secrets)]}",
                "X-GenOps-User-Id": f"user-{one}",
            }
            async with session.post(url, json=body, headers=headers) as answer:
                assert answer.status == 200
                assert "x-genops-refused" not in answer.headers
                assert b"usage" in await answer.read()

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*[client(session) for _ in range(CLIENTS)])


def test_memory_does_not_grow_with_the_requests(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    settings = '[[budget]]\nname = "teams"\nlimit = "1000/day"\nby = "team"\n'
    with ReplayedFlowise() as flowise, RedisServer(tmp_path / "redis") as redis:
        service = Served(tmp_path, flowise.url, workers=2, settings=settings, GENOPS_STORE=redis.url)
        keys, secrets = open_keys(service.environment["GENOPS_LEDGER"]), []
        for number in range(KEYS):
            key, secret = new_key(f"web {number}", now=time.time(), attribution={"team": f"team-{number}"})
            keys.put(key)
            secrets.append(secret)
        keys.close()
        with service:
            url = f"{service.url}/api/v1/prediction/{flowise.flow}"
            asyncio.run(send(url, secrets, 0, WARM_UP))
            time.sleep(1.0)
            pids = service.pids()
            before = {pid: service.resident_bytes(pid) for pid in pids}
            asyncio.run(send(url, secrets, WARM_UP, REQUESTS))
            time.sleep(1.0)
            grown = {pid: service.resident_bytes(pid) - before[pid] for pid in pids}
            assert service.pids() == pids
            assert service.stop() == 0
        ledger, store = open_ledger(service.environment["GENOPS_LEDGER"]), open_store(redis.url)
        booked = sum(total.nanos for total in ledger.totals())
        reserved = sum(account.reserved for account in store.accounts().values())
        ledger.close()
        store.close()
    print(f"\n{REQUESTS} requests after {WARM_UP}, over {len(pids)} workers")
    for pid in pids:
        print(f"  worker {pid}: {before[pid] / MIB:.1f} MiB, and {grown[pid] / MIB:+.1f} MiB")
    # Up to what is remembered it grows with each call; beyond, it does not.
    remembered = max(0, min(REQUESTS, 2 * REMEMBERED - WARM_UP))
    assert sum(grown.values()) < 16 * MIB + remembered * 6 * 1024
    assert booked == (REQUESTS + WARM_UP) * 5_550
    assert reserved == 0
