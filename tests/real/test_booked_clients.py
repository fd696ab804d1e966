"""Booked equals billed by other people's clients, against a real Flowise: the model is the judge."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
import requests
from flowise import Flowise, PredictionData

from genops_ctx import (
    BudgetExceeded,
    auto_instrument,
    disable_auto_instrument,
    governance_context,
    instrument_flowise,
)
from genops_ctx.core.records import Exactness
from genops_ctx.testing import capture

from ..instrument.clients import CLIENTS
from .conftest import RunningFlowise
from .test_booked import QUESTION, bill, served, wait_served

if TYPE_CHECKING:
    from collections.abc import Iterator

    from genops_ctx.testing.model_stub import ModelStub


@pytest.fixture(autouse=True)
def governed(flowise: RunningFlowise) -> Iterator[None]:
    auto_instrument(flowise.url, flowise.api_key, team="real")
    yield
    disable_auto_instrument()


@pytest.fixture(params=CLIENTS, ids=lambda kind: kind.name)
def client(request: pytest.FixtureRequest) -> Iterator[Any]:
    made = request.param()
    yield made
    made.close()


def url(flowise: RunningFlowise, flow: str) -> str:
    return f"{flowise.url}/api/v1/prediction/{flowise.flows[flow]}"


@pytest.mark.parametrize("flow", ["agentflow_llm", "agentflow_agent"])
def test_agentflows_are_booked_exactly(
    flowise: RunningFlowise, flowise_model: ModelStub, client: Any, flow: str
) -> None:
    with capture() as charges:
        got = client.post(url(flowise, flow), json={"question": QUESTION}, timeout=60)
        assert json.loads(got.body)["text"]
        client.lines(url(flowise, flow), json={"question": QUESTION, "streaming": True})
    assert [charge.exactness for charge in charges] == [Exactness.EXACT] * 2
    assert sum(charge.nanos for charge in charges) == bill(flowise_model) > 0
    assert {charge.attribution["team"] for charge in charges} == {"real"}


@pytest.mark.parametrize("flow", ["conversation_chain", "llm_chain", "tool_agent"])
def test_classic_flows_with_evaluation_are_booked_at_the_bill(
    flowise: RunningFlowise, flowise_model: ModelStub, client: Any, flow: str
) -> None:
    auto_instrument(flowise.url, flowise.api_key, metering="evaluation")
    with capture() as charges:
        client.post(url(flowise, flow), json={"question": QUESTION}, timeout=60)
    (charge,) = charges
    assert charge.nanos == bill(flowise_model) > 0
    assert {str(line.source) for line in charge.lines} == {"evaluation"}


def test_a_refused_call_reaches_no_model(
    flowise: RunningFlowise, flowise_model: ModelStub, client: Any
) -> None:
    with governance_context("real", budget="0.000001") as context:
        client.post(url(flowise, "agentflow_llm"), json={"question": QUESTION}, timeout=60)
        with pytest.raises(BudgetExceeded):
            client.post(url(flowise, "agentflow_llm"), json={"question": QUESTION}, timeout=60)
    assert len(served(flowise_model)) == context.calls == context.refused_calls == 1


def test_what_flowise_refuses_costs_nothing(
    flowise: RunningFlowise, flowise_model: ModelStub, client: Any
) -> None:
    with capture() as charges:
        for flow in ("3f2504e0-4f89-41d3-9a0c-0305e82c3301", "a-name"):
            client.post(f"{flowise.url}/api/v1/prediction/{flow}", json={"question": QUESTION})
        client.post(url(flowise, "protected"), json={"question": QUESTION})
    assert [(str(charge.outcome), charge.nanos) for charge in charges] == [("refused", 0)] * 3
    assert served(flowise_model) == []


def test_a_stream_left_early_is_billed_and_never_free(
    flowise: RunningFlowise, flowise_model: ModelStub, client: Any
) -> None:
    with capture() as charges:
        client.lines(
            url(flowise, "conversation_chain"), most=1, json={"question": QUESTION, "streaming": True}
        )
        until = time.monotonic() + 60
        while not charges and time.monotonic() < until:
            time.sleep(0.01)
    wait_served(flowise_model, 1)
    (charge,) = charges
    assert charge.nanos > 0
    assert charge.exactness is Exactness.ESTIMATED


@pytest.mark.parametrize("streaming", [False, True])
def test_the_official_sdk_is_governed_unchanged(
    flowise: RunningFlowise, flowise_model: ModelStub, streaming: bool
) -> None:
    sdk = Flowise(flowise.url, flowise.api_key)
    asked = PredictionData(flowise.flows["agentflow_llm"], QUESTION, streaming=streaming)
    with capture() as charges:
        answers = sdk.create_prediction(asked)
        assert charges == []
        assert served(flowise_model) == []
        assert list(answers)
    (charge,) = charges
    assert charge.nanos == bill(flowise_model) > 0
    assert charge.exactness is Exactness.EXACT


def test_an_adapter_and_a_patched_client_are_booked_once_each(
    flowise: RunningFlowise, flowise_model: ModelStub
) -> None:
    adapter = instrument_flowise(flowise.url, flowise.api_key, timeout=60)
    with governance_context("real") as context:
        adapter.predict_flow("agentflow_llm", QUESTION)
        requests.post(url(flowise, "agentflow_llm"), json={"question": QUESTION}, timeout=60)
    assert context.calls == len(served(flowise_model)) == 2
    assert context.total_cost * 10**9 == bill(flowise_model)
