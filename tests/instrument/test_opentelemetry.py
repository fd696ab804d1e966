"""Beside OpenTelemetry's own instrumentations, put on and taken off in any order."""

from __future__ import annotations

import asyncio
import itertools

import aiohttp
import httpx
import pytest
import requests
from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.instrumentation.requests import RequestsInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from genops_ctx import auto_instrument, disable_auto_instrument, governance_context
from genops_ctx.runtime import Runtime, reset_runtime
from genops_ctx.settings import Settings
from genops_ctx.testing import capture

from ..providers.raw_server import RawServer, whole

HOOKED = {
    "requests": (requests.Session, "get_adapter"),
    "httpx": (httpx.Client, "send"),
    "aiohttp": (aiohttp.ClientSession, "_request"),
}
THEIRS = {
    "requests": RequestsInstrumentor,
    "httpx": HTTPXClientInstrumentor,
    "aiohttp": AioHttpClientInstrumentor,
}


def by_requests(url):
    requests.post(url, json={"question": "hello"}, timeout=60).json()


def by_httpx(url):
    with httpx.Client() as client:
        client.post(url, json={"question": "hello"}).json()


def by_aiohttp(url):
    async def main():
        async with aiohttp.ClientSession() as session, session.post(url, json={"question": "h"}) as response:
            await response.json()

    asyncio.run(main())


CALLS = {"requests": by_requests, "httpx": by_httpx, "aiohttp": by_aiohttp}


@pytest.fixture(params=sorted(THEIRS))
def name(request):
    return request.param


@pytest.fixture
def spans():
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    before = reset_runtime(Runtime(Settings(), tracer_provider=provider))
    exporter.provider = provider
    yield exporter
    reset_runtime(before)
    provider.shutdown()


@pytest.fixture
def theirs(name, spans):
    instrumentor = THEIRS[name]()

    class Switch:
        def on(self):
            instrumentor.instrument(tracer_provider=spans.provider)

        def off(self):
            instrumentor.uninstrument()

    yield Switch()
    if instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.uninstrument()


def seen(name, url, spans):
    """Whether ours booked the call, and whether theirs made a span of it."""
    spans.clear()
    with capture() as charges:
        CALLS[name](url)
    made = [
        span
        for span in spans.get_finished_spans()
        if span.instrumentation_scope.name != "genops_ctx"
        and span.attributes.get("http.method", "POST") == "POST"
    ]
    made = [span for span in made if "GET" not in span.name]
    assert len(charges) <= 1
    assert len(made) <= 1
    return bool(charges), bool(made)


ORDERS = [
    steps
    for steps in itertools.permutations(["+ours", "-ours", "+theirs", "-theirs"])
    if steps.index("+ours") < steps.index("-ours") and steps.index("+theirs") < steps.index("-theirs")
]


@pytest.mark.parametrize("steps", ORDERS, ids=" ".join)
def test_each_is_on_and_off_as_told(server, url, name, spans, theirs, steps):
    """Every order of the four steps, and after each what is on."""
    owner, method = HOOKED[name]
    original = owner.__dict__[method]
    ours_on = theirs_on = False
    for step in steps:
        if step == "+ours":
            auto_instrument(server.url)
            ours_on = True
        elif step == "-ours":
            assert disable_auto_instrument() is True
            ours_on = False
        elif step == "+theirs":
            theirs.on()
            theirs_on = True
        else:
            theirs.off()
            theirs_on = False
        assert seen(name, url("one"), spans) == (ours_on, theirs_on), step
    assert owner.__dict__[method] is original


def test_the_spans_nest_in_one_trace(server, url, name, spans, theirs):
    auto_instrument(server.url)
    CALLS[name](url("one"))  # the flow is looked up
    theirs.on()
    spans.clear()
    CALLS[name](url("one"))
    ours = [span for span in spans.get_finished_spans() if span.instrumentation_scope.name == "genops_ctx"]
    others = [span for span in spans.get_finished_spans() if span not in ours]
    (one,), (other,) = ours, others
    assert one.context.trace_id == other.context.trace_id
    if name == "requests":
        assert one.parent.span_id == other.context.span_id
    else:
        assert other.parent.span_id == one.context.span_id


def test_their_traceparent_is_sent_beside_our_baggage(name, spans, theirs):
    with RawServer(lambda got: [whole(b'{"text": "a"}')]) as flowise:
        host = flowise.url.removeprefix("http://")
        reset_runtime(Runtime(Settings(propagate_to=(host,)), tracer_provider=spans.provider))
        auto_instrument(flowise.url)
        theirs.on()
        with governance_context("desk", team="help"):
            CALLS[name](f"{flowise.url}/api/v1/prediction/x")
        (sent,) = flowise.posts
    (other,) = [
        span
        for span in spans.get_finished_spans()
        if span.instrumentation_scope.name != "genops_ctx" and "GET" not in span.name
    ]
    assert sent.headers["traceparent"].split("-")[2] == f"{other.context.span_id:016x}"
    assert sent.headers["baggage"] == "genops.team=help"


def test_no_marker_of_theirs_is_on_ours(server, name, theirs):
    theirs.on()
    auto_instrument(server.url)
    owner, method = HOOKED[name]
    ours = owner.__dict__[method]
    marks = [mark for mark in dir(ours) if "opentelemetry" in mark]
    assert marks == []


def test_an_instrumented_client_keeps_both(server, url, spans):
    auto_instrument(server.url)
    with httpx.Client() as client:
        HTTPXClientInstrumentor.instrument_client(client, tracer_provider=spans.provider)
        with capture() as charges:
            client.post(url("one"), json={"question": "hello"})
        HTTPXClientInstrumentor.uninstrument_client(client)
        with capture() as more:
            client.post(url("one"), json={"question": "hello"})
    assert len(charges) == len(more) == 1


def test_what_is_wrapped_around_ours_is_left_and_ours_does_nothing(server, url):
    """Somebody wraps the very function that ours is on: it cannot be taken out from under them."""
    original = requests.Session.get_adapter
    auto_instrument(server.url)
    ours = requests.Session.get_adapter

    def theirs(self, url):
        return ours(self, url)

    theirs.__wrapped__ = requests.Session.__dict__["get_adapter"]
    requests.Session.get_adapter = theirs
    try:
        disable_auto_instrument()
        with capture() as charges:
            by_requests(url("one"))
        assert charges == []
        auto_instrument(server.url)
        with capture() as charges:
            by_requests(url("one"))
        assert len(charges) == 1
        assert requests.Session.get_adapter is theirs
    finally:
        requests.Session.get_adapter = theirs.__wrapped__
        disable_auto_instrument()
    assert requests.Session.get_adapter is original
