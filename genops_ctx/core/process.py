"""This process: its id, and locks that a fork's child may take whoever held them in its parent."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from types import TracebackType

__all__ = ["ForkedLock", "process_id", "renewed_at_fork"]

_id = os.urandom(5).hex()
_renewing = threading.Lock()
_renewals: list[Callable[[], object]] = []


def process_id() -> str:
    """Ten hexadecimal digits that no other process has, forks included."""
    return _id


def renewed_at_fork(renew: Callable[[], object]) -> None:
    """Have ``renew`` called in each child of a fork, before anything else runs there.

    A thread of the parent may have held a lock at that moment; in the child nobody gives it back.
    """
    _renewals.append(renew)


def _in_child() -> None:
    global _id, _renewing
    _id = os.urandom(5).hex()
    _renewing = threading.Lock()
    for renew in _renewals:
        renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


class ForkedLock:
    """A lock that is new in each process: for the many objects that nobody can list at a fork."""

    __slots__ = ("_lock", "_process")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = _id

    def __enter__(self) -> None:
        if self._process is not _id:
            with _renewing:
                if self._process is not _id:
                    self._lock, self._process = threading.Lock(), _id
        self._lock.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.release()
