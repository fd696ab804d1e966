"""Answers that carry their charge: a dict, or a stream of events."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..core.outcomes import Outcome
from ..wire.answers import Problem
from ..wire.sse import Event, EventDecoder, StreamTooLarge
from ..wire.usage import StreamReader
from .errors import FlowiseError, FlowiseStreamError, problem_error

if TYPE_CHECKING:
    from decimal import Decimal
    from types import TracebackType

    from ..core.records import Charge, Usage
    from ..runtime import Runtime
    from .transport import Body

__all__ = ["FlowiseAnswer", "FlowiseStream"]


class FlowiseAnswer(dict[str, Any]):
    """Flowise's answer as it came, with what it cost."""

    charge: Charge | None = None

    @property
    def cost(self) -> Decimal | None:
        """Exact dollars as far as prices are known; :attr:`charge` says how exact."""
        return self.charge.cost if self.charge is not None else None

    @property
    def usage(self) -> tuple[Usage, ...]:
        """The usage of each model call."""
        return self.charge.usage if self.charge is not None else ()


Finish = Callable[[Outcome, StreamReader, BaseException | None], "Charge | None"]


class _Streaming:
    """What is needed to read a stream and to book it, also when nobody holds the stream any more."""

    def __init__(self, body: Body, reader: StreamReader, finish: Finish, what: str) -> None:
        self.body = body
        self.reader = reader
        self.charge: Charge | None = None
        self._finish = finish
        self._what = what
        self._done = False

    def events(self) -> Iterator[dict[str, Any]]:
        if self._over():
            return
        decoder = EventDecoder()
        try:
            for chunk in self.body:
                for event in decoder.feed(chunk):
                    self.reader.feed(event)
                    if self.reader.error is not None:
                        raise self._error(self.reader.error)
                    if self.reader.ended:
                        self.end(Outcome.COMPLETED)
                    yield {"event": event.event, "data": event.data}
                    if self._over():
                        return
            raise self._broken("the stream broke off before its end; an estimate is booked")
        except Exception as error:
            if self._over():
                return  # closed meanwhile, by another thread
            if isinstance(error, StreamTooLarge):
                error = self._broken(str(error))
            if isinstance(error, FlowiseError):
                self.end(error.outcome, error)
            raise error from error.__cause__

    def _over(self) -> bool:
        return self._done

    def _broken(self, why: str) -> FlowiseStreamError:
        error = FlowiseStreamError(f"{self._what} failed: {why}")
        error.outcome = Outcome.TRUNCATED
        return error

    def _error(self, problem: Problem) -> FlowiseError:
        error = problem_error(problem, self._what, self.body.response)
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

    def abandon(self) -> None:
        self.end(Outcome.ABANDONED)


class _Whole:
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


class FlowiseStream:
    """Events of a streamed prediction as they come: ``{"event": "token", "data": "Hel"}`` …

    The call is booked when the stream ends, is closed (also by ``with``), or is dropped: Flowise runs
    a flow to its end whoever listens, so a stream that was left early is booked at an estimate.
    Iterating raises the error that the stream reports, a timeout, or that it was cut short.
    """

    def __init__(self, body: Body, reader: StreamReader, finish: Finish, what: str, runtime: Runtime) -> None:
        self._state: _Streaming | _Whole = _Streaming(body, reader, finish, what)
        # The generator holds the state and not this object, so that dropping this ends it at once.
        self._events = self._state.events()
        runtime.watch_abandoned()
        # The finalizer only queues: it may run in the middle of anything, so it must not lock or wait.
        weakref.finalize(self, runtime.abandoned.put, self._state.abandon)

    @classmethod
    def of_answer(cls, answer: FlowiseAnswer) -> FlowiseStream:
        """Of an answer that came as a whole, from a flow that does not stream; booked already."""
        stream = cls.__new__(cls)
        stream._state = _Whole(answer)
        stream._events = stream._state.events()
        return stream

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        return next(self._events)

    @property
    def charge(self) -> Charge | None:
        """What it cost, once it has ended; None before."""
        return self._state.charge

    def close(self) -> None:
        """Stop listening. Flowise runs on, so the call is booked at an estimate."""
        self._state.end(Outcome.ABANDONED)

    def __enter__(self) -> FlowiseStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<FlowiseStream {'ended' if self._state.reader.ended else 'open'}>"

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
