"""What governing other people's clients costs, beside OpenTelemetry's instrumentations and its kin.

``pytest tests/bench/test_clients.py -o addopts= -s`` prints the tables. Nothing is asserted of times.
Memory store and memory ledger; the server is a process of its own; times are of this process's processor,
taken by turns in one run, so that the ratios can be compared. Each peer is measured where it is installed.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from typing import Any
from unittest import mock

import aiohttp
import httpx
import pytest
import requests
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.instrumentation.requests import RequestsInstrumentor
from opentelemetry.sdk.trace import TracerProvider

from genops_ctx import (
    auto_instrument,
    disable_auto_instrument,
    governance_context,
    governed,
    instrument_flowise,
)
from genops_ctx.runtime import Runtime, reset_runtime
from genops_ctx.settings import Settings

from .test_async import elsewhere  # noqa: F401
from .timing import Row, best, few, show

CALLS = 150
ROUNDS = 12

Prepare = Callable[[ExitStack], Callable[[], object]]


def by_turns(prepared: dict[str, Prepare]) -> dict[str, float]:
    """Processor microseconds of one call of each, the best of rounds that take turns."""
    shortest = dict.fromkeys(prepared, float("inf"))
    for _ in range(few(ROUNDS)):
        for name, prepare in prepared.items():
            with ExitStack() as stack:
                call = prepare(stack)
                call()
                gc.collect()
                gc.disable()
                began = time.process_time()
                for _ in range(few(CALLS)):
                    call()
                used = (time.process_time() - began) / few(CALLS) * 1e6
                gc.enable()
            shortest[name] = min(shortest[name], used)
    return shortest


def over(title: str, times: dict[str, float]) -> None:
    """The first row is the bare client; each other is shown with what it adds."""
    bare = next(iter(times.values()))
    print(f"\n{title}")
    for name, used in times.items():
        print(f"  {name:<58}{used:>9.1f} µs CPU{used - bare:>+9.1f} µs   {used / bare:.3f} of bare")
    assert all(used > 0 for used in times.values())


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    made = Runtime(Settings())
    before = reset_runtime(made)
    yield made
    reset_runtime(before)
    disable_auto_instrument()


def with_spans(stack: ExitStack) -> TracerProvider:
    provider = TracerProvider(shutdown_on_exit=False)
    before = reset_runtime(Runtime(Settings(), tracer_provider=provider))
    stack.callback(reset_runtime, before)
    return provider


def on(stack: ExitStack, url: str) -> None:
    auto_instrument(url, team="a")
    stack.callback(disable_auto_instrument)


def traced(stack: ExitStack, instrumentor: Any) -> None:
    instrumentor.instrument(tracer_provider=TracerProvider(shutdown_on_exit=False))
    stack.callback(instrumentor.uninstrument)


def logfire_on(stack: ExitStack, library: str) -> None:
    import logfire

    logfire.configure(send_to_logfire=False, console=False)
    getattr(logfire, f"instrument_{library}")()
    stack.callback(
        (RequestsInstrumentor if library == "requests" else HTTPXClientInstrumentor)().uninstrument
    )


def peers(post: Callable[[], object], library: str) -> dict[str, Prepare]:
    """The same call under each peer that is installed."""
    instrumentor = RequestsInstrumentor if library == "requests" else HTTPXClientInstrumentor

    def otel(stack: ExitStack) -> Callable[[], object]:
        traced(stack, instrumentor())
        return post

    found: dict[str, Prepare] = {f"OpenTelemetry's instrumentation of {library}": otel}
    if find_spec("logfire") is not None:

        def logfire(stack: ExitStack) -> Callable[[], object]:
            logfire_on(stack, library)
            return post

        found["Logfire"] = logfire
    else:
        print("\n(Logfire is not installed: left out)")
    return found


def test_requests_post(elsewhere: tuple[str, str], runtime: Runtime) -> None:  # noqa: F811
    url, flow = elsewhere
    address = f"{url}/api/v1/prediction/{flow}"
    session = requests.Session()

    def post() -> None:
        session.post(address, json={"question": "hello"}, timeout=30).json()

    def bare(stack: ExitStack) -> Callable[[], object]:
        return post

    def ours(stack: ExitStack) -> Callable[[], object]:
        on(stack, url)
        return post

    def ours_with_a_budget(stack: ExitStack) -> Callable[[], object]:
        on(stack, url)
        stack.enter_context(governance_context("bench", budget=10**6))
        return post

    def ours_with_a_span(stack: ExitStack) -> Callable[[], object]:
        with_spans(stack)
        on(stack, url)
        return post

    def adapter(stack: ExitStack) -> Callable[[], object]:
        made = instrument_flowise(url, team="a")
        stack.callback(made.session.close)
        return lambda: made.predict_flow(flow, "hello")

    over(
        "A prediction by requests, pooled Session, loopback; memory store and ledger",
        by_turns(
            {
                "bare requests.Session.post": bare,
                "ours: auto_instrument, no span": ours,
                "ours: auto_instrument, no span, one budget": ours_with_a_budget,
                "ours: auto_instrument, with a span": ours_with_a_span,
                "ours: adapter.predict_flow": adapter,
                **peers(post, "requests"),
            }
        ),
    )
    session.close()


def test_httpx_post(elsewhere: tuple[str, str], runtime: Runtime) -> None:  # noqa: F811
    url, flow = elsewhere
    address = f"{url}/api/v1/prediction/{flow}"
    client = httpx.Client()

    def post() -> None:
        client.post(address, json={"question": "hello"}).json()

    def bare(stack: ExitStack) -> Callable[[], object]:
        return post

    def ours(stack: ExitStack) -> Callable[[], object]:
        on(stack, url)
        return post

    over(
        "A prediction by httpx, one Client, loopback; memory store and ledger",
        by_turns(
            {"bare httpx.Client.post": bare, "ours: auto_instrument, no span": ours, **peers(post, "httpx")}
        ),
    )
    client.close()


def test_other_hosts(elsewhere: tuple[str, str], runtime: Runtime) -> None:  # noqa: F811
    """Calls that our hooks pass: each around as little as can be, then a whole call."""
    url, flow = elsewhere
    address = "https://api.example.com/v1/things?page=2"

    async def nothing(*args: Any, **kwargs: Any) -> None:
        pass

    async def of_aiohttp(calls: int) -> float:
        async with aiohttp.ClientSession() as asynchronous:
            began = time.perf_counter()
            for _ in range(calls):
                await asynchronous._request("POST", address)
            return (time.perf_counter() - began) / calls * 1e6

    with (
        requests.Session() as session,
        httpx.Client(transport=httpx.MockTransport(lambda request: httpx.Response(200))) as client,
        mock.patch.object(aiohttp.ClientSession, "_request", nothing),
    ):
        sent = client.build_request("POST", address, json={"question": "hello"})

        def each() -> dict[str, float]:
            return {
                "requests: Session.get_adapter": best(lambda: session.get_adapter(url=address), calls=5_000),
                "httpx: Client.send over no network": best(lambda: client.send(sent), calls=500),
                "aiohttp: an empty ClientSession._request": min(
                    asyncio.run(of_aiohttp(few(5_000))) for _ in range(few(5))
                ),
            }

        bare = each()
        auto_instrument("http://localhost:3000")
        hooked = each()
        disable_auto_instrument()
        print("\nA call to another host: what our hooks add")
        for name, used in hooked.items():
            print(f"  {name:<58}{used:>9.2f} µs{used - bare[name]:>+9.2f} µs")

        def post() -> None:
            session.post(f"{url}/elsewhere/{flow}", json={"question": "hello"}, timeout=30).json()

        def alone(stack: ExitStack) -> Callable[[], object]:
            return post

        def ours(stack: ExitStack) -> Callable[[], object]:
            on(stack, "http://flows.example.com")
            return post

        over(
            "A call to another host, whole: requests, pooled Session, loopback",
            by_turns(
                {"bare requests.Session.post": alone, "ours: auto_instrument": ours} | peers(post, "requests")
            ),
        )
    assert all(used > 0 for used in hooked.values())


def test_governed_around_an_empty_function_beside_the_peers(runtime: Runtime) -> None:
    def empty() -> None:
        pass

    # Before the peers, which set up an SDK for the whole process: ours would make spans then.
    ours = Row(
        "@governed(team, budget): context, no call, no span", best(governed(team="a", budget=5)(empty))
    )
    rows = []
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("bench")

    @tracer.start_as_current_span("empty")
    def spanned() -> None:
        pass

    rows.append(Row("OpenTelemetry's decorator", best(spanned)))
    if find_spec("logfire") is not None:
        import logfire

        logfire.configure(send_to_logfire=False, console=False)
        rows.append(Row("Logfire: @logfire.instrument", best(logfire.instrument()(empty), calls=500)))
    else:
        print("\n(Logfire is not installed: left out)")
    if find_spec("langfuse") is not None:
        import os

        with mock.patch.dict(os.environ, LANGFUSE_PUBLIC_KEY="pk", LANGFUSE_SECRET_KEY="sk"):
            from langfuse import Langfuse, observe

            Langfuse(public_key="pk", secret_key="sk", host="http://127.0.0.1:9", flush_at=512)
            rows.append(Row("Langfuse: @observe", best(observe()(empty), calls=300, rounds=3)))
    else:
        print("(Langfuse is not installed: left out)")
    if find_spec("traceloop") is not None:
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        from traceloop.sdk import Traceloop
        from traceloop.sdk.decorators import task

        Traceloop.init(exporter=InMemorySpanExporter(), disable_batch=False, telemetry_enabled=False)
        rows.append(Row("Traceloop: @task", best(task()(empty), calls=300, rounds=3)))
    else:
        print("(Traceloop is not installed: left out)")
    show("A decorator around an empty function; ours in memory, without a span", ours, rows)
    with ExitStack() as stack:
        provider = with_spans(stack)
        bare = provider.get_tracer("bench")
        attributes = {f"genops.key{number}": "value" for number in range(7)}

        @governed(team="a", project="p")
        def ours_spanned() -> None:
            pass

        def bare_span() -> None:
            with bare.start_as_current_span("empty", attributes=attributes):
                pass

        with_span = Row("@governed(team, project), with an SDK span", best(ours_spanned))
        rows.insert(0, Row("one bare SDK span, 7 attributes", best(bare_span)))
    show("The same; ours with a span", with_span, rows)
    assert ours.microseconds > 0
