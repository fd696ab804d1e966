"""A total deadline for ``requests``, from the connection to the last byte of the answer.

``requests`` has none: its timeout starts anew with every packet, so a server that sends a byte now and
then is waited for for ever. The connections below ask how much time is left before each read. They
also note whether a request has left, which decides whether a failed call can have cost anything.

The name look-up is the system's own and is not bounded.
"""

from __future__ import annotations

import http.client
import io
import os
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

    __slots__ = ("ends_at", "process", "sent", "sock")

    def __init__(self, seconds: float) -> None:
        self.ends_at = time.monotonic() + seconds
        self.process = os.getpid()
        self.sock: socket.socket | None = None
        """what the answer comes by, once it does"""
        self.sent: bool | None = None
        """None while nobody watches; False once connecting; True once bytes of the request may have left"""

    @property
    def remaining(self) -> float:
        """Seconds left, none or negative once it is over."""
        return self.ends_at - time.monotonic()

    @property
    def left(self) -> float:
        """Seconds left; raises ``TimeoutError`` once it is over."""
        left = self.remaining
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


class _Lines(io.BufferedReader):
    """Remembers whether the last line was one: ``http.client`` takes headers that break off for whole."""

    broke_off = False

    def readline(self, size: int | None = -1) -> bytes:
        line = super().readline(size)
        self.broke_off = not line.endswith(b"\n")
        return line


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, current: Exchange, **kwargs: Any) -> None:
        bounded = _BoundedSocket(sock, current)
        super().__init__(cast("socket.socket", bounded), *args, **kwargs)
        self._lines = bounded.lines

    def begin(self) -> None:
        super().begin()
        if self._lines.broke_off:
            self.close()
            raise http.client.RemoteDisconnected("the connection broke off in the headers")


class _BoundedSocket:
    """All of a socket that ``http.client.HTTPResponse`` asks for."""

    def __init__(self, sock: socket.socket, current: Exchange) -> None:
        self.lines = _Lines(_Reader(sock, current))

    def makefile(self, mode: str) -> io.BufferedReader:
        return self.lines


class _Bounded:
    """What the connections of both schemes add."""

    sock: Any
    response_class: Any

    def connect(self) -> None:
        current = exchange.get()
        sent = current is not None and current.sent is True
        try:
            super().connect()  # type: ignore[misc]
        finally:
            # What a proxy is asked for before its tunnel stands is not the request.
            if current is not None:
                current.sent = sent

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
            current.sock = self.sock
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
    """Mounted on the adapters' own sessions; without an exchange it is the ordinary one.

    After a fork the child makes connections of its own: on those of its parent, each would read answers
    that are meant for the other.
    """

    def send(self, *args: Any, **kwargs: Any) -> Any:
        if self._process != os.getpid():
            # Not clear(): a lock in a pool may be held by a thread that the child does not have.
            kept = self.__getstate__()
            self.__setstate__(kept)  # type: ignore[attr-defined]
        return super().send(*args, **kwargs)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self._process = os.getpid()
        self.poolmanager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
        return manager
