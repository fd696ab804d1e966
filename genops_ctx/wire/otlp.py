"""OTLP/HTTP traces, protobuf or JSON, as Flowise's ``phoenix`` exporter posts them: spans, as far as needed.

Read from Flowise 3.1.4's exports. Two scopes tell of one model call: the spans of
``@arizeai/openinference-instrumentation-langchain`` are LangChain's own, one for each call, exact, and
carry no session; those of ``phoenix-tracer-…`` are Flowise's, wrong for Agents, but below a root span
with ``session.id``, which is the chat id. See :mod:`.otlp_runs` for how they are put together.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from genops_ctx.core.errors import ConfigurationError
from genops_ctx.core.evidence import ModelCall
from genops_ctx.core.records import CostSource, Usage

from .model_calls import Caller, read_call
from .shapes import decoded, items_of, label_of, object_of, text_of, token_count

__all__ = ["Span", "model_call", "spans_of_json", "spans_of_protobuf"]

EXACT_SCOPE: Final = "@arizeai/openinference-instrumentation-langchain"
FLOWISE_SCOPE: Final = "phoenix-tracer-"
KEPT_TEXT: Final = 8_000
MOST_MESSAGES: Final = 500

_REFUSED: Final = re.compile(r"(?:\w*Error:\s*)?4[0-9]{2}\b")
_ID: Final = re.compile(r"[A-Za-z0-9+/=]{1,64}\Z")


@dataclass(frozen=True, slots=True)
class Span:
    """One span of a model call or of a flow. Times in nanoseconds since the epoch.

    Texts are held to be compared, for as long as a run lasts; they are never shown or stored.
    """

    exact: bool
    """of LangChain's instrumentation, not of Flowise's own"""
    trace: str
    id: str
    parent: str
    kind: str
    """``LLM``, ``CHAIN`` …"""
    start: int
    end: int
    session: str = ""
    read: tuple[str, ...] = field(default=(), repr=False)
    """the contents of its input messages"""
    wrote: str = field(default="", repr=False)
    call: ModelCall | None = None


def spans_of_protobuf(body: bytes) -> list[Span]:
    """The spans of an ``ExportTraceServiceRequest``.

    Raises ValueError for bytes that are none, :class:`ConfigurationError` without the extra ``receivers``.
    """
    try:
        from google.protobuf.json_format import MessageToDict
        from google.protobuf.message import DecodeError
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    except ModuleNotFoundError as missing:
        raise ConfigurationError(
            "receiving OTLP needs opentelemetry-proto: pip install 'genops_ctx[receivers]'"
        ) from missing
    try:
        return list(_spans(MessageToDict(ExportTraceServiceRequest.FromString(body))))
    except (DecodeError, RecursionError) as error:
        raise ValueError("no traces that can be read") from error


def spans_of_json(body: bytes) -> list[Span]:
    """The same of OTLP's JSON. Raises ValueError for bytes that are no JSON."""
    try:
        return list(_spans(json.loads(body)))
    except RecursionError as error:
        raise ValueError("no traces that can be read") from error


def _spans(request: object) -> Iterator[Span]:
    for resource in map(object_of, items_of(object_of(request).get("resourceSpans"))):
        for group in map(object_of, items_of(resource.get("scopeSpans"))):
            scope = text_of(object_of(group.get("scope")).get("name"))
            exact = scope == EXACT_SCOPE
            if exact or scope.startswith(FLOWISE_SCOPE):
                for raw in map(object_of, items_of(group.get("spans"))):
                    span = _span(raw, exact)
                    if span is not None:
                        yield span


def _span(raw: dict[str, Any], exact: bool) -> Span | None:
    trace, name = text_of(raw.get("traceId")), text_of(raw.get("spanId"))
    start, end = _nanos(raw.get("startTimeUnixNano")), _nanos(raw.get("endTimeUnixNano"))
    if not _ID.match(trace) or not _ID.match(name) or start is None or end is None or end < start:
        return None
    said = _attributes(raw)
    kind = label_of(said.get("openinference.span.kind"))
    if kind not in ("LLM", "CHAIN") or (exact and kind != "LLM"):
        return None
    model = kind == "LLM"
    return Span(
        exact=exact,
        trace=trace,
        id=name,
        parent=text_of(raw.get("parentSpanId")),
        kind=kind,
        start=start,
        end=end,
        session=label_of(said.get("session.id")),
        read=(_read_by_langchain(said) if exact else _read_by_flowise(said)) if model else (),
        wrote=text_of(said.get("llm.output_messages.0.message.content"))[:KEPT_TEXT],
        call=model_call(name, said, object_of(raw.get("status"))) if exact else None,
    )


def model_call(name: str, said: dict[str, Any], status: dict[str, Any]) -> ModelCall:
    """What LangChain's span says of its model call."""
    usage = _usage(said)
    failed = status.get("code") in (2, "STATUS_CODE_ERROR")
    refused = failed and _REFUSED.match(text_of(status.get("message"))[:200]) is not None
    return ModelCall(f"otlp:{name}", usage, billed=usage is not None or not refused)


def _usage(said: dict[str, Any]) -> Usage | None:
    settings = object_of(decoded(said.get("llm.invocation_parameters")))
    known = object_of(decoded(said.get("metadata")))
    output = object_of(decoded(said.get("output.value")))
    first = items_of(next(iter(items_of(output.get("generations"))), None))
    message = object_of(object_of(object_of(next(iter(first), None)).get("message")).get("kwargs"))
    answered = object_of(message.get("response_metadata"))
    caller = Caller(
        "",
        label_of(known.get("ls_provider")),
        configured=label_of(known.get("ls_model_name")) or label_of(said.get("llm.model_name")),
        answered=label_of(answered.get("model_name")) or label_of(answered.get("model")),
        streams=settings.get("stream") is not False,
    )
    counts = message.get("usage_metadata")
    if counts is None:
        counts = {
            "input_tokens": _count(said.get("llm.token_count.prompt")),
            "output_tokens": _count(said.get("llm.token_count.completion")),
        }
    usage, _ = read_call(counts, caller, billed=answered.get("usage"), source=CostSource.TRACED)
    return usage


def _read_by_langchain(said: dict[str, Any]) -> tuple[str, ...]:
    read = []
    for number in range(MOST_MESSAGES):
        stem = f"llm.input_messages.{number}.message."
        if f"{stem}role" not in said and f"{stem}content" not in said:
            break
        read.append(text_of(said.get(f"{stem}content"))[:KEPT_TEXT])
    return tuple(read)


def _read_by_flowise(said: dict[str, Any]) -> tuple[str, ...]:
    messages = items_of(decoded(said.get("input.value")))[:MOST_MESSAGES]
    return tuple(text_of(object_of(message).get("content"))[:KEPT_TEXT] for message in messages)


def _attributes(raw: dict[str, Any]) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for item in map(object_of, items_of(raw.get("attributes"))):
        value = object_of(item.get("value"))
        for kind in ("stringValue", "intValue", "boolValue"):
            if kind in value:
                said[text_of(item.get("key"))] = value[kind]
    return said


def _count(value: object) -> int | None:
    """JSON writes 64-bit numbers as strings."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    return token_count(value)


def _nanos(value: object) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    return value if type(value) is int and 0 < value < 2**63 else None
