"""Parameters of a call through the adapters: what is set aside, what is refused, what a budget does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from genops_ctx import Budget, BudgetExceeded, instrument_flowise
from genops_ctx.core.errors import ConfigurationError
from genops_ctx.providers.estimates import Texts, forecast
from genops_ctx.providers.flows import forget_directories
from genops_ctx.providers.parameters import ModelParameters, ParameterIgnored, with_parameters
from genops_ctx.runtime import Runtime, get_runtime, reset_runtime
from genops_ctx.settings import Settings
from genops_ctx.testing import Flow, FlowiseStandIn, capture
from genops_ctx.testing import flowise as stand_in
from genops_ctx.wire.flows import FlowDefinition, parse_flow

LIMITED = ModelParameters(max_tokens=10)


def allowing(record: dict[str, Any]) -> dict[str, Any]:
    inputs = [{"name": name, "enabled": True} for name in ("maxTokens", "systemMessagePrompt")]
    override = {"status": True, "nodes": {"OpenAI": inputs, "Conversation Chain": inputs}}
    return {**record, "apiConfig": json.dumps({"overrideConfig": override})}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FlowiseStandIn]:
    """Two flows, of which the first takes parameters."""
    record = stand_in.chatflow_record

    def told(flow: Flow) -> dict[str, Any]:
        return allowing(record(flow)) if flow.name == "open" else record(flow)

    monkeypatch.setattr(stand_in, "chatflow_record", told)
    with FlowiseStandIn([Flow("open"), Flow("shut")]) as running:
        yield running
    forget_directories()


@pytest.fixture
def definition() -> FlowDefinition:
    return parse_flow(allowing(stand_in.chatflow_record(Flow("open"))))


def test_an_output_limit_bounds_what_the_call_can_cost(definition: FlowDefinition) -> None:
    def ceiling(parameters: ModelParameters) -> int:
        _, flow = with_parameters("open", definition, parameters, {})
        found = forecast(flow, Texts("hi"), get_runtime().prices, 1.8e9, bounded=True).ceiling
        assert found is not None
        return found

    # Of gpt-4o-mini an output token is 600 nano-dollars, and an input token, of which no text has more
    # than it has bytes, 150.
    assert ceiling(ModelParameters(max_tokens=30)) - ceiling(LIMITED) == 20 * 600
    assert ceiling(ModelParameters("x" * 50, max_tokens=10)) - ceiling(LIMITED) == 50 * 150


def test_they_go_with_the_rest_of_the_overrides(definition: FlowDefinition) -> None:
    asked = ModelParameters("Be brief.", max_tokens=10)
    override, _ = with_parameters("open", definition, asked, {"sessionId": "s"})
    assert override == {"sessionId": "s", "maxTokens": "10", "systemMessagePrompt": "Be brief."}


def test_what_would_be_ignored_costs_nothing(server: FlowiseStandIn) -> None:
    adapter = instrument_flowise(server.url, metering="estimate")
    with capture() as charges:
        with pytest.raises(ParameterIgnored, match="'maxTokens' of 'OpenAI'") as told:
            adapter.predict_flow("shut", "hi", parameters=LIMITED)
        with pytest.raises(ConfigurationError, match="by parameters= or by overrideConfig"):
            adapter.predict_flow("open", "hi", overrideConfig={"maxTokens": "5"}, parameters=LIMITED)
        with pytest.raises(ConfigurationError, match="parameters must be ModelParameters"):
            adapter.predict_flow("open", "hi", parameters={"max_tokens": 5})  # type: ignore[call-overload]
    assert told.value.parameters == ("max_tokens",)
    assert server.billed == []
    assert charges == []


def test_a_budget_s_cheaper_flow_that_would_ignore_them_is_none(server: FlowiseStandIn) -> None:
    reset_runtime(Runtime(Settings(budgets=(Budget("0.0001/day", on_exceeded="degrade", fallback="shut"),))))
    adapter = instrument_flowise(server.url, metering="estimate")

    with pytest.raises(BudgetExceeded):
        adapter.predict_flow("open", "hi", max_cost="1", parameters=LIMITED)
    assert adapter.predict_flow("open", "hi", max_cost="1").charge.flow == server.flow_id("shut")
