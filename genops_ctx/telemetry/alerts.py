"""Telling that a budget is nearly spent: once a window, from a thread of its own.

A call only leaves word of the accounts it was booked to. One daemon thread of the process reads them
soon after, sets the store's mark of each threshold that is passed, and tells who set it first: so an
alert fires once, over threads and over processes that share a store, and no call waits for it.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from ..core.alerts import Alert, alert_of, crossed_here, marks_of, spent_of
from ..core.errors import ConfigurationError, StoreError
from ..core.process import process_id

if TYPE_CHECKING:
    from ..core.accounts import Watch
    from ..core.context import GovernanceContext
    from ..core.ports import AccountStore, Clock

__all__ = ["Alerts", "Sink", "log_alert", "sinks_of"]

log = logging.getLogger("genops_ctx.alerts")

Sink = Callable[[Alert], object]

GATHER = 0.5
"""Seconds from the first word to the look at the accounts, so that many calls are one look: a worker of the
service with 20 calls a second would ask its Redis as often, only for this. Who flushes does not wait."""

KEPT_MARKS = 10_000


def log_alert(alert: Alert) -> None:
    """The sink that is always there: a warning of the logger ``genops_ctx.alerts``."""
    log.warning("%s", alert.text)


def sinks_of(given: object, webhook: str | None) -> tuple[Sink, ...]:
    """The log, what ``on_alert=`` names (functions and webhook addresses), and the settings' webhook."""
    items = [given] if callable(given) or isinstance(given, str) else given
    if items is not None and not isinstance(items, Iterable):
        raise ConfigurationError("on_alert= takes functions of an Alert, or addresses of webhooks")
    sinks: list[Sink] = [log_alert]
    for item in [*(items or ()), *([webhook] if webhook else [])]:
        if isinstance(item, str):
            from .webhook import Webhook

            sinks.append(Webhook(item))
        elif callable(item):
            sinks.append(item)
        else:
            raise ConfigurationError("on_alert= takes functions of an Alert, or addresses of webhooks")
    return tuple(sinks)


class Alerts:
    """The alerts of one runtime."""

    def __init__(self, store: AccountStore, clock: Clock, sinks: Sequence[Sink] = (log_alert,)) -> None:
        self._store = store
        self._clock = clock
        self._sinks = tuple(sinks)
        self._marked: dict[str, float] = {}
        """marks that are known to be set, and until when: the store need not be asked again"""
        self._noted: set[tuple[str, int]] = set()
        """accounts that the next look will read, and the budgets it will read them for"""
        self._process = process_id()

    def booked(self, watches: Sequence[Watch], context: GovernanceContext | None) -> None:
        """A charge was booked to these accounts, and in this context. Never waits."""
        if not self._sinks:
            return
        if self._process is not process_id():  # who would have looked is in the process that was forked
            self._process, self._noted = process_id(), set()
        words: list[Watch | Alert] = []
        noted = self._noted
        for watch in watches:
            source = watch.source
            if source is not None and source.alert_parts:
                key = (watch.account, id(source))
                if key not in noted:
                    noted.add(key)
                    words.append(watch)
        if context is not None:
            words += crossed_here(context, self._clock())
        if words:
            try:
                _worker().jobs.put((self, words))
            except RuntimeError as error:  # no thread can be started: the call is paid for all the same
                self._noted = set()
                log.warning("a budget alert may be late: %s", error)

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until all that was noted has been looked at and told; False where it took too long."""
        if _current is None or _current.pid != os.getpid():
            return True
        done = threading.Event()
        _current.jobs.put(done)
        return done.wait(timeout)

    def look(self, words: Iterable[Watch | Alert]) -> None:
        """Look at accounts, and tell what is due. Raises nothing."""
        watches = {}
        for word in words:
            if isinstance(word, Alert):
                self._tell(word)
            else:
                watches[word.account, id(word.source)] = word
        # Before the accounts are read: what is booked from now on is noted anew.
        self._noted.difference_update(watches)
        try:
            for alert in self._due(list(watches.values())):
                self._tell(alert)
        except StoreError as error:
            log.debug("the accounts cannot be read for alerts now: %s", error)
        except Exception as error:
            log.debug("the accounts cannot be read for alerts: %s", type(error).__name__)

    def _due(self, watches: Sequence[Watch]) -> Iterable[Alert]:
        if not watches:
            return
        keys = dict.fromkeys(key for watch in watches for key in (watch.account, *watch.also))
        accounts = self._store.accounts(tuple(keys))
        now = self._clock()
        for watch in watches:
            spent = spent_of(watch, accounts)
            for mark in marks_of(watch, spent, now):
                if self._mark(mark.key, now, mark.until):
                    yield alert_of(watch, mark.threshold, spent, now)

    def _mark(self, key: str, now: float, until: float) -> bool:
        if now < self._marked.get(key, now):
            return False
        if len(self._marked) >= KEPT_MARKS:
            self._marked.clear()
        # A store that keeps no marks has each process alert once.
        mark = getattr(self._store, "mark", None)
        first = mark is None or bool(mark(key, now, until))
        self._marked[key] = until
        return first

    def _tell(self, alert: Alert) -> None:
        for sink in self._sinks:
            try:
                sink(alert)
            except BaseException as error:  # a sink that exits must not end the thread of all alerts
                # Of our own errors the text is known to hold no secret; of others, and of the repr of
                # what users give, it is not.
                ours = type(error).__module__.startswith("genops_ctx.")
                name = getattr(sink, "__qualname__", type(sink).__name__)
                said = str(error) if ours else type(error).__name__
                log.warning("an alert could not be given to %s: %s", name, said)


class _Worker:
    """The thread of this process that looks and tells."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.jobs: queue.SimpleQueue[tuple[Alerts, Sequence[Watch | Alert]] | threading.Event]
        self.jobs = queue.SimpleQueue()
        threading.Thread(target=self._run, name="genops_ctx-alerts", daemon=True).start()

    def _run(self) -> None:
        while True:
            found = [self.jobs.get()]
            until = time.monotonic() + GATHER
            while True:
                flushed = isinstance(found[-1], threading.Event)
                try:
                    found.append(self.jobs.get(timeout=0 if flushed else max(until - time.monotonic(), 0)))
                except queue.Empty:
                    break
            words: dict[Alerts, list[Watch | Alert]] = {}
            for job in found:
                if isinstance(job, tuple):
                    words.setdefault(job[0], []).extend(job[1])
            for alerts, said in words.items():
                alerts.look(said)
            for job in found:
                if isinstance(job, threading.Event):
                    job.set()


_current: _Worker | None = None
_starting = threading.Lock()


def _worker() -> _Worker:
    """The worker; a new one after a fork, whose child has none of its parent's threads."""
    global _current
    if _current is None or _current.pid != os.getpid():
        with _starting:
            if _current is None or _current.pid != os.getpid():
                _current = _Worker()
    return _current


def _after_fork() -> None:
    global _starting
    _starting = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
