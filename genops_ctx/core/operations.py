"""Operations and their attempts: what a user asked for once, and each try at it.

A call with an idempotency key is an operation of that name. Any other is one of its own, unless it is
made inside :func:`trying`: there the first call of every try is an attempt of one operation, the second
call of every try an attempt of another, and so on.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from .errors import ConfigurationError
from .process import ForkedLock, renewed_at_fork

__all__ = ["Named", "Tries", "named", "new_operation", "trying"]


_own = os.urandom(9).hex()
_numbers = itertools.count(1)


def new_operation() -> str:
    """A key that no other operation has: what only this process has, and a number."""
    return f"{_own}{next(_numbers):06x}"


def _renew() -> None:
    global _own
    _own = os.urandom(9).hex()


renewed_at_fork(_renew)


class Operation:
    """One operation, and how often it was tried. Attempts count from 1, unless others were made elsewhere."""

    __slots__ = ("_attempts", "key")

    def __init__(self, key: str, attempt: int = 1) -> None:
        self.key = key
        self._attempts = itertools.count(attempt)

    def next_attempt(self) -> int:
        return next(self._attempts)


class Tries:
    """The operations of a piece of work that is tried until it succeeds; shared by its threads and tasks.

    ``key`` and ``attempt`` say which operation it is, and which try at it comes now, where another process
    made the earlier ones.
    """

    __slots__ = ("_attempt", "_first", "_lock", "_operations", "_position", "flags")

    def __init__(self, key: str | None = None, attempt: int = 1) -> None:
        outer = _current.get() if key is None else None
        self._attempt = attempt
        self._first = outer.take() if outer is not None else Operation(key or new_operation(), attempt)
        self._operations = [self._first]
        self._position = 0
        self._lock = ForkedLock()
        self.flags: tuple[str, ...] = outer.flags if outer is not None else ()
        """of every charge from here on"""

    def again(self) -> None:
        """A try begins: its first call is an attempt of the first operation again."""
        with self._lock:
            self._position = 0

    def take(self) -> Operation:
        """The operation of the next call of this try."""
        with self._lock:
            if self._position == len(self._operations):
                self._operations.append(Operation(f"{self._first.key}.{self._position + 1}", self._attempt))
            self._position += 1
            return self._operations[self._position - 1]


_current: ContextVar[Tries | None] = ContextVar("genops_ctx.tries", default=None)


@contextmanager
def trying(tries: Tries) -> Iterator[None]:
    """What is called inside belongs to these tries."""
    before = _current.get()
    _current.set(tries)
    try:
        yield
    finally:
        _current.set(before)


class Named(NamedTuple):
    """What a call is an attempt of."""

    operation: str
    attempt: int
    keyed: bool
    """the user gave the key, so it is remembered"""
    flags: tuple[str, ...] = ()


def named(idempotency_key: str | None) -> Named:
    """The operation and attempt of a call that is about to be made.

    Raises :class:`ConfigurationError` for a bad key.
    """
    tries = _current.get()
    flags = tries.flags if tries is not None else ()
    if idempotency_key is None:
        if tries is None:
            return Named(new_operation(), 1, False)
        operation = tries.take()
        return Named(operation.key, operation.next_attempt(), False, flags)
    key = idempotency_key
    if not isinstance(key, str) or not key.strip() or len(key) > 200 or not key.isprintable():
        raise ConfigurationError("idempotency_key must be a printable string of 1 to 200 characters")
    return Named(key, 1, True, flags)
