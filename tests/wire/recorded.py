"""Exchanges recorded from Flowise 3.1.4, with what the model behind it billed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from genops_ctx.wire.answers import Problem, read_json_answer
from genops_ctx.wire.flows import FlowDefinition, parse_flow
from genops_ctx.wire.readings import Reading
from genops_ctx.wire.sse import EventDecoder
from genops_ctx.wire.usage import StreamReader, read_failure, read_usage

_HERE = Path(__file__).parent / "fixtures"
PREDICTIONS: dict[str, dict[str, Any]] = json.loads((_HERE / "predictions.json").read_text("utf-8"))[
    "exchanges"
]
FLOWS: dict[str, dict[str, Any]] = json.loads((_HERE / "flows.json").read_text("utf-8"))["flows"]
EXECUTIONS: dict[str, dict[str, Any]] = json.loads((_HERE / "executions.json").read_text("utf-8"))["pages"]


def body(name: str) -> bytes:
    exchange = PREDICTIONS[name]
    text = json.dumps(exchange["json"]) if "json" in exchange else exchange["text"]
    return text.encode()


def answer(name: str) -> dict[str, Any] | Problem:
    exchange = PREDICTIONS[name]
    headers = exchange["headers"]
    return read_json_answer(exchange["status"], headers["Content-Type"], headers, body(name))


def streamed(name: str, flow: FlowDefinition | None = None) -> StreamReader:
    decoder, reader = EventDecoder(), StreamReader(flow)
    for event in decoder.feed(body(name)):
        reader.feed(event)
    decoder.close()
    return reader


def read(name: str, flow: FlowDefinition | None = None) -> Reading:
    if "text/event-stream" in PREDICTIONS[name]["headers"].get("Content-Type", "text/event-stream"):
        return streamed(name, flow).finish()
    given = answer(name)
    return read_failure(given, flow) if isinstance(given, Problem) else read_usage(given, flow)


def definition(name: str) -> FlowDefinition:
    return parse_flow(FLOWS[name])


def booked(reading: Reading) -> list[list[object]]:
    return [[usage.model, usage.input_tokens, usage.output_tokens] for usage in reading.usages]
