"""What is being sent at this moment, so that what sends it in turn does not meter it once more.

An adapter sends by ``requests``, which may be instrumented; ``httpx`` may send by ``aiohttp``. The mark is
for that very send: the same flow, by another client than the one that set it, in the same thread and
task. What a thread or task started meanwhile calls is a call of its own, and so is what a hook calls.
"""

from __future__ import annotations

import sys
import threading
import weakref
from contextlib import suppress
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from types import TracebackType

    from .telemetry.spans import CallSpan, CurrentSpan

__all__ = ["Sending", "is_being_sent"]


class _Mark(NamedTuple):
    client: str
    flow: str
    thread: int
    task: weakref.ref[object] | None
    """weak: connections keep the context that they are made in, and a task keeps its result"""


_mark: ContextVar[_Mark | None] = ContextVar("genops_ctx.sending", default=None)


class Sending:
    """Around the sending of a flow's prediction by a client; the call's span is the current one."""

    __slots__ = ("_current", "_mark", "_token")

    def __init__(self, client: str, flow: str, span: CallSpan | None) -> None:
        self._mark = _Mark(client, flow.lower(), threading.get_ident(), _task())
        self._current: CurrentSpan | None = None if span is None else span.current()
        self._token: Token[_Mark | None] | None = None

    def __enter__(self) -> None:
        self._token = _mark.set(self._mark)
        if self._current is not None:
            self._current.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self._current is not None:
                self._current.__exit__(kind, error, traceback)
        finally:
            assert self._token is not None
            with suppress(ValueError):  # a coroutine that is thrown away ends in another context
                _mark.reset(self._token)


def is_being_sent(client: str, flow: str) -> bool:
    """Whether this is the send of a call that another entry point meters already."""
    mark = _mark.get()
    return (
        mark is not None
        and mark.client != client
        and mark.flow == flow.lower()
        and mark.thread == threading.get_ident()
        and mark.task == _task()
    )


def _task() -> weakref.ref[object] | None:
    asyncio = sys.modules.get("asyncio")
    if asyncio is None or asyncio._get_running_loop() is None:
        return None
    task = asyncio.current_task()
    return None if task is None else weakref.ref(task)
