"""Streamed predictions for asyncio: the events of a stream as an async iterator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self, cast

from ..core.outcomes import Outcome
from .answers import StreamedAnswer, Whole

if TYPE_CHECKING:
    from types import TracebackType

    from .async_transport import AsyncReply

__all__ = ["AsyncFlowiseStream"]


class AsyncFlowiseStream(StreamedAnswer):
    """Events of a streamed prediction as they come: ``async for event in stream``.

    The call is booked when the stream ends, is closed (also by ``async with``), is cancelled while it
    waits for an event, or is dropped: Flowise runs a flow to its end whoever listens, so a stream that
    was left early is booked at an estimate. Iterating raises the error that the stream reports, a
    timeout, or that it was cut short. One task iterates at a time; any may close it.
    """

    _events: Iterator[dict[str, Any]] | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> dict[str, Any]:
        state = self._state
        if isinstance(state, Whole):
            if self._events is None:
                self._events = state.events()
            for event in self._events:
                return event
            raise StopAsyncIteration
        reply = cast("AsyncReply", state.body)
        try:
            while not state.over() or self._events is not None:
                for event in self._events or ():
                    if state.over():
                        await state.booked()
                    return event
                self._events = None
                if state.over():
                    break
                chunk = await reply.next()
                if not chunk:
                    raise state.cut_short()
                self._events = state.feed(chunk)
        except Exception as error:
            self._events = None
            failed = state.failed(error)
            if failed is not None:
                raise failed from failed.__cause__
        except GeneratorExit:
            raise  # thrown away: the finalizer of this object sees to it
        except BaseException as error:
            state.end(Outcome.CANCELLED, error)
            raise
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """As :meth:`close`; nothing is waited for."""
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
