"""What a prediction asks, out of the body of its request; and which bodies are not sent on.

Flowise takes a body that it cannot read for an empty question, and calls its models with it.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, NoReturn

from ..instrument.request_bodies import parts_of, read_body
from .refusals import Refusal

__all__ = ["fields_of"]

_JSON = "application/json"
_FORM = "application/x-www-form-urlencoded"
_PARTS = "multipart/form-data"

_KINDS = (_JSON, _FORM, _PARTS)

_VALUES, _FIELDS = 1_000_000, 1_000
"""A body of 16 MB that is nothing but small values takes memory and time by the hundredfold; one file in it,
or one long question, takes little of either."""

_AT_ONCE = 64 * 1024
"""Bytes that are read within the event loop; larger bodies in a thread."""


async def fields_of(body: bytes, content_type: str) -> dict[str, Any] | Refusal:
    """The fields of a body, by the media type it claims; or why it is refused."""
    kind, _, parameters = content_type.partition(";")
    kind = kind.strip().lower()
    if kind not in _KINDS:
        return _refusal(415, "unsupported", f"Say Content-Type: {_JSON}, {_FORM} or {_PARTS}.")
    charset = parameters.replace('"', "").lower().partition("charset=")[2].partition(";")[0].strip()
    if charset not in ("", "utf-8", "utf8"):
        return _refusal(415, "unsupported", "The request is not in UTF-8.")
    if len(body) <= _AT_ONCE:
        return _read(body, kind, content_type)
    return await asyncio.to_thread(_read, body, kind, content_type)


def _read(body: bytes, kind: str, content_type: str) -> dict[str, Any] | Refusal:
    if kind == _JSON:
        many = body.count(b",") + body.count(b"[") + body.count(b"{") > _VALUES
    elif kind == _FORM:
        many = body.count(b"&") > _FIELDS
    else:
        many = len(parts_of(body, content_type)) > _FIELDS
    if many:
        return _refusal(413, "too_large", "The request has too many parts.")
    if kind == _JSON:
        return _from_json(body)
    fields = read_body(body, content_type)
    return {} if fields is None else fields


def _from_json(body: bytes) -> dict[str, Any] | Refusal:
    try:
        value = json.loads(body.decode("utf-8-sig"), parse_constant=_no_number)
    except (ValueError, RecursionError):
        return _refusal(400, "bad_request", "The request is no JSON.")
    return (
        value if isinstance(value, dict) else _refusal(400, "bad_request", "The request is no JSON object.")
    )


def _no_number(text: str) -> NoReturn:
    """``NaN`` and ``Infinity`` are no JSON, though Python reads them."""
    raise ValueError(text)


def _refusal(status: int, code: str, message: str) -> Refusal:
    return Refusal(status, code, message, {})
