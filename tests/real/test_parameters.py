"""System message, temperature and output limit of one call reach the model behind a real Flowise."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from genops_ctx import instrument_flowise
from genops_ctx.core.errors import ConfigurationError
from genops_ctx.providers.flows import forget_directories
from genops_ctx.providers.parameters import ModelParameters
from genops_ctx.testing import capture

from .conftest import RunningFlowise
from .test_booked import QUESTION, bill

if TYPE_CHECKING:
    from genops_ctx.testing.model_stub import ModelStub

SYSTEM = "Answer as a pirate: {\"arr\"} is not in it, but 'quotes' are."


@pytest.fixture
def seen(flowise_model: ModelStub, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The bodies that reach the model."""
    bodies: list[dict[str, Any]] = []
    respond = flowise_model.respond

    def noted(provider: Any, body: dict[str, Any], headers: Any = None) -> Any:
        bodies.append(json.loads(json.dumps(body)))
        return respond(provider, body, headers)

    monkeypatch.setattr(flowise_model, "respond", noted)
    return bodies


def limit_of(body: dict[str, Any]) -> Any:
    return body.get("max_completion_tokens", body.get("max_tokens"))


def system_of(body: dict[str, Any]) -> list[Any]:
    if "system" in body:
        return [body["system"]]
    return [one["content"] for one in body["messages"] if one["role"] in ("system", "developer")]


FLOWS = {
    "conversation_chain": {
        "OpenAI": ["temperature", "maxTokens"],
        "Conversation Chain": ["systemMessagePrompt"],
    },
    "tool_agent": {"OpenAI": ["temperature", "maxTokens"], "Tool Agent": ["systemMessage"]},
    "agentflow_llm": {"LLM": ["llmModelConfig", "llmMessages"]},
    "agentflow_agent": {"Agent": ["agentModelConfig", "agentMessages"]},
    "agentflow_two_providers": {
        "Draft": ["llmModelConfig", "llmMessages"],
        "Review": ["llmModelConfig", "llmMessages"],
    },
}


@pytest.mark.parametrize("kind", FLOWS)
@pytest.mark.parametrize("temperature", [0, 1.5])
def test_they_arrive_at_every_model_call(
    flowise: RunningFlowise,
    seen: list[dict[str, Any]],
    flowise_model: ModelStub,
    kind: str,
    temperature: float,
) -> None:
    flow = getattr(flowise.builder, kind)(f"{kind}_with_parameters_{temperature}")
    flowise.builder.allow_overrides(flow, FLOWS[kind])
    classic = kind in ("conversation_chain", "tool_agent")
    system = "Answer as a pirate." if classic else SYSTEM
    adapter = instrument_flowise(flowise.url, flowise.api_key, timeout=60)
    with capture() as charges:
        adapter.predict_flow(flow, QUESTION, parameters=ModelParameters(system, temperature, 77))
    assert len(seen) == len(flowise_model.calls) > 0
    for body in seen:
        assert body["temperature"] == temperature
        assert limit_of(body) == 77
        assert system_of(body) == [system]
    if kind.startswith("agentflow_agent") or kind == "agentflow_llm":
        assert sum(charge.nanos for charge in charges) == bill(flowise_model)


def test_what_would_be_ignored_is_refused_before_it_is_sent(
    flowise: RunningFlowise, flowise_model: ModelStub
) -> None:
    adapter = instrument_flowise(flowise.url, flowise.api_key, timeout=60)
    with pytest.raises(ConfigurationError, match="does not allow calls to override 'temperature'"):
        adapter.predict_flow(
            flowise.flows["conversation_chain"], QUESTION, parameters=ModelParameters(temperature=0.5)
        )
    flow = flowise.builder.conversation_chain("one_parameter")
    flowise.builder.allow_overrides(flow, {"OpenAI": ["temperature"]})
    with pytest.raises(ConfigurationError, match="would ignore max_tokens"):
        adapter.predict_flow(flow, QUESTION, parameters=ModelParameters(temperature=0.5, max_tokens=9))
    assert flowise_model.calls == []
    forget_directories()
