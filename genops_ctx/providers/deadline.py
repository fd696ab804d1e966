"""A total deadline for ``requests``, from the connection to the last byte of the answer.

``requests`` has none: its timeout starts anew with every packet, so a server that sends a byte now and
then is waited for for ever. The connections below ask how much time is left before each read. They
also note whether a request has left, which decides whether a failed call can have cost anything.

The name look-up is the system's own and is not bounded.
"""

from __future__ import annotations

import http.client
import io
import socket
import time
from contextvars import ContextVar
from functools import partial
from typing import Any, cast

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

__all__ = ["DeadlineAdapter", "Exchange", "exchange"]


class Exchange:
    """One request and its answer: until when, and how far it got. Times are ``time.monotonic``."""

    __slots__ = ("ends_at", "sent")

    def __init__(self, seconds: float) -> None:
        self.ends_at = time.monotonic() + seconds
        self.sent: bool | None = None
        """None while nobody watches; False once connecting; True once bytes of the request may have left"""

    @property
    def left(self) -> float:
        """Seconds left; raises ``TimeoutError`` once it is over."""
        left = self.ends_at - time.monotonic()
        if left <= 0:
            raise TimeoutError("the deadline is over")
        return left


exchange: ContextVar[Exchange | None] = ContextVar("genops_ctx.exchange", default=None)
"""The exchange that the connections of this thread work for."""


class _Reader(io.RawIOBase):
    """A socket's bytes, each read bounded by what is left of the deadline."""

    def __init__(self, sock: socket.socket, current: Exchange) -> None:
        self._sock = sock
        self._exchange = current
        # Keeps the socket open while a response is read, as socket.makefile does.
        self._file = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(self._exchange.left)
        return self._file.readinto(buffer)

    def close(self) -> None:
        self._file.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, current: Exchange, **kwargs: Any) -> None:
        super().__init__(cast("socket.socket", _BoundedSocket(sock, current)), *args, **kwargs)


class _BoundedSocket:
    """All of a socket that ``http.client.HTTPResponse`` asks for."""

    def __init__(self, sock: socket.socket, current: Exchange) -> None:
        self._sock = sock
        self._exchange = current

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self._sock, self._exchange))


class _Bounded:
    """What the connections of both schemes add."""

    sock: Any
    response_class: Any

    def connect(self) -> None:
        current = exchange.get()
        if current is not None and current.sent is None:
            current.sent = False
        super().connect()  # type: ignore[misc]

    def send(self, data: Any) -> None:
        current = exchange.get()
        if self.sock is not None and current is not None:
            current.sent = True
            self.sock.settimeout(current.left)
        elif self.sock is None:
            # http.client connects inside send(): mark what comes after.
            self.connect()
            if current is not None:
                current.sent = True
        super().send(data)  # type: ignore[misc]

    def getresponse(self) -> Any:
        current = exchange.get()
        if current is not None:
            self.response_class = partial(_Response, current=current)
        try:
            return super().getresponse()  # type: ignore[misc]
        finally:
            self.response_class = http.client.HTTPResponse


class _HTTPConnection(_Bounded, HTTPConnection):
    pass


class _HTTPSConnection(_Bounded, HTTPSConnection):
    pass


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection


class DeadlineAdapter(HTTPAdapter):
    """Mounted on the adapters' own sessions; without an exchange it is the ordinary one."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
        return manager
