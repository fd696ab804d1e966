"""A shared store that has lost its data is brought back from the ledger, by one process, while others wait.

Only where the ledger is declared complete (``ledger_complete``): the charges of one machine say nothing
of what another has spent. A thread asks the store once a second, so that every process hears soon that
the data is other data, and tells it of its calls in flight before anything is reserved anew.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING

from .controls import Controls
from .core.errors import StoreDataLost, StoreError

if TYPE_CHECKING:
    from .core.ports import AccountStore, Clock, Ledger

__all__ = ["Recovery"]

log = logging.getLogger("genops_ctx")

HEARTBEAT = 1.0
"""Seconds between two looks at the store."""
CLOSED_SECONDS = 10.0
"""How long nothing is reserved in data begun anew: every process has looked meanwhile, also one that stood
still for some seconds or waits for an answer of the server that is gone."""


class Recovery:
    """Looks after one store. It raises nothing; what fails is tried again with the next look."""

    def __init__(self, store: AccountStore, ledger: Ledger, clock: Clock) -> None:
        self._store = store
        self._ledger = ledger
        self._clock = clock
        self._wake = threading.Event()
        self._stopped = False
        self._lock = threading.Lock()
        self._process = 0

    def watch(self) -> None:
        """Have a daemon thread look; started once a process, again after a fork."""
        if self._process == os.getpid():
            return
        if not self._lock.acquire(blocking=False):
            return  # another thread starts it; or did so at the fork, and a later call does
        try:
            if self._process != os.getpid():
                self._process = os.getpid()
                self._wake, self._stopped = threading.Event(), False
                look_on = threading.Thread(
                    target=self._look_on, args=(self._wake,), name="genops_ctx-recovery", daemon=True
                )
                look_on.start()
        except RuntimeError as error:
            log.warning("no thread can be started that looks after the store: %s", error)
        finally:
            self._lock.release()

    def wake(self) -> None:
        """A loss was noticed: look now."""
        self._wake.set()

    def stop(self) -> None:
        """Look no more, until a later :meth:`watch`."""
        self._stopped, self._process = True, 0
        self._wake.set()

    def _look_on(self, wake: threading.Event) -> None:
        while not self._stopped and self._wake is wake:
            wake.wait(HEARTBEAT)
            wake.clear()
            if not self._stopped and self._wake is wake:
                self.look()

    def look(self) -> None:
        """Ask the store, which tells new data of calls in flight; bring it back where it is lost."""
        try:
            try:
                self._store.probe()  # type: ignore[attr-defined]
            except StoreDataLost as loss:
                controls = Controls(self._store, self._ledger, self._clock, actor="recovery")
                if controls.bring_back(CLOSED_SECONDS):
                    log.error("%s. It was brought back from the ledger, which is declared complete", loss)
                self._store.probe()  # type: ignore[attr-defined]
        except StoreError as error:
            log.debug("the store cannot be looked after now: %s", error)
        except Exception:
            log.exception("the accounts cannot be brought back")
