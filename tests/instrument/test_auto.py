"""``auto_instrument``: its parameters, any order of imports, redirects and retries, and other hosts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading
from decimal import Decimal

import httpx
import pytest
import requests
import urllib3
from requests.adapters import HTTPAdapter

import genops_ctx
from genops_ctx import auto_instrument, configure, disable_auto_instrument, governance_context
from genops_ctx.core.errors import ConfigurationError, PolicyViolation
from genops_ctx.core.policy import Policy
from genops_ctx.providers import flowise as public
from genops_ctx.testing import Flow, FlowiseStandIn, capture

from ..providers.bills import nanos_of
from ..providers.raw_server import RawServer, whole

QUESTION = {"question": "How many parcels are on their way to Oslo?"}
ANSWER = json.dumps({"text": "a", "executionId": "x", "agentFlowExecutedData": []}).encode()


def test_the_public_names_are_one():
    assert public.auto_instrument is genops_ctx.auto_instrument
    assert public.disable_auto_instrument is genops_ctx.disable_auto_instrument


def test_every_parameter_of_the_guide(server, url, capsys):
    """Connection, attribution, options and custom tags in one call."""
    done = auto_instrument(
        base_url=server.url,
        api_key="fl-your-api-key-here",
        team="ai-engineering",
        project="customer-support-v2",
        environment="production",
        cost_center="product-team",
        customer_id="acme",
        feature="desk",
        pricing_tier="cloud_starter",
        enable_console_export=True,
        sample_rate=1.0,
        application="customer-support",
        version="v2.1.0",
    )
    assert done is True
    with capture() as charges:
        requests.post(url("one"), json=QUESTION, timeout=60)
    (charge,) = charges
    assert charge.attribution == {
        "team": "ai-engineering",
        "project": "customer-support-v2",
        "environment": "production",
        "cost_center": "product-team",
        "customer_id": "acme",
        "feature": "desk",
        "application": "customer-support",
        "version": "v2.1.0",
    }
    # $35 a month for 10,000 predictions
    assert charge.nanos == nanos_of(server.billed) + 3_500_000
    printed = json.loads(capsys.readouterr().out)
    assert printed["name"] == "invoke_agent one"
    assert printed["attributes"]["genops.team"] == "ai-engineering"
    assert "key" not in json.dumps(printed).lower().replace("genops.key", "")
    disable_auto_instrument()
    requests.post(url("one"), json=QUESTION, timeout=60)
    assert capsys.readouterr().out == ""


def test_the_environment_says_where_flowise_is(server, url, monkeypatch):
    monkeypatch.setenv("FLOWISE_BASE_URL", server.url)
    monkeypatch.setenv("GENOPS_TEAM", "of-the-environment")
    assert auto_instrument()
    with capture() as charges:
        requests.post(url("one"), json=QUESTION, timeout=60)
    assert charges[0].attribution == {"team": "of-the-environment"}


def test_contexts_go_before_it_and_a_session_in_the_body_is_attributed(server, url):
    auto_instrument(server.url, team="default", project="desk")
    with governance_context("outer", team="context"), capture() as charges:
        body = {**QUESTION, "overrideConfig": {"sessionId": "s-1"}}
        requests.post(url("one"), json=body, timeout=60)
    assert charges[0].attribution == {"team": "context", "project": "desk", "session_id": "s-1"}


@pytest.mark.parametrize(
    "session", ["a\x00b", "s" * 600, " ", "<none>"], ids=["nul", "long", "blank", "none"]
)
def test_a_session_that_can_be_no_owner_is_sent_and_not_attributed(server, url, session):
    auto_instrument(server.url, team="default")
    with capture() as charges:
        body = {**QUESTION, "overrideConfig": {"sessionId": session}}
        assert requests.post(url("one"), json=body, timeout=60).ok
    assert charges[0].attribution == {"team": "default"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"sample_rate": 1.5},
        {"sample_rate": True},
        {"sample_rate": "all"},
        {"enable_console_export": "yes"},
        {"base_url": "localhost:3000"},
        {"base_url": "http://me:secret@localhost:3000"},
        {"metering": "guess"},
        {"pricing_tier": "gold"},
        {"timeout": -1},
        {"temm": "a slip"},
        {"sample_rat": 1},
    ],
    ids=str,
)
def test_a_bad_value_changes_nothing(wrong):
    original = requests.Session.__dict__["get_adapter"]
    with pytest.raises(ConfigurationError) as caught:
        auto_instrument(**wrong)
    assert "secret" not in str(caught.value)
    assert requests.Session.__dict__["get_adapter"] is original
    assert disable_auto_instrument() is False


def test_twice_is_once_and_the_last_values_count(server, url):
    auto_instrument(server.url, team="first")
    hooked = requests.Session.__dict__["get_adapter"]
    auto_instrument(server.url, team="second")
    assert requests.Session.__dict__["get_adapter"] is hooked
    with capture() as charges:
        requests.post(url("one"), json=QUESTION, timeout=60)
    assert [charge.attribution["team"] for charge in charges] == ["second"]


def test_several_base_urls_each_by_its_own_rules(server, url):
    with FlowiseStandIn([Flow("other", "agentflow")]) as second:
        auto_instrument(server.url, team="first")
        auto_instrument(second.url, team="second")
        with capture() as charges:
            requests.post(url("one"), json=QUESTION, timeout=60)
            other = f"{second.url}/api/v1/prediction/{second.flow_id('other')}"
            requests.post(other, json=QUESTION, timeout=60)
    assert [(charge.name, charge.attribution["team"]) for charge in charges] == [
        ("one", "first"),
        ("other", "second"),
    ]


@pytest.mark.parametrize("rate", [0, 0.5, 1])
def test_sampling_leaves_out_spans_and_never_money(server, url, rate):
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    configure(tracer_provider=provider)
    auto_instrument(server.url, sample_rate=rate)
    with capture() as charges, requests.Session() as session:
        for _ in range(40):
            session.post(url("one"), json=QUESTION, timeout=60)
    spans = len(exporter.get_finished_spans())
    assert len(charges) == 40
    assert sum(charge.nanos for charge in charges) == nanos_of(server.billed)
    assert {0: spans == 0, 0.5: 0 < spans < 40, 1: spans == 40}[rate]


def test_a_policy_refuses_before_anything_is_sent(server, url):
    configure(policies=[Policy("cheap", allow_models=("gpt-4o-mini",))])
    auto_instrument(server.url)
    requests.post(url("one"), json=QUESTION, timeout=60)
    with pytest.raises(PolicyViolation):
        requests.post(url("two"), json=QUESTION, timeout=60)
    assert [seen.flow_id for seen in server.requests if seen.method == "POST"] == [server.flow_id("one")]


ORDER = """
    import sys
    {before}
    from genops_ctx import auto_instrument, disable_auto_instrument, governance_context
    url, base = sys.argv[1:]
    {session}
    assert auto_instrument(base)
    {after}
    with governance_context("test") as context:
        {post}
    assert context.calls == 1, context.calls
    assert context.inexact_cost == 0 < context.total_cost
    assert disable_auto_instrument()
    with governance_context("test") as context:
        {post}
    assert context.calls == 0
