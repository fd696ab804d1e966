"""What chats ask for in headers, and what their answers say in theirs: the same as predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest
import requests

from genops_ctx import Budget
from genops_ctx.providers.flows import forget_directories
from genops_ctx.service.configuration import ServiceSettings
from genops_ctx.settings import Settings
from genops_ctx.testing import Flow, FlowiseStandIn, ModelNode
from tests.service.conftest import FLOWISE_KEY, NewClient, Serve

Charges = Callable[[], list[Any]]
WAYS = ("direct", "decorator")
FIRST: dict[str, Any] = {"name": "openai", "flow": "graph"}
SECOND: dict[str, Any] = {"name": "other", "flow": "spare", "priority": 2}
DAILY = Settings(budgets=(Budget("1/day", name="daily", by="team"),))
USUAL = 614_400
"""Nano-dollars of 1,024 tokens of output, which is what is taken for usual of a flow without limits."""


@pytest.fixture
def flowise() -> Iterator[FlowiseStandIn]:
    flows = [Flow("graph", "agentflow"), Flow("spare", "agentflow")]
    with FlowiseStandIn(flows, api_key=FLOWISE_KEY) as server:
        yield server
    forget_directories()


def options(*providers: dict[str, Any]) -> ServiceSettings:
    return ServiceSettings.of({"provider": list(providers)})


def ask(url: str, headers: dict[str, str], way: str) -> requests.Response:
    body = {"message": "What is Python?"}
    return requests.post(f"{url}/chat/{way}", json=body, headers=headers, timeout=60)


def code(answer: requests.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


@pytest.mark.parametrize("way", WAYS)
def test_a_chat_that_is_likely_to_cost_more_than_it_may_is_not_sent(
    flowise: FlowiseStandIn, serve: Serve, client: NewClient, charges: Charges, way: str
) -> None:
    url, headers = serve(flowise.url, options=options(FIRST)), client()  # without any budget too
    refused = ask(url, {**headers, "X-GenOps-Max-Cost": "0.0006"}, way)
    assert code(refused) == (402, "max_cost")
    assert not flowise.model.calls
    assert ask(url, {**headers, "X-GenOps-Max-Cost": "0.001"}, way).status_code == 200
    assert len(flowise.model.calls) == len(charges()) == 1


@pytest.mark.parametrize("way", WAYS)
def test_it_sets_nothing_more_aside(
    flowise: FlowiseStandIn, serve: Serve, client: NewClient, charges: Charges, way: str
) -> None:
    headers = client(attribution={"team": "help"})
    for more in ({}, {"X-GenOps-Max-Cost": "0.999"}):
        url = serve(flowise.url, settings=DAILY, options=options(FIRST))  # with nothing learned
        assert ask(url, {**headers, **more}, way).status_code == 200
        (charge,) = charges()
        assert USUAL <= charge.reserved_nanos < USUAL + 50_000


@pytest.mark.parametrize("way", WAYS)
def test_nor_less_of_a_strict_budget(serve: Serve, client: NewClient, charges: Charges, way: str) -> None:
    strict = Settings(budgets=(Budget("1/day", name="strict", admission="strict"),))
    capped = Flow("graph", "agentflow", (ModelNode(max_tokens=4000),))
    with FlowiseStandIn([capped], api_key=FLOWISE_KEY) as flowise:
        url, headers = serve(flowise.url, settings=strict, options=options(FIRST)), client()
        for _ in range(20):  # from which it is known what a call is likely to cost
            assert ask(url, headers, way).status_code == 200
        assert ask(url, {**headers, "X-GenOps-Max-Cost": "0.0005"}, way).status_code == 200
    *plain, last = charges()
    assert last.reserved_nanos == plain[-1].reserved_nanos > 4000 * 600


@pytest.mark.parametrize("way", WAYS)
def test_with_it_the_rest_of_a_budget_must_be_enough(
    flowise: FlowiseStandIn, serve: Serve, client: NewClient, charges: Charges, way: str
) -> None:
    little = Settings(budgets=(Budget("0.0006/day", name="little"),))
    url, headers = serve(flowise.url, settings=little, options=options(FIRST)), client()
    refused = ask(url, {**headers, "X-GenOps-Max-Cost": "0.01"}, way)
    assert code(refused) == (402, "budget_exceeded")
    assert not flowise.model.calls
    assert ask(url, headers, way).status_code == 200
    (charge,) = charges()
    assert charge.reserved_nanos == 600_000


@pytest.mark.parametrize("way", WAYS)
def test_what_the_first_provider_cost_is_taken_off(
    flowise: FlowiseStandIn, serve: Serve, client: NewClient, charges: Charges, way: str
) -> None:
    url = serve(flowise.url, settings=DAILY, options=options(FIRST, SECOND))
    # Each is likely to cost 0.0006144 dollars and its few tokens of input: too much for both.
    headers = {**client(attribution={"team": "help"}), "X-GenOps-Max-Cost": "0.00062"}
    flowise.fail_next(500, after_model=True)
    refused = ask(url, headers, way)
    assert code(refused) == (402, "max_cost")
    (failed,) = charges()
    assert (failed.flow, failed.outcome) == (flowise.flow_id("graph"), "failed")
    assert failed.nanos > 0
    assert len(flowise.model.calls) == 1
    # It has cost something, and the client is told what, and what is left.
    assert refused.headers["X-GenOps-Cost"] == f"{failed.cost:f}"
    assert refused.headers["X-GenOps-Budget-Remaining"] == f"{1 - failed.cost:.9f}"
    assert refused.headers["X-GenOps-Budget-Reset"].endswith("T00:00:00+00:00")
    enough = {**headers, "X-GenOps-Max-Cost": "0.01"}
    flowise.fail_next(500, after_model=True)
    assert ask(url, enough, way).json()["provider"] == "other"


@pytest.mark.parametrize("way", WAYS)
def test_an_answer_says_what_it_cost_and_what_is_left(
    flowise: FlowiseStandIn, serve: Serve, client: NewClient, way: str
) -> None:
    url = serve(flowise.url, settings=DAILY, options=options(FIRST))
    answer = ask(url, client(attribution={"team": "help"}), way)
    (billed,) = flowise.model.calls
    cost = Decimal(150 * billed.input_tokens + 600 * billed.output_tokens).scaleb(-9)
    assert answer.headers["X-GenOps-Cost"] == f"{cost:.9f}"
    assert answer.headers["X-GenOps-Exactness"] == "exact"
    assert answer.headers["X-GenOps-Budget-Remaining"] == f"{1 - cost:.9f}"
    assert answer.headers["X-GenOps-Budget-Reset"].endswith("T00:00:00+00:00")


@pytest.mark.parametrize("way", WAYS)
def test_a_chat_that_failed_says_so_too(
    flowise: FlowiseStandIn, serve: Serve, client: NewClient, charges: Charges, way: str
) -> None:
    url = serve(flowise.url, settings=DAILY, options=options(FIRST))
    flowise.fail_next(500, after_model=True)
    answer = ask(url, client(attribution={"team": "help"}), way)
    assert answer.status_code == 502
    (charge,) = charges()
    assert charge.nanos > 0
    assert answer.headers["X-GenOps-Cost"] == f"{charge.cost:f}"
    assert answer.headers["X-GenOps-Budget-Remaining"] == f"{1 - charge.cost:.9f}"


@pytest.mark.parametrize("amount", ["", "0,5", "1e3", "-1", "12345678"])
def test_an_amount_is_written_in_one_way(
    flowise: FlowiseStandIn, serve: Serve, client: NewClient, amount: str
) -> None:
    url = serve(flowise.url, options=options(FIRST))
    refused = ask(url, {**client(), "X-GenOps-Max-Cost": amount}, "direct")
    assert code(refused) == (400, "bad_request")
    assert not flowise.model.calls
