"""What leaves this process of attribution and traces, and where to."""

from __future__ import annotations

import asyncio

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from genops_ctx import auto_instrument, configure, governance_context
from genops_ctx.core.baggage import baggage_of, read_baggage
from genops_ctx.instrument.tracing import outgoing_headers
from genops_ctx.providers.flowise import AsyncFlowiseAdapter, GenOpsFlowiseAdapter
from genops_ctx.runtime import Runtime, reset_runtime
from genops_ctx.settings import Settings

from ..providers.raw_server import RawServer, whole


@pytest.fixture
def allowed(monkeypatch, empty_directory):
    def allow(hosts):
        monkeypatch.setenv("GENOPS_PROPAGATE_TO", hosts)
        configure(store="memory://", ledger="memory://")

    return allow


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://flows.example.com/api", True),
        ("https://flows.example.com:8443/api", True),
        ("HTTP://FLOWS.example.com", True),
        ("https://user:key@flows.example.com/", True),
        ("http://local:3000/x", True),
        ("http://[::1]:3000/x", True),
        ("http://local:3001/x", False),
        ("http://local/x", False),
        ("https://evil-flows.example.com/", False),
        ("https://flows.example.com.evil.test/", False),
        ("https://evil.test/flows.example.com", False),
        ("https://flows.example.com@evil.test/", False),
        ("https://evil.test\\@flows.example.com/", False),
        ("ftp://flows.example.com/", False),
        ("flows.example.com", False),
        ("http://local:x/", False),
        ("", False),
    ],
)
def test_only_allowed_hosts_are_told(allowed, url, told):
    allowed("flows.example.com, local:3000 [::1]:3000")
    with governance_context("x", team="help", customer_id="zoë & co"):
        headers = outgoing_headers(url)
    assert headers == ({"baggage": "genops.team=help,genops.customer_id=zo%C3%AB%20%26%20co"} if told else {})


def test_nobody_is_told_unless_it_is_set(empty_directory):
    with governance_context("x", team="help"):
        assert outgoing_headers("http://localhost:3000") == {}


def test_nothing_is_told_outside_of_contexts(allowed):
    allowed("local")
    assert outgoing_headers("http://local/") == {}


def test_adapters_tell_their_flowise(allowed, httpserver):
    httpserver.expect_request("/api/v1/chatflows").respond_with_json([])
    url = httpserver.url_for("").rstrip("/")

    async def ask():
        async with AsyncFlowiseAdapter(url) as adapter:
            await adapter.get_chatflows()

    for hosts, told in (
        ("elsewhere.test", None),
        (f"{httpserver.host}:{httpserver.port}", "genops.team=help"),
    ):
        allowed(hosts)
        httpserver.clear_log()
        adapter = GenOpsFlowiseAdapter(url)
        with governance_context("x", team="help"):
            adapter.get_chatflows()
            asyncio.run(ask())
        adapter.session.close()
        assert [request.headers.get("baggage") for request, _ in httpserver.log] == [told, told]


def test_there_and_back():
    attribution = {"team": "a,b;c=d%", "user_id": "zoë", "squad": '"x"\\ y'}
    assert read_baggage(baggage_of(attribution)) == attribution
    assert baggage_of({}) == ""
    assert baggage_of({f"k{n}": "v" for n in range(65)}) == ""
    assert baggage_of({f"k{n}": "x" * 512 for n in range(20)}) == ""


# -- predictions that patched clients send ---------------------------------------------------------

ANSWER = whole(b'{"text": "a"}')
BOTH = "genops.team=help"


def told(server):
    """The W3C headers of each prediction that came, as they came."""
    return [
        {name: value for name, value in got.headers.items() if name.lower() in ("baggage", "traceparent")}
        for got in server.posts
    ]


def ask(client, server, path="/api/v1/prediction/x", **options):
    with governance_context("x", team="help"):
        client.post(f"{server.url}{path}", json={"question": "hello"}, **options)


def test_patched_clients_tell_allowed_hosts_only(allowed, client):
    with RawServer(lambda got: [ANSWER]) as flowise:
        host = flowise.url.removeprefix("http://")
        for hosts, expected in (("elsewhere.test", {}), (host, {"baggage": BOTH})):
            allowed(hosts)
            auto_instrument(flowise.url)
            flowise.requests.clear()
            ask(client, flowise)
            ask(client, flowise, path="/api/v1/vector/upsert/x")
            assert told(flowise) == [expected, {}]


def test_what_the_user_sets_is_left(allowed, client):
    mine = {"Baggage": "mine=1", "TraceParent": "00-" + "1" * 32 + "-" + "2" * 16 + "-00"}
    with RawServer(lambda got: [ANSWER]) as flowise:
        allowed(flowise.url.removeprefix("http://"))
        auto_instrument(flowise.url)
        ask(client, flowise, headers=mine)
        assert [{name.lower(): value for name, value in sent.items()} for sent in told(flowise)] == [
            {name.lower(): value for name, value in mine.items()}
        ]


@pytest.mark.parametrize("to_governed", [True, False])
def test_a_redirect_takes_nothing_along_to_hosts_that_are_not_allowed(allowed, client, to_governed):
    with RawServer(lambda got: [ANSWER]) as second:
        moved = (
            f"HTTP/1.1 307 Moved\r\nLocation: {second.url}/api/v1/prediction/x\r\nContent-Length: 0\r\n\r\n"
        )
        with RawServer(lambda got: [moved.encode()]) as first:
            allowed(first.url.removeprefix("http://"))
            auto_instrument(first.url)
            if to_governed:
                auto_instrument(second.url)
            ask(client, first, **({"follow_redirects": True} if client.name.startswith("httpx") else {}))
            assert told(first) == [{"baggage": BOTH}]
            assert told(second) == [{}]


def test_patched_clients_go_on_with_the_trace(allowed, client):
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with RawServer(lambda got: [ANSWER]) as flowise:
        host = flowise.url.removeprefix("http://")
        before = reset_runtime(Runtime(Settings(propagate_to=(host,)), tracer_provider=provider))
        try:
            auto_instrument(flowise.url)
            ask(client, flowise)
        finally:
            reset_runtime(before)
            provider.shutdown()
        (span,) = [one for one in exporter.get_finished_spans() if one.kind is SpanKind.CLIENT]
        (sent,) = told(flowise)
        assert sent["baggage"] == BOTH
        trace = f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-"
        assert sent["traceparent"].startswith(trace)
