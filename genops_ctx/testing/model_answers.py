"""What the stub model answers and what it bills for it: a pure, deterministic rule.

Input tokens are the words of all messages (and of the system prompt), plus 10 for each tool offered.
Output tokens are the words of the reply plus 3; a turn that calls a tool is 17. A model whose name
contains ``cached`` reads 4 of its input tokens from a cache; one whose name contains ``reason`` adds
5 reasoning tokens to its reply. ``max_tokens`` (or ``max_completion_tokens``) is never passed.
Counts are inclusive, as in :class:`genops_ctx.core.records.Usage`.

Switches, read from the last user message:

========================  ==========================================================
``[[fail:500]]``          answer with that HTTP status, bill nothing
``[[fail:400@gpt-4o]]``   the same, only for that model
``[[sleep:0.5]]``         answer that many seconds later
``[[long:200]]``          a reply of that many words
========================  ==========================================================
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["BilledCall", "ModelAnswer", "Provider", "answer", "text_of"]

Provider = Literal["openai", "anthropic"]

TOKENS_PER_TOOL = 10
TOKENS_PER_REPLY = 3
TOOL_TURN_TOKENS = 17
CACHED_TOKENS = 4
REASONING_TOKENS = 5

_FAIL = re.compile(r"\[\[fail:(\d{3})(?:@([^\]]+))?\]\]")
_SLEEP = re.compile(r"\[\[sleep:(\d+(?:\.\d+)?)\]\]")
_LONG = re.compile(r"\[\[long:(\d+)\]\]")


@dataclass(frozen=True, slots=True)
class BilledCall:
    """One model call as the provider would bill it: the truth a booked charge is compared with.

    ``status`` is the HTTP status answered; a failed call bills no tokens. ``headers`` are those that
    tell calls apart (``x-*``, ``traceparent``, ``tracestate``, ``baggage``), lower case, without keys;
    they do not count when two calls are compared.
    """

    provider: Provider
    model: str
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int = 0
    """part of ``input_tokens``"""
    reasoning_tokens: int = 0
    """part of ``output_tokens``"""
    status: int = 200
    streamed: bool = False
    headers: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    """What the stub says to one request, before it is written down in a provider's shape."""

    billed: BilledCall
    text: str = ""
    tool: str = ""
    """name of the tool it wants called; then there is no text"""
    arguments: str = ""
    """the tool's arguments, as JSON"""
    delay: float = 0.0
    """seconds to wait before answering"""
    embeddings: int = 0
    """number of vectors, for an embeddings request"""
    cut: bool = False
    """the reply was cut off at ``max_tokens``"""

    @property
    def failed(self) -> bool:
        return self.billed.status >= 400


def answer(
    provider: Provider, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> ModelAnswer:
    """The answer to one request body, and what it costs in tokens. Same body, same answer."""
    model = str(body.get("model") or "unknown")
    streamed = body.get("stream") is True
    kept = dict(headers or {})
    if "input" in body and "messages" not in body:
        inputs = body["input"] if isinstance(body["input"], list) else [body["input"]]
        words = sum(_words(text_of(item)) for item in inputs)
        return ModelAnswer(BilledCall(provider, model, words, 0, headers=kept), embeddings=len(inputs))

    messages = [message for message in body.get("messages") or () if isinstance(message, Mapping)]
    tools = [tool for tool in body.get("tools") or () if isinstance(tool, Mapping)]
    asked = next((text_of(m.get("content")) for m in reversed(messages) if _is_question(m)), "")
    sleep = _SLEEP.search(asked)
    delay = float(sleep[1]) if sleep else 0.0

    fail = _FAIL.search(asked)
    if fail and fail[2] in (None, model):
        billed = BilledCall(provider, model, 0, 0, status=int(fail[1]), streamed=streamed, headers=kept)
        return ModelAnswer(billed, delay=delay)

    read = sum(_words(text_of(message.get("content"))) for message in messages)
    read += _words(text_of(body.get("system"))) + TOKENS_PER_TOOL * len(tools)
    text, tool, arguments = "", "", ""
    if tools and not any(_has_tool_result(message) for message in messages):
        tool, arguments = _first_tool(tools[0])
        written = TOOL_TURN_TOKENS
    else:
        text = _reply(model, asked, body)
        written = _words(text) + TOKENS_PER_REPLY
    reasoning = REASONING_TOKENS if "reason" in model else 0
    if reasoning and text:
        written += reasoning
    ceiling = body.get("max_completion_tokens") or body.get("max_tokens")
    cut = isinstance(ceiling, int) and written > ceiling
    if cut:
        assert isinstance(ceiling, int)
        written, reasoning = ceiling, min(reasoning, ceiling)
        text = " ".join(text.split()[: max(0, ceiling - reasoning - TOKENS_PER_REPLY)])
    billed = BilledCall(
        provider,
        model,
        read,
        written,
        cache_read_tokens=min(CACHED_TOKENS, read) if "cached" in model else 0,
        reasoning_tokens=reasoning,
        streamed=streamed,
        headers=kept,
    )
    return ModelAnswer(billed, text, tool, arguments, delay, cut=cut)


def text_of(content: object) -> str:
    """The text of a message's content: a string, or a list of parts of which only texts count."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        return text_of(content.get("text") or content.get("content"))
    if isinstance(content, list):
        return " ".join(text_of(part) for part in content)
    return str(content)


def _words(text: str) -> int:
    return len(text.split())


def _has_tool_result(message: Mapping[str, Any]) -> bool:
    if message.get("role") == "tool":
        return True
    content = message.get("content")
    return isinstance(content, list) and any(
        isinstance(part, Mapping) and part.get("type") == "tool_result" for part in content
    )


def _is_question(message: Mapping[str, Any]) -> bool:
    # Anthropic returns the results of tools in the user's role: those are not a question.
    return message.get("role") == "user" and not _has_tool_result(message)


def _reply(model: str, asked: str, body: Mapping[str, Any]) -> str:
    wanted = body.get("response_format")
    if isinstance(wanted, Mapping) and wanted.get("type") == "json_schema":
        return json.dumps(_example((wanted.get("json_schema") or {}).get("schema") or {}))
    long = _LONG.search(asked)
    if long:
        return " ".join(f"word{number}" for number in range(1, int(long[1]) + 1))
    return f"Stub reply from {model} to: {asked[:120]}"


def _first_tool(tool: Mapping[str, Any]) -> tuple[str, str]:
    """Name and arguments of a call of that tool: its first property is a sum, for a calculator."""
    spec = tool.get("function") if isinstance(tool.get("function"), Mapping) else tool
    assert isinstance(spec, Mapping)
    schema = spec.get("parameters") or spec.get("input_schema") or {}
    properties = schema.get("properties") or {"input": {"type": "string"}}
    required = schema.get("required") or list(properties)[:1]
    arguments = {name: _example(properties.get(name) or {}) for name in required}
    first = next(iter(properties))
    if first in arguments and isinstance(arguments[first], str):
        arguments[first] = "2+3"
    return str(spec.get("name") or "tool"), json.dumps(arguments)


def _example(schema: Mapping[str, Any]) -> Any:
    """A smallest value that fits a JSON schema."""
    if schema.get("enum"):
        return schema["enum"][0]
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((one for one in kind if one != "null"), "null")
    if kind == "object" or "properties" in schema:
        return {name: _example(of) for name, of in (schema.get("properties") or {}).items()}
    simple: dict[object, Any] = {"number": 1, "integer": 1, "boolean": True, "array": [], "null": None}
    return simple.get(kind, "x")
