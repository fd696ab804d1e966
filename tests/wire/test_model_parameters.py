"""Parameters of one call: which inputs take them, what Flowise would ignore, how they are written."""

from __future__ import annotations

import json
from typing import Any

import pytest

from genops_ctx.core.errors import ConfigurationError
from genops_ctx.wire.flows import parse_flow
from genops_ctx.wire.model_parameters import ModelParameters, overrides_of

CHAT = {
    "id": "chatOpenAI_0",
    "name": "chatOpenAI",
    "label": "OpenAI",
    "category": "Chat Models",
    "inputs": {"modelName": "gpt-4o-mini", "temperature": 0.2},
}
CHAIN: dict[str, Any] = {
    "id": "conversationChain_0",
    "name": "conversationChain",
    "label": "Chain",
    "category": "Chains",
    "inputs": {"systemMessagePrompt": "Be kind."},
}
LLM = {
    "id": "llmAgentflow_0",
    "name": "llmAgentflow",
    "label": "LLM",
    "category": "Agent Flows",
    "inputs": {
        "llmModel": "chatAnthropic",
        "llmModelConfig": {"modelName": "claude-haiku-4-5", "llmModel": "chatAnthropic"},
        "llmMessages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "{{ question }}"},
        ],
    },
}
ALL = ModelParameters("Be brief.", 0, 50)


def flow(*nodes: dict[str, Any], allow: dict[str, Any] | None = None, status: bool = True) -> Any:
    edges = [{"source": node["id"], "target": nodes[-1]["id"]} for node in nodes[:-1]]
    data = json.dumps({"nodes": [{"data": node} for node in nodes], "edges": edges})
    inputs = {
        label: [{"name": name, "enabled": True} for name in names] for label, names in (allow or {}).items()
    }
    api = json.dumps({"overrideConfig": {"status": status, "nodes": inputs}})
    return parse_flow({"id": "x", "flowData": data, "apiConfig": api}).settables


def test_a_classic_flow_is_told_by_plain_texts() -> None:
    settables = flow(
        CHAT, CHAIN, allow={"OpenAI": ["temperature", "maxTokens"], "Chain": ["systemMessagePrompt"]}
    )
    override, ignored = overrides_of(settables, ALL.asked)
    # A number 0 would be ignored: it is false in JavaScript.
    assert override == {"temperature": "0", "maxTokens": "50", "systemMessagePrompt": "Be brief."}
    assert ignored == {}


def test_an_agentflow_is_told_by_node_and_keeps_its_other_messages() -> None:
    settables = flow(LLM, allow={"LLM": ["llmModelConfig", "llmMessages"]})
    override, ignored = overrides_of(settables, ALL.asked)
    system = {"role": "system", "content": "Be brief."}
    assert override == {
        "llmModelConfig": {"llmAgentflow_0": {"temperature": "0", "maxTokensToSample": "50"}},
        "llmMessages": {"llmAgentflow_0": [system, {"role": "user", "content": "{{ question }}"}]},
    }
    assert ignored == {}


@pytest.mark.parametrize(
    ("allow", "status", "ignored"),
    [
        ({}, True, {"system_message", "temperature", "max_tokens"}),
        ({"OpenAI": ["temperature", "maxTokens"], "Chain": ["systemMessagePrompt"]}, False, set(ALL.asked)),
        ({"OpenAI": ["temperature"], "Chain": ["systemMessagePrompt"]}, True, {"max_tokens"}),
        ({"chatOpenAI_0": ["temperature", "maxTokens"]}, True, set(ALL.asked)),
    ],
)
def test_what_the_flow_does_not_allow_would_be_ignored(
    allow: dict[str, Any], status: bool, ignored: set[str]
) -> None:
    override, reasons = overrides_of(flow(CHAT, CHAIN, allow=allow, status=status), ALL.asked)
    assert set(reasons) == ignored
    assert len(override) == 3 - len(ignored)


def test_the_first_of_several_inputs_of_a_name_counts() -> None:
    nodes = {"OpenAI": [{"name": "temperature", "enabled": False}, {"name": "temperature", "enabled": True}]}
    data = json.dumps({"nodes": [{"data": CHAT}], "edges": []})
    raw = {"flowData": data, "apiConfig": json.dumps({"overrideConfig": {"status": True, "nodes": nodes}})}
    assert overrides_of(parse_flow(raw).settables, {"temperature": "1"})[0] == {}


@pytest.mark.parametrize(
    ("inputs", "takes"),
    [
        ({"modelName": "gpt-4o"}, True),
        ({"modelName": "gpt-5-chat-latest"}, True),
        ({"modelName": "gpt-5-mini"}, False),
        ({"modelName": "o3-mini"}, False),
        ({"modelName": "claude-opus-4-7"}, False),
        ({"modelName": "claude-x", "extendedThinking": True}, False),
    ],
)
def test_flowise_leaves_out_the_temperature_of_some_models(inputs: dict[str, Any], takes: bool) -> None:
    name = "chatAnthropic" if "claude" in inputs["modelName"] else "chatOpenAI"
    settables = flow({**CHAT, "name": name, "inputs": inputs}, CHAIN, allow={"OpenAI": ["temperature"]})
    assert ("temperature" in overrides_of(settables, {"temperature": "1"})[0]) is takes


def test_a_prompt_template_of_its_own_goes_before_the_chain_s_system_message() -> None:
    template = {"id": "chatPromptTemplate_0", "name": "chatPromptTemplate", "label": "T", "inputs": {}}
    inputs = {"chatPromptTemplate": "{{chatPromptTemplate_0.data.instance}}", "systemMessagePrompt": "x"}
    allow = {"Chain": ["systemMessagePrompt"], "T": ["systemMessagePrompt"]}
    found = [
        one.label for one in flow(CHAT, template, {**CHAIN, "inputs": inputs}, allow=allow) if one.allowed
    ]
    assert found == ["T"]


@pytest.mark.parametrize(
    ("text", "classic", "agentflow"),
    [
        ("Be {kind}.", False, True),
        ("Say {{$vars.secret}}", False, False),
        ('Answer {"a": {"b": 1}}', False, False),
        ("Be kind.", True, True),
    ],
)
def test_braces_that_flowise_would_read_are_not_sent(text: str, classic: bool, agentflow: bool) -> None:
    asked = {"system_message": text}
    chain = flow(CHAT, CHAIN, allow={"Chain": ["systemMessagePrompt"]})
    assert bool(overrides_of(chain, asked)[0]) is classic
    assert bool(overrides_of(flow(LLM, allow={"LLM": ["llmMessages"]}), asked)[0]) is agentflow


def test_a_model_left_on_the_canvas_takes_nothing() -> None:
    stray = {**CHAT, "id": "chatOpenAI_1", "label": "Stray"}
    data = json.dumps(
        {
            "nodes": [{"data": node} for node in (CHAT, stray, CHAIN)],
            "edges": [{"source": "chatOpenAI_0", "target": "conversationChain_0"}],
        }
    )
    assert {one.label for one in parse_flow({"flowData": data}).settables} == {"OpenAI", "Chain"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": 2.1},
        {"temperature": float("nan")},
        {"temperature": True},
        {"max_tokens": 0},
        {"max_tokens": 1.5},
        {"max_tokens": True},
        {"system_message": " "},
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        ModelParameters(**wrong)


def test_a_system_message_is_not_shown() -> None:
    assert "secret" not in repr(ModelParameters("secret", 1.0))
