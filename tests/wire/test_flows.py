from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genops_ctx.wire.flows import (
    FlowDefinition,
    FlowKind,
    FlowSummary,
    ModelNode,
    parse_flow,
    parse_flow_list,
)

from .recorded import FLOWS, definition


@pytest.mark.parametrize(
    ("name", "kind", "models", "single"),
    [
        ("conv_chain", FlowKind.CHATFLOW, [("chatOpenAI_0", "OpenAI", "chatOpenAI", "gpt-4o-mini")], True),
        ("llm_chain", FlowKind.CHATFLOW, [("chatOpenAI_0", "OpenAI", "chatOpenAI", "gpt-4o-mini")], True),
        ("tool_agent", FlowKind.CHATFLOW, [("chatOpenAI_0", "OpenAI", "chatOpenAI", "gpt-4o-mini")], False),
        ("agentflow1", FlowKind.AGENTFLOW, [("llmAgentflow_0", "LLM", "chatOpenAI", "gpt-4o-mini")], True),
        (
            "agentflow2",
            FlowKind.AGENTFLOW,
            [
                ("llmAgentflow_0", "Drafter", "chatOpenAI", "gpt-4o-mini"),
                ("llmAgentflow_1", "Reviewer", "chatAnthropic", "claude-haiku-4-5"),
            ],
            False,
        ),
        (
            "agentflow_agent",
            FlowKind.AGENTFLOW,
            [("agentAgentflow_0", "Agent", "chatOpenAI", "gpt-4o")],
            False,
        ),
    ],
)
def test_recorded_definitions(name: str, kind: FlowKind, models: list[tuple[str, ...]], single: bool) -> None:
    flow = definition(name)
    assert (flow.name, flow.kind, flow.id) == (name, kind, FLOWS[name]["id"])
    assert [(node.id, node.label, node.node, node.model) for node in flow.model_nodes] == models
    assert {node.role for node in flow.model_nodes} == {"chat"}
    assert flow.single_call is single
    assert not any((flow.protected, flow.override_enabled, flow.follow_up_prompts, flow.speech_to_text))


def test_nodes_that_hide_calls_are_named() -> None:
    assert definition("agentflow_structured").structured_nodes == ("LLM",)
    assert definition("agentflow_summary").summary_memory_nodes == ("LLM",)
    assert definition("agentflow1").structured_nodes == definition("agentflow1").summary_memory_nodes == ()


def test_prompt_texts_are_there_to_estimate_from_and_not_to_show() -> None:
    flow = definition("llm_chain")
    assert flow.prompt_texts == ("Answer briefly: {q}",)
    assert "briefly" not in repr(flow)
    (text,) = definition("conv_chain").prompt_texts
    assert text.startswith("The following is a friendly conversation")


def flow_with(*nodes: dict[str, Any], edges: Any = None, **row: Any) -> FlowDefinition:
    data = {"nodes": [{"data": node} for node in nodes], "edges": edges}
    return parse_flow({"id": "f", "name": "F", "flowData": json.dumps(data), **row})


CHAT = {"id": "c_0", "name": "chatX", "label": "X", "category": "Chat Models"}


@pytest.mark.parametrize(
    ("inputs", "model", "limit"),
    [
        ({"modelName": "a", "maxTokens": "500"}, "a", 500),
        ({"modelName": "a", "customModelName": "b", "maxOutputTokens": 7}, "b", 7),
        ({"modelId": "c", "maxTokensToSample": " 9 "}, "c", 9),
        ({"model": "{{ $vars.model }}", "maxTokens": "{{x}}"}, "", None),
        ({"modelName": 5, "maxTokens": True}, "", None),
        ({"maxTokens": -1}, "", None),
        ({"maxTokens": "", "maxNewTokens": 3.5}, "", None),
        ({"maxTokens": "٣"}, "", None),
        (None, "", None),
    ],
)
def test_models_and_limits_as_the_nodes_spell_them(inputs: Any, model: str, limit: int | None) -> None:
    (node,) = flow_with({**CHAT, "inputs": inputs}).model_nodes
    assert (node.model, node.max_output_tokens) == (model, limit)


def test_roles_by_category_or_class_and_only_what_is_connected() -> None:
    old = {"id": "o_0", "name": "old", "baseClasses": ["BaseChatModel", 5]}
    embedding = {"id": "e_0", "name": "openAIEmbeddings", "category": "Embeddings"}
    chain = {"id": "k_0", "name": "chain", "category": "Chains", "baseClasses": ["BaseChatModel"]}
    everything = (CHAT, old, embedding, chain)
    assert [(n.id, n.role) for n in flow_with(*everything).model_nodes] == [
        ("c_0", "chat"),
        ("o_0", "chat"),
        ("e_0", "embedding"),
    ]
    edges = [{"source": "c_0", "target": "k_0"}, 5, {}]
    assert [n.id for n in flow_with(*everything, edges=edges).model_nodes] == ["c_0"]


