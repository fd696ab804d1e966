"""Usage out of an AgentFlow V2's ``agentFlowExecutedData``: one item for each node that ran.

Iterations and loops add an item for each round, so every item counts. Where the usage is, and where
it is missing, was read in Flowise's source and on recorded answers beside the provider's bill:

- LLM and Condition Agent nodes: ``output.usageMetadata`` is their one call.
- Agent nodes: ``output.usageMetadata`` is the *last* call (its ``total_tokens`` and costs are wrong);
  each earlier call is a message of ``input.messages`` with ``usage_metadata``.
- A node with structured output, summary memory, or a question written by a model makes a call that
  is reported nowhere; so do sub-flows, retrievers and tools that are flows: each is a gap.
- An Agent that stops to ask for approval has its last call in both places.
- A flow that is resumed after approval repeats the items of the prediction before, billed there:
  everything up to a stopped item that is not the last. The resumed Agent's messages repeat too.
"""

from __future__ import annotations

from typing import Any, Final

from genops_ctx.core.records import Usage

from .answers import upstream_of
from .flows import FlowDefinition, configured_model
from .model_calls import Caller, read_call
from .readings import Gap, Reading, reading
from .shapes import items_of, label_of, object_of, text_of

__all__ = ["MODEL_NODE_PREFIXES", "read_executed", "started_model_node"]

MODEL_NODE_PREFIXES: Final = {
    "llmAgentflow": "llm",
    "agentAgentflow": "agent",
    "conditionAgentAgentflow": "conditionAgent",
}
_FLOW_TOOLS: Final = frozenset({"chatflowTool", "agentAsTool", "chainTool", "queryEngineTool"})
_EMBEDDING_TOOLS: Final = frozenset({"retrieverTool"})
_SUMMARISED: Final = "Previous conversation summary: "

STRUCTURED: Final = "structured output: Flowise drops the usage of this call"
SUMMARY: Final = "summary memory: Flowise does not report the call that summarises"
UNREADABLE: Final = "the reported usage is missing or cannot be believed"
FAILED: Final = "the node failed; what its calls used is not reported"
SUB_FLOW: Final = "a flow run by this node reports no usage to its caller"
RETRIEVAL: Final = "embedding calls of a retrieval are not reported"
HUMAN_INPUT: Final = "a model may have written this question; its usage is not reported"
BUILT_IN: Final = "the provider bills its built-in tools apart from tokens"
BROKEN_ITEM: Final = "an executed node could not be read"

RESUMED: Final = "resumed_execution"


def read_executed(items: object, flow: FlowDefinition | None, *, whole: bool = False) -> Reading:
    """Usage of the nodes that ran. Never raises for what a server sends.

    Of a resumed flow only what the last prediction called is read; ``whole`` reads every prediction
    of the run.
    """
    executed = [object_of(item) for item in items_of(items)]
    stops = _stops(executed)
    resumed_after = max(stops, default=-1)
    known = _KnownCalls()
    flags = [RESUMED] if stops else []
    collected = _Collector(flow or FlowDefinition(), flow is not None, known)
    for index, item in enumerate(executed):
        if whole or index > resumed_after:
            collected.item(item)
        if index in stops:
            known.remember(item)
    return reading(collected.usages, collected.gaps, (*flags, *collected.flags))


def started_model_node(node_id: str) -> bool:
    """Whether a node's id (``llmAgentflow_0``) is that of a node that calls a model."""
    return node_id.rpartition("_")[0] in MODEL_NODE_PREFIXES


def _stops(executed: list[dict[str, Any]]) -> set[int]:
    """Where the run stopped and was resumed; iterations stop and go on by themselves."""
    return {
        index
        for index, item in enumerate(executed[:-1])
        if item.get("status") == "STOPPED" and "iterationIndex" not in object_of(item.get("data"))
    }


