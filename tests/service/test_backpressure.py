"""Clients that read slowly, or leave: what a worker holds for them, and what is booked."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from genops_ctx.ledger import open_ledger
from genops_ctx.service.key_store import open_keys
from genops_ctx.service.keys import new_key
from tests.service.served import Served

pytestmark = pytest.mark.slow

FLOW = "22222222-3333-4444-8555-666666666666"
FRAME = b'message:\ndata:{"event":"token","data":"' + b"x" * 1000 + b'"}\n\n'
END = b'message:\ndata:{"event":"end","data":"[DONE]"}\n\n'
FRAMES = 60_000
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


class Gushing:
    """A Flowise that streams 60 MB as fast as they are taken, and knows how much was."""

    def __init__(self) -> None:
        self.sent = 0
        self.pause = 0.0
        """seconds before each frame"""
        self.left = threading.Event()
        """whoever it streamed to is gone"""
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            request = connection.recv(65536)
            if b"/prediction/" not in request.partition(b"\r\n")[0]:
                connection.sendall(b"HTTP/1.1 404 X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            try:
                connection.sendall(HEAD)
                for _ in range(FRAMES):
                    time.sleep(self.pause)
                    connection.sendall(FRAME)
                    self.sent += len(FRAME)
                connection.sendall(END)
                self.sent += len(END)
            except OSError:
                self.left.set()


@pytest.fixture
def flowise() -> Iterator[Gushing]:
    made = Gushing()
    yield made
    made.close()


def asked(service: Served) -> socket.socket:
    """A connection on which a stream was asked for, and of which nothing was read."""
    store = open_keys(service.environment["GENOPS_LEDGER"])
    key, secret = new_key("slow", now=time.time())
    store.put(key)
    store.close()
    body = json.dumps({"question": "hi", "streaming": True}).encode()
    connection = socket.create_connection(("127.0.0.1", service.port), 30)
    connection.sendall(
        f"POST /api/v1/prediction/{FLOW} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
        + body
    )
    return connection


def memory(service: Served) -> int:
    """Bytes that the worker has in memory."""
    (pid,) = service.pids()
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


def settled(flowise: Gushing) -> int:
    """Bytes that were taken, once no more are."""
    deadline = time.monotonic() + 60
    before = -1
    while flowise.sent != before or not before:
        assert time.monotonic() < deadline
        before = flowise.sent
        time.sleep(0.7)
    return before


def outcome(service: Served) -> tuple[str, str]:
    """How the one call was booked."""
    deadline = time.monotonic() + 60
    while True:
        ledger = open_ledger(service.environment["GENOPS_LEDGER"])
        charges = list(ledger.charges())
        ledger.close()
        if charges:
            (charge,) = charges
            return charge.outcome, str(charge.exactness)
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_nothing_is_held_for_a_client_that_does_not_read(tmp_path: Path, flowise: Gushing) -> None:
    with Served(tmp_path, flowise.url) as service:
        before = memory(service)
        with asked(service) as connection:
            taken = settled(flowise)
            # What the kernel's own buffers take of two connections, and little more.
            assert taken < 24 * 2**20 < FRAMES * len(FRAME)
            assert memory(service) - before < 16 * 2**20
            got = bytearray()
            while chunk := connection.recv(2**20):
                got += chunk
        # Chunks may end anywhere; of their sizes, in hexadecimal digits, none has the letter.
        assert got.partition(b"\r\n\r\n")[2].count(b"x") == 1000 * FRAMES
        assert b'{"event":"end","data":"[DONE]"}' in got[-200:]
        assert memory(service) - before < 32 * 2**20
        assert outcome(service) == ("completed", "unknown")


def test_a_client_that_leaves_is_booked_and_leaves_nothing_behind(tmp_path: Path, flowise: Gushing) -> None:
    flowise.pause = 0.001
    with Served(tmp_path, flowise.url) as service:
        with asked(service) as connection:
            got = b""
            while b"token" not in got:  # before, the flow may not have been asked yet
                got += connection.recv(100)
            assert got.startswith(b"HTTP/1.1 200 ")
        assert flowise.left.wait(60)
        # It runs on in Flowise, and of that nothing more is known.
        assert outcome(service) == ("abandoned", "unknown")
