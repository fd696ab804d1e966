"""Flows for the stand-in: what they are made of, and those the documentation talks of."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Literal

from ..core.errors import ConfigurationError
from .model_answers import Provider

__all__ = ["GUIDE_FLOWS", "Flow", "ModelNode", "RateLimit"]

FlowKind = Literal["conversation_chain", "llm_chain", "tool_agent", "agentflow"]

_NAMESPACE = uuid.UUID("6f0c6b5e-6f5b-5d0a-9d3c-1b7a4f3f5c11")


@dataclass(frozen=True, slots=True)
class ModelNode:
    """One node that calls a model: a classic flow has one, an AgentFlow any number in a row.

    In an AgentFlow a node with ``tools`` is an Agent node, any other an LLM node; one with
    ``structured`` keys answers JSON, and Flowise then reports no usage for it.
    """

    model: str = "gpt-4o-mini"
    label: str = ""
    """name on the canvas; ``LLM`` or ``Agent`` unless given"""
    system: str = ""
    """the system prompt; its words are input tokens"""
    tools: tuple[str, ...] = ()
    structured: tuple[str, ...] = ()
    max_tokens: int | None = None
    """ceiling of output tokens, as set in the node"""
    streaming: bool = True
    """whether the node streams from its model, as Flowise does by default; while it does, Flowise
    reports one output token too many for Anthropic"""

    @property
    def provider(self) -> Provider:
        return "anthropic" if self.model.startswith("claude") else "openai"

    @property
    def is_agent(self) -> bool:
        return bool(self.tools)

    @property
    def title(self) -> str:
        """The label that is shown."""
        return self.label or ("Agent" if self.is_agent else "LLM")


@dataclass(frozen=True, slots=True)
class RateLimit:
    """Flowise's own limit on a flow: ``limit`` predictions in ``seconds``."""

    limit: int
    seconds: int = 60
    message: str = "Too many requests, please try again later."


@dataclass(frozen=True, slots=True)
class Flow:
    """One flow of the stand-in.

    ``kind`` is ``conversation_chain``, ``llm_chain`` or ``tool_agent`` (classic chatflows: one model
    node, OpenAI, no usage in their answers), or ``agentflow`` (AgentFlow V2). The id is derived from
    the name unless given, so it is the same in every run. ConfigurationError where the parts don't
    fit.
    """

    name: str
    kind: FlowKind = "conversation_chain"
    nodes: tuple[ModelNode, ...] = (ModelNode(),)
    id: str = ""
    template: str = "{question}"
    """prompt of an LLM chain"""
    api_key: str | None = None
    """the flow's own key: predictions need exactly this one"""
    rate_limit: RateLimit | None = None
    allowed_origins: tuple[str, ...] = ()
    """where given, a request with another ``Origin`` header is denied"""
    origin_error: str = "This site is not allowed to access this chatbot"
    predictions_used_up: bool = False
    """answers 402, as a cloud plan does whose predictions are spent"""

    def __post_init__(self) -> None:
        if not self.nodes:
            raise ConfigurationError(f"flow {self.name!r} needs at least one ModelNode")
        if self.kind != "agentflow":
            if len(self.nodes) != 1:
                raise ConfigurationError(
                    f"flow {self.name!r}: a {self.kind} has one model node; use kind='agentflow' for several"
                )
            node = self.nodes[0]
            if node.provider != "openai" or node.structured or (node.tools and self.kind != "tool_agent"):
                raise ConfigurationError(
                    f"flow {self.name!r}: a {self.kind} of the stand-in runs one OpenAI model, with tools "
                    "only as a tool_agent and without structured output; use kind='agentflow'"
                )
        if not self.id:
            object.__setattr__(self, "id", str(uuid.uuid5(_NAMESPACE, self.name)))

    @property
    def is_agentflow(self) -> bool:
        return self.kind == "agentflow"

    @property
    def memory_type(self) -> str | None:
        """What a classic flow says of its memory, or None where it has none."""
        return "Buffer Memory" if self.kind in ("conversation_chain", "tool_agent") else None


GUIDE_FLOWS: tuple[Flow, ...] = (
    Flow(
        "customer-support-v1",
        "agentflow",
        (
            ModelNode(
                "gpt-4o-mini",
                "Support",
                "You answer questions of customers about orders, invoices and deliveries. "
                "Be brief, be kind, and name the next step.",
            ),
        ),
    ),
    Flow("customer-chatbot-v1", "conversation_chain"),
    Flow(
        "translation-flow-v1",
        "llm_chain",
        template="Translate into German, and answer with nothing else: {question}",
    ),
    Flow(
        "document-analyzer-v1",
        "agentflow",
        (ModelNode("gpt-4o", "Analyzer", "Name the subject, the parties and the dates of the document."),),
    ),
    Flow(
        "information-extractor-v1",
        "agentflow",
        (ModelNode("gpt-4o", "Extractor", "Look up what the document says.", tools=("calculator",)),),
    ),
    Flow(
        "summary-generator-v1",
        "agentflow",
        (ModelNode("claude-haiku-4-5", "Summary", "Sum it up in three sentences.", streaming=False),),
    ),
    Flow(
        "content-generation-v1",
        "agentflow",
        (
            ModelNode("gpt-4o-mini", "Drafter", "Write a first draft."),
            ModelNode("claude-haiku-4-5", "Reviewer", "Make the draft shorter and clearer.", streaming=False),
        ),
    ),
    Flow("document-summary-v1", "llm_chain", template="Sum up in one paragraph: {question}"),
    Flow("document-processor-v1", "tool_agent", (ModelNode("gpt-4o-mini", tools=("calculator",)),)),
)
"""The flows that the documentation names: classic chains, AgentFlows of one and two models, agents."""
