"""Running an AgentFlow V2 of the stand-in: its events and the record of each node.

What it says of usage is what Flowise 3.1.4 says, faults included: an Agent node reports only its last
call and wrong totals (the calls before it are in ``input.messages[*].usage_metadata``), a node with
structured output reports nothing, and an Anthropic model that is streamed from one output token too
many.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator
from typing import Any

from .flow_data import model_config, node_ids, node_inputs, tool_schema
from .flow_run import (
    FLOWISE_PRICES,
    AskModel,
    Event,
    Events,
    Finished,
    Message,
    ModelFailed,
    call_model,
    tool_message,
    used_tool,
)
from .flows import Flow, ModelNode
from .model_answers import ModelAnswer
from .model_wire import openai_usage, pieces

__all__ = ["run_agentflow"]

NodeRun = Generator[Event, None, tuple[dict[str, Any], list[Message]]]
"""Streams a node's events; returns its output and the messages it ended up with."""


def run_agentflow(
    flow: Flow,
    question: str | None,
    history: list[Message],
    ask: AskModel,
    record: list[dict[str, Any]],
) -> Events:
    """An AgentFlow; ``record`` gathers what each node did, and holds it when the run fails half-way.

    The record names the credential, as Flowise's own does outside of JSON answers.
    """
    asked = {} if question is None else {"question": question}
    start = {"id": "startAgentflow_0", "name": "startAgentflow", "input": asked, "output": asked, "state": {}}
    yield "agentFlowEvent", "INPROGRESS"
    yield "nextAgentFlow", _step("startAgentflow_0", "Start", "INPROGRESS")
    yield "nextAgentFlow", _step("startAgentflow_0", "Start", "FINISHED")
    record.append(_item("startAgentflow_0", "Start", start, None))
    yield "agentFlowExecutedData", list(record)

    said: list[Message] = [*history]
    if question is not None:
        said.append({"role": "user", "content": question})
    before, text = "startAgentflow_0", ""
    for number, (node, node_id) in enumerate(zip(flow.nodes, node_ids(flow), strict=True)):
        yield "nextAgentFlow", _step(node_id, node.title, "INPROGRESS")
        kind = "Agent" if node.is_agent else "LLM"
        data: dict[str, Any] = {"id": node_id, "name": node_id.partition("_")[0]}
        try:
            last = number == len(flow.nodes) - 1
            output, messages = yield from _node(node, said, ask, last=last)
        except ModelFailed as failure:
            error = f"Error in {kind} node: {failure}"
            yield "nextAgentFlow", {**_step(node_id, node.title, "ERROR"), "error": error}
            data["error"] = error
            record.append(_item(node_id, node.title, data, before, status="ERROR"))
            yield "agentFlowExecutedData", list(record)
            yield "agentFlowEvent", "ERROR"
            failure.args = (error,)
            raise
        text = output["content"]
        own: Message = {"role": "user", "content": text, "name": node.title.lower().replace(" ", "_")}
        config = model_config(node, with_credential=True)
        data["input"] = {
            "messages": messages,
            **node_inputs(node),
            "agentModelConfig" if node.is_agent else "llmModelConfig": config,
        }
        data["output"] = output
        data["state"] = {}
        kept = {**own}
        if output.get("usedTools"):
            kept["additional_kwargs"] = {"usedTools": output["usedTools"]}
        opening: list[Message] = [{"role": "user", "content": question}] if question is not None else []
        data["chatHistory"] = [*(opening if number == 0 else []), kept]
        record.append(_item(node_id, node.title, data, before))
        yield "nextAgentFlow", _step(node_id, node.title, "FINISHED")
        yield "agentFlowExecutedData", list(record)
        said.append(own)
        before = node_id
    yield "agentFlowEvent", "FINISHED"
    return Finished(text, {"agentFlowExecutedData": list(record)})


def _step(node_id: str, label: str, status: str) -> dict[str, Any]:
    return {"nodeId": node_id, "nodeLabel": label, "status": status}


def _item(
    node_id: str, label: str, data: dict[str, Any], before: str | None, status: str = "FINISHED"
) -> dict[str, Any]:
    previous = [] if before is None else [before]
    item = {"nodeId": node_id, "nodeLabel": label, "data": data, "previousNodeIds": previous}
    return {**item, "status": status}


