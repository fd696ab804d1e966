"""Exchanges recorded on a real Flowise 3.1.4, and what may differ between two runs of the same one."""

from __future__ import annotations

import json
import re
from pathlib import Path

FIXTURES = Path(__file__).parent / "fixtures"

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.I)
_DATE = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z")
_LOOSE = {"timeMetadata", "estimatedTokenUsage", "description"}
"""their values are measurements, guesses or prose: only their keys are compared"""
_LEFT_OUT = {"basepath", "FLOWISE_CREDENTIAL_ID"}
"""where the recorded model lived, and its credential"""
_WORDING = {
    "Incorrect API key provided: sk-stub.": "Incorrect API key provided.",
    "Rate limit reached for stub in organization org-stub.": "Rate limit reached for the stub.",
    "stub 400": "Stub bad request.",
}


def load(name):
    """A recorded exchange: ``request.body``, ``response``, and ``billed`` where a model was asked."""
    return json.loads((FIXTURES / f"{name}.json").read_text())


def comparable(value, key=""):
    """A value without ids, times and timings, so that two runs of one exchange are equal."""
    if isinstance(value, dict):
        if key in _LOOSE:
            return sorted(value)
        if not key and set(value) == {"promptTokens", "completionTokens", "totalTokens"}:
            return sorted(value)  # the guess among the evaluation metrics
        return {k: comparable(v, k) for k, v in value.items() if k not in _LEFT_OUT}
    if isinstance(value, list):
        return [comparable(item, "" if key == "metrics" else key + "[]") for item in value]
    if isinstance(value, float):
        return round(value, 15)
    if not isinstance(value, str):
        return value
    if key in _LOOSE:
        return "<text>"
    if key in ("executionData", ""):
        try:
            inner = json.loads(value)
        except ValueError:
            inner = None
        if isinstance(inner, dict) and len(inner) == 1 and set(inner) <= _TIMINGS:
            return sorted(inner)
        if isinstance(inner, dict | list):
            return comparable(inner, "inner")
    for recorded, ours in _WORDING.items():
        value = value.replace(recorded, ours)
    return _DATE.sub("<date>", _UUID.sub("<id>", value))


_TIMINGS = {"chain", "prompt", "llm", "parser", "tool"}


def frames(text):
    """The events of a stream; fails unless every frame is written as Flowise writes it."""
    assert text.endswith("\n\n")
    listed = []
    for frame in text[:-2].split("\n\n"):
        head, _, data = frame.partition("\n")
        assert head == "message:"
        assert data.startswith("data:{")
        listed.append(json.loads(data.removeprefix("data:")))
    return listed
