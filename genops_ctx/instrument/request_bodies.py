"""What a prediction asks, out of the body that someone else's client is about to send.

A body is looked at, never consumed: what comes from a file, a generator or a stream is left alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from email import message_from_bytes, message_from_string
from email.message import Message
from typing import Any
from urllib.parse import parse_qsl

from ..providers.estimates import Texts, uploaded_texts
from ..providers.prediction import Asked
from ..providers.prediction_story import has_audio

__all__ = ["MOST_BYTES", "FormFields", "asked_of", "files_of", "parts_of", "read_body"]

MOST_BYTES = 16 * 2**20
"""A larger body is not looked at."""
_HEAD_BYTES = 16 * 1024


class FormFields(dict[str, Any]):
    """The fields of a form: it may hold files too, so it is sent on as it is."""


def read_body(body: object, content_type: str | bytes) -> dict[str, Any] | None:
    """The fields of a request's body; None where they cannot be known without consuming it.

    JSON, form and multipart bodies are known as bytes or text; a mapping is taken as it is. ``requests``
    sends headers in bytes too.
    """
    if isinstance(body, dict):
        return body
    if body is None or body == b"" or body == "":
        return {}
    if isinstance(body, str):
        body = body.encode("utf-8", "replace")
    if isinstance(body, memoryview | bytearray):
        body = bytes(body)
    if not isinstance(body, bytes) or len(body) > MOST_BYTES:
        return None
    if isinstance(content_type, bytes):
        content_type = content_type.decode("latin-1")
    kind = content_type.partition(";")[0].strip().lower()
    try:
        if kind == "application/x-www-form-urlencoded":
            return FormFields(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))
        if kind == "multipart/form-data":
            return _multipart(body, content_type)
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}  # Flowise cannot read it either
    return value if isinstance(value, dict) else {}


def parts_of(body: bytes, content_type: str) -> list[bytes]:
    """The parts of a multipart body, heads and all; those within them are not looked at, as Flowise's own
    reader does not either."""
    boundary = message_from_string(f"Content-Type: {content_type}\n\n").get_boundary("")
    if not boundary:
        return []
    parts = (b"\r\n" + body).split(b"\r\n--" + boundary.encode("latin-1", "replace"))[1:]
    ends = (at for at, part in enumerate(parts) if part.startswith(b"--"))
    return parts[: next(ends, len(parts))]


def _multipart(body: bytes, content_type: str) -> dict[str, Any]:
    fields = FormFields()
    uploads = []
    for name, head, content in _named_parts(body, content_type):
        if _is_file(head):
            uploads.append({"mime": head.get_content_type()})
        else:
            fields[name] = _value(content.decode("utf-8", "replace"))
    if uploads:
        # With files, Flowise takes all fields for overrides, and no others.
        fields["overrideConfig"] = dict(fields)
        fields["uploads"] = uploads
    return fields


def _is_file(head: Message) -> bool:
    """As Flowise's reader sees it."""
    return head.get_filename() is not None or head.get_content_type() == "application/octet-stream"


def _named_parts(body: bytes, content_type: str) -> Iterator[tuple[str, Message, bytes]]:
    """Name, head and content of each part."""
    for part in parts_of(body, content_type):
        head, _, content = part.partition(b"\r\n\r\n")
        if len(head) > _HEAD_BYTES:
            raise ValueError("the head of a part is too long")
        told = message_from_bytes(head.lstrip() + b"\r\n\r\n")
        name = told.get_param("name", header="content-disposition")
        if isinstance(name, str):
            yield name, told, content


def files_of(body: bytes, content_type: str) -> tuple[str, ...] | None:
    """The texts of the files in a multipart body; None where one is no text (PDF, a picture …)."""
    if content_type.partition(";")[0].strip().lower() != "multipart/form-data":
        return ()
    texts = []
    for _, head, content in _named_parts(body, content_type):
        if _is_file(head):
            kind = head.get_content_type()
            if not (kind.startswith("text/") or kind == "application/json"):
                return None
            texts.append(content.decode("utf-8", "replace"))
    return tuple(texts)


def _value(text: str) -> Any:
    """A form field: Flowise takes objects and lists in it as JSON."""
    if text[:1] in ("{", "["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return text


def asked_of(fields: dict[str, Any] | None, route: str) -> Asked:
    """What is asked, as far as the body tells."""
    body: dict[str, Any] = fields if fields is not None else {}
    question = body.get("question")
    question = question if isinstance(question, str) else None
    uploads = body.get("uploads")
    uploads = [item for item in uploads if isinstance(item, dict)] if isinstance(uploads, list) else None
    return Asked(
        body=body,
        question=question,
        texts=Texts(question or "", tuple(_turns(body.get("history"))), uploaded_texts(uploads)),
        audio=has_audio(uploads),
        stream=_true(body.get("streaming")),
        route=route,
        attribution={},
        max_nanos=None,
        key=None,
    )


def _turns(history: object) -> list[str]:
    if not isinstance(history, list):
        return []
    turns = (turn for turn in history if isinstance(turn, Mapping))
    texts = (turn.get("content", turn.get("message")) for turn in turns)
    return [text for text in texts if isinstance(text, str)]


def _true(value: object) -> bool:
    return value is True or (isinstance(value, str) and value.strip().lower() == "true")
