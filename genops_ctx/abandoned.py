"""What nobody waits for any more: finalizers queue it here, and a thread or the next call finishes it.

A finalizer may run in the middle of anything, so it only puts a job on a queue that never blocks.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable

__all__ = ["Abandoned"]

log = logging.getLogger("genops_ctx")


class Abandoned:
    """Jobs that finish abandoned calls. Each runs once, whoever comes to it first."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._thread: tuple[int, threading.Thread] | None = None
        self.put = self._jobs.put
        self.empty = self._jobs.empty

    def drain(self) -> None:
        """Run what is queued."""
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return
            _run(job)

    def watch(self) -> None:
        """Have a daemon thread run what comes; started once a process, again after a fork."""
        if self._thread is not None and self._thread[0] == os.getpid():
            return
        thread = threading.Thread(target=self._for_ever, name="genops_ctx-reaper", daemon=True)
        self._thread = (os.getpid(), thread)
        thread.start()

    def _for_ever(self) -> None:
        while True:
            _run(self._jobs.get())


def _run(job: Callable[[], object]) -> None:
    try:
        job()
    except Exception:
        log.exception("an abandoned call could not be finished")
