"""The async adapter over bare aiohttp, 64 calls at a time. ``pytest tests/bench -o addopts= -s`` prints it.

Nothing is asserted of times. The server answers recorded bytes from a process of its own, so that the
client is what is measured; store and ledger are in memory.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import aiohttp
import pytest
from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
from opentelemetry.sdk.trace import TracerProvider

from genops_ctx import auto_instrument, disable_auto_instrument, governance_context
from genops_ctx.providers.flowise_async import AsyncFlowiseAdapter
from genops_ctx.runtime import Runtime, reset_runtime
from genops_ctx.settings import Settings

from .timing import few

AT_A_TIME = 64
CALLS = 3_000
ROUNDS = 4


def record() -> tuple[str, bytes, bytes]:
    """A flow's id, its definition and an answer of it, from the stand-in."""
    from genops_ctx.testing import Flow, FlowiseStandIn

    with FlowiseStandIn([Flow("graph", "agentflow")]) as flowise:
        flow = flowise.flow_id("graph")
        with urllib.request.urlopen(f"{flowise.url}/api/v1/chatflows/{flow}") as definition:
            defined = definition.read()
        question = urllib.request.Request(
            f"{flowise.url}/api/v1/prediction/{flow}",
            json.dumps({"question": "hello"}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(question) as answer:
            return flow, defined, answer.read()


class Recorded(asyncio.Protocol):
    """Answers each request of one read with recorded bytes: as little work as a server can do."""

    definition = b""
    answer = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.waiting = b""

    def data_received(self, data: bytes) -> None:
        self.waiting += data
        head, found, body = self.waiting.partition(b"\r\n\r\n")
        if not found:
            return
        length = 0
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        if len(body) < length:
            return
        self.waiting = b""
        self.transport.write(self.answer if head.startswith(b"POST") else self.definition)


def _serve(port: Any) -> None:
    async def main() -> None:
        flow, definition, answer = record()
        for name, body in (("definition", definition), ("answer", answer)):
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            setattr(Recorded, name, head.encode() + body)
        server = await asyncio.get_running_loop().create_server(Recorded, "127.0.0.1", 0)
        port.put((f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flow))
        await server.serve_forever()

    asyncio.run(main())


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, str]]:
    context = multiprocessing.get_context("spawn")
    port = context.Queue()
    process = context.Process(target=_serve, args=(port,), daemon=True)
    process.start()
    try:
        yield port.get(timeout=60)
    finally:
        process.kill()
        process.join()


async def measure(call: Callable[[], Awaitable[object]]) -> tuple[float, float]:
    """Calls a second, and processor microseconds of a call, with 64 at a time."""

    async def worker(number: int) -> None:
        for _ in range(few(CALLS) // AT_A_TIME):
            await call()

    began, used = time.perf_counter(), time.process_time()
    await asyncio.gather(*[worker(number) for number in range(AT_A_TIME)])
    done = few(CALLS) // AT_A_TIME * AT_A_TIME
    return done / (time.perf_counter() - began), (time.process_time() - used) / done * 1e6


async def measure_traced(address: str) -> tuple[float, float]:
    """The bare call under OpenTelemetry's instrumentation, which takes sessions that are made under it."""
    instrumentor = AioHttpClientInstrumentor()
    instrumentor.instrument(tracer_provider=TracerProvider(shutdown_on_exit=False))
    try:
        async with aiohttp.ClientSession() as session:

            async def traced() -> None:
                async with session.post(address, json={"question": "hello"}) as response:
                    await response.json()

            await traced()
            return await measure(traced)
    finally:
        instrumentor.uninstrument()


def test_sixty_four_at_a_time(elsewhere: tuple[str, str]) -> None:
    url, flow = elsewhere
    before = reset_runtime(Runtime(Settings()))
    address = f"{url}/api/v1/prediction/{flow}"

    async def main() -> list[list[tuple[float, float]]]:
        async with aiohttp.ClientSession() as session, AsyncFlowiseAdapter(url, team="a") as adapter:

            async def bare() -> None:
                async with session.post(address, json={"question": "hello"}) as response:
                    await response.json()

            async def ours() -> None:
                await adapter.predict_flow(flow, "hello")

            async def ours_with_a_budget() -> None:
                await adapter.predict_flow(flow, "hello", max_cost="0.001")

            with governance_context("bench", budget=10**6):
                await asyncio.gather(bare(), ours(), ours_with_a_budget())
                results: list[list[tuple[float, float]]] = [[], [], [], [], []]
                for _ in range(few(ROUNDS)):
                    results[0].append(await measure(bare))
                    results[1].append(await measure(ours))
                    results[2].append(await measure(ours_with_a_budget))
                    auto_instrument(url, team="a")
                    await bare()
                    results[3].append(await measure(bare))
                    disable_auto_instrument()
                    results[4].append(await measure_traced(address))
                return results

    try:
        rounds = asyncio.run(main())
    finally:
        reset_runtime(before)
        disable_auto_instrument()
    names = (
        "bare aiohttp",
        "AsyncFlowiseAdapter, budget",
        "AsyncFlowiseAdapter, budget and max_cost",
        "aiohttp under auto_instrument, budget",
        "OpenTelemetry's instrumentation of aiohttp",
    )
    fastest = [(max(rate for rate, _ in each), min(cpu for _, cpu in each)) for each in rounds]
    print(f"\nPredictions over loopback, {AT_A_TIME} at a time, memory store and memory ledger")
    for name, (rate, cpu) in zip(names, fastest, strict=True):
        ratio = rate / fastest[0][0]
        print(f"  {name:<44}{rate:>8.0f} /s{cpu:>10.0f} µs CPU   this / bare = {ratio:.3f}")
    assert all(rate > 0 for rate, _ in fastest)
