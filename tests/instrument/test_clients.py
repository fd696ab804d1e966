"""Predictions by other people's clients: the same rule on each of them, against what was billed."""

from __future__ import annotations

import json
import time

import pytest

from genops_ctx import (
    Budget,
    BudgetExceeded,
    auto_instrument,
    configure,
    disable_auto_instrument,
    governance_context,
)
from genops_ctx.core.money import dollars
from genops_ctx.runtime import get_runtime
from genops_ctx.testing import capture
from genops_ctx.testing.clock import FixedClock

from ..providers.bills import billed_tokens, booked_tokens, nanos_of
from ..providers.raw_server import RawServer, whole

QUESTION = {"question": "How many parcels are on their way to Oslo?"}
STREAMED = {**QUESTION, "streaming": True}
EVENT = b'message:\ndata:{"event":"token","data":"Hel"}\n\n'


def posts(server):
    return [seen for seen in server.requests if seen.method == "POST"]


def wait_for(charges, number=1):
    """A stream that was dropped is booked a moment later."""
    until = time.monotonic() + 60
    while len(charges) < number and time.monotonic() < until:
        time.sleep(0.01)
    return charges


@pytest.mark.parametrize("flow", ["one", "two"])
def test_an_answer_is_booked_at_what_was_billed(server, client, url, flow):
    auto_instrument(server.url, team="help")
    with governance_context("test", project="desk", budget=1) as context, capture() as charges:
        got = client.post(url(flow), json=QUESTION)
    assert json.loads(got.body)["text"]
    (charge,) = charges
    assert charge.nanos == nanos_of(server.billed) > 0
    assert booked_tokens(charge) == billed_tokens(server.billed)
    assert (charge.exactness, charge.outcome, charge.name) == ("exact", "completed", flow)
    assert (charge.attribution["team"], charge.attribution["project"]) == ("help", "desk")
    assert (context.calls, context.reserved) == (1, 0)
    assert len(posts(server)) == 1


@pytest.mark.parametrize("flow", ["one", "two"])
def test_a_stream_is_booked_at_what_was_billed(server, client, url, flow):
    auto_instrument(server.url)
    with capture() as charges:
        lines = client.lines(url(flow), json=STREAMED)
    assert lines.count(b"message:") > 3
    (charge,) = charges
    assert charge.nanos == nanos_of(server.billed) > 0
    assert charge.exactness == "exact"


def test_the_bytes_are_those_that_came(server, client, url):
    bare = client.lines(url("one"), json=STREAMED)
    auto_instrument(server.url)
    governed = client.lines(url("one"), json=STREAMED)
    events = [line for line in governed if b'"metadata"' not in line and b"Agentflow" not in line]
    assert events == [line for line in bare if b'"metadata"' not in line and b"Agentflow" not in line]
    assert len(governed) == len(bare)


def test_a_budget_refuses_before_anything_is_sent(server, client, url):
    auto_instrument(server.url)
    with governance_context("test", budget="0.000001") as context:
        client.post(url("one"), json=QUESTION)
        with pytest.raises(BudgetExceeded):
            client.post(url("one"), json=QUESTION)
        with pytest.raises(BudgetExceeded):
            client.lines(url("one"), json=STREAMED)
    assert len(posts(server)) == 1
    assert (context.calls, context.refused_calls, context.reserved) == (1, 2, 0)


def test_classic_flows_are_estimated_and_flagged_unless_evaluated(server, client, url):
    auto_instrument(server.url, metering="estimate")
    with capture() as charges:
        client.post(url("chat"), json=QUESTION)
    assert charges[0].exactness == "estimated"
    assert charges[0].nanos > 0
    server.reset()
    auto_instrument(server.url, metering="evaluation")
    with capture() as charges:
        client.post(url("chat"), json=QUESTION)
    assert charges[0].nanos == nanos_of(server.billed) > 0
    assert {line.source for line in charges[0].lines} == {"evaluation"}


def test_what_calls_no_model_costs_nothing(server, client):
    auto_instrument(server.url)
    unknown = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"
    with governance_context("test", budget=1) as context, capture() as charges:
        got = client.post(f"{server.url}/api/v1/prediction/{unknown}", json=QUESTION)
        assert got.status == 404
        got = client.post(f"{server.url}/api/v1/prediction/a-name", json=QUESTION)
    assert got.status == 400
    assert [(charge.outcome, charge.nanos, charge.exactness) for charge in charges] == [
        ("refused", 0, "exact"),
        ("refused", 0, "exact"),
    ]
    assert context.reserved == 0


def test_other_endpoints_and_methods_pass(server, client, url):
    auto_instrument(server.url)
    with governance_context("test", budget="0.000000001"), capture() as charges:
        assert client.get(f"{server.url}/api/v1/ping").body == b"pong"
        assert client.get(f"{server.url}/api/v1/chatflows").status == 200
        client.get(url("one"))
    assert charges == []


def test_a_refused_connection_is_released(client):
    with RawServer(lambda got: []) as gone:
        address = gone.url
    auto_instrument(address)
    with governance_context("test", budget=1) as context, capture() as charges:
        with pytest.raises(client.refused):
            client.post(f"{address}/api/v1/prediction/x", json=QUESTION)
        assert context.reserved == 0
    assert charges == []


def test_a_timeout_is_booked(client):
    with RawServer(lambda got: [60.0]) as silent, capture() as charges:
        auto_instrument(silent.url)
        with governance_context("test", budget=1), pytest.raises(client.timed_out):
            client.post(f"{silent.url}/api/v1/prediction/x", json=QUESTION, timeout=0.3)
    (charge,) = charges
    assert charge.outcome == "timed_out"
    assert charge.cost > 0


