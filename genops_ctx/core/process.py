"""This process: its id, and locks that a fork's child may take whoever held them in its parent."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, TypeVar

__all__ = ["ForkedLock", "process_id", "renewed_at_fork"]

_id = os.urandom(5).hex()
_renewing = threading.Lock()


class AnyLock(Protocol):
    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...

    def release(self) -> None: ...


def process_id() -> str:
    """Ten hexadecimal digits that no other process has, forks included."""
    return _id


Renewal = TypeVar("Renewal", bound=Callable[[], object])

_renewals: list[Callable[[], object]] = []


def renewed_at_fork(renew: Renewal) -> Renewal:
    """Have ``renew`` called in each child of a fork, before anything else runs there.

    A thread of the parent may have held a lock at that moment; in the child nobody gives it back.
    """
    _renewals.append(renew)
    return renew


def _in_child() -> None:
    global _id, _renewing
    _id = os.urandom(5).hex()
    _renewing = threading.Lock()
    for renew in _renewals:
        renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


class ForkedLock:
    """A lock that is new in each process: for the many objects that nobody can list at a fork.

    ``kind`` is what it is made of, :class:`threading.Lock` or :class:`threading.RLock`. In a fork's child
    it is free, whoever held it in the parent.
    """

    __slots__ = ("_kind", "_lock", "_process")

    def __init__(self, kind: Callable[[], AnyLock] = threading.Lock) -> None:
        self._kind = kind
        self._lock = kind()
        self._process = _id

    def __enter__(self) -> None:
        if self._process is not _id:
            self._renew()
        self._lock.acquire()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """As :meth:`threading.Lock.acquire`; given back by :meth:`release`."""
        if self._process is not _id:
            self._renew()
        return self._lock.acquire(blocking, timeout)

    def release(self) -> None:
        self._lock.release()

    def _renew(self) -> None:
        with _renewing:
            if self._process is not _id:
                self._lock, self._process = self._kind(), _id

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.release()
