"""Answers that carry their charge: a dict, or a stream of events."""

from __future__ import annotations

import atexit
import logging
import os
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, Self, cast

from ..core.money import dollars
from ..core.outcomes import Outcome
from ..wire.answers import Problem
from ..wire.sse import Event, EventDecoder, StreamTooLarge
from ..wire.usage import StreamReader
from .errors import FlowiseError, FlowiseStreamError, problem_error

if TYPE_CHECKING:
    from decimal import Decimal
    from types import TracebackType

    from ..core.records import Charge, Usage
    from .prediction_story import OpenStream
    from .transport import Body

__all__ = [
    "Finish",
    "FlowiseAnswer",
    "FlowiseStream",
    "StreamedAnswer",
    "Streaming",
    "Whole",
    "book_at_exit",
]

log = logging.getLogger("genops_ctx")


class FlowiseAnswer(dict[str, Any]):
    """Flowise's answer as it came, with what it cost."""

    charge: Charge | None = None
    cached: bool = False
    """it came from a cache: nothing was sent, and it cost nothing"""
    saved: Decimal | None = None
    """dollars that it cost when it was computed, where it is cached and that is known"""
    served_by: str = ""
    """which target gave it, where the flow that was asked did not; ``fallback`` for the fallback answer"""

    @property
    def cost(self) -> Decimal | None:
        """Exact dollars as far as prices are known; :attr:`charge` says how exact."""
        if self.charge is None:
            return dollars(0) if self.cached or self.served_by == "fallback" else None
        return self.charge.cost

    def as_cached(self, nanos: int | None) -> FlowiseAnswer:
        """A copy that a cache gives; ``nanos`` is what it cost then, in nano-dollars."""
        copy = FlowiseAnswer(self)
        copy.cached = True
        copy.saved = None if nanos is None else dollars(nanos)
        return copy

    @property
    def usage(self) -> tuple[Usage, ...]:
        """The usage of each model call."""
        return self.charge.usage if self.charge is not None else ()


Finish = Callable[[Outcome, StreamReader, BaseException | None], "Charge | None"]


class Streaming:
    """What is needed to read a stream and to book it, also when nobody holds the stream any more."""

    def __init__(self, opened: OpenStream) -> None:
        self.body = opened.reply
        self.reader = opened.reader
        self.charge: Charge | None = None
        self._finish = opened.finish
        self._runtime = opened.runtime
        self._what = opened.what
        self._decoder = EventDecoder()
        self._done = False
        self._process = os.getpid()
        book_at_exit(self)

    def over(self) -> bool:
        return self._done

    def feed(self, chunk: bytes) -> Iterator[dict[str, Any]]:
        """The events that a chunk completes. Raises the error that the stream reports."""
        for event in self._decoder.feed(chunk):
            self.reader.feed(event)
            if self.reader.error is not None:
                raise self._error(self.reader.error)
            if self.reader.ended:
                self.end(Outcome.COMPLETED)
            yield {"event": event.event, "data": event.data}
            if self._done:
                return

    def cut_short(self) -> FlowiseStreamError:
        """The error of a stream whose bytes came to an end before it did."""
        return self._broken("the stream broke off before its end; an estimate is booked")

    def failed(self, error: Exception) -> Exception | None:
        """Book what failed, and say what is to be raised; None where the stream was closed meanwhile."""
        if self._done:
            return None
        if isinstance(error, StreamTooLarge):
            error = self._broken(str(error))
        if isinstance(error, FlowiseError):
            self.end(error.outcome, error)
        return error

    def _broken(self, why: str) -> FlowiseStreamError:
        error = FlowiseStreamError(f"{self._what} failed: {why}")
        error.outcome = Outcome.TRUNCATED
        return error

    def _error(self, problem: Problem) -> FlowiseError:
        error = problem_error(problem, self._what, self.body.as_response())
        if error.outcome is Outcome.REFUSED and self.reader.text:
            # Words came before it, so a model was called, whatever the message looks like.
            error.outcome = Outcome.FAILED
        return error

    def end(self, outcome: Outcome, error: BaseException | None = None) -> None:
        if self._done:
            return
        self._done = True
        try:
            self.charge = self._finish(outcome, self.reader, error)
        finally:
            self.body.close()
        if isinstance(error, FlowiseError):
            error.charge = self.charge

    async def booked(self) -> None:
        """Return once it is in the ledger, or where it outlives this process; within a moment."""
        await self._runtime.books.booked(self.charge)

    def abandon(self) -> None:
        """Nobody holds the stream any more. A child that was forked meanwhile leaves it to its parent."""
        if self._process == os.getpid():
            self.end(Outcome.ABANDONED)


