"""Flow definitions: which models a flow calls, and which of its calls no answer will report.

Source of the shapes: ``GET /api/v1/chatflows/{id}`` of Flowise 3.1.4. ``flowData`` and the
configurations are JSON strings. Everything may be missing: a definition that cannot be read is one
without model nodes, of kind ``unknown``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Literal

from .model_parameters import Settable, settables_of
from .shapes import decoded, items_of, label_of, moment_of, object_of, text_of

__all__ = [
    "FlowDefinition",
    "FlowKind",
    "FlowSummary",
    "ModelNode",
    "configured_model",
    "parse_flow",
    "parse_flow_list",
]


class FlowKind(StrEnum):
    CHATFLOW = "chatflow"
    AGENTFLOW = "agentflow"
    """AgentFlow V2: its answers report usage"""
    MULTIAGENT = "multiagent"
    """AgentFlow V1 (sequential and multi agents)"""
    ASSISTANT = "assistant"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class ModelNode:
    """A node that calls a model."""

    id: str
    label: str
    node: str
    """Flowise's name of the provider's node, such as ``chatOpenAI``"""
    model: str
    """empty where the definition does not say"""
    max_output_tokens: int | None = None
    role: Literal["chat", "embedding"] = "chat"


@dataclass(frozen=True, slots=True)
class FlowDefinition:
    """What metering needs to know of a flow."""

    id: str = ""
    name: str = ""
    kind: FlowKind = FlowKind.UNKNOWN
    model_nodes: tuple[ModelNode, ...] = ()
    upsert_models: tuple[ModelNode, ...] = ()
    """of ``model_nodes``, those that an upsert of the flow's vector stores may call"""
    follow_up_prompts: bool = False
    """a model is called after each answer to make follow-up questions"""
    follow_up_model: ModelNode | None = None
    speech_to_text: bool = False
    """a model is called for each audio upload"""
    text_to_speech: bool = False
    """a model is called to speak each answer (automatic playback is on)"""
    structured_nodes: tuple[str, ...] = ()
    """labels of nodes with structured output, whose usage Flowise drops"""
    summary_memory_nodes: tuple[str, ...] = ()
    """labels of nodes whose memory calls a model to summarise"""
    dynamic_human_input_nodes: tuple[str, ...] = ()
    """labels of human-input nodes whose question a model writes"""
    single_call: bool = False
    """each prediction makes exactly one model call, so one that is refused has billed nothing"""
    reads_uploads: bool = True
    """texts uploaded in full come before the question; not in a chain whose prompt has values of its own"""
    override_enabled: bool = False
    settables: tuple[Settable, ...] = ()
    """inputs that take a system message, a temperature or an output limit for one call"""
    exporters: tuple[str, ...] = ()
    """tracing exporters that are on, by Flowise's names (``langFuse``, ``phoenix`` …)"""
    through_gateway: bool = False
    """a model node sends the ids that our model proxy asks for"""
    protected: bool = False
    """a key of its own is needed for predictions"""
    updated_at: float | None = None
    """when it was last saved, epoch seconds by Flowise's clock; None where it does not say"""
    prompt_texts: tuple[str, ...] = field(default=(), repr=False)
    """prompt templates and system messages, to estimate tokens from; never shown or stored"""

    def model_node(self, node_id: str) -> ModelNode | None:
        """The chat model of a node, by the node's id."""
        for node in self.model_nodes:
            if node.id == node_id and node.role == "chat":
                return node
        return None


@dataclass(frozen=True, slots=True)
class FlowSummary:
    """A row of the flow list."""

    id: str
    name: str
    kind: FlowKind


_KINDS: Final = {
    "CHATFLOW": FlowKind.CHATFLOW,
    "AGENTFLOW": FlowKind.AGENTFLOW,
    "MULTIAGENT": FlowKind.MULTIAGENT,
    "ASSISTANT": FlowKind.ASSISTANT,
}

