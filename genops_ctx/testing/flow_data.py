"""Flow records and executions as Flowise's REST API gives them."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from typing import Any

from .flows import Flow, ModelNode

__all__ = [
    "CONVERSATION_PROMPT",
    "TOOL_AGENT_PROMPT",
    "chat_model",
    "chatflow_record",
    "model_config",
    "node_ids",
    "node_inputs",
    "tool_schema",
]

CONVERSATION_PROMPT = (
    "The following is a friendly conversation between a human and an AI. The AI is talkative and provides "
    "lots of specific details from its context. If the AI does not know the answer to a question, it "
    "truthfully says it does not know."
)
"""Flowise's default system prompt of a conversation chain: its words are billed."""
TOOL_AGENT_PROMPT = "You are a helpful AI assistant."
"""Flowise's default system prompt of a tool agent."""

WORKSPACE = "0b7e9d52-6f0f-4b60-8f7a-2f3a1f9e4c10"
CREDENTIAL = "5d1f0c9e-31b2-4a53-9a7f-7a6c2f1b8e90"
_BORN = "2026-01-01T00:00:00.000Z"

_CHAT_MODEL_CLASSES = ["BaseChatModel", "BaseLanguageModel", "Runnable"]


def chat_model(node: ModelNode) -> str:
    """Flowise's name of the provider's chat node."""
    return "chatAnthropic" if node.provider == "anthropic" else "chatOpenAI"


def node_ids(flow: Flow) -> list[str]:
    """Ids of an AgentFlow's model nodes, numbered by kind."""
    numbers: Counter[str] = Counter()
    ids = []
    for node in flow.nodes:
        name = "agentAgentflow" if node.is_agent else "llmAgentflow"
        ids.append(f"{name}_{numbers[name]}")
        numbers[name] += 1
    return ids


def model_config(node: ModelNode, *, with_credential: bool) -> dict[str, Any]:
    """The ``llmModelConfig`` or ``agentModelConfig`` of a node."""
    config: dict[str, Any] = {"cache": "", "modelName": node.model, "temperature": 0.2}
    config["streaming"] = node.streaming
    if node.max_tokens is not None:
        config[_ceiling(node)] = str(node.max_tokens)
    if with_credential:
        config["FLOWISE_CREDENTIAL_ID"] = CREDENTIAL
    config["agentModel" if node.is_agent else "llmModel"] = chat_model(node)
    return config


def node_inputs(node: ModelNode) -> dict[str, Any]:
    """The settings of a node that its execution record repeats, in Flowise's order."""
    kind = "agent" if node.is_agent else "llm"
    inputs: dict[str, Any] = {f"{kind}Model": chat_model(node)}
    if node.is_agent:
        inputs["agentTools"] = [
            {
                "agentSelectedTool": tool,
                "agentSelectedToolRequiresHumanInput": "",
                "agentSelectedToolConfig": {"agentSelectedTool": tool},
            }
            for tool in node.tools
        ]
    inputs[f"{kind}EnableMemory"] = True
    inputs[f"{kind}MemoryType"] = "allMessages"
    inputs[f"{kind}MemoryWindowSize"] = "20"
    inputs[f"{kind}MemoryMaxTokenLimit"] = "2000"
    inputs[f"{kind}ReturnResponseAs"] = "userMessage"
    if node.structured:
        inputs["llmStructuredOutput"] = [
            {"key": key, "type": "string", "enumValues": "", "jsonSchema": "", "description": key}
            for key in node.structured
        ]
    return inputs


def tool_schema(keys: tuple[str, ...]) -> dict[str, Any]:
    """JSON schema of a tool whose arguments are all strings."""
    properties = {key: {"type": "string"} for key in keys}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def chatflow_record(flow: Flow) -> dict[str, Any]:
    """One flow as ``GET /chatflows`` gives it; ``flowData`` is a JSON string."""
    nodes, edges = _agentflow_graph(flow) if flow.is_agentflow else _classic_graph(flow)
    graph = {"nodes": nodes, "edges": edges, "viewport": {"x": 0, "y": 0, "zoom": 1}}
    return {
        "id": flow.id,
        "name": flow.name,
        "flowData": json.dumps(graph),
        "deployed": False,
        "isPublic": False,
        "apikeyid": None if flow.api_key is None else WORKSPACE,
        "chatbotConfig": None,
        "apiConfig": None,
        "analytic": None,
        "speechToText": None,
        "textToSpeech": None,
        "followUpPrompts": None,
        "category": None,
        "type": "AGENTFLOW" if flow.is_agentflow else "CHATFLOW",
        "createdDate": _BORN,
        "updatedDate": _BORN,
        "mcpServerConfig": None,
        "webhookSecretConfigured": False,
        "workspaceId": WORKSPACE,
    }


def _ceiling(node: ModelNode) -> str:
    return "maxTokensToSample" if node.provider == "anthropic" else "maxTokens"


