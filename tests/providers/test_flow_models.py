"""Which models a flow will use, and what makes them unknown."""

from __future__ import annotations

from dataclasses import replace

import pytest

from genops_ctx.core.policy import ModelUse
from genops_ctx.pricing.catalogue import Catalogue
from genops_ctx.providers.flow_models import models_of
from genops_ctx.wire.flows import FlowDefinition, ModelNode

PRICES = Catalogue()
NODE = ModelNode("chatOpenAI_0", "Chat", "chatOpenAI", "gpt-4o-mini")
MINI = ModelUse("openai", "gpt-4o-mini", "chatOpenAI")
UNKNOWN = ModelUse("", "")
FLOW = FlowDefinition("id", "flow", model_nodes=(NODE,))


def test_every_node_counts_and_each_model_once() -> None:
    haiku = ModelNode("", "follow-up prompts", "chatAnthropic", "claude-haiku-4-5")
    twice = replace(FLOW, model_nodes=(NODE, NODE), follow_up_prompts=True, follow_up_model=haiku)
    assert models_of(twice, {}, PRICES) == (MINI, ModelUse("anthropic", "claude-haiku-4-5", "chatAnthropic"))


def test_a_node_that_names_no_model_has_one_that_is_not_known() -> None:
    nameless = replace(FLOW, model_nodes=(replace(NODE, model=""),))
    assert models_of(nameless, {}, PRICES) == (ModelUse("openai", "", "chatOpenAI"),)


def test_nothing_is_known_without_a_definition_that_names_models() -> None:
    assert models_of(None, {}, PRICES) is None
    assert models_of(FlowDefinition(), {}, PRICES) is None


@pytest.mark.parametrize("speech", ["speech_to_text", "text_to_speech"])
def test_speech_adds_a_model_that_is_not_known(speech: str) -> None:
    assert models_of(replace(FLOW, **{speech: True}), {}, PRICES) == (MINI, UNKNOWN)


@pytest.mark.parametrize(
    ("override", "changes"),
    [
        ({}, False),
        (None, False),
        ({"sessionId": "s", "vars": {"a": 1}, "temperature": 0}, False),
        ({"modelName": "gpt-4o"}, True),
        ({"modelName": {"chatOpenAI_0": "gpt-4o"}}, True),
        ({"agentflow": [{"llmModelConfig": {}}]}, True),
        ({"basepath": "https://elsewhere.example"}, True),
    ],
)
def test_an_override_may_change_models_where_the_flow_allows_overrides(override, changes: bool) -> None:
    allowing = replace(FLOW, override_enabled=True)
    assert models_of(allowing, override, PRICES) == ((MINI, UNKNOWN) if changes else (MINI,))
    assert models_of(FLOW, override, PRICES) == (MINI,)


def test_an_override_may_be_nested_as_deep_as_json_can_be() -> None:
    deep: object = {"modelName": "gpt-4o"}
    for _ in range(5_000):
        deep = {"vars": [deep]}
    assert models_of(replace(FLOW, override_enabled=True), deep, PRICES) == (MINI, UNKNOWN)
