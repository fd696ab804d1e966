"""Retry, failover and cache against a real Flowise: booked equals billed over all attempts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from genops_ctx import governance_context, instrument_flowise
from genops_ctx.providers.errors import FlowiseModelError
from genops_ctx.resilience import RetryConfig
from genops_ctx.testing import capture

from .conftest import RunningFlowise
from .test_booked import QUESTION, bill, served

if TYPE_CHECKING:
    from genops_ctx.testing.model_stub import ModelStub


def test_from_a_dead_instance_to_a_live_one(flowise: RunningFlowise, flowise_model: ModelStub) -> None:
    live = instrument_flowise(flowise.url, flowise.api_key, timeout=60)
    dead = instrument_flowise("http://127.0.0.1:9", timeout=60, fallback=live)
    with capture() as charges, governance_context() as context:
        answer = dead.predict_flow(flowise.flows["agentflow_llm"], QUESTION)
    assert answer.served_by == flowise.url
    assert [charge.nanos for charge in charges] == [bill(flowise_model)]
    assert context.total_cost == charges[0].cost > 0


def test_a_flow_that_fails_and_then_succeeds(
    flowise: RunningFlowise, flowise_model: ModelStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model refuses the first call with 400, which Flowise passes on at once as a 500."""
    adapter = instrument_flowise(flowise.url, flowise.api_key, timeout=60)
    retry = RetryConfig(max_retries=2, base_delay=0.0, jitter=0.0, on=FlowiseModelError)
    respond = flowise_model.respond

    def first_refused(provider: Any, body: dict[str, object], headers: Any = None) -> Any:
        if not flowise_model.calls:
            body = json.loads(json.dumps(body).replace(QUESTION, f"{QUESTION} [[fail:400]]"))
        return respond(provider, body, headers)

    monkeypatch.setattr(flowise_model, "respond", first_refused)
    with capture() as charges:
        answer = adapter.predict_flow(flowise.flows["agentflow_llm"], QUESTION, retry=retry)
    assert [(charge.attempt, charge.outcome) for charge in charges] == [(1, "failed"), (2, "completed")]
    assert len({charge.operation for charge in charges}) == 1
    assert answer.charge == charges[-1]
    assert sum(charge.nanos for charge in charges) == bill(flowise_model) > 0


def test_a_hit_is_not_billed(flowise: RunningFlowise, flowise_model: ModelStub) -> None:
    adapter = instrument_flowise(flowise.url, flowise.api_key, timeout=60, cache=True)
    with capture() as charges, governance_context() as context:
        first = adapter.predict_flow(flowise.flows["agentflow_llm"], QUESTION)
        second = adapter.predict_flow(flowise.flows["agentflow_llm"], QUESTION)
    assert len(served(flowise_model)) == len(charges) == 1
    assert (second.cached, second.cost, second.saved) == (True, 0, first.cost)
    assert context.total_cost == context.saved_cost == charges[0].cost