class Unended(Protocol):
    def abandon(self) -> None: ...


_unended: weakref.WeakSet[Unended] = weakref.WeakSet()
"""The streams of this process that are held, those that have ended among them."""


def book_at_exit(stream: Unended) -> None:
    """Have a stream booked that is still open when the interpreter exits."""
    _unended.add(stream)


@atexit.register
def _abandon_all() -> None:
    """Book the streams that are open when the interpreter exits, before the runtime closes its books.

    Registered after the runtime's, so it runs first. ``weakref``'s own may run after both.
    """
    for state in tuple(_unended):
        try:
            state.abandon()
        except Exception:
            log.exception("an open stream could not be booked")


class Whole:
    """An answer that came as a whole, told by the events that a stream of it would have had."""

    def __init__(self, answer: FlowiseAnswer) -> None:
        self.reader = StreamReader(None)
        self.charge = answer.charge
        self._answer = answer

    def events(self) -> Iterator[dict[str, Any]]:
        parts = dict(self._answer)
        told = [Event("token", parts.pop("text", ""))]
        told += [Event(name, parts.pop(name)) for name in _EVENTS if name in parts]
        for event in (*told, Event("metadata", parts), Event("end", "[DONE]")):
            self.reader.feed(event)
            yield {"event": event.event, "data": event.data}

    def end(self, outcome: Outcome, error: BaseException | None = None) -> None:
        """It is booked already."""


_EVENTS = ("usedTools", "sourceDocuments", "agentFlowExecutedData")


class StreamedAnswer:
    """What every stream of a prediction has: its text, its charge, and an end."""

    def __init__(self, opened: OpenStream) -> None:
        self._state: Streaming | Whole = Streaming(opened)
        runtime = opened.runtime
        runtime.abandoned.watch()
        # The finalizer only queues: it may run in the middle of anything, so it must not lock or wait.
        weakref.finalize(self, runtime.abandoned.put, self._state.abandon).atexit = False

    @classmethod
    def of_answer(cls, answer: FlowiseAnswer) -> Self:
        """Of an answer that came as a whole, from a flow that does not stream; booked already."""
        stream = cls.__new__(cls)
        stream._state = Whole(answer)
        return stream

    @property
    def charge(self) -> Charge | None:
        """What it cost, once it has ended; None before."""
        return self._state.charge

    def close(self) -> None:
        """Stop listening. Flowise runs on, so the call is booked at an estimate."""
        self._state.end(Outcome.ABANDONED)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'ended' if self._state.reader.ended else 'open'}>"

    @property
    def text(self) -> str:
        """The answer's text as far as it came."""
        return self._state.reader.text

    @property
    def cost(self) -> Decimal | None:
        """Exact dollars, once it has ended; None before."""
        return self.charge.cost if self.charge is not None else None

    @property
    def usage(self) -> tuple[Usage, ...]:
        """The usage of each model call, once it has ended."""
        return self.charge.usage if self.charge is not None else ()


class FlowiseStream(StreamedAnswer):
    """Events of a streamed prediction as they come: ``{"event": "token", "data": "Hel"}`` …

    The call is booked when the stream ends, is closed (also by ``with``), or is dropped: Flowise runs
    a flow to its end whoever listens, so a stream that was left early is booked at an estimate.
    Iterating raises the error that the stream reports, a timeout, or that it was cut short.
    """

    _events: Iterator[dict[str, Any]] | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        if self._events is None:
            state = self._state
            # The generator holds the state and not this object, so that dropping this ends it at once.
            self._events = state.events() if isinstance(state, Whole) else _events(state)
        return next(self._events)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _events(state: Streaming) -> Iterator[dict[str, Any]]:
    if state.over():
        return
    try:
        for chunk in cast("Body", state.body):
            yield from state.feed(chunk)
            if state.over():
                return
        raise state.cut_short()
    except Exception as error:
        failed = state.failed(error)
        if failed is None:
            return  # closed meanwhile, by another thread
        raise failed from failed.__cause__