def test_a_stream_left_early_is_booked_at_an_estimate(server, client, url):
    auto_instrument(server.url)
    with capture() as charges:
        client.lines(url("one"), most=1, json=STREAMED)
        wait_for(charges)
    (charge,) = charges
    assert charge.outcome == "abandoned"
    assert charge.nanos > 0
    assert charge.exactness == "estimated"


def test_a_stream_that_breaks_off_is_booked(client):
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    with RawServer(lambda got: [head, EVENT]) as flowise, governance_context("test", budget=1):
        auto_instrument(flowise.url)
        with capture() as charges:
            lines = client.lines(f"{flowise.url}/api/v1/prediction/x", json=STREAMED)
    assert b"".join(lines).startswith(b"message:")
    (charge,) = charges
    assert charge.outcome == "truncated"
    assert charge.nanos > 0


def test_compressed_answers_are_read(server, client, url):
    import gzip

    answer = json.dumps({"text": "a", "executionId": "x", "agentFlowExecutedData": []}).encode()
    packed = whole(gzip.compress(answer), "Content-Encoding: gzip")
    with RawServer(lambda got: [packed]) as flowise, capture() as charges:
        auto_instrument(flowise.url)
        assert client.post(f"{flowise.url}/api/v1/prediction/x", json=QUESTION).body == answer
    (charge,) = charges
    assert (charge.outcome, charge.flags) == ("completed", ())


def test_it_is_undone(server, client, url):
    auto_instrument(server.url)
    assert disable_auto_instrument() is True
    assert disable_auto_instrument() is False
    with governance_context("test", budget="0.000000001"), capture() as charges:
        client.post(url("one"), json=QUESTION)
    assert charges == []


def test_a_budget_may_name_a_cheaper_flow(server, client, url):
    configure(budgets=[Budget("0.000001", "day", on_exceeded="degrade", fallback="one")])
    auto_instrument(server.url)
    client.post(url("two"), json=QUESTION)
    server.reset()
    with capture() as charges:
        client.post(url("two"), json=QUESTION)
    assert [seen.flow_id for seen in posts(server)] == [server.flow_id("one")]
    assert charges[0].name == "one"
    assert charges[0].nanos == nanos_of(server.billed) > 0
    assert "degraded_from:two" in charges[0].flags


def test_a_body_that_cannot_be_looked_at_is_sent_as_it_is(server, client, url):
    is_async = "sync" in client.name or client.name == "aiohttp"

    def parts():
        yield b'{"question":'
        yield b'"hello"}'

    async def parts_async():
        for part in parts():
            yield part

    auto_instrument(server.url)
    headers = {"Content-Type": "application/json"}
    name = "content" if client.name.startswith("httpx") else "data"
    with capture() as charges:
        body = parts_async() if is_async else parts()
        got = client.post(url("one"), headers=headers, **{name: body})
    assert got.status == 200
    assert "hello" in json.loads(got.body)["text"]
    assert charges[0].nanos == nanos_of(server.billed) > 0


def test_an_address_that_nothing_governs_is_told_once_and_recorded(server, client, caplog):
    auto_instrument("http://localhost:1")
    with capture() as charges:
        for _ in range(3):
            client.post(f"{server.url}/api/v1/prediction/x", json=QUESTION)
    assert charges == []
    address = server.url.replace("127.0.0.1", "localhost")
    assert len([line for line in caplog.messages if address in line]) == 1
    runtime = get_runtime()
    until = time.monotonic() + 60
    while not list(runtime.books.ledger.audits("not_governed")) and time.monotonic() < until:
        time.sleep(0.01)
    assert [event.subject for event in runtime.books.ledger.audits("not_governed")] == [address]


def test_what_an_adapter_sends_elsewhere_is_not_taken_for_ungoverned(server, client):
    from genops_ctx import instrument_flowise
    from genops_ctx.instrument.registry import addresses

    auto_instrument("http://localhost:1")
    before = sum(addresses.unmatched.values())
    instrument_flowise(server.url).predict_flow("one", "hello")
    assert sum(addresses.unmatched.values()) == before


def test_a_call_that_outlives_its_reservation_is_booked_as_lost_and_corrected_by_its_answer(
    server, client, url
):
    """No deadline is put on a call of the user's own: after 630 s it is taken for lost, until it ends."""
    answer = client.post(url("one"), json=QUESTION).body  # governed by nothing yet
    true = nanos_of(server.billed)
    clock = FixedClock()
    day = Budget("1/day", name="day")
    configure(store="memory://", ledger="memory://", clock=clock, budgets=[day])
    books = get_runtime().books
    booked = []

    def late(got):
        for seconds in (629, 2):  # 600, and 30 of grace
            clock.advance(seconds)
            books.catch_up(clock())
            booked.append([(one.outcome, one.nanos) for one in books.ledger.charges()])
        return [whole(answer)]

    with RawServer(late) as flowise, governance_context("test") as context:
        auto_instrument(flowise.url)
        address = f"{flowise.url}/api/v1/prediction/{server.flow_id('one')}"
        assert client.post(address, json=QUESTION).body == answer
    in_time, after = booked
    assert in_time == []
    ((outcome, reserved),) = after
    assert outcome == "expired"
    assert reserved > true > 0
    lost, adjustment = books.ledger.charges()
    assert lost.nanos == reserved
    assert adjustment.adjustment_of == lost.id
    assert adjustment.nanos == true - reserved
    assert context.total_cost == dollars(true)
    (account,) = books.store.accounts().values()
    assert (account.spent, account.reserved) == (true, 0)
