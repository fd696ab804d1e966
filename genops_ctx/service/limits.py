"""What a request may be: of one meaning, of a size, and here in time. Before anything is looked at."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.requests import Request
from starlette.responses import Response

from .caller import BadHeader
from .configuration import ServiceSettings
from .receiving import EXPORTS
from .refusals import Refusal, answer_to

__all__ = ["LimitsMiddleware", "misunderstood"]

Message = MutableMapping[str, Any]

_ONCE = frozenset(
    {
        b"authorization",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"host",
        b"origin",
        b"transfer-encoding",
        b"x-api-key",
    }
)
"""Given twice, the service might read one and Flowise, or a proxy between them, the other."""

LONGEST_NAME = 64
"""Characters that are repeated of a name in a request."""
MOST_FAULTS = 20
"""Faults of one body that are told."""

_TOO_LARGE = Refusal(413, "too_large", "The request is too large.", {})
_TOO_SLOW = Refusal(408, "too_slow", "The request did not come in time.", {})


class LimitsMiddleware:
    """Refuses what is ambiguous, too large or too slow, whatever route it is for."""

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        settings: ServiceSettings,
        refused: Callable[[Request], Awaitable[None]],
    ) -> None:
        """``refused`` is told of each request that no route has answered."""
        self._app = app
        self._settings = settings
        self._refused = refused

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = (
            _ambiguous(scope["headers"])
            or _compressed(scope["path"], scope["headers"])
            or self._announced(scope["headers"])
        )
        if refusal is None:
            body = _Body(receive, send, self._settings)
            try:
                await self._app(scope, body.receive, body.send)
                return
            except _Over:
                refusal = body.refusal
                if body.answering or refusal is None:
                    raise
        request = Request(scope)
        answer = answer_to(request, refusal)
        await self._refused(request)
        if refusal is _TOO_SLOW:
            answer.headers["connection"] = "close"
        await answer(scope, receive, send)

    def _announced(self, headers: Iterable[tuple[bytes, bytes]]) -> Refusal | None:
        length = next((value for name, value in headers if name == b"content-length"), b"0")
        if not length.isdigit():
            return _bad(b"Content-Length", "is no length", "a number of bytes")
        return _TOO_LARGE if int(length[:20]) > self._settings.request_bytes else None


async def misunderstood(request: Request, error: Exception) -> Response:
    """Where a body is not as documented: which part, and why, but never what was in it, nor all of many."""
    assert isinstance(error, RequestValidationError)
    told = [
        {"loc": [_short(part) for part in found["loc"]], "msg": found["msg"], "type": found["type"]}
        for found in error.errors()[:MOST_FAULTS]
    ]
    content = json.dumps({"detail": told}).encode()  # in ASCII: what was sent may have no other form
    return Response(content, 422, media_type="application/json")


def _short(part: object) -> object:
    return part[:LONGEST_NAME] if isinstance(part, str) else part


class _Over(Exception):
    """Ends the application's work on a request that is too large or too slow."""


class _Body:
    """A request's body on its way to the application, counted and timed."""

    def __init__(
        self,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
        settings: ServiceSettings,
    ) -> None:
        self._receive = receive
        self._send = send
        self._left = settings.request_bytes
        self._until = asyncio.get_running_loop().time() + settings.request_seconds
        self._complete = False
        self.refusal: Refusal | None = None
        self.answering = False

    async def receive(self) -> Message:
        if self._complete:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError:
            self.refusal = _TOO_SLOW
            raise _Over from None
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            self._complete = not message.get("more_body", False)
        if self._left < 0:
            self.refusal = _TOO_LARGE
            raise _Over
        return message

    async def send(self, message: Message) -> None:
        if self.refusal is not None and not self.answering:
            raise _Over  # what took it for a bad body is not to answer
        self.answering = True
        await self._send(message)


def _ambiguous(headers: Iterable[tuple[bytes, bytes]]) -> Refusal | None:
    seen: set[bytes] = set()
    for name, _ in headers:
        if name in seen:
            return _bad(name, "came more than once", "one such header")
        if name in _ONCE or name.startswith(b"x-genops-"):
            seen.add(name)
    return None


def _compressed(path: str, headers: Iterable[tuple[bytes, bytes]]) -> Refusal | None:
    if path.startswith(EXPORTS):
        return None  # collectors compress, and the receivers see to how much comes of it
    if any(name == b"content-encoding" and value.lower() != b"identity" for name, value in headers):
        return _bad(b"Content-Encoding", "says that the request is compressed", "the request as it is", 415)
    return None


def _bad(name: bytes, problem: str, expected: str, status: int = 400) -> Refusal:
    """The name may be of the client's making: of a long one its beginning tells which."""
    error = BadHeader(name.decode("latin-1")[:LONGEST_NAME], problem, expected)
    details = {"header": error.header, "problem": problem, "expected": expected}
    return Refusal(status, "bad_request" if status == 400 else "unsupported", str(error), details)
