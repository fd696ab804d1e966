"""Answers that the gateway kept: whom it gives none, though they cost nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

from genops_ctx import Budget
from genops_ctx.controls import Controls
from genops_ctx.core.policy import Policy
from genops_ctx.providers.flows import forget_directories
from genops_ctx.runtime import Runtime, get_runtime, reset_runtime
from genops_ctx.service.configuration import ServiceSettings
from genops_ctx.settings import Settings
from genops_ctx.testing import Flow, FlowiseStandIn
from tests.service.conftest import FLOWISE_KEY, NewClient, Serve

Charges = Callable[[], list[Any]]
KEPT = ServiceSettings.of({"cache": {"flows": ["*"]}})
DAILY = Settings(budgets=(Budget("1/day", name="daily", by="team"),))


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    forget_directories()


def predict(service: str, flow: str, headers: dict[str, str]) -> requests.Response:
    url = f"{service}/api/v1/prediction/{flow}"
    return requests.post(url, json={"question": "hi"}, headers=headers, timeout=60)


def code(answer: requests.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_a_frozen_owner_is_given_none_until_it_is_thawed(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient, charges: Charges
) -> None:
    service, flow = serve(flowise.url, settings=DAILY, options=KEPT), flowise.flow_id("graph")
    help_desk = client("desk", attribution={"team": "help"})
    sales = client("sales", attribution={"team": "sales"})
    for headers in (help_desk, sales):
        predict(service, flow, headers)
        assert predict(service, flow, headers).headers["X-GenOps-Cache"] == "hit"
    books = get_runtime().books
    controls = Controls(books.store, books.ledger, get_runtime().clock)
    controls.freeze("team=help")
    refused = predict(service, flow, help_desk)
    assert code(refused) == (402, "budget_exceeded")
    assert "X-GenOps-Cache" not in refused.headers
    assert refused.json()["error"]["budget"] == "daily"
    assert "Stub reply" not in refused.text
    assert predict(service, flow, sales).headers["X-GenOps-Cache"] == "hit"
    controls.freeze("team=help", frozen=False)
    assert predict(service, flow, help_desk).headers["X-GenOps-Cache"] == "hit"
    assert len(charges()) == len(flowise.model.calls) == 2
    # The refusal is on record as any other.
    (audit,) = books.ledger.audits("refused")
    assert (audit.actor, audit.subject) == ("budget daily", f"call {flow} (team=help)")


def test_a_used_up_budget_is_no_reason(serve: Serve, flowise: FlowiseStandIn, client: NewClient) -> None:
    tiny = Settings(budgets=(Budget("0.000001/day", name="tiny"),))
    service, flow = serve(flowise.url, settings=tiny, options=KEPT), flowise.flow_id("graph")
    headers = client()
    assert predict(service, flow, headers).status_code == 200
    assert predict(service, flow, headers).headers["X-GenOps-Cache"] == "hit"
    other = requests.post(
        f"{service}/api/v1/prediction/{flow}", json={"question": "else"}, headers=headers, timeout=20
    )
    assert code(other) == (402, "budget_exceeded")


@pytest.mark.parametrize(
    "policy",
    [
        Policy("closed", hours="mon-sun 00:00-00:01"),
        Policy("owned", required=("project",)),
        Policy("flows", deny_flows=("gra*",)),
        Policy("others", allow_flows=("chain",)),
        Policy("models", deny_models=("gpt-4o-mini",)),
        Policy("providers", allow_providers=("anthropic",)),
        Policy("environment", environments=("production",)),
    ],
    ids=lambda policy: policy.name,
)
def test_a_policy_that_forbids_the_call_forbids_the_kept_answer(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient, charges: Charges, policy: Policy
) -> None:
    noon = 1_772_366_400.0  # 1 March 2026, 12:00 UTC
    service = serve(flowise.url, options=KEPT, runtime=Runtime(Settings(), clock=lambda: noon))
    flow, headers = flowise.flow_id("graph"), client()
    predict(service, flow, headers)
    assert predict(service, flow, headers).headers["X-GenOps-Cache"] == "hit"
    before = get_runtime()
    strict = Runtime(Settings(policies=(policy,)), clock=lambda: noon, store=before.books.store)
    reset_runtime(strict)  # as after a restart with this policy
    try:
        refused = predict(service, flow, headers)
    finally:
        reset_runtime(before)
    assert code(refused) == (403, "policy")
    assert refused.json()["error"]["policy"] == policy.name
    assert len(flowise.model.calls) == 1


def test_a_kept_answer_counts_as_a_call_of_its_session(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient
) -> None:
    settings = Settings(policies=(Policy("loop", max_identical_questions=3),))
    service, flow = serve(flowise.url, settings=settings, options=KEPT), flowise.flow_id("graph")
    headers = {**client(), "X-GenOps-Session-Id": "s1"}
    statuses = [predict(service, flow, headers).status_code for _ in range(5)]
    assert statuses == [200, 200, 200, 403, 403]
    assert len(flowise.model.calls) == 1


def test_a_policy_that_looks_at_no_flow_needs_no_flowise(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient
) -> None:
    settings = Settings(policies=(Policy("owned", required=("team",)),))
    service, flow = serve(flowise.url, settings=settings, options=KEPT), flowise.flow_id("graph")
    headers = client(attribution={"team": "help"})
    predict(service, flow, headers)
    forget_directories()
    looked_up = len([seen for seen in flowise.requests if "/chatflows/" in seen.path])
    assert predict(service, flow, headers).headers["X-GenOps-Cache"] == "hit"
    assert len([seen for seen in flowise.requests if "/chatflows/" in seen.path]) == looked_up


def test_what_a_policy_cannot_know_lets_nothing_through(serve: Serve, client: NewClient) -> None:
    """Flowise does not say what the flow is called, and a policy forbids some flows by their names."""
    settings = Settings(policies=(Policy("flows", deny_flows=("other",)),))
    with FlowiseStandIn([Flow("graph", "agentflow")], api_key=FLOWISE_KEY) as flowise:
        service, flow = serve(flowise.url, settings=settings, options=KEPT), flowise.flow_id("graph")
        headers = client()
        predict(service, flow, headers)
    # It is gone, and the flow is remembered for a while.
    assert predict(service, flow, headers).headers["X-GenOps-Cache"] == "hit"
    forget_directories()
    refused = predict(service, flow, headers)
    assert refused.status_code == 502
    assert "Stub reply" not in refused.text