# AgentFlow nodes that call a model → the prefix of their inputs
_MODEL_PREFIXES: Final = {
    "llmAgentflow": "llm",
    "agentAgentflow": "agent",
    "conditionAgentAgentflow": "conditionAgent",
    "humanInputAgentflow": "humanInput",
}
_CHAT_CATEGORIES: Final = frozenset({"Chat Models", "LLMs"})
_CHAT_CLASSES: Final = frozenset({"BaseChatModel", "BaseLLM", "BaseChatModel_LlamaIndex"})
_SUMMARY_MEMORIES: Final = frozenset({"conversationSummaryMemory", "conversationSummaryBufferMemory"})
_SUMMARY_TYPES: Final = frozenset({"conversationSummary", "conversationSummaryBuffer"})
_MODEL_KEYS: Final = ("customModelName", "customModel", "modelName", "model", "modelId")
_LIMIT_KEYS: Final = (
    "maxTokens",
    "maxOutputTokens",
    "maxTokensToSample",
    "max_tokens_to_sample",
    "maxNewTokens",
)
_SINGLE_CHAINS: Final = frozenset({"conversationChain", "llmChain"})
_PASSIVE_CATEGORIES: Final = _CHAT_CATEGORIES | {"Memory", "Prompts", "Cache"}
_REPEATING: Final = frozenset(
    {"iterationAgentflow", "loopAgentflow", "executeFlowAgentflow", "toolAgentflow", "retrieverAgentflow"}
)
_PROMPT_WORDS: Final = ("prompt", "message", "template", "instruction", "scenario")
_MAX_PROMPT_TEXT: Final = 4_000_000


def parse_flow(raw: Mapping[str, Any]) -> FlowDefinition:
    """A flow's definition as the API gives it. Never raises for what a server sends."""
    flow = object_of(raw)
    data = object_of(decoded(flow.get("flowData")))
    nodes = [object_of(object_of(node).get("data")) for node in items_of(data.get("nodes"))]
    used = _connected(data)
    prompts = _Prompts()
    models: list[ModelNode] = []
    structured: list[str] = []
    summarising: list[str] = []
    dynamic: list[str] = []
    for node in nodes:
        name, inputs = text_of(node.get("name")), object_of(node.get("inputs"))
        label = label_of(node.get("label")) or label_of(node.get("id"))
        prompts.collect(inputs)
        prefix = _MODEL_PREFIXES.get(name)
        if prefix is None:
            if name in _SUMMARY_MEMORIES:
                summarising.append(label)
            model = _classic_model(node, inputs, used)
            models.extend([model] if model else [])
            continue
        if prefix == "humanInput":
            if inputs.get("humanInputDescriptionType") != "dynamic":
                continue
            dynamic.append(label)
        models.extend(_agentflow_models(node, inputs, prefix, label))
        if _filled(inputs.get(f"{prefix}StructuredOutput")):
            structured.append(label)
        if (
            inputs.get(f"{prefix}EnableMemory")
            and text_of(inputs.get(f"{prefix}MemoryType")) in _SUMMARY_TYPES
        ):
            summarising.append(label)
    follow_up, follow_up_model = _follow_up(flow)
    return FlowDefinition(
        id=label_of(flow.get("id")),
        name=label_of(flow.get("name")),
        kind=_kind(flow, nodes),
        model_nodes=tuple(models),
        upsert_models=_upsert_models(data, models),
        follow_up_prompts=follow_up,
        follow_up_model=follow_up_model,
        speech_to_text=any(speech.get("status") for speech in _providers(flow.get("speechToText"))),
        text_to_speech=any(
            speech.get("status") and speech.get("autoPlay") for speech in _providers(flow.get("textToSpeech"))
        ),
        structured_nodes=tuple(structured),
        summary_memory_nodes=tuple(summarising),
        dynamic_human_input_nodes=tuple(dynamic),
        single_call=_single_call(nodes, models, summarising),
        reads_uploads=_reads_uploads(nodes),
        override_enabled=_override_enabled(flow),
        settables=settables_of(nodes, used, flow.get("apiConfig")),
        exporters=_exporters(flow),
        through_gateway='"x-fw-msg"' in text_of(flow.get("flowData")).replace("\\", ""),
        protected=bool(text_of(flow.get("apikeyid")).strip()),
        updated_at=moment_of(flow.get("updatedDate")),
        prompt_texts=tuple(prompts.texts),
    )


