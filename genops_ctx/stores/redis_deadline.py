"""One deadline for all that a question costs: joining, a script that must be loaded, a redirection.

redis-py bounds each reply by itself. Here each thread has one deadline, and every connection waits for
a reply, and sends a command, only as long as that leaves. Making a connection has a bound of its own,
and what it took is not counted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

__all__ = ["Deadline", "bind"]


class Deadline(threading.local):
    """When this thread stops waiting (monotonic seconds). Without one it waits as redis-py does."""

    def __init__(self) -> None:
        self._at: float | None = None
        self._apart = False

    def begin(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds

    def end(self) -> None:
        self._at = None

    def remaining(self) -> float | None:
        """Seconds, not more than 0 once it is over; None without a deadline."""
        return None if self._at is None else self._at - time.monotonic()

    @contextmanager
    def apart(self, seconds: float) -> Iterator[None]:
        """What is done here has a deadline of its own, and is not counted."""
        if self._at is None or self._apart:
            yield
            return
        left = self._at - time.monotonic()
        self.begin(seconds)
        self._apart = True
        try:
            yield
        finally:
            self._apart = False
            self.begin(left)


class _Bounded:
    """What a connection of redis-py does within the deadline of its thread."""

    deadline: Deadline
    connect_seconds: float
    command_seconds: float

    def connect(self, *args: Any, **named: Any) -> Any:
        with self.deadline.apart(self.connect_seconds):
            return super().connect(*args, **named)  # type: ignore[misc]

    def _connect(self, *args: Any, **named: Any) -> Any:
        from redis.connection import SSLConnection

        connection: Any = self
        if not isinstance(connection, SSLConnection):
            # The server need not be told which library it is: that would cost round trips. Under TLS the
            # answer is needed: what TLS itself sends after its handshake (session tickets) is read with
            # it, and redis-py takes a connection with something to read for a broken one.
            self.driver_info = self.lib_name = self.lib_version = None
        counted = self.deadline.remaining() is not None
        if counted:
            self.deadline.begin(self.connect_seconds)
        socket = super()._connect(*args, **named)  # type: ignore[misc]
        if counted:  # a password and a database are told within the bound of a command
            self.deadline.begin(self.command_seconds)
        return socket

    def send_packed_command(self, *args: Any, **named: Any) -> Any:
        if self._sock:  # type: ignore[attr-defined]
            self._left()
        return super().send_packed_command(*args, **named)  # type: ignore[misc]

    def read_response(self, *args: Any, **named: Any) -> Any:
        try:
            left = self._left()
        except Exception:
            self.disconnect()  # type: ignore[attr-defined]  # its reply would be taken for the next one's
            raise
        if left is not None and self._sock:  # type: ignore[attr-defined]
            self._sock.settimeout(left)  # type: ignore[attr-defined]
        return super().read_response(*args, **named)  # type: ignore[misc]

    def _left(self) -> float | None:
        from redis.exceptions import TimeoutError

        left = self.deadline.remaining()
        if left is not None and left <= 0:
            raise TimeoutError("no time is left")
        return left


@lru_cache(maxsize=32)
def _bounded(kind: type, deadline: Deadline, connect_seconds: float, command_seconds: float) -> type:
    names = {
        "deadline": deadline,
        "connect_seconds": connect_seconds,
        "command_seconds": command_seconds,
    }
    return type(f"Bounded{kind.__name__}", (_Bounded, kind), names)


def bind(pool: Any, deadline: Deadline, connect_seconds: float, command_seconds: float) -> None:
    """Have the connections that a pool of redis-py makes keep the deadline."""
    if not issubclass(pool.connection_class, _Bounded):
        pool.connection_class = _bounded(pool.connection_class, deadline, connect_seconds, command_seconds)
