"""How answers are kept: as JSON, or as they are where nothing leaves this process."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

__all__ = ["decode", "digest", "encode"]


def encode(value: object, *, private: bool) -> bytes | None:
    """Bytes of a value; None for one that cannot be kept. ``private``: they stay in this process's memory."""
    try:
        if _is_plain(value):
            return b"j" + json.dumps(value).encode()
        # What a pickle does when it is read is up to whoever can write to the store.
        return b"p" + pickle.dumps(value) if private else None
    except Exception:
        return None


def _is_plain(value: object) -> bool:
    """JSON gives it back as it is."""
    kind = type(value)
    if kind is list:
        return all(map(_is_plain, value))  # type: ignore[call-overload]
    if kind is dict:
        items = value.items()  # type: ignore[attr-defined]
        return all(type(key) is str and _is_plain(item) for key, item in items)
    return kind in (str, int, float, bool, type(None))


def decode(data: bytes, *, private: bool) -> tuple[Any] | None:
    """The value, in a tuple of one; None for bytes that are none of ours."""
    try:
        if data[:1] == b"j":
            return (json.loads(data[1:]),)
        if data[:1] == b"p" and private:
            return (pickle.loads(data[1:]),)  # noqa: S301 (written by this process, kept in its memory)
    except Exception:
        return None
    return None


def digest(secret: bytes, *parts: object) -> str:
    """A keyed hash of what an answer depends on: nothing of it can be read from a key.

    Raises :class:`TypeError` for what is not told apart by its value.
    """
    text = json.dumps([_canonical(part) for part in parts], separators=(",", ":"))
    return hashlib.blake2b(text.encode(), key=hashlib.sha256(secret).digest(), digest_size=24).hexdigest()


_BY_TEXT = (int, float, complex, Decimal, UUID, date, time, timedelta, type(None))


def _canonical(value: object) -> object:
    """One JSON value for each value: ``1``, ``True``, ``"1"`` and ``1.0`` are four."""
    if type(value) is str:
        return value
    kind = type(value).__qualname__
    if isinstance(value, Enum):
        return [kind, value.name]
    if isinstance(value, _BY_TEXT):
        return [kind, str(value)]
    if isinstance(value, bytes | bytearray):
        return [kind, bytes(value).hex()]
    if isinstance(value, list | tuple):
        return [kind, *map(_canonical, value)]
    if isinstance(value, set | frozenset):
        return [kind, *sorted(json.dumps(_canonical(item)) for item in value)]
    if isinstance(value, Mapping):
        pairs = [[_canonical(key), _canonical(item)] for key, item in value.items()]
        return [kind, *sorted(pairs, key=json.dumps)]
    if is_dataclass(value) and not isinstance(value, type):
        return [kind, *([field.name, _canonical(getattr(value, field.name))] for field in fields(value))]
    raise TypeError(f"a {kind} is not told apart by its value")
