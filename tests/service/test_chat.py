"""The chat endpoints and their providers: shapes, failover, who may what, what is refused."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import requests

from genops_ctx import Budget
from genops_ctx.core.errors import ConfigurationError
from genops_ctx.providers.flows import forget_directories
from genops_ctx.runtime import get_runtime
from genops_ctx.service.configuration import ServiceSettings
from genops_ctx.settings import Settings
from genops_ctx.testing import Flow, FlowiseStandIn, ModelNode
from tests.service.conftest import FLOWISE_KEY, NewClient, Serve

DEAD = {"name": "dead", "base_url": "http://127.0.0.1:9"}
FIRST: dict[str, Any] = {"name": "openai", "flow": "graph"}
SECOND: dict[str, Any] = {"name": "anthropic", "flow": "claude", "priority": 2}
GONE: dict[str, Any] = {
    "name": "gone",
    "flow": "11111111-2222-4333-8444-555555555555",
    "model": "gpt-4o",
    "instance": "dead",
    "priority": 0,
    "failure_threshold": 2,
}
WAYS = ("direct", "decorator")


@pytest.fixture
def flowise() -> Iterator[FlowiseStandIn]:
    claude = Flow("claude", "agentflow", (ModelNode("claude-haiku-4-5", streaming=False),))
    with FlowiseStandIn([Flow("graph", "agentflow"), claude], api_key=FLOWISE_KEY) as server:
        yield server
    forget_directories()


def options(*providers: dict[str, Any], **more: Any) -> ServiceSettings:
    return ServiceSettings.of({"provider": list(providers), "instance": [DEAD], **more})


Ask = Callable[..., requests.Response]


@pytest.fixture
def ask() -> Ask:
    def post(url: str, headers: dict[str, str], way: str = "direct", **body: Any) -> requests.Response:
        body = {"message": "What is Python?", **body}
        return requests.post(f"{url}/chat/{way}", json=body, headers=headers, timeout=60)

    return post


def states(url: str, headers: dict[str, str]) -> dict[str, Any]:
    answer = requests.get(f"{url}/providers", headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    return {one["name"]: one for one in answer.json()["providers"]}


@pytest.mark.parametrize("way", WAYS)
def test_a_chat_is_answered_by_the_first_provider_and_booked_on_the_client(
    flowise: FlowiseStandIn, serve: Serve, client: NewClient, ask: Ask, charges: Any, way: str
) -> None:
    url = serve(flowise.url, options=options(SECOND, FIRST))
    answer = ask(url, client(attribution={"team": "help"}), way)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    (billed,) = flowise.model.calls
    nanos = 150 * billed.input_tokens + 600 * billed.output_tokens
    assert body["content"]
    assert (body["provider"], body["model"]) == ("openai", "gpt-4o-mini")
    assert body["worker_id"] == os.getpid()
    assert datetime.fromisoformat(body["timestamp"]).tzinfo is not None
    (charge,) = charges()
    assert (charge.nanos, charge.attribution["team"]) == (nanos, "help")
    assert (body["cost"], body["exactness"]) == (f"{nanos / 1e9:.9f}", "exact")
    assert answer.headers["X-GenOps-Cost"] == body["cost"]


@pytest.mark.parametrize("way", WAYS)
def test_it_goes_to_the_next_where_one_fails_until_its_breaker_is_open(
    flowise: FlowiseStandIn, serve: Serve, client: NewClient, ask: Ask, charges: Any, way: str
) -> None:
    url, headers = serve(flowise.url, options=options(FIRST, SECOND, GONE)), client()
    before = states(url, headers)["gone"]
    assert before == {
        "name": "gone",
        "model": "gpt-4o",
        "available": True,
        "circuit_state": "closed",
        "failure_count": 0,
        "last_failure_time": None,
        "priority": 0,
    }
    for number in (1, 2, 3):
        assert ask(url, headers, way).json()["provider"] == "openai"
        now = states(url, headers)["gone"]
        assert now["failure_count"] == min(number, 2)
        assert now["circuit_state"] == ("closed" if number == 1 else "open")
        assert now["available"] is (number == 1)
        assert datetime.fromisoformat(now["last_failure_time"]).tzinfo is not None
    # What never reached a Flowise cost nothing, and is no charge.
    booked = charges()
    assert len(booked) == len(flowise.model.calls) == 3
    assert ["failover_from:gone" in charge.flags for charge in booked] == [True] * 3


def test_only_operators_reset_and_it_is_on_record(
    flowise: FlowiseStandIn, serve: Serve, client: NewClient, ask: Ask
) -> None:
    url, headers = serve(flowise.url, options=options(FIRST, GONE)), client()
    for _ in range(2):
        ask(url, headers)
    assert states(url, headers)["gone"]["circuit_state"] == "open"
    path = f"{url}/providers/gone/reset"
    assert requests.post(path, timeout=60).status_code == 401
    assert requests.get(f"{url}/providers", timeout=60).status_code == 401
    assert requests.post(path, headers=headers, timeout=60).status_code == 403
    operator = client("ops", role="operator")
    assert requests.post(f"{url}/providers/none/reset", headers=operator, timeout=60).status_code == 404
    done = requests.post(path, headers=operator, timeout=60)
    assert done.status_code == 200
    assert done.json()["provider"]["circuit_state"] == "closed"
    # This service's store is its own memory, and it says so.
    assert done.json()["message"] == (
        "The circuit breaker of provider 'gone' is closed, in this worker: they share no store."
    )
    now = states(url, headers)["gone"]
    assert (now["circuit_state"], now["failure_count"], now["last_failure_time"]) == ("closed", 0, None)
    (event,) = get_runtime().books.ledger.audits("provider_reset")
    assert event.subject == "provider gone"
    assert event.actor.startswith("key ")


@pytest.mark.parametrize("way", WAYS)
def test_what_every_provider_would_ignore_is_refused(
    flowise: FlowiseStandIn, serve: Serve, client: NewClient, ask: Ask, way: str
) -> None:
    url, headers = serve(flowise.url, options=options(FIRST, SECOND)), client()
    answer = ask(url, headers, way, temperature=0.7, system_message="Be brief.")
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "parameter_ignored"
    assert sorted(error["parameters"]) == ["system_message", "temperature"]
    assert flowise.model.calls == []


@pytest.mark.parametrize("way", WAYS)
def test_refusals_are_those_of_the_gateway(
    flowise: FlowiseStandIn, serve: Serve, client: NewClient, ask: Ask, way: str
) -> None:
    settings = Settings(budgets=(Budget("0.000001/day", by="team"),))
    url = serve(flowise.url, settings=settings, options=options(FIRST, SECOND))
    assert ask(url, {}, way).json()["error"]["code"] == "unauthorized"
    other = client("other", flows=("some-flow",))
    assert (ask(url, other, way).status_code, ask(url, other, way).json()["error"]["code"]) == (403, "flow")
    only = client("only", flows=("claude",))
    assert ask(url, only, way).json()["provider"] == "anthropic"
    poor = client("poor", attribution={"team": "poor"})
    assert ask(url, poor, way).status_code == 200  # nothing is known of the flow's cost yet
    refused = ask(url, poor, way)
    assert (refused.status_code, refused.json()["error"]["code"]) == (402, "budget_exceeded")
    assert int(refused.headers["Retry-After"]) > 0


@pytest.mark.parametrize("way", WAYS)
def test_what_a_chat_costs_at_least_is_told_to_servers(
    flowise: FlowiseStandIn, serve: Serve, client: NewClient, ask: Ask, way: str
) -> None:
    budget = Budget("0.00001", "day", by="team", limits={"rich": 1})
    url = serve(flowise.url, settings=Settings(budgets=(budget,)), options=options(FIRST))
    rich, poor = client("rich", attribution={"team": "rich"}), client("poor", attribution={"team": "poor"})
    for headers in [rich] * 10 + [poor]:
        assert ask(url, headers, way).status_code == 200
    error = ask(url, poor, way).json()["error"]
    assert error["floor_because"] == "10th percentile of 11 earlier charges of this flow"
    assert Decimal(error["floor"]) + Decimal(error["remaining"]) == Decimal("0.00001")
    page = client("page", origins=("https://www.example.com",), attribution={"team": "visitors"})
    page["Origin"] = "https://www.example.com"
    assert ask(url, page, way).status_code == 200
    assert sorted(ask(url, page, way).json()["error"]) == ["budget", "code", "message", "resets_at"]


@pytest.mark.parametrize("way", WAYS)
def test_rate_limits_are_those_of_the_gateway(
    flowise: FlowiseStandIn, serve: Serve, client: NewClient, ask: Ask, way: str
) -> None:
    rates = [{"rate": "2/hour", "by": ["key"]}]
    url = serve(flowise.url, options=options(FIRST, rate_limit=rates))
    busy = client("busy")
    prediction = f"{url}/api/v1/prediction/{flowise.flow_id('graph')}"
    assert requests.post(prediction, json={"question": "hi"}, headers=busy, timeout=60).status_code == 200
    assert [ask(url, busy, way).status_code for _ in range(2)] == [200, 429]
    assert int(ask(url, busy, way).headers["Retry-After"]) > 0
    assert ask(url, client("calm"), way).status_code == 200


@pytest.mark.parametrize("way", WAYS)
def test_an_idempotency_key_lets_one_chat_through(
    flowise: FlowiseStandIn, serve: Serve, client: NewClient, ask: Ask, way: str
) -> None:
    url = serve(flowise.url, options=options(FIRST, GONE))
    headers = {**client(), "Idempotency-Key": "order-1"}
    assert [ask(url, headers, way).status_code for _ in range(2)] == [200, 409]
    assert len(flowise.model.calls) == 1
    assert ask(url, {**client("other"), "Idempotency-Key": "order-1"}, way).status_code == 200


@pytest.mark.parametrize("way", WAYS)
def test_where_nobody_answers_that_is_said(
    flowise: FlowiseStandIn, serve: Serve, client: NewClient, ask: Ask, charges: Any, way: str
) -> None:
    url, headers = serve(flowise.url, options=options(GONE)), client()
    assert [ask(url, headers, way).status_code for _ in range(3)] == [502, 502, 503]
    closed = ask(url, headers, way)
    assert closed.json()["error"]["code"] == "unavailable"
    assert int(closed.headers["Retry-After"]) <= 60
    # Which parameters its flow takes is not known, and that it is away is.
    assert ask(url, headers, way, temperature=1).status_code == 502
    assert charges() == []


@pytest.mark.parametrize("way", WAYS)
def test_one_that_hangs_leaves_time_for_the_next(
    flowise: FlowiseStandIn, serve: Serve, client: NewClient, ask: Ask, charges: Any, way: str
) -> None:
    url = serve(flowise.url, options=options({**FIRST, "timeout": 2.0}, SECOND))
    flowise.hang_next()
    begun = time.monotonic()
    body = ask(url, client(), way).json()
    assert time.monotonic() - begun < 20
    assert body["provider"] == "anthropic"
    # Flowise may go on with what it was asked: it is booked, as what it is.
    booked = charges()
    assert [(one.outcome, str(one.exactness)) for one in booked] == [
        ("timed_out", "estimated"),
        ("completed", "exact"),
    ]
    assert body["exactness"] == "estimated"
    assert body["cost"] == f"{sum(one.cost for one in booked):f}"


def test_a_service_without_providers_says_so(
    flowise: FlowiseStandIn, serve: Serve, client: NewClient, ask: Ask
) -> None:
    url, headers = serve(flowise.url), client()
    answer = ask(url, headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_providers")
    assert states(url, headers) == {}


@pytest.mark.parametrize(
    "body",
    [
        {"message": ""},
        {"message": " "},
        {"temperature": 3},
        {"max_tokens": 0},
        {"message": "hi", "temprature": 1},
        {"message": 5},
        {"message": "\ud800"},
        {"temperature": float("nan")},
        {"temperature": "0.7"},
        {"max_tokens": True},
        {"max_tokens": -5},
        {"max_tokens": 10**400},
    ],
)
def test_what_is_not_understood_is_not_sent(
    flowise: FlowiseStandIn, serve: Serve, client: NewClient, ask: Ask, body: dict[str, Any]
) -> None:
    url = serve(flowise.url, options=options(FIRST))
    content = json.dumps({"message": "What is Python?", **body})
    for way in WAYS:
        for headers, status in ((client(), 422), ({}, 401)):
            asked = {**headers, "Content-Type": "application/json"}
            answer = requests.post(f"{url}/chat/{way}", data=content, headers=asked, timeout=60)
            assert answer.status_code == status, answer.text
    assert flowise.model.calls == []


@pytest.mark.parametrize("way", WAYS)
def test_nulls_are_as_if_left_out(
    flowise: FlowiseStandIn, serve: Serve, client: NewClient, ask: Ask, way: str
) -> None:
    url = serve(flowise.url, options=options(FIRST))
    nothing = {"system_message": None, "temperature": None, "max_tokens": None}
    assert ask(url, client(), way, **nothing).status_code == 200


@pytest.mark.parametrize("way", WAYS)
def test_a_key_that_is_in_pages_sees_nothing_of_costs(
    flowise: FlowiseStandIn, serve: Serve, client: NewClient, ask: Ask, way: str
) -> None:
    settings = Settings(budgets=(Budget("5/day"),))
    url = serve(flowise.url, settings=settings, options=options({**FIRST, "timeout": 2.0}, SECOND))
    page = client("page", origins=("https://www.example.com",))
    well = ask(url, page, way)
    flowise.hang_next()
    flowise.fail_next(500)
    failed = ask(url, page, way)
    assert [well.status_code, failed.status_code] == [200, 502]
    assert well.json()["cost"] is None
    for answer in (well, failed):
        assert [name for name in answer.headers if name.lower().startswith("x-genops-")] == []


def test_the_cheapest_of_one_priority_goes_first() -> None:
    from genops_ctx.service.providers import Providers

    settings = options(
        {"name": "c", "flow": "x"},
        {"name": "b", "flow": "x", "cost": "0.02"},
        {"name": "a", "flow": "x", "cost": "0.01"},
        {"name": "z", "flow": "x", "priority": 0},
    )
    providers = Providers.of(settings, "http://127.0.0.1:9", "the-service-s-own-key")
    assert [one.name for one in providers] == ["z", "a", "b", "c"]


def test_another_flowise_never_gets_the_service_s_key(monkeypatch: pytest.MonkeyPatch) -> None:
    from genops_ctx.service.providers import Providers

    monkeypatch.setenv("FLOWISE_API_KEY", "the-service-s-own-key")
    here, there = Providers.of(options(FIRST, {**GONE, "priority": 5}), "http://127.0.0.1:8", "mine")
    assert (here.adapter.api_key, here.adapter.base_url) == ("mine", "http://127.0.0.1:8")
    assert (there.adapter.api_key, there.adapter.base_url) == (None, "http://127.0.0.1:9")
    asyncio.run(there.adapter.aclose())


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"name": "a b", "flow": "x"}, "name must be 1 to 64 letters"),
        ({"name": "a"}, "needs a flow"),
        ({"name": "a", "flow": " "}, "flow must be a flow's id or unique name"),
        ({"name": "a", "flow": "x", "priority": "high"}, "priority must be a whole number"),
        (
            {"name": "a", "flow": "x", "failure_threshold": 0},
            "provider 'a': failure_threshold must be a whole number from 1",
        ),
        ({"name": "a", "flow": "x", "recovery_timeout": 0}, "recovery_timeout must be"),
        ({"name": "a", "flow": "x", "recovery_timeout": "60"}, "recovery_timeout must be a number"),
        ({"name": "a", "flow": "x", "cost": "much"}, "cost"),
        ({"name": "a", "flow": "x", "timeout": "long"}, "timeout must be a number"),
        ({"name": "a", "flow": "x", "instance": "nowhere"}, "no \\[\\[service.instance\\]\\] has that name"),
        ({"name": "a", "flow": "x", "prority": 1}, "did you mean 'priority'"),
    ],
)
def test_a_bad_provider_is_told(table: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        options(table)
    with pytest.raises(ConfigurationError, match="two providers have the name 'openai'"):
        options(FIRST, FIRST)


def test_health_has_what_the_providers_are_and_shows_addresses_to_operators_only(
    flowise: FlowiseStandIn, serve: Serve, client: NewClient, ask: Ask
) -> None:
    url, headers = serve(flowise.url, options=options(FIRST, GONE)), client()
    well = requests.get(f"{url}/health", timeout=60)
    assert well.status_code == 200
    body = well.json()
    assert (body["status"], body["reasons"], body["errors"], body["error"]) == ("healthy", [], [], None)
    assert [one["name"] for one in body["providers"]] == ["gone", "openai"]
    # Its memory is this process's alone, and it is no Redis.
    assert (body["redis_connected"], body["sync_enabled"]) == (None, False)
    assert (body["worker_id"], body["model"], body["flowise_url"]) == (os.getpid(), "gpt-4o", None)
    assert body["latency_ms"] > 0
    for way in WAYS:
        ask(url, headers, way)
    time.sleep(1.1)
    ill = requests.get(f"{url}/health", headers=headers, timeout=60)
    body = ill.json()
    assert (ill.status_code, body["status"], body["flowise_url"]) == (200, "degraded", None)
    assert body["reasons"] == ["provider gone is not available"]
    assert (body["model"], body["providers"][0]["circuit_state"]) == ("gpt-4o-mini", "open")
    operator = requests.get(f"{url}/health", headers=client("ops", role="operator"), timeout=60)
    assert operator.json()["flowise_url"] == flowise.url


def test_the_root_says_what_answers_here(flowise: FlowiseStandIn, serve: Serve) -> None:
    answer = requests.get(serve(flowise.url), timeout=60)
    assert answer.status_code == 200
    assert answer.json()["name"] == "genops_ctx"
    assert answer.json()["links"]["chats"] == "/chat/direct"


@pytest.mark.parametrize("way", WAYS)
def test_an_answer_that_ends_within_a_sign_is_given(
    serve: Serve, client: NewClient, ask: Ask, charges: Any, way: str
) -> None:
    """A model that is cut off leaves half an emoji, which JSON can say and UTF-8 cannot."""

    class Half(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply(404, b"{}")

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self._reply(200, b'{"text": "Well done \\ud83c\\udf89 \\ud83d"}')

        def _reply(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Half) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        provider = {**FIRST, "flow": GONE["flow"]}
        url = serve(f"http://127.0.0.1:{server.server_port}", options=options(provider))
        answer = ask(url, client(), way)
        usage = {**client(), "X-GenOps-Usage": "true"}
        path = f"{url}/api/v1/prediction/{GONE['flow']}"
        prediction = requests.post(path, json={"question": "Hello"}, headers=usage, timeout=60)
        server.shutdown()
    assert answer.status_code == prediction.status_code == 200, answer.text
    assert answer.json()["content"] == "Well done \U0001f389 \ufffd"
    assert prediction.json()["text"] == "Well done \U0001f389 \ud83d"
    assert prediction.json()["usage"]["exactness"] == "unknown"
    assert len(charges()) == 2
