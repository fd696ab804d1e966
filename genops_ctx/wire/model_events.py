"""Merges the events of streamed model calls into the usage of each call.

- OpenAI's (chat) completions: chunks of one id. Usage comes in the last one, without choices, where
  ``stream_options={"include_usage": True}`` asked for it; some servers repeat it as it grows.
- OpenAI's responses: ``response.…`` events; the last one has the whole response.
- Anthropic's messages: ``message_start`` has the input, ``message_delta`` the counts so far, which replace
  those before.

A stream that ends before its usage leaves a :class:`Partial`: what was told, and the text that came.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from genops_ctx.core.records import Usage

from .model_results import field_of, fields_of, usage_of_message, usage_of_openai, usage_of_result
from .shapes import label_of, token_count

__all__ = ["ModelEvents", "Partial"]

_CHUNKS: Final = ("chat.completion.chunk", "text_completion")
_RESPONSE_ENDS: Final = ("response.completed", "response.incomplete", "response.failed")


@dataclass(slots=True)
class Partial:
    """A streamed call whose usage is not whole yet."""

    provider: str
    model: str = ""
    told: dict[str, Any] = field(default_factory=dict)
    """the counts so far, as the provider names them"""
    finished: bool = False
    usage: Usage | None = None
    """once it is whole"""
    texts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """What the model wrote, as far as it came."""
        return "".join(self.texts)

    @property
    def input_told(self) -> Usage | None:
        """What is known before the end: Anthropic's input, with the output counted so far."""
        return usage_of_message(self.told, self.model) if self.provider == "anthropic" else None


class ModelEvents:
    """Everything that one stream yields, in order. Values of other shapes are passed over."""

    def __init__(self) -> None:
        self._calls: dict[str, Partial] = {}
        self._whole: list[Usage] = []
        self._message: Partial | None = None

    def feed(self, event: object) -> None:
        """Read one event, chunk, or whole result. Never raises."""
        kind = field_of(event, "type")
        if field_of(event, "object") in _CHUNKS and self._is_chunk(event):
            self._chunk(event)
        elif isinstance(kind, str) and kind.startswith("response."):
            self._response(kind, event)
        elif isinstance(kind, str) and kind.startswith(("message_", "content_block_delta")):
            self._anthropic(kind, event)
        else:
            usage = usage_of_result(event)
            if usage is not None:
                self._whole.append(usage)

    @property
    def usages(self) -> list[Usage]:
        """Of the calls whose usage came whole."""
        return [*self._whole, *(call.usage for call in self._calls.values() if call.usage is not None)]

    @property
    def partials(self) -> list[Partial]:
        """The calls whose usage did not."""
        return [call for call in self._calls.values() if call.usage is None]

    def _is_chunk(self, event: object) -> bool:
        # A whole completion of the older API is called as its chunks are, and tells its usage.
        return field_of(event, "object") == _CHUNKS[0] or field_of(event, "usage") is None

    def _call(self, key: object, provider: str, event: object) -> Partial:
        call = self._calls.setdefault(str(key), Partial(provider))
        call.model = label_of(field_of(event, "model")) or call.model
        return call

    def _chunk(self, event: object) -> None:
        call = self._call(field_of(event, "id"), "openai", event)
        choices = field_of(event, "choices") or ()
        for choice in choices:
            call.finished = call.finished or field_of(choice, "finish_reason") is not None
            call.texts += _texts(choice)
        usage = fields_of(field_of(event, "usage"))
        if usage and (call.finished or not choices):
            call.usage = usage_of_openai(event, usage)

    def _response(self, kind: str, event: object) -> None:
        response = field_of(event, "response")
        if response is None:
            open_calls = [call for call in self._calls.values() if call.usage is None]
            text = field_of(event, "delta")
            if open_calls and isinstance(text, str):
                open_calls[-1].texts.append(text)
            return
        call = self._call(field_of(response, "id"), "openai", response)
        usage = fields_of(field_of(response, "usage"))
        if kind in _RESPONSE_ENDS and usage:
            call.usage = usage_of_openai(response, usage)

    def _anthropic(self, kind: str, event: object) -> None:
        if kind == "message_start":
            message = field_of(event, "message")
            self._message = self._call(f"message {len(self._calls)}", "anthropic", message)
            self._message.told = dict(fields_of(field_of(message, "usage")))
            return
        call = self._message
        if call is None:
            return
        if kind == "content_block_delta":
            call.texts += _texts(event)
        elif kind == "message_delta":
            counts = fields_of(field_of(event, "usage"))
            call.told.update({name: value for name, value in counts.items() if value is not None})
            if token_count(counts.get("output_tokens")) is not None:
                call.usage = usage_of_message(call.told, call.model)


def _texts(part: object) -> Iterator[str]:
    """What the model wrote in a choice or delta: words, thoughts, arguments of tools."""
    delta = field_of(part, "delta")
    for holder in (part, delta):
        for name in ("text", "content", "reasoning_content", "thinking", "partial_json", "refusal"):
            text = field_of(holder, name)
            if isinstance(text, str):
                yield text
    for call in field_of(delta, "tool_calls") or ():
        arguments = field_of(field_of(call, "function"), "arguments")
        if isinstance(arguments, str):
            yield arguments
