"""What leaves this process of attribution and traces, and where to."""

from __future__ import annotations

import asyncio

import pytest

from genops_ctx import configure, governance_context
from genops_ctx.core.baggage import baggage_of, read_baggage
from genops_ctx.instrument.tracing import outgoing_headers
from genops_ctx.providers.flowise import AsyncFlowiseAdapter, GenOpsFlowiseAdapter


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
