"""Edit one value inside a JSON text and leave every other byte of it as it was.

Flowise keeps definitions as JSON texts of whoever wrote them; parsing and writing one again would change
spaces, escapes and numbers that nobody asked to change.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Final

__all__ = ["insert", "remove", "replace_span", "span_of"]

_SPACE: Final = " \t\r\n"
_decoder = json.JSONDecoder()


def span_of(text: str, path: Sequence[str | int]) -> tuple[int, int] | None:
    """Where the value at a path of keys and indexes stands; None where there is none.

    Of a key that is there twice the last counts, as for every reader. Raises ValueError for a text that
    is no JSON.
    """
    start = _skip(text, 0)
    for step in path:
        found = _member(text, start, step) if isinstance(step, str) else _item(text, start, step)
        if found is None:
            return None
        start = found
    return start, _end(text, start)


def replace_span(text: str, span: tuple[int, int], new: str) -> str:
    return text[: span[0]] + new + text[span[1] :]


def insert(text: str, path: Sequence[str | int], key: str, value: str) -> str | None:
    """Put a new first member (``value`` is JSON) into the object at a path; None where it is none."""
    span = span_of(text, path)
    if span is None or text[span[0]] != "{":
        return None
    after = span[0] + 1
    comma = "" if text[_skip(text, after)] == "}" else ","
    return f"{text[:after]}{json.dumps(key)}:{value}{comma}{text[after:]}"


def remove(text: str, path: Sequence[str | int], key: str) -> str | None:
    """Take the first member away again that :func:`insert` put there; None where it is not the first."""
    span = span_of(text, path)
    if span is None or text[span[0]] != "{":
        return None
    after = span[0] + 1
    name = json.dumps(key) + ":"
    if not text.startswith(name, after):
        return None
    end = _end(text, after + len(name))
    return text[:after] + text[end + (text[end] == ",") :]


def _member(text: str, start: int, key: str) -> int | None:
    if text[start] != "{":
        return None
    found = None
    at = _skip(text, start + 1)
    while text[at] != "}":
        name, at = scanstring(text, at + 1)
        at = _skip(text, _skip(text, at) + 1)
        if name == key:
            found = at
        at = _skip(text, _end(text, at))
        if text[at] == ",":
            at = _skip(text, at + 1)
    return found


def _item(text: str, start: int, index: int) -> int | None:
    if text[start] != "[":
        return None
    at = _skip(text, start + 1)
    while text[at] != "]":
        if index == 0:
            return at
        index -= 1
        at = _skip(text, _end(text, at))
        if text[at] == ",":
            at = _skip(text, at + 1)
    return None


def _end(text: str, start: int) -> int:
    return _decoder.raw_decode(text, start)[1]


def _skip(text: str, at: int) -> int:
    while text[at : at + 1] in _SPACE and at < len(text):
        at += 1
    return at