def parse_flow_list(raw: object) -> list[FlowSummary]:
    """The flow list: an array, or ``{"data": [...], "total": …}`` where pages were asked for."""
    rows = raw if isinstance(raw, list) else items_of(object_of(raw).get("data"))
    summaries = []
    for row in map(object_of, rows):
        flow_id = label_of(row.get("id"))
        if flow_id:
            summaries.append(FlowSummary(flow_id, label_of(row.get("name")), _kind(row, [])))
    return summaries


def configured_model(config: Mapping[str, Any]) -> str:
    """The model a node's configuration names; empty where it names none, or a variable."""
    for key in _MODEL_KEYS:
        model = label_of(config.get(key))
        if model and "{{" not in model:
            return model
    return ""


def _kind(flow: Mapping[str, Any], nodes: list[dict[str, Any]]) -> FlowKind:
    declared = flow.get("type")
    if isinstance(declared, str) and declared.strip():
        return _KINDS.get(declared.strip().upper(), FlowKind.UNKNOWN)
    if any(text_of(node.get("name")).endswith("Agentflow") for node in nodes):
        return FlowKind.AGENTFLOW
    # rows older than the column have no type; Flowise's own migration calls them chatflows
    return FlowKind.CHATFLOW if nodes or "type" in flow else FlowKind.UNKNOWN


def _connected(data: Mapping[str, Any]) -> frozenset[str] | None:
    """Ids of nodes with an outgoing edge; None where the edges say nothing."""
    sources = frozenset(text_of(object_of(edge).get("source")) for edge in items_of(data.get("edges")))
    return sources - {""} or None


def _classic_model(
    node: Mapping[str, Any], inputs: Mapping[str, Any], used: frozenset[str] | None
) -> ModelNode | None:
    category = text_of(node.get("category"))
    classes = {item for item in items_of(node.get("baseClasses")) if isinstance(item, str)}
    role: Literal["chat", "embedding"]
    if category == "Embeddings" or "Embeddings" in classes:
        role = "embedding"
    elif category in _CHAT_CATEGORIES or (not category and classes & _CHAT_CLASSES):
        role = "chat"
    else:
        return None
    node_id = label_of(node.get("id"))
    if used is not None and node_id not in used:
        return None  # left lying on the canvas: nothing calls it
    return ModelNode(
        node_id,
        label_of(node.get("label")) or node_id,
        label_of(node.get("name")),
        configured_model(inputs),
        _limit(inputs),
        role,
    )


def _upsert_models(data: Mapping[str, Any], models: list[ModelNode]) -> tuple[ModelNode, ...]:
    """Those that a vector store hangs on, directly or not: an upsert runs nothing else."""
    hangs_on: dict[str, list[str]] = {}
    for edge in map(object_of, items_of(data.get("edges"))):
        hangs_on.setdefault(text_of(edge.get("target")), []).append(text_of(edge.get("source")))
    nodes = (object_of(object_of(node).get("data")) for node in items_of(data.get("nodes")))
    waiting = [text_of(node.get("id")) for node in nodes if node.get("category") == "Vector Stores"]
    reached: set[str] = set()
    while waiting:
        node_id = waiting.pop()
        if node_id not in reached:
            reached.add(node_id)
            waiting += hangs_on.get(node_id, ())
    return tuple(model for model in models if model.id in reached)


def _agentflow_models(
    node: Mapping[str, Any], inputs: Mapping[str, Any], prefix: str, label: str
) -> Iterator[ModelNode]:
    node_id = label_of(node.get("id"))
    config = object_of(inputs.get(f"{prefix}ModelConfig"))
    provider = label_of(inputs.get(f"{prefix}Model")) or label_of(config.get(f"{prefix}Model"))
    yield ModelNode(node_id, label, provider, configured_model(config), _limit(config))
    for store in map(object_of, items_of(inputs.get(f"{prefix}KnowledgeVSEmbeddings"))):
        settings = object_of(store.get("embeddingModelConfig"))
        yield ModelNode(
            node_id,
            label,
            label_of(store.get("embeddingModel")),
            configured_model(settings),
            role="embedding",
        )


