"""What exporters send in parts, put together for the corrections of this process."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ..wire.langfuse import LangfuseTraces
from ..wire.otlp_runs import OtlpRuns

if TYPE_CHECKING:
    from ..core.evidence import Shown
    from ..wire.otlp import Span

__all__ = ["Exports", "Sink"]

log = logging.getLogger("genops_ctx")


class Sink(Protocol):
    """Where receivers bring what came. Every method may wait for a ledger, and none raises."""

    keeps: bool
    """what it took is safe with it: a receiver answers only then"""

    def langfuse(self, batch: dict[str, Any]) -> None:
        """A batch of Langfuse's events."""

    def otlp(self, spans: Sequence[Span]) -> None:
        """Spans of an export."""

    def look(self) -> bool:
        """Tell of runs that are over by now; whether there are others."""

    def listening_again(self) -> None:
        """What was exported until now may be lost."""


class Exports:
    """A :class:`Sink` for the corrections of this process. Safe from any thread."""

    keeps = False

    def __init__(self, take: Callable[[Shown], object], clock: Callable[[], float] = time.monotonic) -> None:
        """``take`` is told of all that is known of each trace that there was something of."""
        self._take = take
        self._clock = clock
        self._traces = LangfuseTraces()
        self._runs = OtlpRuns()
        self._lock = threading.Lock()

    def langfuse(self, batch: dict[str, Any]) -> None:
        try:
            with self._lock:
                shown = self._traces.feed(batch)
            for one in shown:
                self._take(one)
        except Exception:
            log.exception("a Langfuse batch could not be read; the estimates stand")

    def otlp(self, spans: Sequence[Span]) -> None:
        with self._lock:
            self._runs.feed(spans, self._clock())

    def look(self) -> bool:
        try:
            with self._lock:
                shown = self._runs.shown(self._clock())
            for one in shown:
                self._take(one)
        except Exception:
            log.exception("traces could not be read; the estimates stand")
        with self._lock:
            return self._runs.open

    def listening_again(self, since: float | None = None) -> None:
        """``since``: from when on nothing was lost, in epoch seconds; now unless given."""
        with self._lock:
            self._runs.interrupt(time.time() if since is None else since)
