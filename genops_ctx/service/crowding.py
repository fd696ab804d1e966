"""How many connections a worker has at once, and who is answered beyond that: probes of its health."""

from __future__ import annotations

import logging
import time

__all__ = ["PROBES", "SPARE", "SPARE_SECONDS", "CrowdLog", "most_connections"]

log = logging.getLogger("genops_ctx")

SPARE = 64
"""Connections beyond that, on which probes are answered and others refused; more are closed at once."""
SPARE_SECONDS = 2.0
"""For the head of a request on one of those to come."""
PROBES = frozenset({b"/health", b"/health/live", b"/health/ready", b"/ready"})
TOLD_EVERY = 60.0
OTHER_FILES = 128
"""Descriptors of a worker that are no client's: sockets of stores and ledgers, files, the spare ones."""


def most_connections(wanted: int) -> int:
    """How many a worker takes: what is wanted, as far as its file descriptors go. A stream takes two."""
    files = _files()
    able = wanted if files is None else max((files - OTHER_FILES) // 2, 16)
    if able >= wanted:
        return wanted
    log.info(
        "a worker takes %d connections, not %d, since it may open %s files: raise that (ulimit -n)",
        able,
        wanted,
        files,
    )
    return able


def _files() -> int | None:
    """File descriptors that this process may have; None where there is no limit, or none to be read."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


class CrowdLog:
    """Says that a worker has all the connections that it takes, once a minute."""

    def __init__(self) -> None:
        self._next = 0.0

    def tell(self, most: int) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + TOLD_EVERY
            log.warning("all %d connections of this worker are taken: others are refused (503)", most)
