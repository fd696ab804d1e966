"""Questions that come at once are asked at once: by one thread, in one exchange with a server.

Of an event loop with many calls in hand several come to the same question in one turn of it. A thread for
each would cost more than the answers do. What is asked while the threads are busy waits, and goes together.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    import asyncio

__all__ = ["Asked", "Gathering"]

AT_ONCE = 100
"""questions in one exchange"""
EXCHANGES = 2
"""at a time, of one event loop: so that a distant server is asked again while it answers"""

Q = TypeVar("Q")
A = TypeVar("A")


class Asked(Generic[Q, A]):
    """A question of an event loop that is on its way. Only the one that asked it waits for it."""

    __slots__ = ("_waiter", "answer", "done", "error", "loop", "question")

    def __init__(self, question: Q, loop: asyncio.AbstractEventLoop) -> None:
        self.question = question
        self.loop = loop
        self.answer: A | None = None
        self.error: BaseException | None = None
        self.done = False
        self._waiter: asyncio.Future[None] | None = None

    def tell(self, answer: A | None, error: BaseException | None = None) -> None:
        """Within the loop: what is answered, or raised."""
        self.answer, self.error, self.done = answer, error, True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> BaseException | None:
        """Until it is told, also where the one that waits is cancelled: that cancellation is the result."""
        import asyncio

        cancelled = None
        while not self.done:
            self._waiter = self.loop.create_future()
            try:
                await self._waiter
            except asyncio.CancelledError as error:
                cancelled = error
        return cancelled


class _Turn(Generic[Q, A]):
    """What one event loop has asked, and how many exchanges are under way for it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.waiting: deque[Asked[Q, A]] = deque()
        self.under_way = 0
        self.called = False


class Gathering(Generic[Q, A]):
    """Asks for event loops. ``ask_all`` answers several questions, in their order, and raises nothing that
    is one question's own: that is its answer."""

    def __init__(
        self,
        threads: Callable[[], ThreadPoolExecutor],
        ask_all: Callable[[Sequence[Q]], Sequence[A | Exception]],
    ) -> None:
        self._threads = threads
        self._ask_all = ask_all
        self._here = threading.local()

    def ask(self, question: Q) -> Asked[Q, A]:
        """Begin to ask it, with what else is asked in this turn of the running event loop."""
        import asyncio

        loop = asyncio.get_running_loop()
        turn: _Turn[Q, A] | None = getattr(self._here, "turn", None)
        if turn is None or turn.loop is not loop:
            turn = self._here.turn = _Turn(loop)
        asked: Asked[Q, A] = Asked(question, loop)
        turn.waiting.append(asked)
        if not turn.called and turn.under_way < EXCHANGES:
            turn.called = True
            loop.call_soon(self._begin, turn)
        return asked

    def _begin(self, turn: _Turn[Q, A]) -> None:
        turn.called = False
        while turn.waiting and turn.under_way < EXCHANGES:
            some = [turn.waiting.popleft() for _ in range(min(len(turn.waiting), AT_ONCE))]
            turn.under_way += 1
            try:
                self._threads().submit(self._exchange, turn, some)
            except RuntimeError:  # the interpreter ends, or there are no more threads
                self._end(turn, some, self._answers(some))

    def _exchange(self, turn: _Turn[Q, A], some: list[Asked[Q, A]]) -> None:
        answers = self._answers(some)
        turn.loop.call_soon_threadsafe(self._end, turn, some, answers)

    def _answers(self, some: list[Asked[Q, A]]) -> Sequence[A | BaseException]:
        try:
            return self._ask_all([asked.question for asked in some])
        except BaseException as error:
            return [error] * len(some)

    def _end(self, turn: _Turn[Q, A], some: list[Asked[Q, A]], answers: Sequence[A | BaseException]) -> None:
        turn.under_way -= 1
        for asked, answer in zip(some, answers, strict=True):
            if isinstance(answer, BaseException):
                asked.tell(None, answer)
            else:
                asked.tell(answer)
        self._begin(turn)
