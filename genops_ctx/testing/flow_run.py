"""Running a flow of the stand-in: the model calls it makes, the events it streams, what it answers.

Both kinds of flow are generators of ``(event, data)``, in the order in which Flowise streams them;
they return what the JSON answer holds. Whoever wants no stream lets the events go by.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

from .flow_data import CONVERSATION_PROMPT, TOOL_AGENT_PROMPT, tool_schema
from .flows import Flow, ModelNode
from .model_answers import ModelAnswer
from .model_wire import error_json, error_message, pieces

__all__ = [
    "FLOWISE_PRICES",
    "AskModel",
    "Event",
    "Events",
    "Finished",
    "Message",
    "ModelFailed",
    "call_model",
    "run_classic",
    "tool_message",
    "used_tool",
]

Event = tuple[str, Any]
Message = dict[str, Any]
AskModel = Callable[[ModelNode, dict[str, Any]], ModelAnswer]

FLOWISE_PRICES = {
    "gpt-4o-mini": (1.5e-7, 6e-7),
    "gpt-4o": (2.5e-6, 1e-5),
    "claude-haiku-4-5": (1e-6, 5e-6),
}
"""Dollars a token by Flowise's own list, for the cost fields it reports. Not to be relied on: see
Flowise's models.json, which is wrong for some models."""

_LANGCHAIN_ERRORS = "https://docs.langchain.com/oss/javascript/langchain/errors/"
_TROUBLESHOOTING = {401: "MODEL_AUTHENTICATION", 429: "MODEL_RATE_LIMIT"}

ATTEMPTS = 7
"""How often Flowise asks a model that answers 429 or 5xx."""


@dataclass(frozen=True, slots=True)
class Finished:
    """What a run that came to its end answers."""

    text: str
    parts: dict[str, Any] = field(default_factory=dict)
    """``usedTools``, ``metrics`` or ``agentFlowExecutedData``, in the order of the answer"""


Events = Generator[Event, None, Finished]


class ModelFailed(Exception):
    """The model answered an error; the text is what Flowise makes of it."""

    def __init__(self, given: ModelAnswer) -> None:
        status = given.billed.status
        if given.billed.provider == "anthropic":
            text = f"{status} {json.dumps(error_json(given), separators=(',', ':'))}"
        else:
            text = f"{status} {error_message(status)}"
            if status in _TROUBLESHOOTING:
                text += f"\n\nTroubleshooting URL: {_LANGCHAIN_ERRORS}{_TROUBLESHOOTING[status]}/\n"
        super().__init__(text)


def call_model(
    ask: AskModel, node: ModelNode, messages: list[Message], tools: dict[str, dict[str, Any]] | None = None
) -> ModelAnswer:
    """One model call of a node, tried again as Flowise does; raises :class:`ModelFailed`."""
    body: dict[str, Any] = {"model": node.model, "messages": messages, "stream": node.streaming}
    if node.max_tokens is not None:
        body["max_tokens"] = node.max_tokens
    if tools:
        body["tools"] = [
            {"type": "function", "function": {"name": name, "parameters": schema}}
            for name, schema in tools.items()
        ]
    given = ask(node, body)
    for _ in range(ATTEMPTS - 1):
        if given.billed.status != 429 and given.billed.status < 500:
            break
        given = ask(node, body)
    if given.failed:
        raise ModelFailed(given)
    return given


def run_classic(
    flow: Flow, question: str, history: list[Message], ask: AskModel, *, evaluation: bool = False
) -> Events:
    """A chatflow: tells nothing of its usage, except as metrics under the evaluation flag."""
    node = flow.nodes[0]
    messages: list[Message]
    if flow.kind == "llm_chain":
        messages = [{"role": "user", "content": flow.template.replace("{question}", question)}]
    else:
        default = CONVERSATION_PROMPT if flow.kind == "conversation_chain" else TOOL_AGENT_PROMPT
        system: Message = {"role": "system", "content": node.system or default}
        messages = [system, *history, {"role": "user", "content": question}]
    tools = {tool: tool_schema(("input",)) for tool in node.tools}
    given = call_model(ask, node, messages, tools)
    calls, used = [given], []
    if given.tool:
        used = [used_tool(given)]
        messages = [*messages, {"role": "assistant", "content": ""}, tool_message(given)]
        given = call_model(ask, node, messages, tools)
        calls.append(given)
    yield "start", ""
    for piece in pieces(given.text):
        yield "token", piece
    parts: dict[str, Any] = {}
    if used:
        yield "usedTools", used
        parts["usedTools"] = used
    if evaluation:
        parts["metrics"] = _metrics(flow, calls)
    return Finished(given.text, parts)


def used_tool(given: ModelAnswer) -> dict[str, Any]:
    """A tool's call as Flowise reports it, with what the tool answered."""
    return {"tool": given.tool, "toolInput": json.loads(given.arguments), "toolOutput": _tool_output(given)}


def tool_message(given: ModelAnswer) -> Message:
    """The message that takes a tool's result back to the model."""
    return {"role": "tool", "content": _tool_output(given), "tool_call_id": "call_stub1", "name": given.tool}


def _tool_output(given: ModelAnswer) -> str:
    # The model stub always asks for the same sum.
    return "5" if given.tool == "calculator" else "done"


def _metrics(flow: Flow, calls: list[ModelAnswer]) -> list[Any]:
    """The ``metrics`` of an answer to a request with the evaluation flag.

    One string with ``promptTokens`` for each model call, exact; among them timings and, for chains, a
    bare object that is only a guess.
    """

    def item(**data: object) -> str:
        return json.dumps(data, separators=(",", ":"))

    # How many timings of chains come before each model call.
    chains = {"conversation_chain": 3, "tool_agent": 4}.get(flow.kind, 0)
    listed: list[Any] = []
    for given in calls:
        billed = given.billed
        counts = {
            "completionTokens": billed.output_tokens,
            "promptTokens": billed.input_tokens,
            "model": billed.model,
            "totalTokens": billed.total_tokens,
        }
        if chains:
            listed += [*[item(chain="1.00")] * chains, item(prompt="1.00")]
        listed += [item(provider="ChatOpenAI"), item(**counts), item(llm="6.00"), item(model=billed.model)]
        if flow.kind == "tool_agent":
            listed += [item(parser="0.00"), item(chain="9.00")]
            if given.tool:
                listed.append(item(tool="1.00"))
        else:
            guess = {"promptTokens": billed.input_tokens + 9, "completionTokens": billed.output_tokens + 6}
            listed.append({**guess, "totalTokens": sum(guess.values())})
    listed.append(item(chain="10.00"))
    prices = FLOWISE_PRICES.get(flow.nodes[0].model)
    if prices:
        model = flow.nodes[0].model
        values = {
            "label": f"{model} (latest)",
            "name": model,
            "input_cost": prices[0],
            "output_cost": prices[1],
        }
        listed.append(item(cost_values={"cost_values": values}))
    return listed
