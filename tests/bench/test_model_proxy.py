"""What the model proxy adds to a model call, beside the direct path. ``pytest tests/bench -o addopts= -s``.

Sixteen clients in a process of their own, the proxy and the model in one each; direct and proxied rounds
alternate within one run. Once the model answers after 150 to 250 ms, as models do (all at one time would have
the clients call at one time too), and once at once: then all the processes compete for the processor, and
the difference is mostly that. The model's own delay is taken off.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import statistics
import time
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from genops_ctx.receivers.model_proxy import ModelProxy

from .timing import few

CLIENTS = 16
ROUNDS = 4
KEY = "bench"
BODY = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}
USAGE = b'"usage":{"prompt_tokens":1,"completion_tokens":4,"total_tokens":5}'
WHOLE = b'{"model":"gpt-4o-mini","choices":[{"message":{"role":"assistant","content":"hi"}}],' + USAGE + b"}"
WORD = b'data: {"model":"gpt-4o-mini","choices":[{"index":0,"delta":{"content":"word "}}]}\n\n'
STREAM = WORD * 20 + b'data: {"choices":[],' + USAGE + b"}\n\ndata: [DONE]\n\n"


class Model(asyncio.Protocol):
    """Answers with recorded bytes, ``delay`` seconds after a request has come."""

    delay = 0.0
    chance = random.Random(5)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.waiting = b""

    def data_received(self, data: bytes) -> None:
        self.waiting += data
        head, found, body = self.waiting.partition(b"\r\n\r\n")
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        if not found or len(body) < int(lengths[0].partition(b":")[2]):
            return
        stream = b'"stream"' in body
        self.waiting = b""
        answer = STREAM if stream else WHOLE
        kind = b"text/event-stream" if stream else b"application/json"
        delay = self.delay * self.chance.uniform(0.75, 1.25)
        head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\nX-Delay: %f\r\n\r\n"
        reply = head % (kind, len(answer), delay)
        asyncio.get_running_loop().call_later(delay, self.transport.write, reply + answer)


def serve_model(port: Any, delay: float) -> None:
    async def main() -> None:
        Model.delay = delay
        server = await asyncio.get_running_loop().create_server(Model, "127.0.0.1", 0)
        port.put(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
        await server.serve_forever()

    asyncio.run(main())


def serve_proxy(port: Any, model: str) -> None:
    import socket

    import uvicorn

    listening = socket.create_server(("127.0.0.1", 0), backlog=512)
    proxy = ModelProxy({"openai": model}, key=KEY, tell=lambda call: None)
    port.put(f"http://127.0.0.1:{listening.getsockname()[1]}/openai")
    uvicorn.Server(uvicorn.Config(proxy, log_level="error", access_log=False)).run(sockets=[listening])


@pytest.fixture(params=[0.2, 0.0], ids=["model answers after 150 to 250 ms", "model answers at once"])
def paths(request: pytest.FixtureRequest) -> Iterator[tuple[str, str, float]]:
    """Base URLs: direct, through the proxy; and the model's delay."""
    context = multiprocessing.get_context("spawn")
    port = context.Queue()
    model = context.Process(target=serve_model, args=(port, request.param), daemon=True)
    model.start()
    direct = port.get(timeout=60)
    proxy = context.Process(target=serve_proxy, args=(port, direct), daemon=True)
    proxy.start()
    try:
        yield direct, port.get(timeout=60), request.param
    finally:
        for process in (proxy, model):
            process.kill()
            process.join()


async def measure(session: aiohttp.ClientSession, url: str, body: object, calls: int) -> list[float]:
    """Milliseconds of each call beyond the model's own delay, with sixteen clients at it."""

    async def client() -> list[float]:
        took = []
        for _ in range(calls):
            began = time.perf_counter()
            async with session.post(f"{url}/chat/completions", json=body) as response:
                content = await response.read()
            took.append((time.perf_counter() - began - float(response.headers["X-Delay"])) * 1000)
            assert content
            assert response.status == 200
        return took

    return [took for each in await asyncio.gather(*[client() for _ in range(CLIENTS)]) for took in each]


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_what_the_proxy_adds(paths: tuple[str, str, float], stream: bool) -> None:
    direct, proxied, delay = paths
    body = {**BODY, "stream": True} if stream else BODY
    calls = few(15 if delay else 100)

    async def main() -> tuple[list[float], list[float]]:
        rounds: tuple[list[float], list[float]] = ([], [])
        async with aiohttp.ClientSession(headers={"x-fw-key": KEY, "x-fw-msg": "m"}) as session:
            for url in (direct, proxied):
                await measure(session, url, body, 3)
            for _ in range(few(ROUNDS)):
                for took, url in zip(rounds, (direct, proxied), strict=True):
                    took += await measure(session, url, body, calls)
        return rounds

    rounds = asyncio.run(main())
    kind = "streamed" if stream else "JSON"
    print(f"\n{kind}, beyond the model's own {delay * 1000:.0f} ms, {CLIENTS} clients")
    fifty, tails = [], []
    for name, took in zip(("direct", "through the proxy"), rounds, strict=True):
        fifty.append(statistics.median(took))
        tails.append(statistics.quantiles(took, n=20)[-1])
        print(f"  {name:<24} p50 {fifty[-1]:>8.2f} ms   p95 {tails[-1]:>8.2f} ms")
    added = fifty[1] - fifty[0], tails[1] - tails[0]
    print(f"  {'added':<24} p50 {added[0]:>8.2f} ms   p95 {added[1]:>8.2f} ms")
    assert len(rounds[0]) == len(rounds[1]) == CLIENTS * calls * few(ROUNDS)
