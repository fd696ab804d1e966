"""A redis-server of the tests' own: a free port, a private folder, started and killed at will."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

HOW = (
    "install redis-server (apt-get install redis-server) and redis-py (pip install 'genops_ctx[redis]'); "
    "GENOPS_TEST_REDIS=require makes this a failure"
)

REQUIRED = os.environ.get("GENOPS_TEST_REDIS") == "require"


def needed() -> str:
    """The program, or a skip (a failure where GENOPS_TEST_REDIS=require) that says how to get it."""
    program = shutil.which("redis-server")
    missing = "redis-server" if program is None else ""
    try:
        import redis  # noqa: F401
    except ImportError:
        missing = missing or "redis-py"
    if missing:
        text = f"{missing} is not here: {HOW}"
        if REQUIRED:
            pytest.fail(text)
        pytest.skip(text)
    assert program is not None
    return program


PORTS = range(20_000, 32_000)
"""Below those that the system gives to clients, by Linux's default: none is taken from a server that is still
starting, or down for a while. A cluster node listens 10,000 above its port too."""


def free_port() -> int:
    while True:
        port = secrets.choice(PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class RedisServer:
    """``with RedisServer(folder, "--appendonly", "yes") as server:``; it listens on 127.0.0.1 only."""

    def __init__(
        self, folder: Path, *options: str, port: int | None = None, config: Path | None = None
    ) -> None:
        self.program = needed()
        self.folder = folder
        self.port = port or free_port()
        self.config = () if config is None else (str(config),)
        self.options = options if config is not None else ("--save", "", *options)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(self.program, *self.config),
                    *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)),
                    *self.options,
                ],
                stdout=log,
                stderr=log,
            )
        self.wait()

    def wait(self) -> None:
        """Until it answers."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self.process is not None and self.process.poll() is not None:
                break
            try:
                with socket.create_connection(("127.0.0.1", self.port), 0.2) as client:
                    client.settimeout(2)
                    client.sendall(b"PING\r\n")
                    if client.recv(64).startswith((b"+PONG", b"-NOAUTH")):
                        return
            except OSError:
                pass
            time.sleep(0.02)
        raise RuntimeError((self.folder / "log").read_text()[-2000:])

    def cli(self, *words: str) -> str:
        """One command, by a client of its own; raises for an error reply."""
        request = f"*{len(words)}\r\n" + "".join(f"${len(word.encode())}\r\n{word}\r\n" for word in words)
        with socket.create_connection(("127.0.0.1", self.port), 30) as client:
            client.sendall(request.encode())
            answer = client.recv(65536).decode()
        if answer.startswith("-"):
            raise RuntimeError(answer)
        return answer

    def pause(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, which also ends a paused one."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(60)
            self.process = None

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
