"""What requests ask for in headers, and what answers say in theirs."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
import requests

from genops_ctx import Budget
from genops_ctx.runtime import Runtime, get_runtime
from genops_ctx.service.configuration import ServiceSettings
from genops_ctx.settings import Settings
from genops_ctx.testing import Flow, FlowiseStandIn, ModelNode
from tests.providers.raw_server import RawServer, whole
from tests.service.conftest import FLOWISE_KEY, NewClient, Serve

Charges = Callable[[], list[Any]]
FLOW = "22222222-3333-4444-8555-666666666666"
DAILY = Settings(budgets=(Budget("1/day", name="daily", by="team"), Budget("5/day", name="all")))


def predict(service: str, flow: str, headers: dict[str, str], **body: Any) -> requests.Response:
    url = f"{service}/api/v1/prediction/{flow}"
    return requests.post(url, json={"question": "hi", **body}, headers=headers, timeout=60)


# -- what budgets leave ---------------------------------------------------------------------------------


def test_an_answer_says_what_the_tightest_budget_leaves(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient
) -> None:
    service = serve(flowise.url, settings=DAILY)
    headers = client(attribution={"team": "help"})
    spent = Decimal(0)
    for _ in range(2):
        answer = predict(service, flowise.flow_id("graph"), headers)
        call = flowise.model.calls[-1]
        spent += Decimal(150 * call.input_tokens + 600 * call.output_tokens).scaleb(-9)
        assert answer.headers["X-GenOps-Budget-Remaining"] == f"{1 - spent:.9f}"
    resets_at = datetime.fromisoformat(answer.headers["X-GenOps-Budget-Reset"])
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    assert abs(resets_at - midnight) <= timedelta(days=1)
    assert resets_at.time() == midnight.time()
    other = predict(service, flowise.flow_id("graph"), client(attribution={"team": "sales"}))
    assert Decimal(other.headers["X-GenOps-Budget-Remaining"]) > Decimal("0.9999")


def test_a_stream_says_what_is_left_while_its_amount_is_set_aside(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient, charges: Charges
) -> None:
    service, headers = serve(flowise.url, settings=DAILY), client(attribution={"team": "help"})
    answer = predict(service, flowise.flow_id("graph"), headers, streaming=True)
    (charge,) = charges()
    assert charge.nanos < charge.reserved_nanos
    left = (10**9 - charge.reserved_nanos) * Decimal("1e-9")
    assert answer.headers["X-GenOps-Budget-Remaining"] == f"{left:.9f}"


def test_nothing_is_said_where_there_is_no_budget_or_nobody_wants_it(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient
) -> None:
    answer = predict(serve(flowise.url), flowise.flow_id("graph"), client())
    assert "X-GenOps-Budget-Remaining" not in answer.headers
    quiet = serve(flowise.url, settings=DAILY, options=ServiceSettings(budget_headers=False))
    assert "X-GenOps-Budget-Remaining" not in predict(quiet, flowise.flow_id("graph"), client()).headers


# -- the highest cost -----------------------------------------------------------------------------------


def test_a_callers_highest_cost_sets_nothing_more_aside(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient, charges: Charges
) -> None:
    """It would be taken from everybody who shares the budget, and booked where the cost is not known."""
    flow, headers = flowise.flow_id("graph"), client(attribution={"team": "help"})
    for more in ({}, {"X-GenOps-Max-Cost": "0.999"}):
        service = serve(flowise.url, settings=DAILY)  # with nothing learned of earlier calls
        assert predict(service, flow, {**headers, **more}).status_code == 200
        (charge,) = charges()
        # 1,024 tokens of output, which is what is taken for usual, and a few of input.
        assert 614_400 <= charge.reserved_nanos < 700_000


def test_a_callers_highest_cost_sets_nothing_less_aside(
    serve: Serve, client: NewClient, charges: Charges
) -> None:
    """A strict budget counts on the most that a call can cost, whatever its caller says."""
    strict = Settings(budgets=(Budget("1/day", name="strict", admission="strict"),))
    capped = Flow("capped", "agentflow", (ModelNode(max_tokens=4000),))
    with FlowiseStandIn([capped], api_key=FLOWISE_KEY) as flowise:
        service, headers = serve(flowise.url, settings=strict), client()
        for _ in range(20):  # from which it is known what a call is likely to cost
            assert predict(service, flowise.flow_id("capped"), headers).status_code == 200
        most = {**headers, "X-GenOps-Max-Cost": "0.0005"}
        assert predict(service, flowise.flow_id("capped"), most).status_code == 200
    *plain, last = charges()
    assert {charge.nanos < 500_000 < 4000 * 600 < charge.reserved_nanos for charge in plain} == {True}
    assert last.reserved_nanos == plain[-1].reserved_nanos


def test_with_a_highest_cost_the_rest_of_a_budget_must_be_enough(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient, charges: Charges
) -> None:
    """Without one, what is left is taken for a call that is likely to cost more."""
    little = Settings(budgets=(Budget("0.0006/day", name="little"),))  # 0.0006144 is what is usual
    flow, headers = flowise.flow_id("graph"), client(attribution={"team": "help"})
    service = serve(flowise.url, settings=little)
    refused = predict(service, flow, {**headers, "X-GenOps-Max-Cost": "0.01"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (402, "budget_exceeded")
    assert not flowise.model.calls
    assert predict(service, flow, headers).status_code == 200
    (charge,) = charges()
    assert charge.reserved_nanos == 600_000


def test_a_call_that_is_likely_to_cost_more_is_not_sent(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient
) -> None:
    service = serve(flowise.url)  # without any budget too
    headers = {**client(), "X-GenOps-Max-Cost": "0.0001"}
    # 1,024 tokens of output, which is what is taken for usual, cost 0.0006144 dollars.
    refused = predict(service, flowise.flow_id("graph"), headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (402, "max_cost")
    streamed = predict(service, flowise.flow_id("graph"), headers, streaming=True)
    assert streamed.headers["X-GenOps-Refused"] == "max_cost"
    assert not flowise.model.calls
    enough = {**headers, "X-GenOps-Max-Cost": "0.001"}
    assert predict(service, flowise.flow_id("graph"), enough).status_code == 200


def test_a_caller_cannot_have_less_set_aside_by_saying_so(
    serve: Serve, client: NewClient, charges: Charges
) -> None:
    """Of a flow of which nothing is known, the budget's own amount is set aside."""
    budget = Budget("1/day", name="daily", default_reservation="0.10")
    with RawServer(lambda got: [whole(b'{"text":"Four."}')]) as raw:
        service = serve(raw.url, settings=Settings(budgets=(budget,)))
        predict(service, FLOW, {**client(), "X-GenOps-Max-Cost": "0.000000001"})
    (charge,) = charges()
    assert charge.reserved_nanos == 100_000_000


