"""What every receiver of exports does with a request: whose it is, its body within bounds, an answer."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hmac
import json
import time
import zlib
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final, TypeAlias

__all__ = [
    "App",
    "BadBody",
    "Headers",
    "Message",
    "Receive",
    "Scope",
    "Send",
    "answer",
    "body_of",
    "hanging_up",
    "header",
    "is_ours",
]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers: TypeAlias = Iterable[tuple[bytes, bytes]]

MAX_BODY_BYTES: Final = 32 * 1024 * 1024
"""As it is after decompression too: what is larger is refused, and decompressed no further."""

BODY_SECONDS: Final = 30.0
"""For all of a body to come."""


class BadBody(Exception):
    """A request's body that is not read, and the HTTP status that says why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why


async def body_of(scope: Scope, receive: Receive, limit: int = MAX_BODY_BYTES) -> bytes:
    """The whole body, decompressed. Raises :class:`BadBody`."""
    encoding = header(scope["headers"], b"content-encoding").strip().lower()
    if encoding not in (b"", b"identity", b"gzip"):
        raise BadBody(415, "only gzip is understood")
    unpack = zlib.decompressobj(wbits=31) if encoding == b"gzip" else None
    body = bytearray()
    more = True
    until = time.monotonic() + BODY_SECONDS
    while more:
        try:
            message = await asyncio.wait_for(receive(), until - time.monotonic())
        except TimeoutError:
            raise BadBody(408, "the body did not come in time") from None
        if message["type"] != "http.request":
            raise BadBody(400, "the request broke off")
        chunk = message.get("body", b"")
        more = message.get("more_body", False)
        try:
            body += chunk if unpack is None else unpack.decompress(chunk, limit + 1 - len(body))
        except zlib.error:
            raise BadBody(400, "the body is no gzip") from None
        if unpack is not None and unpack.unused_data:
            raise BadBody(400, "something follows the gzip")  # else it would be kept, however much it is
        if len(body) > limit:
            raise BadBody(413, f"at most {limit} bytes are taken at once")
    if unpack is not None and not unpack.eof:
        raise BadBody(400, "the gzip is cut short")
    return bytes(body)


def is_ours(headers: Headers, secret: str) -> bool:
    """Whether a request knows the secret: as Basic or Bearer authorization, or in ``api_key``.

    With Basic authorization the secret is the password; any name goes with it.
    """
    given = [header(headers, b"api_key"), header(headers, b"x-api-key")]
    scheme, _, value = header(headers, b"authorization").partition(b" ")
    if scheme.lower() == b"bearer":
        given.append(value.strip())
    elif scheme.lower() == b"basic":
        with contextlib.suppress(binascii.Error):
            given.append(base64.b64decode(value.strip(), validate=True).partition(b":")[2])
    known = secret.encode()
    # every one is compared, so that the time says nothing of which it was
    return sum(hmac.compare_digest(one, known) for one in given) > 0


async def answer(send: Send, status: int, content: object = None, kind: bytes = b"application/json") -> None:
    """Send an answer: JSON, or bytes of the ``kind``."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Basic"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def hanging_up(scope: Scope, send: Send) -> Send:
    """``send``, whose answers say that the connection ends with them.

    An exporter in a busy Node sends into a connection that was closed for being unused, and drops what it
    sent there without a word.
    """
    if not scope.get("http_version", "1.1").startswith("1"):
        return send  # the later ones have no such header, and say by other means what was not taken

    async def send_last(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
        await send(message)

    return send_last


def header(headers: Headers, name: bytes) -> bytes:
    """The first header of a name (lower case); empty where there is none."""
    return next((value for key, value in headers if key.lower() == name), b"")
