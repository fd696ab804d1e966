"""The stub's answers in the shapes of the OpenAI and Anthropic APIs, as JSON and as event streams."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Iterator
from typing import Any

from .model_answers import ModelAnswer

__all__ = [
    "anthropic_frames",
    "anthropic_json",
    "embeddings_json",
    "error_json",
    "error_message",
    "openai_frames",
    "openai_json",
    "openai_usage",
    "pieces",
]

_ERRORS: dict[int, tuple[str, str | None, str]] = {
    400: ("invalid_request_error", "bad", "Stub bad request."),
    401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided."),
    429: ("tokens", "rate_limit_exceeded", "Rate limit reached for the stub."),
    500: ("server_error", None, "The stub had an error while processing your request."),
}


def error_message(status: int) -> str:
    """The sentence the stub sends with a failing status."""
    return _ERRORS[status][2] if status in _ERRORS else f"The stub answers {status}."


def error_json(answer: ModelAnswer) -> dict[str, Any]:
    """The body of a failed call."""
    status = answer.billed.status
    message = error_message(status)
    kind, code, _ = _ERRORS.get(status, ("error", None, ""))
    if answer.billed.provider == "anthropic":
        return {"type": "error", "error": {"type": "api_error", "message": message}}
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def pieces(text: str) -> list[str]:
    """A text as the tokens it is streamed in: each word with the white space after it."""
    return re.findall(r"\S+\s*", text)


def openai_usage(answer: ModelAnswer) -> dict[str, Any]:
    """The ``usage`` object of a chat completion: cached and reasoning tokens are parts of their whole."""
    billed = answer.billed
    return {
        "prompt_tokens": billed.input_tokens,
        "completion_tokens": billed.output_tokens,
        "total_tokens": billed.total_tokens,
        "prompt_tokens_details": {"cached_tokens": billed.cache_read_tokens},
        "completion_tokens_details": {"reasoning_tokens": billed.reasoning_tokens},
    }


def _openai_base(answer: ModelAnswer, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex[:12]}",
        "object": kind,
        "created": int(time.time()),
        "model": answer.billed.model,
        "system_fingerprint": "fp_stub",
    }


def _openai_tool_call(answer: ModelAnswer) -> dict[str, Any]:
    return {
        "id": f"call_{uuid.uuid4().hex[:12]}",
        "type": "function",
        "function": {"name": answer.tool, "arguments": answer.arguments},
    }


def _openai_finish(answer: ModelAnswer) -> str:
    if answer.cut:
        return "length"
    return "tool_calls" if answer.tool else "stop"


def openai_json(answer: ModelAnswer) -> dict[str, Any]:
    """A whole chat completion."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
    if answer.tool:
        message |= {"content": None, "tool_calls": [_openai_tool_call(answer)]}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _openai_finish(answer)}
    return {**_openai_base(answer, "chat.completion"), "choices": [choice], "usage": openai_usage(answer)}


def openai_frames(answer: ModelAnswer, *, include_usage: bool) -> Iterator[bytes]:
    """A chat completion as server-sent events; usage comes last, and only where it was asked for."""
    base = _openai_base(answer, "chat.completion.chunk")

    def frame(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        chunk = {**base, "choices": [choice]}
        if include_usage:
            chunk["usage"] = None
        return f"data: {json.dumps(chunk)}\n\n".encode()

    yield frame({"role": "assistant", "content": ""})
    if answer.tool:
        yield frame({"tool_calls": [{"index": 0, **_openai_tool_call(answer)}]})
    for piece in pieces(answer.text):
        yield frame({"content": piece})
    yield frame({}, _openai_finish(answer))
    if include_usage:
        yield f"data: {json.dumps({**base, 'choices': [], 'usage': openai_usage(answer)})}\n\n".encode()
    yield b"data: [DONE]\n\n"


def embeddings_json(answer: ModelAnswer) -> dict[str, Any]:
    """An embeddings answer of 8-dimensional vectors."""
    vector = [round(0.01 * step, 2) for step in range(1, 9)]
    read = answer.billed.input_tokens
    data = [{"object": "embedding", "index": i, "embedding": vector} for i in range(answer.embeddings)]
    usage = {"prompt_tokens": read, "total_tokens": read}
    return {"object": "list", "model": answer.billed.model, "data": data, "usage": usage}


def _anthropic_usage(answer: ModelAnswer) -> dict[str, int]:
    # Anthropic counts what came from its cache beside input_tokens, not within it.
    cached = answer.billed.cache_read_tokens
    return {
        "input_tokens": answer.billed.input_tokens - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": answer.billed.output_tokens,
    }


def _anthropic_message(answer: ModelAnswer) -> dict[str, Any]:
    return {
        "id": f"msg_{uuid.uuid4().hex[:12]}",
        "type": "message",
        "role": "assistant",
        "model": answer.billed.model,
    }


def _anthropic_stop(answer: ModelAnswer) -> str:
    if answer.cut:
        return "max_tokens"
    return "tool_use" if answer.tool else "end_turn"


def anthropic_json(answer: ModelAnswer) -> dict[str, Any]:
    """A whole message."""
    block: dict[str, Any] = {"type": "text", "text": answer.text}
    if answer.tool:
        block = {
            "type": "tool_use",
            "id": f"toolu_{uuid.uuid4().hex[:12]}",
            "name": answer.tool,
            "input": json.loads(answer.arguments),
        }
    return {
        **_anthropic_message(answer),
        "content": [block],
        "stop_reason": _anthropic_stop(answer),
        "stop_sequence": None,
        "usage": _anthropic_usage(answer),
    }


def anthropic_frames(answer: ModelAnswer) -> Iterator[bytes]:
    """A message as server-sent events.

    As the real API does it, ``message_start`` carries the input and one output token, and
    ``message_delta`` the whole number of output tokens: adding the two counts one too many.
    """

    def frame(name: str, data: dict[str, Any]) -> bytes:
        return f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n".encode()

    message = {**_anthropic_message(answer), "content": [], "stop_reason": None, "stop_sequence": None}
    message["usage"] = {**_anthropic_usage(answer), "output_tokens": 1}
    yield frame("message_start", {"message": message})
    if answer.tool:
        block = {"type": "tool_use", "id": f"toolu_{uuid.uuid4().hex[:12]}", "name": answer.tool, "input": {}}
        deltas = [{"type": "input_json_delta", "partial_json": answer.arguments}]
    else:
        block = {"type": "text", "text": ""}
        deltas = [{"type": "text_delta", "text": piece} for piece in pieces(answer.text)]
    yield frame("content_block_start", {"index": 0, "content_block": block})
    for delta in deltas:
        yield frame("content_block_delta", {"index": 0, "delta": delta})
    yield frame("content_block_stop", {"index": 0})
    stop = {"stop_reason": _anthropic_stop(answer), "stop_sequence": None}
    yield frame("message_delta", {"delta": stop, "usage": {"output_tokens": answer.billed.output_tokens}})
    yield frame("message_stop", {})
