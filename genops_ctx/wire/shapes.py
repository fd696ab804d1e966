"""Reading values that may be anything: a missing or wrong one gives an empty one, never an error."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, Final

__all__ = [
    "MAX_CALL_TOKENS",
    "decoded",
    "items_of",
    "label_of",
    "moment_of",
    "object_of",
    "text_of",
    "token_count",
]

MAX_CALL_TOKENS: Final = 100_000_000
"""More than any model reads or writes in one call; a larger count is nonsense."""

_LABEL_LENGTH: Final = 200


def object_of(value: object) -> dict[str, Any]:
    """``value`` where it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def items_of(value: object) -> list[Any]:
    """``value`` where it is a JSON array, else an empty one."""
    return value if isinstance(value, list) else []


def text_of(value: object) -> str:
    """``value`` where it is a string, else an empty one."""
    return value if isinstance(value, str) else ""


def label_of(value: object) -> str:
    """A short printable name out of ``value``: of a node, a provider or a model."""
    text = text_of(value).strip()[:_LABEL_LENGTH]
    if text.isprintable():
        return text
    return "".join(character for character in text if character.isprintable())


def moment_of(value: object) -> float | None:
    """Epoch seconds of a time as JSON tells it (ISO 8601), None where it is none."""
    try:
        return datetime.fromisoformat(text_of(value)).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def strings_in(value: object) -> list[str]:
    """All strings within ``value`` but names, however deep."""
    found, waiting = [], [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            found.append(item)
        elif isinstance(item, dict):
            waiting.extend(item.values())
        elif isinstance(item, list | tuple):
            waiting.extend(item)
    return found


def token_count(value: object) -> int | None:
    """``value`` where it is a whole number of tokens that a call can have used, else None."""
    return value if type(value) is int and 0 <= value <= MAX_CALL_TOKENS else None


def decoded(value: object) -> Any:
    """JSON inside JSON: Flowise keeps many objects as strings. None where it cannot be read."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None