"""
POSTS = {
    "requests": ("session = requests.Session()", 'session.post(url, json={"question": "a"}).json()'),
    "httpx": ("session = httpx.Client()", 'session.post(url, json={"question": "a"}).json()'),
    "httpx2": ("session = httpx2.Client()", 'session.post(url, json={"question": "a"}).json()'),
}


@pytest.mark.parametrize("when", ["before", "after", "before, with a session"])
@pytest.mark.parametrize("library", POSTS)
def test_any_order_of_imports(server, url, tmp_path, library, when):
    make, post = POSTS[library]
    before = when.startswith("before")
    session = f"{make}" if when.endswith("session") else ""
    program = textwrap.dedent(ORDER).format(
        before=f"import {library}" if before else f"assert {library!r} not in sys.modules",
        session=session,
        after="\n".join(["" if before else f"import {library}", "" if session else make]),
        post=post,
    )
    done = subprocess.run(
        [sys.executable, "-c", program, url("one"), server.url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "GENOPS_LEDGER": "memory://", "GENOPS_STORE": "memory://"},
    )
    assert done.returncode == 0, done.stderr


def test_a_redirect_that_keeps_the_post_is_followed_by_metering(server, url, client):
    """To another host, and there the model is called: the second hop is the one that costs."""
    there = url("one")
    hop = f"HTTP/1.1 307 Temporary Redirect\r\nLocation: {there}\r\nContent-Length: 0\r\n\r\n".encode()
    follow = {"follow_redirects": True} if client.name.startswith("httpx") else {}
    with RawServer(lambda got: [hop]) as front, governance_context("test", budget=1) as context:
        auto_instrument(front.url)
        with capture() as charges:
            got = client.post(
                f"{front.url}/api/v1/prediction/{server.flow_id('one')}", json=QUESTION, **follow
            )
    assert json.loads(got.body)["text"]
    assert sum(charge.nanos for charge in charges) == nanos_of(server.billed) > 0
    assert context.reserved == 0


def test_retries_that_requests_keeps_to_itself_are_not_free():
    fault = whole(b'{"message":"x"}', status="500 Internal Server Error")
    answers = [fault, fault, whole(ANSWER)]
    with RawServer(lambda got: [answers.pop(0)]) as flowise, requests.Session() as session:
        retry = urllib3.Retry(3, status_forcelist=[500], allowed_methods=None, backoff_factor=0)
        session.mount("http://", HTTPAdapter(max_retries=retry))
        auto_instrument(flowise.url)
        with capture() as charges, governance_context("test", budget=1):
            session.post(f"{flowise.url}/api/v1/prediction/x", json=QUESTION, timeout=60)
    (charge,) = charges
    assert "retried:2" in charge.flags
    assert charge.unpriced or charge.nanos > 0
    assert str(charge.exactness) != "exact"


def test_a_timeout_is_given_to_requests_that_has_none():
    with RawServer(lambda got: [60.0]) as flowise:
        auto_instrument(flowise.url, timeout=0.3)
        with pytest.raises(requests.Timeout):
            requests.post(f"{flowise.url}/api/v1/prediction/x", json=QUESTION)


def test_a_look_up_that_hangs_delays_a_call_by_no_more_than_two_seconds():
    """The server answers predictions at once and never a GET."""
    import socket
    import time

    listener = socket.create_server(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            if connection.recv(4, socket.MSG_PEEK) == b"POST":
                connection.recv(65536)
                connection.sendall(whole(ANSWER, "Connection: close"))
                connection.close()
            else:
                kept.append(connection)

    kept: list[socket.socket] = []
    threading.Thread(target=serve, daemon=True).start()
    try:
        auto_instrument(address)
        with capture() as charges:
            asked = []
            for _ in range(2):
                began = time.monotonic()
                requests.post(
                    f"{address}/api/v1/prediction/3f2504e0-4f89-41d3-9a0c-0305e82c3301",
                    json=QUESTION,
                    timeout=60,
                )
                assert time.monotonic() - began < 2 + 10
                asked.append(len(kept))
        assert len(charges) == 2
        assert asked[0] == asked[1] > 0, "what hung is not asked again"
    finally:
        listener.close()
        for connection in kept:
            connection.close()


def test_threads_share_what_is_governed_and_their_contexts_stay_apart(server, url):
    auto_instrument(server.url)
    totals: dict[str, Decimal] = {}

    def work(team):
        with governance_context(team, team=team) as context:
            for _ in range(5):
                requests.post(url("one"), json=QUESTION, timeout=60)
        totals[team] = context.total_cost

    with capture() as charges:
        threads = [threading.Thread(target=work, args=(f"team-{number}",)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for team, total in totals.items():
        mine = [charge for charge in charges if charge.attribution["team"] == team]
        assert len(mine) == 5
        assert total == Decimal(sum(charge.nanos for charge in mine)) / 10**9
    assert sum(charge.nanos for charge in charges) == nanos_of(server.billed)


def test_calls_to_other_hosts_are_the_very_same_objects(server):
    """What comes back from another host is not touched, and no adapter stands in between."""
    with requests.Session() as session:
        auto_instrument("http://localhost:1")
        assert session.get_adapter(f"{server.url}/api/v1/chatflows") is session.adapters["http://"]
        assert session.get_adapter(url=f"{server.url}/api/v1/prediction/x") is session.adapters["http://"]
        with pytest.raises(requests.exceptions.InvalidSchema):
            session.get_adapter("gopher://x/api/v1/prediction/x")
        response = session.get(f"{server.url}/api/v1/ping", stream=True, timeout=60)
        assert type(response.raw) is urllib3.HTTPResponse
        response.close()
    with httpx.Client() as client, client.stream("GET", f"{server.url}/api/v1/ping") as answer:
        assert type(answer.stream).__name__ == "BoundSyncStream"


def test_it_is_no_body_of_ours_that_is_sent(server, url):
    """Bytes, length and headers are the user's own."""
    with RawServer(lambda got: [whole(ANSWER)]) as flowise:
        address = f"{flowise.url}/api/v1/prediction/x"
        for governed in (False, True):
            if governed:
                auto_instrument(flowise.url, "secret-key")
            for body in (
                {"json": QUESTION},
                {"data": '{"question": "ä"}'.encode()},
                {"data": {"question": "a b"}},
            ):
                requests.post(address, timeout=60, headers={"X-Own": "1"}, **body)
    posts = flowise.posts
    assert len(posts) == 6
    for bare, governed in zip(posts[:3], posts[3:], strict=True):
        assert (bare.path, bare.headers, bare.body) == (governed.path, governed.headers, governed.body)


@pytest.mark.parametrize(
    "body",
    [
        {"data": {"question": "How many parcels?"}},
        {"files": {"files": ("a.txt", b"text", "text/plain")}, "data": {"question": "How many parcels?"}},
        {"data": b'{"question": "How many parcels?"}', "headers": {"Content-Type": "application/json"}},
        {"data": b'{"question": "How many?"}', "headers": {"Content-Type": b"application/json"}},
        {"data": b"{not json", "headers": {"Content-Type": "application/json"}},
        {"data": b"", "headers": {"Content-Type": "application/json"}},
        {"json": [1, 2]},
        {"json": {"question": 5, "history": "x", "uploads": "y", "overrideConfig": []}},
    ],
    ids=["form", "multipart", "bytes", "a type in bytes", "no json", "empty", "a list", "strange"],
)
def test_bodies_of_every_kind_pass(body):
    with RawServer(lambda got: [whole(ANSWER)]) as flowise, capture() as charges:
        auto_instrument(flowise.url)
        requests.post(f"{flowise.url}/api/v1/prediction/x", timeout=60, **body)
    assert len(charges) == 1
