"""A small HTTP/1.1 server for tests: threads, keep-alive, and misbehaviour on request.

An application is a function from :class:`Request` to :class:`Reply`. A reply may also be none at
all: the connection held open, closed, cut in the middle or dripping.
"""

from __future__ import annotations

import json
import re
import select
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

__all__ = ["Loopback", "Reply", "Request", "json_reply"]

JSON = "application/json; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it came in. ``headers`` have lower-case names."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = field(default=b"", repr=False)

    def json(self) -> Any:
        """The body as JSON; raises ValueError where it is none."""
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer. With ``frames`` it is sent in chunks as they come, else ``body`` as a whole."""

    status: int = 200
    body: bytes = field(default=b"", repr=False)
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    frames: Iterable[bytes] | None = field(default=None, repr=False)
    delay: float = 0.0
    """seconds before the first byte"""
    interval: float = 0.0
    """seconds before each frame, or before each byte of a whole body"""
    cut_after: int | None = None
    """close the connection after that many frames (or bytes of a whole body)"""
    hold: bool = False
    """never answer: keep the connection until the client leaves or the server stops"""
    drop: bool = False
    """close the connection without an answer"""


_HALF_A_PAIR = re.compile("[\ud800-\udfff]")


def json_reply(data: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    """A reply with a JSON body, written without spaces as Node does."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    # Half a surrogate pair, which JSON may hold, is no character: Node writes this one instead.
    body = _HALF_A_PAIR.sub("\ufffd", text).encode()
    return Reply(status, body, headers=headers or {})


class Loopback:
    """Serves an application from :meth:`start` to :meth:`stop`; a context manager.

    ``port=0`` takes a free port. After :meth:`stop` no thread and no socket of it is left; it can be
    started again, on the same port.
    """

    def __init__(self, app: Callable[[Request], Reply], *, host: str = "127.0.0.1", port: int = 0) -> None:
        self._app = app
        self._host = host
        self._port = port
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Base URL without a trailing slash; raises RuntimeError before the first start."""
        if not self._port:
            raise RuntimeError("the server has no address yet: call start() or use it in a with statement")
        return f"http://{self._host}:{self._port}"

    def start(self) -> None:
        """Bind and serve in a thread; a second start does nothing."""
        if self._server is not None:
            return
        server = _Server((self._host, self._port), self._app)
        self._server = server
        self._port = server.server_address[1]
        self._thread = threading.Thread(
            target=server.serve_forever, args=(0.02,), name=f"loopback-{self._port}", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Close every connection and wait for every thread; a second stop does nothing."""
        server, thread = self._server, self._thread
        self._server = self._thread = None
        if server is None or thread is None:
            return
        server.stopping.set()
        server.shutdown()
        thread.join()
        server.server_close()
        server.hang_up()

    def pause(self, seconds: float) -> None:
        """Sleep, but no longer than the server lives."""
        server = self._server
        if seconds > 0 and server is not None:
            server.stopping.wait(seconds)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 512

    def __init__(self, address: tuple[str, int], app: Callable[[Request], Reply]) -> None:
        self.app = app
        self.stopping = threading.Event()
        self._live: dict[threading.Thread, socket.socket] = {}
        self._lock = threading.Lock()
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # HTTPServer would look the host's name up here, which can take seconds without a resolver.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        thread = threading.Thread(
            target=self._serve, args=(request, client_address), name="loopback-connection", daemon=True
        )
        with self._lock:
            self._live[thread] = request
        thread.start()

    def _serve(self, request: socket.socket, client_address: Any) -> None:
        try:
            self.process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._live.pop(threading.current_thread(), None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        import sys

        # A client that goes away is part of what is tested; anything else is a defect to be seen.
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def hang_up(self) -> None:
        """Shut the connections that are still open, and wait for their threads."""
        with self._lock:
            live = dict(self._live)
        for connection in live.values():
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # the client was quicker
                continue
        for thread in live:
            thread.join(5)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 64 * 1024
    headers: Message

    def do_GET(self) -> None:
        body = self._read_body()
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        reply = self.server.app(Request(self.command, parts.path, query, headers, body))
        stopping = self._pause(reply.delay)
        if reply.hold:
            self._hold()
        if stopping or reply.hold or reply.drop:
            self.close_connection = True
            return
        if reply.frames is None:
            self._send_whole(reply)
        else:
            self._send_frames(reply, reply.frames)

    do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = do_OPTIONS = do_GET  # noqa: N815

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def _head(self, reply: Reply, framing: tuple[str, str]) -> None:
        self.send_response(reply.status)
        for name, value in (("Content-Type", reply.content_type), *reply.headers.items(), framing):
            self.send_header(name, value)
        self.end_headers()

    def _send_whole(self, reply: Reply) -> None:
        self._head(reply, ("Content-Length", str(len(reply.body))))
        body = b"" if self.command == "HEAD" else reply.body
        if reply.cut_after is not None:
            body = body[: reply.cut_after]
            self.close_connection = True
        if not reply.interval:
            self.wfile.write(body)
        for at in range(len(body)) if reply.interval else ():
            self.wfile.flush()
            if self._pause(reply.interval):
                self.close_connection = True
                return
            self.wfile.write(body[at : at + 1])
        self.wfile.flush()

    def _send_frames(self, reply: Reply, frames: Iterable[bytes]) -> None:
        self._head(reply, ("Transfer-Encoding", "chunked"))
        gone = False
        # The frames are drawn to the end even when nobody listens: a client that leaves stops no model.
        for number, frame in enumerate(frames):
            if gone:
                continue
            if number == reply.cut_after or self._pause(reply.interval):
                gone = True
                self._flush_quietly()
                self._shut()
                continue
            try:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(frame), frame))
                self.wfile.flush()
            except OSError:
                gone = True
        if gone:
            self.close_connection = True
            return
        self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()

    def _flush_quietly(self) -> None:
        try:
            self.wfile.flush()
        except OSError:
            self.close_connection = True

    def _shut(self) -> None:
        try:
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            self.close_connection = True

    def _pause(self, seconds: float) -> bool:
        """Wait; True where the server stops meanwhile."""
        return seconds > 0 and self.server.stopping.wait(seconds)

    def _hold(self) -> None:
        while not self.server.stopping.is_set():
            readable, _, _ = select.select([self.connection], [], [], 0.05)
            if readable and not self.connection.recv(65536):
                return

    def version_string(self) -> str:
        return "loopback"

    def log_message(self, format: str, *args: Any) -> None:
        """Tests' output stays clean."""
