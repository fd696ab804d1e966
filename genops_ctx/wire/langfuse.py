"""Langfuse's ingestion API: what Flowise's ``langFuse`` exporter posts, made into evidence.

``POST /api/public/ingestion`` holds ``{"batch": [{"id", "type", "timestamp", "body"}, …]}``. A trace is
told in events: ``trace-create`` (with ``sessionId``, which is Flowise's chat id, and ``metadata``, which may
carry our own id of the attempt), ``span-create`` and ``generation-create``, ``span-update`` and
``generation-update`` with ``endTime``, and a last ``trace-create`` with ``output``. They come in any number
of requests, in any order, repeated where an answer was lost. Read from Flowise 3.1.4's exports beside the
provider's bill:

- Classic flows: ``usage`` of a generation is ``{"input", "output", "total", "input_cache_read",
  "output_reasoning", …}``; every part named ``input_…`` was subtracted from ``input``, every ``output_…``
  from ``output``. Exact.
- AgentFlow V2: ``{"promptTokens", "completionTokens", "totalTokens"}``, without cached parts. Of an Agent
  node it is the last call's, while the total is of all: where they disagree nothing is believed.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

from genops_ctx.core.evidence import Evidence, ModelCall, Shown
from genops_ctx.core.records import CostSource, Exactness, Usage

from .model_calls import Caller, read_call
from .shapes import items_of, label_of, object_of, text_of, token_count

__all__ = ["REQUEST_KEY", "LangfuseTraces", "langfuse_override", "names_request", "without_texts"]

REQUEST_KEY: Final = "genops_request"
"""The key of our own id in a trace's metadata."""

FLUSH_MILLISECONDS: Final = 500
"""How long Flowise waits for more events before it sends them; its own usual is 10 seconds."""

ROUTE: Final = "langfuse"
KEPT_TRACES: Final = 10_000
KEPT_OBSERVATIONS: Final = 5_000
KEPT_IN_ALL: Final = 300_000
KEPT_COUNTS: Final = 50
"""Parts of one call's usage; models have a handful."""
_REFUSED: Final = re.compile(r"(?:\w*Error:\s*)?4[0-9]{2}\b")
_ID: Final = re.compile(r"[!-:<-~]{1,300}")  # no spaces, no semicolon
_ID_LENGTH: Final = 300


def langfuse_override(override: object, request: str) -> dict[str, Any]:
    """The ``overrideConfig`` that has a flow's Langfuse exporter carry our id; a copy, nothing lost."""
    given = dict(object_of(override))
    analytics = dict(object_of(given.get("analytics")))
    own = dict(object_of(analytics.get("langFuse")))
    own["metadata"] = {**object_of(own.get("metadata")), REQUEST_KEY: request}
    own.setdefault("flushInterval", FLUSH_MILLISECONDS)
    analytics["langFuse"] = own
    given["analytics"] = analytics
    return given


def names_request(override: object) -> bool:
    """Whether an ``overrideConfig`` carries an id such as ours already: another call would be charged."""
    own = object_of(object_of(object_of(override).get("analytics")).get("langFuse"))
    return REQUEST_KEY in object_of(own.get("metadata"))


def without_texts(payload: object) -> dict[str, Any]:
    """A batch as far as :class:`LangfuseTraces` reads it: ids, times, models and counts, and no text."""
    batch = []
    for event in map(object_of, items_of(object_of(payload).get("batch"))):
        kind, body = text_of(event.get("type")), object_of(event.get("body"))
        kept: dict[str, Any] = {name: _id(body.get(name)) for name in _IDS if _id(body.get(name))}
        if kind == "trace-create":
            request = _request(body)
            kept |= {"metadata": {REQUEST_KEY: request}} if request else {}
            kept |= {"output": None} if "output" in body else {}
            kept |= {"timestamp": body["timestamp"]} if _seconds(body.get("timestamp")) is not None else {}
        elif kind in _OBSERVATIONS:
            kept |= {"endTime": True} if body.get("endTime") else {}
            if kind.startswith("generation"):
                kept |= {name: label_of(body[name]) for name in ("model", "name") if name in body}
                usage = object_of(body.get("usageDetails")) or object_of(body.get("usage"))
                kept |= {"usage": _counts(usage)} if usage else {}
                kept |= {"level": "ERROR", "statusMessage": "400"} if _is_refusal(body) else {}
        else:
            continue
        batch.append({"type": kind, "body": kept})
    return {"batch": batch}


