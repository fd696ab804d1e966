"""Places that few may have at a time, given to threads in the order in which they asked."""

from __future__ import annotations

import threading
from collections import deque

__all__ = ["FairSlots"]


class FairSlots:
    """As :class:`threading.Semaphore`, and first come, first served.

    Python's own goes to whoever asks while one is free, mostly the thread that has just given one back:
    who waits with a bound may then wait in vain while others have one time after time.
    """

    __slots__ = ("_free", "_lock", "_waiting")

    def __init__(self, number: int) -> None:
        self._lock = threading.Lock()
        self._free = number
        self._waiting: deque[threading.Lock] = deque()

    def acquire(self, timeout: float) -> bool:
        """False where none came free within so many seconds."""
        with self._lock:
            if self._free:
                self._free -= 1
                return True
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        try:
            if turn.acquire(timeout=timeout):
                return True
        except BaseException:
            if not self._leave(turn):
                self.release()
            raise
        return not self._leave(turn)

    def _leave(self, turn: threading.Lock) -> bool:
        """Whether it was still waited for; else it has come meanwhile."""
        with self._lock:
            if turn not in self._waiting:
                return False
            self._waiting.remove(turn)
            return True

    def release(self) -> None:
        """To who has waited longest, where anybody waits."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._free += 1