class _KnownCalls:
    """Calls of a stopped Agent that its resumed item repeats."""

    def __init__(self) -> None:
        self._node = ""
        self._calls: list[tuple[object, object]] = []

    def remember(self, item: dict[str, Any]) -> None:
        self._node = text_of(item.get("nodeId"))
        self._calls = [_identity(m) for m in _reporting(object_of(item.get("data")))]

    def unbilled(self, node_id: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The messages whose calls this prediction made."""
        if not self._calls or node_id != self._node:
            return messages
        calls, self._calls = self._calls, []
        repeated = 0
        for message, call in zip(messages, calls, strict=False):
            if _identity(message) != call:
                break
            repeated += 1
        return messages[repeated:]


def _identity(message: dict[str, Any]) -> tuple[object, object]:
    return message.get("id"), message.get("usage_metadata")


def _reporting(data: dict[str, Any]) -> list[dict[str, Any]]:
    messages = items_of(object_of(data.get("input")).get("messages"))
    return [m for m in map(object_of, messages) if m.get("usage_metadata") is not None]


class _Collector:
    def __init__(self, flow: FlowDefinition, flow_known: bool, known: _KnownCalls) -> None:
        self.usages: list[Usage] = []
        self.gaps: list[Gap] = []
        self.flags: list[str] = []
        self._flow = flow
        self._flow_known = flow_known
        self._known = known

    def item(self, item: dict[str, Any]) -> None:
        data = object_of(item.get("data"))
        name = text_of(data.get("name"))
        label = label_of(item.get("nodeLabel")) or label_of(item.get("nodeId"))
        if not name:
            name = text_of(item.get("nodeId")).rpartition("_")[0]
        failed = "error" in data or item.get("status") in ("ERROR", "TERMINATED")
        prefix = MODEL_NODE_PREFIXES.get(name)
        if prefix is not None:
            caller = self._caller(item, data, prefix, label)
            if failed:
                self._failed(data, prefix, caller)
            elif prefix == "agent":
                self._agent(item, data, caller)
            else:
                self._single(data, prefix, caller)
        elif name == "executeFlowAgentflow":
            self._gap(Caller(label, ""), SUB_FLOW)
        elif name == "retrieverAgentflow":
            self.gaps.append(Gap(label, "", "", RETRIEVAL, "embedding"))
        elif name == "humanInputAgentflow" and item.get("status") == "STOPPED":
            if not self._flow_known or label in self._flow.dynamic_human_input_nodes:
                self._gap(self._caller(item, data, "humanInput", label), HUMAN_INPUT)
        elif not name:
            self._gap(Caller(label, ""), BROKEN_ITEM)

    def _caller(self, item: dict[str, Any], data: dict[str, Any], prefix: str, label: str) -> Caller:
        inputs = object_of(data.get("input"))
        answer = object_of(object_of(data.get("output")).get("responseMetadata"))
        config = object_of(inputs.get(f"{prefix}ModelConfig"))
        defined = self._flow.model_node(label_of(item.get("nodeId")) or label_of(data.get("id")))
        return Caller(
            node=label,
            provider=label_of(inputs.get(f"{prefix}Model"))
            or (defined.node if defined else "")
            or label_of(answer.get("model_provider")),
            configured=configured_model(config) or (defined.model if defined else ""),
            answered=label_of(answer.get("model_name")) or label_of(answer.get("model")),
            streams=config.get("streaming") is not False,
        )

    def _single(self, data: dict[str, Any], prefix: str, caller: Caller) -> None:
        self._summary(data, prefix, caller)
        output, inputs = object_of(data.get("output")), object_of(data.get("input"))
        if output.get("usageMetadata") is None and _filled(inputs.get(f"{prefix}StructuredOutput")):
            self._gap(caller, STRUCTURED)
        else:
            self._call(output.get("usageMetadata"), caller, output)

    def _agent(self, item: dict[str, Any], data: dict[str, Any], caller: Caller) -> None:
        self._summary(data, "agent", caller)
        output, inputs = object_of(data.get("output")), object_of(data.get("input"))
        messages = self._known.unbilled(text_of(item.get("nodeId")), _reporting(data))
        for message in messages:
            self._call(message.get("usage_metadata"), caller, {})
        if _filled(inputs.get("agentStructuredOutput")):
            self._gap(caller, UNREADABLE)  # the answer that is then converted
            self._gap(caller, STRUCTURED)
        elif not (output.get("isWaitingForHumanInput") is True and messages):
            self._call(output.get("usageMetadata"), caller, output)
        self._tools(inputs, output, caller)

    def _tools(self, inputs: dict[str, Any], output: dict[str, Any], caller: Caller) -> None:
        components = {}
        for tool in map(object_of, items_of(output.get("availableTools"))):
            components[text_of(tool.get("name"))] = text_of(object_of(tool.get("toolNode")).get("name"))
        used = [object_of(tool) for tool in items_of(output.get("usedTools"))]
        knowledge = _filled(inputs.get("agentKnowledgeDocumentStores")) or _filled(
            inputs.get("agentKnowledgeVSEmbeddings")
        )
        for tool in used:
            component = components.get(text_of(tool.get("tool")), "")
            if tool.get("builtIn"):
                self._gap(caller, BUILT_IN)
            elif component in _FLOW_TOOLS:
                self._gap(Caller(caller.node, ""), SUB_FLOW)
            elif component in _EMBEDDING_TOOLS or (knowledge and not component):
                self.gaps.append(Gap(caller.node, "", "", RETRIEVAL, "embedding"))

    def _summary(self, data: dict[str, Any], prefix: str, caller: Caller) -> None:
        inputs = object_of(data.get("input"))
        kind = inputs.get(f"{prefix}MemoryType")
        if kind is not None and not inputs.get(f"{prefix}EnableMemory"):
            return
        told = kind == "conversationSummary"
        if kind is None:  # a Condition Agent's item does not hold its settings
            told = caller.node in self._flow.summary_memory_nodes
        # the buffer summarises only a long conversation, and then says so in a message
        messages = map(object_of, items_of(inputs.get("messages")))
        if told or any(text_of(message.get("content")).startswith(_SUMMARISED) for message in messages):
            self._gap(caller, SUMMARY)

    def _failed(self, data: dict[str, Any], prefix: str, caller: Caller) -> None:
        _, status = upstream_of(text_of(data.get("error")))
        # 401, 403 and 404 are about the key or the model, so no call of this node went through; any
        # other 4xx only says that of a node's single call
        single = prefix != "agent" and caller.node not in self._flow.summary_memory_nodes
        rejected = status in (401, 403, 404) or (status is not None and status < 500 and single)
        if not rejected:
            self._gap(caller, FAILED)

    def _call(self, metadata: object, caller: Caller, output: dict[str, Any]) -> None:
        billed = object_of(output.get("responseMetadata")).get("usage")
        usage, flags = read_call(metadata, caller, billed=billed)
        if usage is None:
            self._gap(caller, UNREADABLE)
            return
        self.usages.append(usage)
        self.flags.extend(flags)

    def _gap(self, caller: Caller, why: str) -> None:
        self.gaps.append(Gap(caller.node, caller.provider, caller.configured, why))


def _filled(value: object) -> bool:
    return isinstance(value, list) and len(value) > 0
