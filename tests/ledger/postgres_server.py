"""A PostgreSQL of the tests' own: a free port, a private folder, started, paused and killed at will."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.stores.redis_server import free_port

HOW = (
    "install PostgreSQL's server (apt-get install postgresql) and psycopg "
    "(pip install 'genops_ctx[postgres]'); "
    "GENOPS_TEST_POSTGRES=require makes this a failure"
)
REQUIRED = os.environ.get("GENOPS_TEST_POSTGRES") == "require"
NOBODY_SPECIAL = "postgres" if os.geteuid() == 0 else None
"""The server refuses to run as root; its Debian package brings this user."""


def needed() -> Path:
    """The folder of its programs, or a skip (a failure where it is required) that says how to get it."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    missing = "" if any((folder / "initdb").exists() for folder in folders) else "PostgreSQL's server"
    try:
        import psycopg  # noqa: F401
    except ImportError:
        missing = missing or "psycopg"
    if missing:
        text = f"{missing} is not here: {HOW}"
        if REQUIRED:
            pytest.fail(text)
        pytest.skip(text)
    return folders[-1]


class PostgresServer:
    """``with PostgresServer() as server:``; it listens on 127.0.0.1 only, with a password.

    Its folder is none of pytest's, which are open to their owner only: the server's user may be another.
    """

    def __init__(
        self,
        user: str = "tests",
        password: str = "hunter2",
        made_with: Sequence[str] = ("--auth=scram-sha-256",),
        started_with: Sequence[str] = ("-c", "max_connections=150"),
    ) -> None:
        self.user = user
        self.password = password
        self.made_with = made_with
        self.started_with = started_with
        self.programs = needed()
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)

    def make(self) -> None:
        data, secret = self.folder / "data", self.folder / "secret"
        secret.write_text(self.password)
        if NOBODY_SPECIAL:
            shutil.chown(self.folder, NOBODY_SPECIAL)
            shutil.chown(secret, NOBODY_SPECIAL)
        made = subprocess.run(
            [
                *(self.programs / "initdb", "-D", data, "-U", self.user, "--pwfile", secret),
                *(*self.made_with, "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"),
            ],
            capture_output=True,
            text=True,
            user=NOBODY_SPECIAL,
            cwd=self.folder,
        )
        if made.returncode:
            raise RuntimeError(made.stderr[-2000:])

    def start(self) -> None:
        if not (self.folder / "data").exists():
            self.make()
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(self.programs / "postgres", "-D", self.folder / "data", "-p", str(self.port)),
                    # It outlives being killed without a sync; no test takes the machine's power away.
                    *("-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-k", "", *self.started_with),
                ],
                stdout=log,
                stderr=log,
                user=NOBODY_SPECIAL,
                cwd=self.folder,
            )
        self.wait()

    def wait(self) -> None:
        """Until it takes statements."""
        import psycopg

        deadline = time.monotonic() + 120
        while True:
            try:
                psycopg.connect(self.url_of("postgres"), connect_timeout=10).close()
                return
            except psycopg.OperationalError:
                assert self.process is not None
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise RuntimeError((self.folder / "log").read_text()[-2000:]) from None
            time.sleep(0.05)

    def url_of(self, database: str) -> str:
        return f"postgresql://{self.user}:{self.password}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """The address of an empty one."""
        import psycopg

        name = f"t{next(self._numbers)}"
        with psycopg.connect(self.url_of("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        return self.url_of(name)

    def processes(self) -> list[int]:
        """The server's and those of its connections."""
        assert self.process is not None
        listed = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True
        )
        return [self.process.pid, *map(int, listed.stdout.split())]

    def pause(self) -> None:
        for process in self.processes():
            os.kill(process, signal.SIGSTOP)

    def resume(self) -> None:
        for process in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)

    def stop(self) -> None:
        """At once, without a checkpoint, as a crash does; a paused one too."""
        if self.process is not None:
            self.process.send_signal(signal.SIGQUIT)
            self.resume()
            self.process.wait(60)
            self.process = None

    def __enter__(self) -> PostgresServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