def _node(
    name: str,
    kind: str,
    label: str,
    category: str,
    classes: list[str],
    inputs: dict[str, Any],
    number: int = 0,
) -> dict[str, Any]:
    node_id = f"{name}_{number}"
    agentflow = category == "Agent Flows"
    anchor = f"{node_id}-output-{name}" + ("" if agentflow else "-" + "|".join(classes))
    data: dict[str, Any] = {
        "label": label,
        "version": 1,
        "name": name,
        "type": kind,
        "baseClasses": classes,
        "category": category,
        "description": label,
        "id": node_id,
        "inputParams": [],
        "inputAnchors": [],
        "inputs": inputs,
        "outputAnchors": [{"id": anchor, "name": name, "label": label}],
        "outputs": {},
        "selected": False,
    }
    place = {"x": 0, "y": 0}
    return {
        "id": node_id,
        "position": place,
        "positionAbsolute": place,
        "type": "agentFlow" if agentflow else "customNode",
        "width": 300,
        "height": 100,
        "selected": False,
        "dragging": False,
        "data": data,
    }


def _edge(source: dict[str, Any], target: dict[str, Any], handle: str, kind: str) -> dict[str, Any]:
    out = source["data"]["outputAnchors"][0]["id"]
    return {
        "source": source["id"],
        "sourceHandle": out,
        "target": target["id"],
        "targetHandle": handle,
        "type": kind,
        "id": f"{source['id']}-{out}-{target['id']}-{handle}",
    }


def _agentflow_graph(flow: Flow) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    nodes = [
        _node("startAgentflow", "Start", "Start", "Agent Flows", ["Start"], {"startInputType": "chatInput"})
    ]
    for node, node_id in zip(flow.nodes, node_ids(flow), strict=True):
        name, _, number = node_id.partition("_")
        kind = "agent" if node.is_agent else "llm"
        messages = [{"role": "system", "content": node.system}] if node.system else []
        inputs = {
            f"{kind}Messages": messages,
            **node_inputs(node),
            f"{kind}UserMessage": "",
            f"{kind}ModelConfig": model_config(node, with_credential=True),
        }
        shape = "Agent" if node.is_agent else "LLM"
        nodes.append(_node(name, shape, node.title, "Agent Flows", [shape], inputs, int(number)))
    edges = []
    for source, target in pairwise(nodes):
        colours = {"sourceColor": "#7EE787", "targetColor": "#64B5F6", "isHumanInput": False}
        edges.append({**_edge(source, target, target["id"], "agentFlow"), "data": colours})
    return nodes, edges


def _classic_graph(flow: Flow) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    model = flow.nodes[0]
    chat = _node(
        "chatOpenAI",
        "ChatOpenAI",
        "OpenAI",
        "Chat Models",
        ["ChatOpenAI", "BaseChatOpenAI", *_CHAT_MODEL_CLASSES],
        {
            "cache": "",
            "modelName": model.model,
            "temperature": 0.2,
            "streaming": model.streaming,
            "maxTokens": "" if model.max_tokens is None else str(model.max_tokens),
        },
    )
    nodes, wires = [chat], [(chat, "model")]
    inputs: dict[str, Any] = {"model": "{{chatOpenAI_0.data.instance}}"}
    if flow.kind == "llm_chain":
        settings = {"template": flow.template, "promptValues": json.dumps({"question": "{{question}}"})}
        prompt = _node(
            "promptTemplate", "PromptTemplate", "Prompt Template", "Prompts", ["PromptTemplate"], settings
        )
        nodes.append(prompt)
        wires.append((prompt, "prompt"))
        inputs["prompt"] = "{{promptTemplate_0.data.instance}}"
        end = _node("llmChain", "LLMChain", "LLM Chain", "Chains", ["LLMChain", "BaseChain"], inputs)
    else:
        memory = _node("bufferMemory", "BufferMemory", "Buffer Memory", "Memory", ["BufferMemory"], {})
        memory["data"]["inputs"] = {"sessionId": "", "memoryKey": "chat_history"}
        nodes.append(memory)
        wires.append((memory, "memory"))
        inputs["memory"] = "{{bufferMemory_0.data.instance}}"
        if flow.kind == "tool_agent":
            inputs["tools"] = [f"{{{{{tool}_0.data.instance}}}}" for tool in model.tools]
            for tool in model.tools:
                nodes.append(_node(tool, tool.capitalize(), tool.capitalize(), "Tools", ["Tool"], {}))
                wires.append((nodes[-1], "tools"))
            inputs["systemMessage"] = model.system or TOOL_AGENT_PROMPT
            end = _node("toolAgent", "AgentExecutor", "Tool Agent", "Agents", ["AgentExecutor"], inputs)
        else:
            inputs["systemMessagePrompt"] = model.system or CONVERSATION_PROMPT
            name, kind = "conversationChain", "ConversationChain"
            end = _node(name, kind, "Conversation Chain", "Chains", [kind, "BaseChain"], inputs)
    nodes.append(end)
    edges = [_edge(node, end, f"{end['id']}-input-{port}", "buttonedge") for node, port in wires]
    return nodes, edges
