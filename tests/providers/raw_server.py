"""A server that writes the bytes a test tells it to, and may go silent or hang up between them."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

Step = bytes | float
"""Bytes to send, or seconds to wait."""


@dataclass(frozen=True)
class Got:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


NOT_HERE = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


class RawServer:
    """Plays ``script(request)`` for each POST, then closes the connection unless ``keep``.

    Any other request (the look-up of a flow's definition) is answered with an empty 404, which
    says nothing of the flow.
    """

    def __init__(self, script: Callable[[Got], Iterable[Step]], *, keep: bool = False) -> None:
        self.requests: list[Got] = []
        self.connections = 0
        self._script = script
        self._keep = keep
        self._stopping = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._open: list[socket.socket] = []
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def posts(self) -> list[Got]:
        return [got for got in self.requests if got.method == "POST"]

    def __enter__(self) -> RawServer:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        for connection in [self._socket, *self._open]:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self._thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), connection.makefile("rb") as lines:
            while got := request(lines):
                self.requests.append(got)
                if got.method != "POST":
                    connection.sendall(NOT_HERE)
                    continue
                for step in self._script(got):
                    if isinstance(step, float):
                        self._stopping.wait(step)
                    else:
                        connection.sendall(step if self._keep else _announced(step))
                if not self._keep:
                    break
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()


def _announced(step: bytes) -> bytes:
    """A server that closes after its answer says so: else the next call may meet the closing."""
    status, line_end, rest = step.partition(b"\r\n")
    if not status.startswith(b"HTTP/1.1 ") or status.startswith(b"HTTP/1.1 1") or not line_end:
        return step
    return status + line_end + b"Connection: close" + line_end + rest


def request(lines) -> Got | None:
    first = lines.readline().decode("latin-1").split()
    if len(first) < 2:
        return None
    headers = {}
    while line := lines.readline().decode("latin-1").strip():
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    body = lines.read(int(headers.get("content-length", 0)))
    return Got(first[0], first[1], headers, body)


def whole(body: bytes, *headers: str, status: str = "200 OK", kind: str = "application/json") -> bytes:
    """One answer with its length."""
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@contextlib.contextmanager
def at_most(seconds: float):
    """The block must not take longer."""
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    assert took < seconds, f"took {took:.2f} s"