_IDS: Final = ("id", "traceId", "sessionId")
_OBSERVATIONS: Final = ("span-create", "span-update", "generation-create", "generation-update")


@dataclass(slots=True)
class _Generation:
    configured: str = ""
    answered: str = ""
    name: str = ""
    usage: dict[str, Any] | None = None
    ended: bool = False
    refused: bool = False


@dataclass(slots=True)
class _Trace:
    request: str = ""
    session: str = ""
    started_at: float | None = None
    answered: bool = False
    known: set[str] = field(default_factory=set)
    """of which there was anything"""
    begun: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)
    generations: dict[str, _Generation] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Every span that began has ended, and the other way round, so that no part of it is missing."""
        return self.answered and bool(self.begun) and self.begun == self.ended


class LangfuseTraces:
    """Traces as they come in, piece by piece. Not locked: one thread at a time feeds it."""

    def __init__(self, kept: int = KEPT_TRACES) -> None:
        self._kept = kept
        self._traces: OrderedDict[str, _Trace] = OrderedDict()
        self._observations = 0

    def feed(self, payload: object) -> list[Shown]:
        """What a batch adds: for each trace it touches, all that is known of it now.

        Never raises for what a client sends.
        """
        touched: dict[str, None] = {}
        for event in map(object_of, items_of(object_of(payload).get("batch"))):
            name = self._event(text_of(event.get("type")), object_of(event.get("body")))
            if name:
                touched[name] = None
        return [_shown(name, self._traces[name]) for name in touched if name in self._traces]

    def _event(self, kind: str, body: dict[str, Any]) -> str:
        if kind == "trace-create":
            name = _id(body.get("id"))
            if name:
                _note_trace(self._trace(name), body)
            return name
        what, _, step = kind.partition("-")
        name, observation = _id(body.get("traceId")), _id(body.get("id"))
        if what not in ("span", "generation") or not name or not observation:
            return ""
        trace = self._trace(name)
        if not self._room(trace, observation):
            return ""
        if what == "generation":
            _note_generation(trace.generations.setdefault(observation, _Generation()), body)
        if step == "create":
            trace.begun.add(observation)
        elif step == "update" and body.get("endTime"):
            trace.ended.add(observation)
        return name

    def _room(self, trace: _Trace, observation: str) -> bool:
        """Bound what a client can have us keep; the oldest traces go first."""
        if observation in trace.known:
            return True
        if len(trace.known) >= KEPT_OBSERVATIONS:
            return False
        trace.known.add(observation)
        self._observations += 1
        while self._observations > KEPT_IN_ALL and len(self._traces) > 1:
            self._drop_oldest()
        return True

    def _drop_oldest(self) -> None:
        _, oldest = self._traces.popitem(last=False)
        self._observations -= len(oldest.known)

    def _trace(self, name: str) -> _Trace:
        trace = self._traces.get(name)
        if trace is None:
            trace = self._traces[name] = _Trace()
            if len(self._traces) > self._kept:
                self._drop_oldest()
        return trace


def _note_trace(trace: _Trace, body: dict[str, Any]) -> None:
    # Of what contradicts itself the greatest counts, so that the order does not matter.
    trace.request = max(trace.request, _request(body))
    trace.session = max(trace.session, _id(body.get("sessionId")))
    trace.answered = trace.answered or "output" in body
    at = _seconds(body.get("timestamp"))
    if at is not None and (trace.started_at is None or at < trace.started_at):
        trace.started_at = at


def _note_generation(generation: _Generation, body: dict[str, Any]) -> None:
    if body.get("endTime"):
        generation.ended = True
        generation.answered = max(generation.answered, label_of(body.get("model")))
        usage = _counts(object_of(body.get("usageDetails")) or object_of(body.get("usage")))
        generation.usage = max(generation.usage or {}, usage, key=_size) or None
        generation.refused = generation.refused or _is_refusal(body)
    else:
        generation.name = max(generation.name, label_of(body.get("name")))
        generation.configured = max(generation.configured, label_of(body.get("model")))


def _request(body: dict[str, Any]) -> str:
    """Our own id in a trace's metadata; empty where there is none."""
    request = text_of(object_of(body.get("metadata")).get(REQUEST_KEY))
    return request if len(request) <= _ID_LENGTH and request.isprintable() else ""


