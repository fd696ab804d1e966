"""What the gateway adds to a prediction, beside the direct path and beside a proxy that does nothing else.

``GENOPS_ROUNDS=5 pytest tests/bench/test_service.py -o addopts= -s`` prints the tables. Sixteen clients;
direct, bare proxy and gateway take turns within one run. Once Flowise answers after 0.2 s, as models have
it do, and once at once: then all the processes compete for the processors, and what is measured is how many
requests a core is good for. The first Flowise here replays recorded answers; the second is a real one, whose
model takes a second.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import aiohttp
import pytest
import requests

from genops_ctx.service.key_store import open_keys
from genops_ctx.service.keys import new_key
from tests.ledger.postgres_server import PostgresServer
from tests.real.conftest import RunningFlowise, flowise, flowise_installation  # noqa: F401
from tests.service.replayed_flowise import ReplayedFlowise
from tests.service.served import Served
from tests.stores.redis_server import RedisServer, free_port

from . import timing
from .timing import few

CLIENTS = 16
ROUNDS = int(os.environ.get("GENOPS_ROUNDS", "1"))
"""of each way; one by one they say little"""
WORKERS = 2
SETTINGS = '[[budget]]\nname = "daily"\nlimit = "1000/day"\nby = "team"\n'


class Way(NamedTuple):
    """One way to Flowise: its address, what it is told, and the processes that it costs."""

    url: str
    headers: dict[str, str]
    pids: list[int]


class Bare:
    """The proxy that only passes on, with as many workers."""

    def __init__(self, flowise_url: str, api_key: str = "") -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        key = {"FLOWISE_API_KEY": api_key} if api_key else {}
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "uvicorn", "tests.bench.bare_proxy:app", "--port", str(self.port)),
                *("--workers", str(WORKERS), "--no-access-log", "--log-level", "error"),
            ],
            env={**os.environ, "FLOWISE_BASE_URL": flowise_url, **key},
            cwd=Path(__file__).parents[2],
            start_new_session=True,
        )

    def __enter__(self) -> Bare:
        deadline = time.monotonic() + 60
        while True:
            try:
                requests.get(f"{self.url}/health/live", timeout=2)
                return self
            except requests.RequestException:
                assert time.monotonic() < deadline
                time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(60)

    def pids(self) -> list[int]:
        listed = subprocess.run(
            ["ps", "-o", "pid=,args=", "--ppid", str(self.process.pid)], capture_output=True, text=True
        )
        return [int(line.split()[0]) for line in listed.stdout.splitlines() if "spawn_main" in line]


def paths(stack: ExitStack, folder: Path, flowise_url: str, api_key: str = "") -> dict[str, Way]:
    (folder / "redis").mkdir()
    redis = stack.enter_context(RedisServer(folder / "redis"))
    bare = stack.enter_context(Bare(flowise_url, api_key))
    ways = {
        "direct": Way(flowise_url, {"Authorization": f"Bearer {api_key}"} if api_key else {}, []),
        "bare FastAPI + aiohttp": Way(bare.url, {}, bare.pids()),
    }
    ledgers = {
        "gateway, Redis, SQLite": f"sqlite:///{folder}/ledger.sqlite3",
        "gateway, Redis, PostgreSQL": stack.enter_context(PostgresServer()).new_database(),
    }
    for name, ledger in ledgers.items():
        own = folder / name.rpartition(" ")[2]
        own.mkdir()
        keys = {"FLOWISE_API_KEY": api_key} if api_key else {}
        urls = {"GENOPS_STORE": redis.url, "GENOPS_LEDGER": ledger}
        service = Served(own, flowise_url, workers=WORKERS, settings=SETTINGS, **urls, **keys)
        store = open_keys(ledger)
        key, secret = new_key("web", now=time.time(), attribution={"team": "help"})
        store.put(key)
        store.close()
        stack.enter_context(service)
        ways[name] = Way(service.url, {"Authorization": f"Bearer {secret}"}, service.pids())
    return ways


async def send(way: Way, flow: str, calls: int, stream: bool, apart: float = 0.0) -> list[float]:
    """Milliseconds of each call, with sixteen clients at it, who begin within so many seconds."""
    took: list[float] = []
    waiting = iter(range(calls))
    body = {"question": "What is two plus three?", "streaming": stream}

    async def client(session: aiohttp.ClientSession, number: int) -> None:
        await asyncio.sleep(apart * number / CLIENTS)
        for _ in waiting:
            began = time.perf_counter()
            async with session.post(
                f"{way.url}/api/v1/prediction/{flow}", json=body, headers=way.headers
            ) as answer:
                assert answer.status == 200
                assert "x-genops-refused" not in answer.headers
                assert await answer.read()
            took.append((time.perf_counter() - began) * 1000)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*[client(session, number) for number in range(CLIENTS)])
    return took


def measured(
    title: str, ways: dict[str, Way], flow: str, calls: int, stream: bool, apart: float = 0.0
) -> None:
    took: dict[str, list[float]] = {name: [] for name in ways}
    used = dict.fromkeys(ways, 0.0)
    for way in ways.values():
        asyncio.run(send(way, flow, few(40 * WORKERS), stream))
    for _ in range(ROUNDS):
        for name, way in ways.items():
            before = sum(map(Served.processor_seconds, way.pids))
            took[name] += asyncio.run(send(way, flow, calls, stream, apart))
            used[name] += sum(map(Served.processor_seconds, way.pids)) - before
    begun = "apart" if apart else "together"
    print(
        f"\n{title}, {'streamed' if stream else 'JSON'}, {CLIENTS} clients begun {begun}, {WORKERS} workers"
    )
    direct = statistics.median(took["direct"])
    bare = used["bare FastAPI + aiohttp"]
    for name, times in took.items():
        cuts = statistics.quantiles(times, n=100)
        line = f"  {name:<28} p50 {cuts[49]:>7.1f} p95 {cuts[94]:>7.1f} p99 {cuts[98]:>7.1f} ms"
        if used[name]:
            line += (
                f"   {cuts[49] - direct:+6.1f} ms   {1000 * used[name] / len(times):.2f} ms of a processor"
            )
            line += f" ({used[name] / bare:.1f} of the bare proxy's)" if bare else ""
        print(line)
        assert len(times) == ROUNDS * calls


def test_beside_the_stand_in(tmp_path: Path) -> None:
    for delay in (0.2, 0.0) if timing.measuring else (0.0,):
        folder = tmp_path / str(delay)
        folder.mkdir()
        with ExitStack() as stack:
            replayed = stack.enter_context(ReplayedFlowise(delay=delay))
            ways = paths(stack, folder, replayed.url)
            for stream in (False, True):
                title = f"recorded answers after {delay} s"
                measured(title, ways, replayed.flow, few(96 if delay else 160), stream)
                if delay:
                    measured(title, ways, replayed.flow, few(96), stream, apart=delay)


@pytest.fixture
def slowly(flowise: RunningFlowise) -> Iterator[RunningFlowise]:  # noqa: F811
    """Its model takes a second: sixteen clients do not use all of the processors."""
    answer = flowise.model_stub.respond

    def respond(*args: object, **named: object) -> object:
        given = answer(*args, **named)  # type: ignore[arg-type]
        time.sleep(1.0)
        return given

    flowise.model_stub.respond = respond  # type: ignore[method-assign,assignment]
    yield flowise
    del flowise.model_stub.respond  # type: ignore[method-assign]


@pytest.mark.skipif("GENOPS_ROUNDS" not in os.environ, reason="slow: set GENOPS_ROUNDS=5")
def test_beside_a_real_flowise(slowly: RunningFlowise, tmp_path: Path) -> None:
    with ExitStack() as stack:
        ways = paths(stack, tmp_path, slowly.url, slowly.api_key)
        measured(
            "Flowise 3.1.4, a model that takes 1 s", ways, slowly.flows["agentflow_llm"], 48, False, apart=1.0
        )