def _node(node: ModelNode, said: list[Message], ask: AskModel, *, last: bool) -> NodeRun:
    """The model calls of one node; returns its output and the messages it ended up with."""
    began = int(time.time() * 1000)
    messages: list[Message] = [{"role": "system", "content": node.system}] if node.system else []
    messages += said
    if node.structured:
        return (yield from _structured(node, messages, ask, began, last=last))

    tools = {tool: tool_schema(("input",)) for tool in node.tools}
    given = call_model(ask, node, messages, tools)
    used: list[dict[str, Any]] = []
    spent = 0
    if given.tool:
        used = [used_tool(given)]
        spent = _usage(given)["total_tokens"]
        if last and node.streaming:
            for _ in range(4):
                yield "token", ""
        if last:
            yield "calledTools", [{**used[0], "toolOutput": ""}]
        messages = [*messages, _tool_turn(given), {**tool_message(given), "additional_kwargs": {}}]
        given = call_model(ask, node, messages, tools)
    usage = _usage(given)
    if last:
        yield from _tokens(given)
        if used:
            yield "usedTools", used
        yield "calledTools", []
        yield "usageMetadata", usage
    output: dict[str, Any] = {
        "content": given.text,
        "timeMetadata": _times(began),
        "calledTools": [],
        "usageMetadata": _reported(node, usage, spent + usage["total_tokens"] if used else None),
        "responseMetadata": _response_metadata(given, guess=not last),
    }
    if node.is_agent:
        output["usedTools"] = used
        output["availableTools"] = [
            {
                "name": tool,
                "description": f"The tool {tool}.",
                "schema": tool_schema(("input",)),
                "toolNode": {"label": tool.capitalize(), "name": tool},
            }
            for tool in node.tools
        ]
    return output, messages


def _structured(
    node: ModelNode, messages: list[Message], ask: AskModel, began: int, *, last: bool
) -> NodeRun:
    """A node with structured output: Flowise asks for it as a tool, and forgets the usage."""
    schema = {**tool_schema(node.structured), "required": list(node.structured)}
    given = call_model(ask, node, messages, {"extract": schema})
    values = json.loads(given.arguments) if given.tool else {}
    text = json.dumps(values, indent=2)
    if last:
        yield "token", text
    return {"content": text, "timeMetadata": _times(began), **values}, messages


def _tokens(given: ModelAnswer) -> Iterator[Event]:
    if not given.billed.streamed:
        yield "token", given.text
        return
    # Chunks without text come as empty tokens: two after an OpenAI answer, two before an Anthropic one.
    before, after = (2, 1) if given.billed.provider == "anthropic" else (1, 2)
    for piece in [""] * before + pieces(given.text) + [""] * after:
        yield "token", piece


def _times(began: int) -> dict[str, int]:
    ended = int(time.time() * 1000)
    return {"start": began, "end": ended, "delta": ended - began}


def _usage(given: ModelAnswer) -> dict[str, Any]:
    billed = given.billed
    written = billed.output_tokens
    if billed.provider == "anthropic":
        # message_start's one token is added to message_delta's total.
        written += 1 if billed.streamed else 0
        details: dict[str, Any] = {"cache_read": billed.cache_read_tokens, "cache_creation": 0}
        reasoning = {}
    else:
        details = {"cache_read": billed.cache_read_tokens}
        reasoning = {"reasoning": billed.reasoning_tokens}
    return {
        "input_tokens": billed.input_tokens,
        "output_tokens": written,
        "total_tokens": billed.input_tokens + written,
        "input_token_details": details,
        "output_token_details": reasoning,
    }


def _reported(node: ModelNode, usage: dict[str, Any], tool_call_tokens: int | None) -> dict[str, Any]:
    """``usageMetadata`` with Flowise's own additions: wrong for agents, absent for unknown models."""
    reported = dict(usage)
    written = usage["output_tokens"]
    if tool_call_tokens is not None:
        reported["total_tokens"] += tool_call_tokens
        reported["tool_call_tokens"] = tool_call_tokens
        written += tool_call_tokens
    if node.model in FLOWISE_PRICES:
        price_in, price_out = FLOWISE_PRICES[node.model]
        cost_in, cost_out = usage["input_tokens"] * price_in, written * price_out
        reported |= {
            "input_cost": cost_in,
            "output_cost": cost_out,
            "total_cost": cost_in + cost_out,
            "base_input_cost": price_in,
            "base_output_cost": price_out,
        }
    return reported


def _response_metadata(given: ModelAnswer, *, guess: bool) -> dict[str, Any]:
    billed = given.billed
    if billed.provider == "anthropic":
        cache = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": billed.cache_read_tokens}
        return {"model_provider": "anthropic", "usage": cache}
    metadata: dict[str, Any] = {}
    if guess:
        prompt, completion = billed.input_tokens + 8, billed.output_tokens + 6
        metadata["estimatedTokenUsage"] = {
            "promptTokens": prompt,
            "completionTokens": completion,
            "totalTokens": prompt + completion,
        }
    return metadata | {
        "prompt": 0,
        "completion": 0,
        "model_provider": "openai",
        "usage": openai_usage(given),
        "finish_reason": "length" if given.cut else "stop",
        "system_fingerprint": "fp_stub",
        "model_name": billed.model,
    }


def _tool_turn(given: ModelAnswer) -> Message:
    """The assistant's message that asks for a tool; it carries the usage of that call."""
    call = {"index": 0, "id": "call_stub1", "type": "function"}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "name": given.tool,
                "args": json.loads(given.arguments),
                "id": "call_stub1",
                "type": "tool_call",
            }
        ],
        "additional_kwargs": {
            "tool_calls": [{**call, "function": {"name": given.tool, "arguments": given.arguments}}]
        },
        "usage_metadata": _usage(given),
        "id": "chatcmpl-stub1",
    }