def test_what_earlier_tries_cost_is_taken_off_the_highest_cost(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient, charges: Charges
) -> None:
    flow, other = flowise.flow_id("graph"), flowise.flow_id("chain")
    table = ServiceSettings.of({"fallback": [{"flow": flow, "to": [other]}]})
    service, headers = serve(flowise.url, settings=DAILY, options=table), client()
    # Either is likely to cost 0.0006144 dollars and its few tokens of input: too much for both.
    most = {**headers, "X-GenOps-Max-Cost": "0.00062"}
    flowise.fail_next(500, after_model=True)
    refused = predict(service, flow, most)
    assert (refused.status_code, refused.json()["error"]["code"]) == (402, "max_cost")
    (failed,) = charges()
    assert (failed.flow, failed.outcome) == (flow, "failed")
    assert refused.headers["X-GenOps-Cost"] == f"{failed.cost:f}"
    assert len(flowise.model.calls) == 1


@pytest.mark.parametrize(
    "amount", ["", "0,5", "1e3", "-1", "+1", "NaN", "1 ", "0x1", "0.0000000001", "12345678", "$1", "½"]
)
def test_an_amount_is_written_in_one_way(serve: Serve, client: NewClient, amount: str) -> None:
    service = serve("http://127.0.0.1:1")
    headers: dict[str, Any] = {**client(), "X-GenOps-Max-Cost": amount.encode()}
    answer = predict(service, FLOW, headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_request")


@pytest.mark.parametrize("name", ["X-GenOps-Max-Cost", "Idempotency-Key"])
def test_a_header_that_came_twice_is_not_guessed_at(serve: Serve, client: NewClient, name: str) -> None:
    service = serve("http://127.0.0.1:1")
    token = client()["Authorization"]
    host, _, port = service.removeprefix("http://").partition(":")
    body = b'{"question":"hi"}'
    with socket.create_connection((host, int(port)), 5) as raw:
        raw.sendall(
            f"POST /api/v1/prediction/{FLOW} HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\n"
            f"{name}: 1\r\n{name}: 2\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
            + body
        )
        assert raw.recv(100).startswith(b"HTTP/1.1 400 ")


# -- once only ------------------------------------------------------------------------------------------


def test_a_call_with_a_key_of_its_own_is_made_once(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient, charges: Charges
) -> None:
    service, flow = serve(flowise.url), flowise.flow_id("graph")
    shop, desk = client("shop"), client("desk")
    once = {"Idempotency-Key": "order-7"}
    assert predict(service, flow, {**shop, **once}).status_code == 200
    again = predict(service, flow, {**shop, **once})
    assert (again.status_code, again.json()["error"]["code"]) == (409, "already_completed")
    assert predict(service, flow, {**desk, **once}).status_code == 200
    assert len(flowise.model.calls) == len(charges()) == 2


def test_a_call_that_is_being_made_is_not_made_again(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient
) -> None:
    service, flow = serve(flowise.url), flowise.flow_id("graph")
    headers = {**client(), "Idempotency-Key": "order-7"}
    with ThreadPoolExecutor(4) as pool:
        answers = list(
            pool.map(lambda _: predict(service, flow, headers, question="[[sleep:3]] hi"), range(4))
        )
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409]
    refused = next(answer for answer in answers if answer.status_code == 409)
    assert refused.json()["error"]["code"] == "in_progress"
    assert refused.headers["Retry-After"] == "1"
    assert len(flowise.model.calls) == 1