def _is_refusal(body: dict[str, Any]) -> bool:
    """Whether the provider refused the call."""
    return (
        body.get("level") == "ERROR" and _REFUSED.match(text_of(body.get("statusMessage"))[:200]) is not None
    )


def _size(usage: dict[str, Any]) -> tuple[bool, int, str]:
    """By which of two usages of one call the greater is known."""
    counts = [value for value in usage.values() if type(value) is int]
    return bool(usage), sum(counts), repr(sorted(usage.items(), key=lambda item: item[0]))


def _counts(usage: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a usage: its counts, and of what is none only that it was there."""
    if len(usage) > KEPT_COUNTS or any(len(key) > _ID_LENGTH for key in usage):
        return {"input": "unreadable"}
    return {
        key: value if type(value) is int or value is None else "unreadable" for key, value in usage.items()
    }


def _shown(name: str, trace: _Trace) -> Shown:
    calls = tuple(_calls(name, trace))
    sessions = (trace.session,) if trace.session else ()
    return Shown(
        Evidence(f"{ROUTE}:{name}", calls, trace.complete), trace.request, sessions, trace.started_at
    )


def _calls(name: str, trace: _Trace) -> Iterator[ModelCall]:
    for observation, generation in trace.generations.items():
        usage = _usage(generation) if generation.ended else None
        yield ModelCall(f"{ROUTE}:{observation}", usage, billed=usage is not None or not generation.refused)


def _usage(generation: _Generation) -> Usage | None:
    told = generation.usage or {}
    caller = Caller("", generation.name, configured=generation.configured, answered=generation.answered)
    if "promptTokens" in told:
        return _agent_usage(told, caller)
    inputs, cached, fine = _whole(told, "input")
    outputs, reasoned, good = _whole(told, "output")
    if not fine or not good or told.get("input") is None or told.get("output") is None:
        return None
    counts = {
        "input_tokens": inputs,
        "output_tokens": outputs,
        "total_tokens": told.get("total"),
        "input_token_details": cached,
        "output_token_details": reasoned,
    }
    usage, _ = read_call(counts, caller, source=CostSource.TRACED)
    return usage


def _agent_usage(told: dict[str, Any], caller: Caller) -> Usage | None:
    """Without cached parts: cached input is counted as other input, which costs no less."""
    inputs, outputs = token_count(told.get("promptTokens")), token_count(told.get("completionTokens"))
    if inputs is None or outputs is None or told.get("totalTokens") != inputs + outputs:
        return None
    usage, _ = read_call({"input_tokens": inputs, "output_tokens": outputs}, caller, source=CostSource.TRACED)
    if usage is None or usage.exactness is not Exactness.EXACT:
        return usage
    return replace(usage, exactness=Exactness.UPPER)


def _whole(told: dict[str, Any], side: str) -> tuple[int, dict[str, int], bool]:
    """The count with the parts that were subtracted from it, the parts, and whether all can be read."""
    total = token_count(told.get(side))
    parts: dict[str, int] = {}
    for key, value in told.items():
        if key.startswith(f"{side}_") and value is not None:
            count = token_count(value)
            if count is None:
                return 0, {}, False
            parts[key.removeprefix(f"{side}_")] = count
    return (0 if total is None else total + sum(parts.values())), parts, total is not None


def _id(value: object) -> str:
    text = text_of(value)
    return text if _ID.fullmatch(text) else ""


def _seconds(value: object) -> float | None:
    try:
        return datetime.fromisoformat(text_of(value)).timestamp()
    except (ValueError, OverflowError):
        return None
