"""What peers tell of breakers, as it happens: one connection and one thread for a process."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from ..core.breaker import CircuitState
from ..core.process import ForkedLock, process_id
from .redis_breakers import CHANNELS
from .redis_rules import RedisRules

__all__ = ["BreakerFeed", "Change", "read_change"]

log = logging.getLogger("genops_ctx")

PING_EVERY = 0.5
"""Seconds of silence after which the server is asked whether it is there."""
SILENT_FOR = 1.5
"""Seconds without any answer after which it is taken for gone."""
TRY_AGAIN = (0.05, 1.0)
"""Seconds between tries to connect: from, to."""


class Change(NamedTuple):
    """A breaker has changed its state."""

    name: str
    state: CircuitState
    version: int
    since: int
    forced: bool


def read_change(data: bytes, namespace: str) -> Change | None:
    """What a message says; None where it is of another installation, or none of ours."""
    try:
        said = json.loads(data)
        if said["namespace"] != namespace:
            return None
        state = CircuitState(said["state"])
        return Change(
            str(said["name"]), state, int(said["version"]), int(said["since"]), bool(said["forced"])
        )
    except (ValueError, TypeError, KeyError):
        return None


class BreakerFeed:
    """Listens to the channels of all breakers, and connects again by itself.

    ``changed`` is called for each message, ``broken`` each time that messages may have been missed. Both
    are called by the feed's thread. A forked process starts a thread of its own.
    """

    def __init__(
        self, rules: RedisRules, changed: Callable[[Change], object], broken: Callable[[], object]
    ) -> None:
        self._rules = rules
        self._changed = changed
        self._broken = broken
        self._lock = ForkedLock()
        self._owner = ""
        self._stop = threading.Event()
        self._live = False

    @property
    def live(self) -> bool:
        """Every message since is heard. Starts the thread where there is none."""
        if self._owner != process_id():
            self._start()
        return self._live

    def close(self) -> None:
        """End the thread; it is started again where the feed is used again."""
        with self._lock:
            self._stop.set()
            self._owner = ""
            self._live = False

    def _start(self) -> None:
        with self._lock:
            if self._owner == process_id():
                return
            self._owner, self._live = process_id(), False
            self._stop = threading.Event()
            thread = threading.Thread(
                target=self._run, args=(self._stop,), name="genops-breaker-feed", daemon=True
            )
            thread.start()

    def _run(self, stop: threading.Event) -> None:
        pause = TRY_AGAIN[0]
        while not stop.is_set():
            try:
                self._listen(stop)
            except Exception as error:
                # Whatever it was: nothing is heard now, and those who ask are told by the store.
                log.debug("breaker feed: %s: %s", type(error).__name__, error)
            if self._live and not stop.is_set():
                self._live, pause = False, TRY_AGAIN[0]
                self._broken()
            stop.wait(pause)
            pause = min(2 * pause, TRY_AGAIN[1])

    def _listen(self, stop: threading.Event) -> None:
        client = self._rules.connect()
        try:
            listener = client.pubsub()
            try:
                listener.psubscribe(f"{CHANNELS}*")
                self._hear(listener, stop)
            finally:
                with contextlib.suppress(Exception):
                    listener.close()
        finally:
            with contextlib.suppress(Exception):
                client.close()

    def _hear(self, listener: Any, stop: threading.Event) -> None:
        heard = asked = time.monotonic()
        while not stop.is_set():
            message = listener.get_message(timeout=PING_EVERY)
            now = time.monotonic()
            if message is not None:
                heard = now
                if message["type"] == "psubscribe":
                    # What was missed before: whoever asks is told by the store.
                    self._broken()
                    self._live = True
                elif message["type"] == "pmessage":
                    change = read_change(message["data"], self._rules.namespace)
                    if change is not None:
                        self._changed(change)
            if now - heard > SILENT_FOR:
                return
            if now - heard >= PING_EVERY and now - asked >= PING_EVERY:
                asked = now
                listener.ping()
