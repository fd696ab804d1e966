"""Names and attribution as compact JSON. Most calls have theirs in common with the one before."""

from __future__ import annotations

import json
from functools import lru_cache
from json.encoder import encode_basestring_ascii as quoted

__all__ = ["names_text", "object_text", "quoted"]

# json.dumps would make a new encoder each time: five times as slow.
_dump = json.JSONEncoder(separators=(",", ":")).encode


@lru_cache(maxsize=4096)
def object_text(items: tuple[tuple[str, str], ...]) -> str:
    """A JSON object: the same text for the same set, in whatever order it was given."""
    return "{" + ",".join([f"{quoted(key)}:{quoted(value)}" for key, value in sorted(items)]) + "}"


@lru_cache(maxsize=4096)
def names_text(names: tuple[str, ...]) -> str:
    """A JSON array."""
    return _dump(names)
