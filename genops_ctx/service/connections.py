"""A client's connection: what it may take of a worker before there is a request, and how it ends.

uvicorn bounds neither how long nor how large the head of a request is. ``genops-ctx serve`` uses this
protocol; so does ``uvicorn --http genops_ctx.service.connections:BoundedConnection genops_ctx.service:app``.
"""

from __future__ import annotations

import asyncio
import json
from functools import cache
from http import HTTPStatus

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ..settings import load_settings
from .configuration import ServiceSettings
from .crowding import PROBES, SPARE, SPARE_SECONDS, CrowdLog, most_connections
from .refusals import Refusal

__all__ = ["BoundedConnection"]

TARGET_BYTES = 8 * 1024
HEADERS = 100
"""More are refused, and so are more bytes than the settings' ``head_bytes`` in all."""
IDLE_SECONDS = 2.0
"""How long a worker that stops leaves an unused connection open: a request may be on its way."""

_FAULTS = {
    400: ("bad_request", "The request is no HTTP."),
    408: ("too_slow", "The request did not come in time."),
    414: ("too_large", "The address is too long."),
    431: ("too_large", "The request's headers are too large."),
    503: ("unavailable", "The service is busy. Please try again in a moment."),
}
_LINGER_SECONDS = 2.0
"""How long a refused client may go on sending: closed at once, it might never read why."""
_crowd = CrowdLog()


class _Refused(Exception):
    pass


class BoundedConnection(HttpToolsProtocol):
    """uvicorn's HTTP/1.1, with an end to every wait for the client.

    A head has ``head_seconds`` and ``head_bytes``, a body ``request_seconds``, and an answer that the
    client does not take ``unread_seconds``. Fields that follow a chunked body are dropped: they could say
    again, after all checks, what the head has said. A worker has no more than ``connections`` at once:
    beyond that it answers probes of its health, and others with 503. While it stops, every answer says that
    the connection ends with it, so that no client sends into a connection that is being closed.
    """

    _head_bytes = 0
    _in_head = True
    _status = 400
    _stopping = False
    _admitted = False
    """it is one of those that the worker takes"""
    _lingering = False
    _waiting: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    # -- what a client sends ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        if self._is_admitted():
            self._wait(_settings().head_seconds)
        elif len(self.connections) > _most() + SPARE:
            self._refuse(503)
        else:
            self._wait(min(_settings().head_seconds, SPARE_SECONDS))

    def _is_admitted(self) -> bool:
        """Whether it is one of those that the worker takes, now or since it was."""
        if not self._admitted:
            most = _most()
            others = self.connections
            self._admitted = len(others) <= most or (
                sum(isinstance(one, BoundedConnection) and one._admitted for one in others) < most
            )
        return self._admitted

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            return
        self._unset_keepalive_if_required()
        if self._in_head:
            self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._stay(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError:
            self._refuse(self._status)
            return
        if self._in_head and self._head_bytes > _settings().head_bytes:
            self._refuse(431)

    def _stay(self, rest: bytes) -> None:
        """Answer in HTTP/1.1 what asked for another protocol: a server may, and its body is to be read."""
        head = [b"%s %s HTTP/1.1\r\n" % (self.parser.get_method(), self.url)]
        for name, value in self.headers:
            if name == b"connection":
                value = b", ".join(one for one in value.split(b",") if one.strip().lower() != b"upgrade")
            if name != b"upgrade":
                head.append(b"%s: %s\r\n" % (name, value))
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"".join([*head, b"\r\n", rest]))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._wait(_settings().head_seconds)

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > TARGET_BYTES:
            self._status = 414
            raise _Refused

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return
        super().on_header(name, value)
        if len(self.headers) > HEADERS:
            self._status = 431
            raise _Refused

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > _settings().head_bytes:
            self._status = 431
            raise _Refused
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise _Refused
            return  # there is no request before its body can be read
        admitted = self._is_admitted()
        if not admitted and self.url.partition(b"?")[0] not in PROBES:
            self._status = 503
            raise _Refused
        self._in_head = False
        self._head_bytes = 0
        super().on_headers_complete()
        if (self._stopping or not admitted) and self.cycle is not None:
            self.cycle.keep_alive = False
        # A little more than the application has, which answers better than a closed connection does.
        self._wait(_settings().request_seconds + 5.0)

    def on_message_complete(self) -> None:
        if self._in_head:
            return
        super().on_message_complete()
        self._in_head = True
        self._wait(None)

    def _wait(self, seconds: float | None) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        self._waiting = None if seconds is None else self.loop.call_later(seconds, self._too_late)

    def _too_late(self) -> None:
        if self._in_head and not self._head_bytes:
            self.transport.close()
        else:
            self._refuse(408)

    def _refuse(self, status: int) -> None:
        """Say so, where nothing was said yet, and hang up. A request that is complete is answered first."""
        cycle = self.cycle
        if self.transport.is_closing():
            return
        if cycle is not None and not cycle.response_complete:
            if not cycle.more_body:
                cycle.keep_alive = False
                self.flow.pause_reading()
                return
            cycle.disconnected = True
            cycle.message_event.set()
        if cycle is None or (cycle.response_complete and self._in_head) or not cycle.response_started:
            code, message = _FAULTS[status]
            refusal = Refusal(status, code, message, {}, 1.0 if status == 503 else None)
            body = json.dumps(refusal.body()).encode()
            more = "".join(f"{name}: {value}\r\n" for name, value in refusal.headers().items())
            self.transport.write(
                f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\n{more}connection: close\r\n\r\n".encode()
                + body
            )
        if status != 503:
            self.transport.close()
            return
        _crowd.tell(_most())
        if len(self.connections) > _most() + SPARE or not self.transport.can_write_eof():
            self.transport.close()
            return
        self._lingering = True
        self._wait(None)
        self.transport.write_eof()
        self._waiting = self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    # -- what it does not take ----------------------------------------------------------------------

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(_settings().unread_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._read()

    def _read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    # -- its end ------------------------------------------------------------------------------------

    def shutdown(self) -> None:
        """Called when the worker stops."""
        self._stopping = True
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(IDLE_SECONDS, self._end_unused)
        elif not self.cycle.response_started:
            self.cycle.keep_alive = False
        # An answer that has begun has not said that it is the last one: the next one will.

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._stopping and not self.transport.is_closing():
            self.loop.call_later(IDLE_SECONDS, self._end_unused)

    def _end_unused(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait(None)
        self._read()
        super().connection_lost(exc)


@cache
def _settings() -> ServiceSettings:
    return ServiceSettings.of(load_settings().service)


@cache
def _most() -> int:
    return most_connections(_settings().connections)
