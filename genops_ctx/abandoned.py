"""What nobody waits for any more: finalizers queue it here, and a thread or the next call finishes it.

A finalizer may run in the middle of anything, so it only puts a job on a queue that never blocks.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

from .core.process import process_id

__all__ = ["Abandoned"]

log = logging.getLogger("genops_ctx")


class Abandoned:
    """Jobs that finish abandoned calls. Each runs once, whoever comes to it first.

    A fork's child begins with none: those of its parent are its parent's to run.
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._process = process_id()
        self._jobs: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    @property
    def _mine(self) -> queue.SimpleQueue[Callable[[], object]]:
        if self._process is not process_id():
            self._begin()
        return self._jobs

    def put(self, job: Callable[[], object]) -> None:
        """Never blocks."""
        self._mine.put(job)

    def empty(self) -> bool:
        return self._mine.empty()

    def drain(self) -> None:
        """Run what is queued."""
        jobs = self._mine
        while True:
            try:
                job = jobs.get_nowait()
            except queue.Empty:
                return
            _run(job)

    def watch(self) -> None:
        """Have a daemon thread run what comes; started once a process, again after a fork."""
        jobs = self._mine
        if self._thread is not None:
            return
        self._thread = threading.Thread(
            target=self._for_ever, args=(jobs,), name="genops_ctx-reaper", daemon=True
        )
        self._thread.start()

    def _for_ever(self, jobs: queue.SimpleQueue[Callable[[], object]]) -> None:
        while True:
            _run(jobs.get())


def _run(job: Callable[[], object]) -> None:
    try:
        job()
    except Exception:
        log.exception("an abandoned call could not be finished")
