"""The entries of the evidence log as text, and back. They hold ids, times, models and counts, and no text of
a prompt or an answer: what spans read and wrote is there as keyed digests, which can only be compared."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final

from ..core.evidence import Evidence, ModelCall, Shown
from ..core.records import CostSource, Exactness, Usage
from ..wire.otlp import Span

__all__ = [
    "CORRECTED",
    "ENDED",
    "EXPECTED",
    "INTERRUPTED",
    "LANGFUSE",
    "OTLP",
    "SHOWN",
    "Ended",
    "Expected",
    "compact",
    "corrected_of",
    "corrected_text",
    "ended_of",
    "ended_text",
    "expected_of",
    "expected_text",
    "shown_of",
    "shown_text",
    "spans_of",
    "spans_text",
]

EXPECTED: Final = "expected"
ENDED: Final = "ended"
SHOWN: Final = "shown"
LANGFUSE: Final = "langfuse"
OTLP: Final = "otlp"
INTERRUPTED: Final = "interrupted"
CORRECTED: Final = "corrected"

_USAGE: Final = {item.name: item.default for item in fields(Usage)}


@dataclass(frozen=True, slots=True)
class Expected:
    """A call is about to be sent, of which a route may show the model calls."""

    hold: str
    sessions: tuple[str, ...]
    started_at: float
    flow: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """A call that was expected has ended."""

    hold: str
    sessions: tuple[str, ...]
    """further ids of Flowise's"""
    answer: str
    """Flowise's id of the answer; empty where none came"""
    ended_at: float
    sent: bool
    open: bool
    """evidence may correct what was booked"""


def compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def expected_text(one: Expected) -> str:
    return compact(asdict(one))


def expected_of(text: str) -> Expected:
    said = json.loads(text)
    return Expected(**{**said, "sessions": tuple(said["sessions"])})


def ended_text(one: Ended) -> str:
    return compact(asdict(one))


def ended_of(text: str) -> Ended:
    said = json.loads(text)
    return Ended(**{**said, "sessions": tuple(said["sessions"])})


def corrected_text(hold: str, whole: bool) -> str:
    return compact([hold, whole])


def corrected_of(text: str) -> tuple[str, bool]:
    hold, whole = json.loads(text)
    return hold, whole


def _usage_object(usage: Usage | None) -> dict[str, Any] | None:
    if usage is None:
        return None
    return {name: value for name, default in _USAGE.items() if (value := getattr(usage, name)) != default}


def _usage_of(said: dict[str, Any] | None) -> Usage | None:
    if said is None:
        return None
    source = CostSource(said.pop("source", CostSource.REPORTED))
    exactness = Exactness(said.pop("exactness", Exactness.EXACT))
    return Usage(**said, source=source, exactness=exactness)


def _call_object(call: ModelCall) -> list[Any]:
    said = [call.id, _usage_object(call.usage), call.billed]
    return said if call.ended else [*said, False]


def _call_of(said: list[Any]) -> ModelCall:
    return ModelCall(said[0], _usage_of(said[1]), *said[2:4])


def shown_text(shown: Shown) -> str:
    evidence = shown.evidence
    return compact(
        {
            "id": evidence.id,
            "calls": [_call_object(call) for call in evidence.calls],
            "complete": evidence.complete,
            "request": shown.request,
            "sessions": shown.sessions,
            "started_at": shown.started_at,
            "answer": shown.answer,
            "flow": shown.flow,
        }
    )


def shown_of(text: str) -> Shown:
    said = json.loads(text)
    calls = tuple(map(_call_of, said.pop("calls")))
    evidence = Evidence(said.pop("id"), calls, said.pop("complete"))
    return Shown(evidence, **{**said, "sessions": tuple(said["sessions"])})


def spans_text(spans: list[Span], secret: str) -> str:
    """``secret`` keys the digests: who shares the log must share it too."""
    return compact([_span_object(_without_texts(span, secret.encode()[:64])) for span in spans])


def spans_of(text: str) -> list[Span]:
    return [_span_of(said) for said in json.loads(text)]


def _without_texts(span: Span, secret: bytes) -> Span:
    def digest(text: str) -> str:
        text = text.strip()
        if not text:
            return ""
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16, key=secret).hexdigest()

    return replace(span, read=tuple(map(digest, span.read)), wrote=digest(span.wrote))


def _span_object(span: Span) -> dict[str, Any]:
    names = ("exact", "trace", "id", "parent", "kind", "start", "end", "session", "read", "wrote")
    said = {name: getattr(span, name) for name in names}
    return {**said, "call": None if span.call is None else _call_object(span.call)}


def _span_of(said: dict[str, Any]) -> Span:
    call = said.pop("call")
    read = tuple(said.pop("read"))
    return Span(**said, read=read, call=None if call is None else _call_of(call))
