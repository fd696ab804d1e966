"""An orderly end: admit no more calls, let those in flight end, write down what is still to be written."""

from __future__ import annotations

import logging
import signal
import socket
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from ..core.errors import ConfigurationError
from ..runtime import get_runtime

if TYPE_CHECKING:
    import asyncio

__all__ = ["GracefulShutdown"]

log = logging.getLogger("genops_ctx")

DEFAULT_TIMEOUT = 130.0
"""A whole call takes 120 s at most, unless it was given longer; Flowise may retry a model for 103 s."""


class GracefulShutdown:
    """``with GracefulShutdown() as shutdown:`` or ``async with``, around a program's main part.

    A signal refuses further calls (:class:`~genops_ctx.core.errors.ShuttingDown`) and ends
    :meth:`wait`; the end of the block waits for the calls in flight, then writes what is still to be
    written. A second signal does what it would have done without this.

    Args:
        timeout: seconds that the calls in flight have to end. Those that do not are booked as lost once
            their reservations expire.
        signals: which to listen to. Only the main thread can; elsewhere pass ``()`` and call
            :meth:`request`.
    """

    def __init__(
        self,
        timeout: float = DEFAULT_TIMEOUT,
        signals: Iterable[signal.Signals] = (signal.SIGTERM, signal.SIGINT),
    ) -> None:
        if not 0 <= timeout <= 86_400:
            raise ConfigurationError(f"timeout must be from 0 to 86400 seconds, not {timeout!r}")
        self.timeout = timeout
        self.signals = tuple(signals)
        self.requested = False
        """the program is to end"""
        self._before: dict[signal.Signals, Any] = {}
        # A handler may run in the middle of anything, so it takes no lock: a byte wakes who waits.
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)
        self._woken.setblocking(False)
        self._loop: asyncio.AbstractEventLoop | None = None

    def request(self) -> None:
        """Begin to end, as a signal does. From any thread, and from a signal handler."""
        self.requested = True
        get_runtime().in_flight.close()
        with suppress(OSError):  # it is awake already, or over
            self._wake.send(b"x")

    # -- waiting for the signal -----------------------------------------------------------------

    def wait(self, timeout: float | None = None) -> bool:
        """Block until a signal comes; False where none did in ``timeout`` seconds."""
        import select

        if not self.requested:
            select.select([self._woken], [], [], timeout)
        return self.requested

    async def wait_async(self) -> None:
        """Wait until a signal comes."""
        import asyncio

        loop = asyncio.get_running_loop()
        woken = asyncio.Event()
        loop.add_reader(self._woken.fileno(), woken.set)
        try:
            if not self.requested:
                await woken.wait()
        finally:
            loop.remove_reader(self._woken.fileno())

    # -- the end --------------------------------------------------------------------------------

    def drain(self, timeout: float | None = None) -> bool:
        """Admit nothing more, wait for what is in flight, and flush; False where some did not end in time."""
        in_flight = get_runtime().in_flight
        in_flight.close()
        ended = in_flight.wait(self.timeout if timeout is None else timeout)
        self._flush(in_flight.count)
        return ended

    async def drain_async(self, timeout: float | None = None) -> bool:
        """As :meth:`drain`, while the event loop goes on."""
        import asyncio

        in_flight = get_runtime().in_flight
        in_flight.close()
        until = time.monotonic() + (self.timeout if timeout is None else timeout)
        while in_flight.count > 0 and time.monotonic() < until:
            await asyncio.sleep(0.02)
        self._flush(in_flight.count)
        return in_flight.count <= 0

    def _flush(self, left: int) -> None:
        runtime = get_runtime()
        if left > 0:
            log.warning("%d calls did not end in time; they are booked once their reservations expire", left)
        runtime.abandoned.drain()
        runtime.books.catch_up(runtime.clock())
        runtime.alerts.flush()
        if "opentelemetry.sdk.trace" in sys.modules:
            from opentelemetry import trace

            flush = getattr(trace.get_tracer_provider(), "force_flush", None)
            if callable(flush):
                flush(5_000)

    # -- as a context manager -------------------------------------------------------------------

    def __enter__(self) -> Self:
        get_runtime()  # there before a handler asks for it
        for number in self.signals:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.drain()
        finally:
            self._restore()

    async def __aenter__(self) -> Self:
        import asyncio

        self._loop = asyncio.get_running_loop()
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self.drain_async()
        finally:
            self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            self._again(signal.Signals(number), frame)
            return
        self.request()

    def _again(self, number: signal.Signals, frame: FrameType | None) -> None:
        """The second signal: whatever it did before."""
        before = self._before.get(number)
        signal.signal(number, before if before is not None else signal.SIG_DFL)
        if callable(before):
            before(number, frame)
        else:
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, before in self._before.items():
            signal.signal(number, before if before is not None else signal.SIG_DFL)
        self._before.clear()
        if not self.requested:
            get_runtime().in_flight.reopen()
        self._wake.close()
        self._woken.close()
