"""A real master, replica and Sentinel of the tests' own."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from .redis_server import RedisServer

IN_MEMORY = Path("/dev/shm")
"""A Sentinel writes its settings to the disk at each step, and waits for that: no subject of a test."""
REPLICA = "replica"
"""What the replica calls itself to its master."""


def until(condition: Callable[[], bool], seconds: float = 240.0) -> None:
    last: Exception | None = None
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if condition():
                return
        except Exception as error:
            last = error
        time.sleep(0.05)
    raise AssertionError("it did not come to that") from last


class Sentinels:
    """A master, its replica, and a Sentinel that makes the one the other when it is told to.

    By itself it does not within the time of a test: servers of a busy machine stand still for seconds, and
    it would take such a one for dead.
    """

    def __init__(self, folder: Path) -> None:
        self._apart = Path(tempfile.mkdtemp(dir=IN_MEMORY)) if IN_MEMORY.is_dir() else None
        folder = self._apart or folder

        def place(name: str) -> Path:
            (folder / name).mkdir()
            return folder / name

        fast = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")
        to_replicas = ("--user", REPLICA, "on", ">its-word", "+psync", "+replconf", "+ping")
        as_replica = ("--masteruser", REPLICA, "--masterauth", "its-word")
        self.master = RedisServer(place("master"), *fast, *to_replicas)
        of = ("--replicaof", "127.0.0.1", str(self.master.port))
        self.replica = RedisServer(place("replica"), *of, *as_replica, *fast)
        settings = place("sentinel") / "sentinel.conf"
        settings.write_text(
            f"sentinel monitor budgets 127.0.0.1 {self.master.port} 1\n"
            "sentinel down-after-milliseconds budgets 300000\n"
            "sentinel failover-timeout budgets 300000\n"
        )
        self.sentinel = RedisServer(settings.parent, "--sentinel", config=settings)

    @property
    def url(self) -> str:
        return f"redis+sentinel://127.0.0.1:{self.sentinel.port}/budgets/0"

    def __enter__(self) -> Sentinels:
        try:
            self.master.start()
            self.replica.start()
            until(lambda: "master_link_status:up" in self.replica.cli("INFO", "replication"))
            self.sentinel.start()
            # One that stood still for 2 s trusts no clock for the next 30 s, and does nothing.
            with contextlib.suppress(RuntimeError):  # before Redis 7 that is no setting
                self.sentinel.cli("SENTINEL", "DEBUG", "tilt-trigger", "600000")
            until(lambda: "num-slaves\r\n$1\r\n1" in self.sentinel.cli("SENTINEL", "MASTER", "budgets"))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for server in (self.sentinel, self.replica, self.master):
            server.kill()
        if self._apart is not None:
            shutil.rmtree(self._apart, ignore_errors=True)

    def catch_up(self) -> None:
        """Until the replica has all that the master has by now."""
        written = _offset(self.master, "master_repl_offset")
        until(lambda: _offset(self.replica, "slave_repl_offset") >= written)

    def cut_off(self) -> None:
        """The replica hears nothing of the master from now on."""
        self.catch_up()
        self.master.cli("ACL", "DELUSER", REPLICA)  # which ends its connections too
        until(lambda: "master_link_status:down" in self.replica.cli("INFO", "replication"))

    def fail_over(self) -> None:
        """The master dies, and the replica takes its place."""
        self.master.kill()
        self.promote()

    def promote(self) -> None:
        """After the master died: have the Sentinel make the replica the master, and tell who asks."""

        def promoted() -> bool:
            if f"{self.replica.port}\r\n" in self.sentinel.cli(
                "SENTINEL", "GET-MASTER-ADDR-BY-NAME", "budgets"
            ):
                return "role:master" in self.replica.cli("INFO", "replication")
            if "failover_in_progress" not in self.sentinel.cli("SENTINEL", "MASTER", "budgets"):
                self.sentinel.cli("SENTINEL", "FAILOVER", "budgets")
            return False

        until(promoted)


def _offset(server: RedisServer, name: str) -> int:
    lines = server.cli("INFO", "replication").splitlines()
    return next(int(line.partition(":")[2]) for line in lines if line.startswith(f"{name}:"))
