"""OpenAI's HTTP API as a proxy sees it: which calls are billed, and their usage out of the bytes that pass.

Sources: the API references of chat completions, completions, embeddings and responses. A stream of
(chat) completions tells its usage only where ``stream_options.include_usage`` asks for it, in a chunk of
its own before ``[DONE]``; every other chunk then says ``"usage": null``. :func:`asking_for_usage` adds the
question to a request, and :class:`CallReader` takes out of the stream again what came of it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Any, Final

from genops_ctx.core.records import CostSource, Exactness, Usage, least_exact

from .model_calls import Caller, read_call
from .shapes import items_of, label_of, object_of, text_of

__all__ = ["MAX_READ_BYTES", "CallReader", "CallRequest", "asking_for_usage", "openai_counts", "read_request"]

MAX_READ_BYTES: Final = 16 * 1024 * 1024
"""Of one answer that is no stream, or of one event: more than this passes, and is not read."""

_COMPLETIONS: Final = ("chat/completions", "completions")
_METERED: Final = (*_COMPLETIONS, "embeddings", "responses")
_OWN_TOOLS: Final = frozenset({"function", "custom"})
_USUAL_TIERS: Final = frozenset({"", "auto", "default"})

BUILT_IN_TOOLS: Final = "built_in_tools_billed_apart"
OTHER_TIER: Final = "service_tier_priced_apart"

_RESPONSE_ENDS: Final = ("response.completed", "response.incomplete", "response.failed")
_FRAME_END: Final = re.compile(rb"\r?\n\r?\n")
# Within a string it would have backslashes.
_NULL_USAGE: Final = re.compile(rb',\s*"usage"\s*:\s*null(?=\s*[,}])')


@dataclass(frozen=True, slots=True)
class CallRequest:
    """What a request says of the model call it makes."""

    model: str
    streams: bool
    completions: bool
    """a (chat) completion: its stream tells its usage only where it is asked for"""
    stream_options: Any
    """as they were sent; None for none"""
    embeddings: bool
    """it writes no tokens"""
    built_in_tools: bool
    """it offers tools of the provider's own, which are billed apart from tokens"""


def read_request(path: str, body: bytes) -> CallRequest | None:
    """The model call that a POST to ``path`` makes; None for what is not metered. Never raises."""
    kind = next((kind for kind in _METERED if path == kind or path.endswith(f"/{kind}")), None)
    if kind is None:
        return None
    asked = object_of(_json(body))
    tools = [text_of(object_of(tool).get("type")) for tool in items_of(asked.get("tools"))]
    return CallRequest(
        model=label_of(asked.get("model")),
        streams=asked.get("stream") is True,
        completions=kind in _COMPLETIONS,
        embeddings=kind == "embeddings",
        stream_options=asked.get("stream_options"),
        built_in_tools="web_search_options" in asked or any(tool not in _OWN_TOOLS for tool in tools),
    )


