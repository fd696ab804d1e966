"""What a prediction asks, out of the body of its request; and which bodies are not sent on.

Flowise takes a body that it cannot read for an empty question, and calls its models with it.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any, NoReturn
from urllib.parse import parse_qsl

from ..instrument.request_bodies import parts_of, read_body
from ..wire.langfuse import names_request
from .refusals import Refusal

__all__ = ["fields_of", "has_too_many_values"]

_JSON = "application/json"
_FORM = "application/x-www-form-urlencoded"
_PARTS = "multipart/form-data"

_EVALUATION = frozenset({"evaluation", "evaluationRunId"})
"""Flowise answers with whatever calls of models were noted under a run's id, another request's too, and
exports nothing of a run that is an evaluation: a caller who chooses them chooses what it is charged."""

_KINDS = (_JSON, _FORM, _PARTS)

_VALUES, _FIELDS = 1_000_000, 1_000
"""A body of 16 MB that is nothing but small values takes memory and time by the hundredfold; one file in it,
or one long question, takes little of either."""

_HEAD_BYTES = 4096
"""The head of a part."""

_VALUE = r'(?:"(?:[^"\\\r\n]|\\[^\r\n])*"|[^\s";\\]+)'
_CHARSET = re.compile(r'(?:^|;)\s*charset="?utf-?8"?\s*(?:;|$)')
_BOUNDARY = re.compile(r"""(?:^|;)\s*boundary="?[0-9a-z'()+_,./:=?-]{1,70}"?\s*(?:;|$)""")
_NAME = r'name=(?:"(?P<quoted>[^"\\\r\n]*)"|(?P<token>[^\s";\\]+))'
_DISPOSITION = re.compile(rf"form-data\s*;\s*{_NAME}(?P<file>(?:\s*;\s*filename\*?={_VALUE})*)\s*", re.I)
_TYPE = re.compile(rf"[\w.+*-]+/[\w.+*-]+(?P<parameters>(?:\s*;\s*[\w-]+={_VALUE})*)\s*;?\s*", re.A)

_AT_ONCE = 64 * 1024
"""Bytes that are read within the event loop; larger bodies in a thread."""


async def fields_of(body: bytes, content_type: str) -> dict[str, Any] | Refusal:
    """The fields of a body, by the media type it claims; or why it is refused."""
    kind, _, parameters = content_type.partition(";")
    kind = kind.strip().lower()
    if kind not in _KINDS:
        return _refusal(415, "unsupported", f"Say Content-Type: {_JSON}, {_FORM} or {_PARTS}.")
    if not _once(parameters.lower(), "charset", _CHARSET):
        return _refusal(415, "unsupported", "The request is not in UTF-8.")
    if len(body) <= _AT_ONCE:
        fields = _read(body, kind, content_type)
    else:
        fields = await asyncio.to_thread(_read, body, kind, content_type)
    if isinstance(fields, Refusal):
        return fields
    if names_request(fields.get("overrideConfig")) or not _EVALUATION.isdisjoint(fields):
        return _refusal(400, "bad_request", "The request claims to be another one.")
    return fields


def has_too_many_values(body: bytes) -> bool:
    """Whether JSON may have so many that making them all would keep a worker from everything else."""
    return body.count(b",") + body.count(b"[") + body.count(b"{") > _VALUES


def _read(body: bytes, kind: str, content_type: str) -> dict[str, Any] | Refusal:
    if kind == _JSON:
        many = has_too_many_values(body)
    elif kind == _FORM:
        many = body.count(b"&") > _FIELDS
    else:
        parameters = content_type.partition(";")[2].lower()
        if "boundary" not in parameters or not _once(parameters, "boundary", _BOUNDARY):
            return _ambiguous()
        parts = parts_of(body, content_type)
        many = len(parts) > _FIELDS
    if many:
        return _refusal(413, "too_large", "The request has too many parts.")
    if kind == _JSON:
        return _from_json(body)
    if kind == _FORM:
        names = [name for name, _ in parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True)]
    else:
        named = [_field_of(part) for part in parts]
        if None in named:
            return _ambiguous()
        names = [name for name in named if name]
    # Flowise makes lists of names given twice, and objects of names in brackets.
    if len({*names}) < len(names) or any("[" in name for name in names):
        return _ambiguous()
    fields = read_body(body, content_type)
    return {} if fields is None else fields


def _once(parameters: str, name: str, form: re.Pattern[str]) -> bool:
    """Whether a parameter of a media type is missing, or there once, in a form that is read one way only."""
    return name not in parameters or (parameters.count(name) == 1 and form.search(parameters) is not None)


def _field_of(part: bytes) -> str | None:
    """The field that a part of a form is, empty for a file; None for a head that is read in two ways."""
    head, end, _ = part.partition(b"\r\n\r\n")
    if not (part.startswith(b"\r\n") and end) or len(head) > _HEAD_BYTES:
        return None
    told: dict[str, str] = {}
    for line in head[2:].decode("latin-1").split("\r\n"):
        name, colon, value = line.partition(":")
        if not colon or not re.fullmatch(r"[A-Za-z0-9-]+", name) or name.lower() in told:
            return None
        told[name.lower()] = value.strip(" \t")
    said = _DISPOSITION.fullmatch(told.get("content-disposition", ""))
    kind = told.get("content-type", "text/plain").lower()
    typed = _TYPE.fullmatch(kind)
    if said is None or typed is None:
        return None
    if said["file"] or kind.startswith("application/octet-stream"):
        return ""
    parameters = typed["parameters"]
    if "name" in parameters or not _once(parameters, "charset", _CHARSET):
        return None
    return said["quoted"] or said["token"]


def _ambiguous() -> Refusal:
    return _refusal(400, "bad_request", "The form could be read in two ways; send JSON, or simple fields.")


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
