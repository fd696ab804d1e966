"""A thousand streams of nothing but heartbeats, on four workers: held, served, ended, and left at once."""

from __future__ import annotations

import asyncio
import json
import resource
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from genops_ctx.books import Books
from genops_ctx.core.records import Charge
from genops_ctx.ledger import open_ledger
from genops_ctx.service.key_store import open_keys
from genops_ctx.service.keys import new_key
from genops_ctx.stores import open_store
from tests.ledger.postgres_server import PostgresServer
from tests.service.replayed_flowise import ReplayedFlowise
from tests.service.served import Served
from tests.stores.redis_server import RedisServer

pytestmark = pytest.mark.slow

STREAMS = 1_000
KIB = 1024
BODY = {"question": "hi", "streaming": True}


@pytest.fixture
def flowise() -> Iterator[ReplayedFlowise]:
    # Each stream has two ends in some process: more than the 1,024 descriptors that are often the default.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard < 4096 else max(soft, 4096), hard))
    with ReplayedFlowise(beat=1.0) as flowise:
        yield flowise
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def service(flowise: ReplayedFlowise, tmp_path: Path) -> Iterator[Served]:
    (tmp_path / "redis").mkdir()
    settings = '[[budget]]\nname = "shared"\nlimit = "1000/total"\nby = "team"\n'
    with PostgresServer() as postgres, RedisServer(tmp_path / "redis") as redis:
        url = postgres.new_database()
        with Served(
            tmp_path, flowise.url, workers=4, settings=settings, GENOPS_STORE=redis.url, GENOPS_LEDGER=url
        ) as service:
            yield service


@pytest.fixture
def headers(service: Served) -> dict[str, str]:
    keys = open_keys(service.environment["GENOPS_LEDGER"])
    key, secret = new_key("web", now=time.time(), attribution={"team": "help"})
    keys.put(key)
    keys.close()
    return {"Authorization": f"Bearer {secret}"}


@asynccontextmanager
async def opened(
    session: aiohttp.ClientSession, url: str, flowise: ReplayedFlowise
) -> AsyncIterator[list[aiohttp.ClientResponse]]:
    """The streams, 50 at a time, once Flowise holds all of them."""
    async with AsyncExitStack() as stack:
        streams: list[aiohttp.ClientResponse] = []
        waiting = iter(range(STREAMS))

        async def open_some() -> None:
            for _ in waiting:
                stream = await stack.enter_async_context(session.post(f"{url}?idle=1", json=BODY))
                assert stream.status == 200
                assert "x-genops-refused" not in stream.headers
                streams.append(stream)

        await asyncio.gather(*[open_some() for _ in range(50)])
        assert await asyncio.to_thread(flowise.held) == STREAMS
        yield streams


async def timed(session: aiohttp.ClientSession, url: str, calls: int) -> float:
    """Milliseconds of the median of some calls, one after the other."""
    took = []
    for _ in range(calls):
        begun = time.perf_counter()
        async with session.post(url, json={"question": "hi"}) as answer:
            assert answer.status == 200, await answer.text()
            await answer.read()
        took.append((time.perf_counter() - begun) * 1000)
    return statistics.median(took)


def closed_books(service: Served) -> tuple[list[Charge], int, int]:
    """The charges, and what the account of the budget says: spent and reserved."""
    environment = service.environment
    books = Books(open_store(environment["GENOPS_STORE"]), open_ledger(environment["GENOPS_LEDGER"]))
    try:
        charges = list(books.ledger.charges())
        (account,) = [one for key, one in books.store.accounts().items() if "team=help" in key]
        return charges, account.spent, account.reserved
    finally:
        books.close()


def test_each_gets_its_events_and_other_calls_go_on(
    flowise: ReplayedFlowise, service: Served, headers: dict[str, str]
) -> None:
    url = f"{service.url}/api/v1/prediction/{flowise.flow}"

    async def main() -> tuple[float, float, float, list[bytes]]:
        connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=600)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session:
            before_ms = await timed(session, url, 60)
            before = sum(map(service.resident_bytes, service.pids()))
            async with opened(session, url, flowise) as streams:
                begun = await asyncio.gather(*[stream.content.readany() for stream in streams])
                meanwhile_ms = await timed(session, url, 60)
                held = sum(map(service.resident_bytes, service.pids())) - before
                await asyncio.to_thread(flowise.let_go)
                ended = await asyncio.gather(*[stream.read() for stream in streams])
            texts = [first + rest for first, rest in zip(begun, ended, strict=True)]
            return before_ms, meanwhile_ms, held / STREAMS, texts

    before_ms, meanwhile_ms, bytes_each, texts = asyncio.run(main())
    print(
        f"\n{STREAMS} idle streams: {bytes_each / KIB:.0f} KiB each; another call takes {before_ms:.1f} ms "
        f"without them, {meanwhile_ms:.1f} ms with them"
    )
    for text in texts:
        assert b":heartbeat" in text
        events = [json.loads(line[5:]) for line in text.decode().split("\n") if line.startswith("data:")]
        assert events[-1]["event"] == "end"
        assert "agentFlowExecutedData" in {event["event"] for event in events}
    assert bytes_each < 256 * KIB
    assert meanwhile_ms < 5 * before_ms + 250
    assert service.stop() == 0
    charges, spent, reserved = closed_books(service)
    assert len(charges) == STREAMS + 120
    # 17 tokens read at 150 nano-dollars and 5 written at 600, by the price list of gpt-4o-mini.
    assert {(one.outcome, str(one.exactness), one.nanos) for one in charges} == {
        ("completed", "exact", 5_550)
    }
    assert (spent, reserved) == ((STREAMS + 120) * 5_550, 0)


def test_all_are_booked_when_all_are_left_at_once(
    flowise: ReplayedFlowise, service: Served, headers: dict[str, str]
) -> None:
    url = f"{service.url}/api/v1/prediction/{flowise.flow}"

    async def main() -> None:
        connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=600)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session:
            async with opened(session, url, flowise):
                pass
            assert await timed(session, url, 3) < 60_000

    asyncio.run(main())
    assert service.stop() == 0
    charges, spent, reserved = closed_books(service)
    left = [one for one in charges if one.outcome != "completed"]
    assert len(left) == STREAMS
    assert len(charges) == STREAMS + 3
    assert {one.outcome for one in left} == {"abandoned"}
    # What Flowise runs on to is not known; never nothing.
    assert all(one.nanos > 0 for one in left)
    assert (spent, reserved) == (sum(one.nanos for one in charges), 0)
