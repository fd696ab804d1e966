"""Breakers, rate limits, retries, cache and failover of the gateway, as clients see them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from genops_ctx import Budget
from genops_ctx.runtime import get_runtime
from genops_ctx.service.configuration import ServiceSettings
from genops_ctx.settings import Settings
from genops_ctx.testing import Flow, FlowiseStandIn
from tests.providers.raw_server import Got, RawServer, Step, whole
from tests.service.conftest import FLOWISE_KEY, NewClient, Serve

Charges = Callable[[], list[Any]]
FLOW = "22222222-3333-4444-8555-666666666666"
OTHER = "77777777-3333-4444-8555-666666666666"
BROKEN = "Error: predictionsServices.buildChatflow - 500 the model is away"


def options(**table: Any) -> ServiceSettings:
    return ServiceSettings.of(table)


def predict(service: str, flow: str, headers: dict[str, str], **body: Any) -> requests.Response:
    url = f"{service}/api/v1/prediction/{flow}"
    return requests.post(url, json={"question": "hi", **body}, headers=headers, timeout=60)


def failing(status: int = 500, message: str = BROKEN) -> bytes:
    body = json.dumps({"statusCode": status, "success": False, "message": message, "stack": {}}).encode()
    return (
        b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
    ) + body


@pytest.fixture
def standby(monkeypatch: pytest.MonkeyPatch) -> Iterator[FlowiseStandIn]:
    monkeypatch.setenv("STANDBY_KEY", "key-of-the-standby")
    with FlowiseStandIn([Flow("graph", "agentflow")], api_key="key-of-the-standby") as server:
        yield server


# -- breaker --------------------------------------------------------------------------------------------


def test_a_breaker_opens_for_a_flow_and_for_no_other(serve: Serve, client: NewClient) -> None:
    def answer(got: Got) -> list[Step]:
        return [failing()] if FLOW in got.path else [whole(b'{"text":"Four."}')]

    with RawServer(answer) as raw:
        service, headers = serve(raw.url, options=options(breaker=2)), client()
        assert [predict(service, FLOW, headers).status_code for _ in range(3)] == [500, 500, 503]
        refused = predict(service, FLOW, headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        assert len(raw.posts) == 2
        assert predict(service, OTHER, headers).status_code == 200


def test_a_breaker_of_a_whole_flowise(serve: Serve, client: NewClient) -> None:
    with RawServer(lambda got: [failing()]) as raw:
        service = serve(raw.url, options=options(breaker={"failures": 2, "of": "flowise"}))
        headers = client()
        predict(service, FLOW, headers)
        predict(service, FLOW, headers)
        assert predict(service, OTHER, headers).status_code == 503


def test_an_operator_sees_and_closes_a_breaker(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient, charges: Charges
) -> None:
    flow = flowise.flow_id("graph")
    service, headers = serve(flowise.url, options=options(breaker=2)), client()
    operator = client("ops", role="operator")
    flowise.fail_next(500, times=2)
    assert [predict(service, flow, headers).status_code for _ in range(3)] == [500, 500, 503]
    url = f"{service}/flows/{flow}/breaker"
    assert requests.get(url, headers=headers, timeout=60).status_code == 403
    assert requests.get(url, timeout=60).status_code == 401
    seen = requests.get(url, headers=operator, timeout=60).json()
    assert (seen["state"], seen["failures"]) == ("open", 2)
    assert 30 <= seen["retry_after"] <= 60
    assert requests.post(f"{url}/reset", headers=operator, timeout=60).json()["state"] == "closed"
    assert predict(service, flow, headers).status_code == 200
    (audit,) = get_runtime().books.ledger.audits("breaker_reset")
    assert audit.actor.startswith("key ")
    assert requests.get(url, params={"instance": "x"}, headers=operator, timeout=60).status_code == 404


def test_what_a_caller_does_wrong_opens_no_breaker(serve: Serve, client: NewClient) -> None:
    with RawServer(lambda got: [failing(400, "Invalid chatflow")]) as raw:
        service, headers = serve(raw.url, options=options(breaker=2)), client()
        assert {predict(service, FLOW, headers).status_code for _ in range(5)} == {400}


def test_a_breaker_is_told_of_streams(serve: Serve, client: NewClient, flowise: FlowiseStandIn) -> None:
    service, headers = serve(flowise.url, options=options(breaker=2)), client()
    flow = flowise.flow_id("graph")
    for _ in range(2):
        answer = predict(service, flow, headers, question="[[fail:500]] hi", streaming=True)
        assert '"event":"error"' in answer.text
    refused = predict(service, flow, headers, streaming=True)
    assert refused.headers["X-GenOps-Refused"] == "unavailable"


# -- rate limits ----------------------------------------------------------------------------------------


def test_a_rate_limit_of_each_key(serve: Serve, flowise: FlowiseStandIn, client: NewClient) -> None:
    service = serve(flowise.url, options=options(rate_limit=[{"rate": "2/hour", "by": "key"}]))
    flow, shop, desk = flowise.flow_id("graph"), client("shop"), client("desk")
    assert [predict(service, flow, shop).status_code for _ in range(3)] == [200, 200, 429]
    refused = predict(service, flow, shop)
    # Two an hour: the next turn comes half an hour after the first one.
    assert 1780 <= int(refused.headers["Retry-After"]) <= 1800
    assert "3600" not in refused.json()["message"]
    assert predict(service, flow, desk).status_code == 200
    assert len(flowise.model.calls) == 3


def test_a_rate_limit_by_attribution_and_one_by_flow(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient
) -> None:
    limits = [{"rate": "2/hour", "by": "team"}, {"rate": "3/hour", "by": ["flow"]}]
    service = serve(flowise.url, options=options(rate_limit=limits))
    graph, chain = flowise.flow_id("graph"), flowise.flow_id("chain")
    help_, sales = client("a", attribution={"team": "help"}), client("b", attribution={"team": "sales"})
    assert [predict(service, graph, help_).status_code for _ in range(3)] == [200, 200, 429]
    # A turn that another limit refuses is given back: the flow has one left, and has it still.
    assert [predict(service, graph, sales).status_code for _ in range(2)] == [200, 429]
    assert predict(service, chain, sales).status_code == 200


# -- retries --------------------------------------------------------------------------------------------


def test_what_cost_nothing_is_tried_again(serve: Serve, client: NewClient, charges: Charges) -> None:
    answers = iter([failing(429, "slow down"), whole(b'{"text":"Four."}')])

    with RawServer(lambda got: [next(answers)]) as raw:
        done = predict(serve(raw.url, options=options(retries=2)), FLOW, client())
    assert (done.status_code, done.json()["text"]) == (200, "Four.")
    assert [charge.outcome for charge in charges()] == ["refused", "completed"]
    assert len({charge.operation for charge in charges()}) == 1
    assert [charge.attempt for charge in charges()] == [1, 2]


def test_what_may_be_billed_is_not_tried_again(serve: Serve, client: NewClient, charges: Charges) -> None:
    with RawServer(lambda got: [failing()]) as raw:
        done = predict(serve(raw.url, options=options(retries=3)), FLOW, client())
    assert done.content.endswith(failing().rpartition(b"\r\n\r\n")[2])
    assert [charge.outcome for charge in charges()] == ["failed"]


# -- failover -------------------------------------------------------------------------------------------


def test_a_flow_that_fails_is_stood_in_for_by_another(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient, charges: Charges
) -> None:
    flow, other = flowise.flow_id("graph"), flowise.flow_id("chain")
    service = serve(flowise.url, options=options(fallback=[{"flow": flow, "to": [other]}]))
    headers = client(attribution={"team": "help"}, flows=(flow,))
    flowise.fail_next(500)
    answer = predict(service, flow, headers)
    assert answer.status_code == 200
    assert answer.headers["X-GenOps-Served-By"] == other
    first, second = charges()
    assert (first.flow, first.outcome, second.flow, second.outcome) == (flow, "failed", other, "completed")
    assert second.flags == (f"failover_from:{flow}", *second.flags[1:])
    assert answer.headers["X-GenOps-Cost"] == f"{first.cost + second.cost:f}"
    assert dict(second.attribution) == {"team": "help"}


def test_another_instance_takes_over_with_its_own_key(
    serve: Serve, standby: FlowiseStandIn, client: NewClient, charges: Charges
) -> None:
    flow = standby.flow_id("graph")
    table = options(
        instance=[{"name": "standby", "base_url": standby.url, "api_key_env": "STANDBY_KEY"}],
        fallback=[{"flow": "*", "to": [{"instance": "standby"}]}],
    )
    service, headers = serve("http://127.0.0.1:1", options=table), client()
    answer = predict(service, flow, headers)
    assert (answer.status_code, answer.headers["X-GenOps-Served-By"]) == (200, f"standby/{flow}")
    streamed = predict(service, flow, headers, streaming=True)
    assert '"event":"end"' in streamed.text
    billed = sum(150 * one.input_tokens + 600 * one.output_tokens for one in standby.model.calls)
    assert sum(charge.nanos for charge in charges()) == billed
    assert len(standby.model.calls) == 2


def test_an_instance_without_a_key_gets_no_other_ones(
    serve: Serve, client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWISE_API_KEY", "key-of-the-main-one")
    with RawServer(lambda got: [whole(b'{"text":"Four."}')]) as raw:
        table = options(
            instance=[{"name": "standby", "base_url": raw.url}],
            fallback=[{"flow": "*", "to": [{"instance": "standby"}]}],
        )
        answer = predict(serve("http://127.0.0.1:1", options=table), FLOW, client())
    assert answer.headers["X-GenOps-Served-By"] == f"standby/{FLOW}"
    assert raw.requests  # the look-up of the flow too
    assert not [got for got in raw.requests if "authorization" in {name.lower() for name in got.headers}]


def test_a_budget_that_is_used_up_leads_nowhere_else(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient
) -> None:
    flow, other = flowise.flow_id("graph"), flowise.flow_id("chain")
    settings = Settings(budgets=(Budget("0.000000001/day", name="tiny", admission="strict"),), mode="enforce")
    service = serve(
        flowise.url, settings=settings, options=options(fallback=[{"flow": flow, "to": [other]}], retries=2)
    )
    begun = time.monotonic()
    assert predict(service, flow, client()).status_code in (400, 402)
    assert time.monotonic() - begun < 10
    assert not flowise.model.calls


def test_the_last_error_is_told_in_flowises_words(
    serve: Serve, standby: FlowiseStandIn, client: NewClient
) -> None:
    with (
        RawServer(lambda got: [failing(500, "first")]) as raw,
        RawServer(lambda got: [failing(500, "second")]) as second,
    ):
        table = options(
            instance=[{"name": "standby", "base_url": second.url}],
            fallback=[{"flow": "*", "to": [{"instance": "standby"}]}],
        )
        answer = predict(serve(raw.url, options=table), FLOW, client())
    assert (answer.status_code, answer.json()["message"]) == (500, "second")


# -- cache ----------------------------------------------------------------------------------------------


def test_a_question_asked_again_costs_nothing(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient, charges: Charges
) -> None:
    flow = flowise.flow_id("graph")
    service, headers = serve(flowise.url, options=options(cache={"flows": ["*"]})), client()
    first, again = predict(service, flow, headers), predict(service, flow, headers)
    assert again.status_code == 200
    assert again.json()["text"] == first.json()["text"]
    assert again.headers["X-GenOps-Cache"] == "hit"
    assert again.headers["X-GenOps-Cost"] == "0.000000000"
    assert "X-GenOps-Cache" not in first.headers
    assert not {"chatId", "sessionId", "chatMessageId", "executionId"} & again.json().keys()
    assert len(charges()) == len(flowise.model.calls) == 1


def test_no_other_key_and_no_other_owner_gets_a_kept_answer(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient
) -> None:
    flow = flowise.flow_id("graph")
    service = serve(flowise.url, options=options(cache={"flows": [flow.upper()]}))
    shop = client("shop", attribution={"team": "help"})
    calls = [
        shop,
        client("desk", attribution={"team": "help"}),
        {**shop, "X-GenOps-User-Id": "ana"},
        {**shop, "X-GenOps-User-Id": "bob"},
    ]
    for number, headers in enumerate(calls, 1):
        assert "X-GenOps-Cache" not in predict(service, flow, headers).headers
        assert len(flowise.model.calls) == number
    for headers in calls:
        assert predict(service, flow, headers).headers["X-GenOps-Cache"] == "hit"


@pytest.mark.parametrize(
    "body",
    [
        {"streaming": True},
        {"chatId": "c"},
        {"overrideConfig": {"sessionId": "s"}},
        {"uploads": []},
        {"form": {}},
        {"humanInput": {}},
        {"question": 4},
        {"leadEmail": "ana@example.com"},
    ],
    ids=lambda body: next(iter(body)),
)
def test_what_may_depend_on_more_is_not_kept(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient, body: dict[str, Any]
) -> None:
    service, headers = serve(flowise.url, options=options(cache={"flows": ["*"]})), client()
    for _ in range(2):
        assert "X-GenOps-Cache" not in predict(service, flowise.flow_id("graph"), headers, **body).headers
    assert len(flowise.model.calls) == 2


def test_an_answer_that_waits_for_somebody_is_not_kept(serve: Serve, client: NewClient) -> None:
    waits = b'{"text":"Shall I?","executionId":"e","action":{"id":"a"}}'
    with RawServer(lambda got: [whole(waits)]) as raw:
        service, headers = serve(raw.url, options=options(cache={"flows": ["*"]})), client()
        predict(service, FLOW, headers)
        assert "X-GenOps-Cache" not in predict(service, FLOW, headers).headers
    assert len(raw.posts) == 2


def test_of_many_that_ask_the_same_at_once_one_is_sent(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient
) -> None:
    service, headers = serve(flowise.url, options=options(cache={"flows": ["*"]})), client()
    flow = flowise.flow_id("graph")
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda _: predict(service, flow, headers, question="[[sleep:2]] hi"), range(8))
        )
    assert {answer.status_code for answer in answers} == {200}
    assert len(flowise.model.calls) == 1
    assert sum("X-GenOps-Cache" in answer.headers for answer in answers) == 7


def test_flowises_key_is_never_a_clients(serve: Serve, flowise: FlowiseStandIn, client: NewClient) -> None:
    answer = predict(serve(flowise.url), flowise.flow_id("graph"), client())
    assert FLOWISE_KEY not in answer.text + str(answer.headers)