def asking_for_usage(request: CallRequest, body: bytes) -> bytes | None:
    """The body with ``stream_options.include_usage``; None where it is there, or has no place.

    The rest of the body keeps its bytes, unless it has stream options of its own.
    """
    own = request.stream_options
    if not (request.streams and request.completions):
        return None
    if own is None and b'"stream_options"' not in body:
        opening = body.index(b"{") + 1
        return body[:opening] + b'"stream_options":{"include_usage":true},' + body[opening:]
    if (own is not None and not isinstance(own, dict)) or object_of(own).get("include_usage") is True:
        return None
    asked = {**_json(body), "stream_options": {**(own or {}), "include_usage": True}}
    return json.dumps(asked, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


class CallReader:
    """Reads the usage of one model call out of its answer as it passes.

    ``strip`` takes the usage chunk and the ``"usage": null`` of the others out of a stream: the caller
    did not ask for them. What is not stripped passes byte for byte.
    """

    def __init__(
        self,
        request: CallRequest,
        provider: str,
        *,
        stream: bool,
        strip: bool = False,
        limit: int = MAX_READ_BYTES,
    ) -> None:
        self._request = request
        self._provider = provider
        self._stream = stream
        self._strip = strip
        self._limit = limit
        self._held = bytearray()
        self._scanned = 0
        self._blind = False
        self._usage: dict[str, Any] = {}
        self._model = ""
        self._tier = ""
        self.ended = False
        """the provider said that the stream is whole"""

    def feed(self, chunk: bytes) -> bytes:
        """Bytes in, the bytes to pass on out. Never raises for what a server sends."""
        if self._blind:
            return chunk
        self._held += chunk
        if not self._stream:
            if len(self._held) > self._limit:
                self._go_blind()
            return chunk
        passed = self._frames()
        if len(self._held) > self._limit:  # an event without an end
            passed += bytes(self._held)
            self._go_blind()
        return passed if self._strip else chunk

    def finish(self) -> bytes:
        """The answer is over: the last bytes to pass on."""
        if self._blind:
            return b""
        rest = bytes(self._held)
        self._held.clear()
        if not self._stream:
            self._object(_json(rest))
            return b""
        if rest:
            self._event(rest)
        return rest if self._strip else b""

    def usage(self) -> tuple[Usage | None, tuple[str, ...]]:
        """What the call used as far as it was told, and remarks; None where it was not."""
        caller = Caller("", self._provider, self._request.model, self._model)
        usage, flags = read_call(
            openai_counts(self._usage, self._request.embeddings), caller, source=CostSource.GATEWAY
        )
        if usage is None:
            return None, ()
        apart = [
            flag
            for flag, said in (
                (BUILT_IN_TOOLS, self._request.built_in_tools),
                (OTHER_TIER, self._tier not in _USUAL_TIERS),
            )
            if said
        ]
        if apart:
            exactness = least_exact((usage.exactness, Exactness.ESTIMATED))
            usage = replace(usage, exactness=exactness)
        return usage, (*flags, *apart)

    def _go_blind(self) -> None:
        self._blind = True
        self._held.clear()

    def _frames(self) -> bytes:
        """The events that are whole now, as they are passed on."""
        held = self._held
        end = max(held.rfind(b"\n\n", self._scanned) + 2, held.rfind(b"\n\r\n", self._scanned) + 3)
        if end < 3:
            self._scanned = max(0, len(held) - 2)  # an event's end may be cut
            return b""
        whole = bytes(held[:end])
        del held[:end]
        self._scanned = 0
        if self._strip and b'"usage"' in whole:
            whole = _NULL_USAGE.sub(b"", whole)
        if self._model and b'"usage"' not in whole and b"[DONE]" not in whole:
            return whole  # most of them
        passed = bytearray()
        start = 0
        for found in _FRAME_END.finditer(whole):
            passed += self._event(whole[start : found.end()])
            start = found.end()
        return bytes(passed)

    def _event(self, frame: bytes) -> bytes:
        """Read one event; what is passed on of it."""
        if b"[DONE]" in frame and frame.strip().endswith(b"[DONE]"):
            self.ended = True
        if b'"usage"' not in frame and (self._model or b'"model"' not in frame):
            return frame
        data = b"\n".join(line[5:].strip() for line in frame.splitlines() if line.startswith(b"data:"))
        event = _json(data)
        if not isinstance(event, dict):
            return frame
        response = event.get("response")
        self._object(response if isinstance(response, dict) else event)
        self.ended = self.ended or event.get("type") in _RESPONSE_ENDS
        asked_for = self._strip and event.get("usage") is not None and event.get("choices") == []
        return b"" if asked_for else frame

    def _object(self, answer: object) -> None:
        said = object_of(answer)
        self._usage = object_of(said.get("usage")) or self._usage
        self._model = label_of(said.get("model")) or self._model
        self._tier = label_of(said.get("service_tier")) or self._tier


def openai_counts(usage: dict[str, Any], embeddings: bool) -> dict[str, Any]:
    """OpenAI's usage in the shape that :func:`read_call` reads: input, output and their parts."""
    responses = "input_tokens" in usage
    inputs, outputs = ("input", "output") if responses else ("prompt", "completion")
    read = object_of(usage.get(f"{inputs}_tokens_details"))
    written = object_of(usage.get(f"{outputs}_tokens_details"))
    return {
        "input_tokens": usage.get(f"{inputs}_tokens"),
        "output_tokens": 0 if embeddings else usage.get(f"{outputs}_tokens"),
        "total_tokens": usage.get("total_tokens"),
        "input_token_details": {
            "cache_read": read.get("cached_tokens"),
            "cache_creation": read.get("cache_write_tokens"),
            "audio": read.get("audio_tokens"),
        },
        "output_token_details": {
            "reasoning": written.get("reasoning_tokens"),
            "audio": written.get("audio_tokens"),
        },
    }


def _json(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