def test_a_call_that_failed_may_be_made_again(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient, charges: Charges
) -> None:
    service, flow = serve(flowise.url), flowise.flow_id("graph")
    headers = {**client(), "Idempotency-Key": "order-7"}
    flowise.fail_next(500)
    assert [predict(service, flow, headers).status_code for _ in range(3)] == [500, 200, 409]
    assert [charge.attempt for charge in charges()] == [1, 2]


@pytest.mark.parametrize("key", ["", "with space", "x" * 129, "ümlaut"])
def test_a_key_is_printable_and_short(serve: Serve, client: NewClient, key: str) -> None:
    headers: dict[str, Any] = {**client(), "Idempotency-Key": key.encode()}
    assert predict(serve("http://127.0.0.1:1"), FLOW, headers).status_code == 400


# -- what it used ---------------------------------------------------------------------------------------


def test_an_answer_says_what_it_used_to_who_asks(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient
) -> None:
    service, flow, headers = serve(flowise.url), flowise.flow_id("graph"), client()
    assert "usage" not in predict(service, flow, headers).json()
    answer = predict(service, flow, {**headers, "X-GenOps-Usage": "true"})
    call = flowise.model.calls[-1]
    assert answer.json()["text"] == "Stub reply from gpt-4o-mini to: hi"
    assert answer.json()["usage"] == {
        "cost_usd": f"{Decimal(150 * call.input_tokens + 600 * call.output_tokens).scaleb(-9):.9f}",
        "exactness": "exact",
        "input_tokens": call.input_tokens,
        "output_tokens": call.output_tokens,
        "models": ["gpt-4o-mini"],
    }


def test_a_stream_says_it_after_flowises_last_event(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient
) -> None:
    service, flow = serve(flowise.url), flowise.flow_id("graph")
    headers = {**client(), "X-GenOps-Usage": "true"}
    answer = predict(service, flow, headers, streaming=True)
    events = [json.loads(line[5:]) for line in answer.text.split("\n") if line.startswith("data:")]
    assert [event["event"] for event in events[-2:]] == ["end", "usage"]
    (call,) = flowise.model.calls
    assert events[-1]["data"]["input_tokens"] == call.input_tokens
    assert events[-1]["data"]["exactness"] == "exact"


def test_half_an_emoji_in_an_answer_is_passed_on_and_kept(serve: Serve, client: NewClient) -> None:
    """JavaScript writes one where a text was cut within an emoji; it has no form in UTF-8."""
    with RawServer(lambda got: [whole(b'{"text":"Four \\ud83d"}')]) as raw:
        service = serve(raw.url, options=ServiceSettings.of({"cache": {"flows": ["*"]}}))
        headers = {**client(), "X-GenOps-Usage": "true"}
        first, again = predict(service, FLOW, headers), predict(service, FLOW, headers)
    assert (first.status_code, first.json()["text"]) == (200, "Four \ud83d")
    assert "usage" in first.json()
    assert again.headers["X-GenOps-Cache"] == "hit"
    assert (again.status_code, again.json()["text"]) == (200, "Four \ud83d")
    assert len(raw.posts) == 1


