"""A real master, replica and Sentinel of the tests' own."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from .redis_server import RedisServer


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
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
    """A master, its replica, and a Sentinel that makes the one the other."""

    def __init__(self, folder: Path) -> None:
        def place(name: str) -> Path:
            (folder / name).mkdir()
            return folder / name

        fast = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")
        self.master = RedisServer(place("master"), *fast)
        self.replica = RedisServer(place("replica"), "--replicaof", "127.0.0.1", str(self.master.port), *fast)
        settings = place("sentinel") / "sentinel.conf"
        settings.write_text(
            f"sentinel monitor budgets 127.0.0.1 {self.master.port} 1\n"
            "sentinel down-after-milliseconds budgets 500\n"
            "sentinel failover-timeout budgets 3000\n"
        )
        self.sentinel = RedisServer(settings.parent, "--sentinel", config=settings)

    @property
    def url(self) -> str:
        return f"redis+sentinel://127.0.0.1:{self.sentinel.port}/budgets/0"

    def __enter__(self) -> Sentinels:
        self.master.start()
        self.replica.start()
        until(lambda: "master_link_status:up" in self.replica.cli("INFO", "replication"))
        self.sentinel.start()
        until(lambda: "num-slaves\r\n$1\r\n1" in self.sentinel.cli("SENTINEL", "MASTER", "budgets"))
        return self

    def __exit__(self, *_: object) -> None:
        for server in (self.sentinel, self.replica, self.master):
            server.kill()

    def fail_over(self) -> None:
        self.master.kill()
        until(lambda: "role:master" in self.replica.cli("INFO", "replication"))