def _limit(config: Mapping[str, Any]) -> int | None:
    for key in _LIMIT_KEYS:
        value = config.get(key)
        if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
            value = int(value.strip()[:12])
        if type(value) is int and 0 < value <= 10**9:
            return value
    return None


def _single_call(nodes: list[dict[str, Any]], models: list[ModelNode], summarising: list[str]) -> bool:
    """Only shapes known to call once: one plain chain, or one LLM node that nothing repeats."""
    if len(models) != 1 or models[0].role != "chat" or summarising:
        return False
    names = [text_of(node.get("name")) for node in nodes]
    if "llmAgentflow" in names:
        return not _REPEATING.intersection(names)
    callers = [node for node in nodes if text_of(node.get("category")) not in _PASSIVE_CATEGORIES]
    return [text_of(node.get("name")) in _SINGLE_CHAINS for node in callers] == [True]


def _reads_uploads(nodes: list[dict[str, Any]]) -> bool:
    """Flowise puts them into an LLM chain's input, which one with values for its prompt does not read."""
    if not any(text_of(node.get("name")) == "llmChain" for node in nodes):
        return True
    values = [text_of(object_of(node.get("inputs")).get("promptValues")) for node in nodes]
    filled = [value for value in values if value.strip() not in ("", "{}")]
    return not filled or any("file_attachment" in value for value in filled)


def _follow_up(flow: Mapping[str, Any]) -> tuple[bool, ModelNode | None]:
    """Whether follow-up questions are on, and by which model.

    The server looks only at the flow's ``followUpPrompts`` (``status``, ``selectedProvider``); the
    user interface writes the same object into ``chatbotConfig``. Either counts.
    """
    chatbot = object_of(decoded(flow.get("chatbotConfig")))
    for config in (decoded(flow.get("followUpPrompts")), decoded(chatbot.get("followUpPrompts"))):
        settings = object_of(config)
        if not settings.get("status"):
            continue
        provider = label_of(settings.get("selectedProvider"))
        chosen = object_of(settings.get(provider))
        return True, ModelNode("", "follow-up prompts", provider, configured_model(chosen), _limit(chosen))
    return False, None


def _override_enabled(flow: Mapping[str, Any]) -> bool:
    config = object_of(decoded(flow.get("apiConfig")))
    return object_of(config.get("overrideConfig")).get("status") is True


def _exporters(flow: Mapping[str, Any]) -> tuple[str, ...]:
    known = object_of(decoded(flow.get("analytic")))
    return tuple(label_of(name) for name, said in known.items() if object_of(said).get("status") is True)


def _providers(value: object) -> list[dict[str, Any]]:
    return [object_of(provider) for provider in object_of(decoded(value)).values()]


def _filled(value: object) -> bool:
    return isinstance(value, list) and len(value) > 0


class _Prompts:
    """Collects the texts of prompts out of nodes' inputs, up to a limit."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._room = _MAX_PROMPT_TEXT

    def collect(self, inputs: Mapping[str, Any]) -> None:
        for key, value in inputs.items():
            name = str(key).lower()
            if name == "promptvalues" or not any(word in name for word in _PROMPT_WORDS):
                continue
            for item in value if isinstance(value, list) else [value]:
                texts = [v for k, v in item.items() if k != "role"] if isinstance(item, dict) else [item]
                for text in texts:
                    self._add(text)

    def _add(self, text: object) -> None:
        # "{{chatOpenAI_0.data.instance}}" is a wire to another node, not a prompt
        if not isinstance(text, str) or not text.strip() or text.endswith(".data.instance}}"):
            return
        kept = text[: self._room]
        self._room -= len(kept)
        if kept:
            self.texts.append(kept)