def test_the_error_of_a_stream_that_broke_off_is_an_event_of_its_own(serve: Serve, client: NewClient) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 9999\r\n\r\n"
    with RawServer(lambda got: [head, b'message:\ndata:{"event":"token","da']) as raw:
        answer = predict(serve(raw.url), FLOW, client(), streaming=True)
    frames = answer.content.decode().split("\n\n")
    assert frames[0] == 'message:\ndata:{"event":"token","da'
    events = [json.loads(frame.removeprefix("message:\ndata:")) for frame in frames[1:] if frame]
    assert [event["event"] for event in events] == ["error", "end"]


def test_a_setting_says_it_in_every_answer_but_to_no_page(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient
) -> None:
    service = serve(flowise.url, options=ServiceSettings(usage=True))
    assert "usage" in predict(service, flowise.flow_id("graph"), client()).json()
    page = client(origins=("https://www.example.com",))
    answer = predict(service, flowise.flow_id("graph"), page)  # from a shell: a page says its origin
    assert "usage" not in answer.json()
    assert "X-GenOps-Cost" not in answer.headers
    assert "X-GenOps-Exactness" not in answer.headers


# -- owners and traces of W3C headers -------------------------------------------------------------------


def test_baggage_names_what_a_header_may_and_no_more(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient, charges: Charges
) -> None:
    service = serve(flowise.url, settings=DAILY)
    headers = {
        **client(attribution={"team": "help", "feature": "chat"}),
        "baggage": "genops.team=sales,genops.user_id=ana,genops.feature=free,genops.cost_center=9,other=1",
    }
    assert predict(service, flowise.flow_id("graph"), headers).status_code == 200
    both = {**headers, "X-GenOps-User-Id": "bob"}
    assert predict(service, flowise.flow_id("graph"), both).status_code == 200
    assert [dict(charge.attribution) for charge in charges()] == [
        {"team": "help", "feature": "chat", "user_id": "ana"},
        {"team": "help", "feature": "chat", "user_id": "bob"},
    ]
    assert all("team=help" in account or account.startswith("in:") for account in charges()[0].accounts)


def test_hostile_baggage_is_passed_over(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient, charges: Charges
) -> None:
    service = serve(flowise.url)
    for baggage in (
        "genops.user_id=a,genops.user_id=b",
        "genops.user_id=" + "x" * 9000,
        "genops.user_id=%00",
    ):
        headers = {**client(), "baggage": baggage}
        assert predict(service, flowise.flow_id("graph"), headers).status_code == 200
    assert all(not charge.attribution for charge in charges())


TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def test_a_call_is_a_span_in_its_callers_trace(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient, charges: Charges
) -> None:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    service = serve(flowise.url, runtime=Runtime(Settings(), tracer_provider=provider))
    headers = {**client(), "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
    predict(service, flowise.flow_id("graph"), headers)
    (charge,) = charges()
    assert charge.trace_id == TRACE
    assert {f"{span.context.trace_id:032x}" for span in spans.get_finished_spans()} == {TRACE}
    predict(service, flowise.flow_id("graph"), {**headers, "traceparent": "00-nonsense-01"})
    assert charges()[-1].trace_id not in ("", TRACE)


def test_flowise_is_told_of_owners_and_traces_only_where_that_is_allowed(
    serve: Serve, client: NewClient
) -> None:
    given = {"baggage": "genops.user_id=ana,secret=1", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
    given |= {"tracestate": "a=b", "Idempotency-Key": "k", "X-GenOps-Max-Cost": "1"}
    with RawServer(lambda got: [whole(b'{"text":"Four."}')]) as raw:
        headers = {**client(attribution={"team": "help"}), **given}
        predict(serve(raw.url), FLOW, headers)
        host = raw.url.removeprefix("http://")
        predict(serve(raw.url, settings=Settings(propagate_to=(host,))), FLOW, headers)
    closed, allowed = ({name.lower(): value for name, value in got.headers.items()} for got in raw.posts)
    assert not {"baggage", "traceparent", "tracestate", "idempotency-key"} & closed.keys()
    assert not any(name.startswith("x-genops-") for name in {**closed, **allowed})
    assert sorted(allowed["baggage"].split(",")) == ["genops.team=help", "genops.user_id=ana"]
    assert get_runtime().settings.propagate_to == (host,)