def test_agentflow_nodes_with_embeddings_questions_and_memory() -> None:
    agent = {
        "id": "agentAgentflow_0",
        "name": "agentAgentflow",
        "label": "A",
        "inputs": {
            "agentModelConfig": {"agentModel": "chatOpenAI", "modelName": "m"},
            "agentKnowledgeVSEmbeddings": [
                {"embeddingModel": "openAIEmbeddings", "embeddingModelConfig": {"modelName": "small"}}
            ],
            "agentMessages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": " "}],
        },
    }
    asks = {
        "id": "humanInputAgentflow_0",
        "name": "humanInputAgentflow",
        "label": "H",
        "inputs": {"humanInputDescriptionType": "dynamic", "humanInputModel": "chatX"},
    }
    fixed = {**asks, "id": "humanInputAgentflow_1", "inputs": {"humanInputDescriptionType": "fixed"}}
    flow = flow_with(agent, asks, fixed, {"name": "conversationSummaryMemory", "label": "S"})
    assert flow.kind is FlowKind.AGENTFLOW
    assert flow.model_nodes == (
        ModelNode("agentAgentflow_0", "A", "chatOpenAI", "m"),
        ModelNode("agentAgentflow_0", "A", "openAIEmbeddings", "small", role="embedding"),
        ModelNode("humanInputAgentflow_0", "H", "chatX", ""),
    )
    assert flow.dynamic_human_input_nodes == ("H",)
    assert flow.summary_memory_nodes == ("S",)
    assert flow.prompt_texts == ("be brief",)
    assert flow.model_node("nobody") is None


def test_follow_up_prompts_speech_overrides_and_keys() -> None:
    follow = {"status": True, "selectedProvider": "chatOpenAI", "chatOpenAI": {"modelName": "gpt-4o"}}
    flow = flow_with(
        CHAT,
        followUpPrompts=json.dumps(follow),
        speechToText='{"openAIWhisper": {"status": true}}',
        textToSpeech='{"openai": {"status": true, "autoPlay": true}}',
        apiConfig='{"overrideConfig": {"status": true}}',
        apikeyid="k",
    )
    assert flow.follow_up_prompts
    assert flow.follow_up_model == ModelNode("", "follow-up prompts", "chatOpenAI", "gpt-4o")
    assert flow.speech_to_text
    assert flow.text_to_speech
    assert flow.override_enabled
    assert flow.protected
    assert flow_with(CHAT, chatbotConfig=json.dumps({"followUpPrompts": {"status": True}})).follow_up_prompts
    assert not flow_with(CHAT, textToSpeech='{"openai": {"status": true}}').text_to_speech


@pytest.mark.parametrize(
    ("declared", "kind"),
    [
        ("MULTIAGENT", FlowKind.MULTIAGENT),
        ("assistant", FlowKind.ASSISTANT),
        ("NEWFLOW", FlowKind.UNKNOWN),
        (None, FlowKind.CHATFLOW),
        ("", FlowKind.CHATFLOW),
    ],
)
def test_kinds(declared: str | None, kind: FlowKind) -> None:
    assert parse_flow({"type": declared}).kind is kind


def test_an_empty_definition_is_of_unknown_kind() -> None:
    assert parse_flow({}) == FlowDefinition()


def test_prompt_texts_are_bounded() -> None:
    node = {
        "id": "p",
        "name": "promptTemplate",
        "inputs": {"template": ["x" * 3_000_000] * 3, "promptValues": "no"},
    }
    assert [len(text) for text in flow_with(node).prompt_texts] == [3_000_000, 1_000_000]


def test_both_shapes_of_the_list() -> None:
    rows = [{"id": "a", "name": "A", "type": "AGENTFLOW"}, {"name": "no id"}, 5]
    expected = [FlowSummary("a", "A", FlowKind.AGENTFLOW)]
    assert parse_flow_list(rows) == parse_flow_list({"data": rows, "total": 3}) == expected
    assert parse_flow_list("nonsense") == parse_flow_list({"data": {}}) == []


KEYS = [
    "id",
    "name",
    "type",
    "flowData",
    "nodes",
    "edges",
    "data",
    "inputs",
    "label",
    "category",
    "baseClasses",
]
KEYS += [
    "llmModelConfig",
    "agentKnowledgeVSEmbeddings",
    "followUpPrompts",
    "speechToText",
    "status",
    "apiConfig",
]
JSONISH = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["llmAgentflow", "Chat Models", "[", "{}"]),
    lambda s: st.lists(s, max_size=4) | st.dictionaries(st.sampled_from(KEYS), s, max_size=6),
)


@given(JSONISH)
def test_hostile_definitions_never_raise(raw: Any) -> None:
    parse_flow(raw)
    parse_flow_list(raw)
    parse_flow({"flowData": raw, "followUpPrompts": raw, "speechToText": raw, "apiConfig": raw})
    parse_flow(
        {
            "flowData": {
                "nodes": [{"data": raw}, {"data": {"name": "llmAgentflow", "inputs": raw}}],
                "edges": raw,
            }
        }
    )
    parse_flow({"flowData": "[" * 100_000})
