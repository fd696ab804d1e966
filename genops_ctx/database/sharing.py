"""Who shares a file within one machine's processes: one database a path, and closed files across forks."""

from __future__ import annotations

import os
import threading
import weakref
from pathlib import Path

from .transactions import Database, living

__all__ = ["open_database"]

_opened: weakref.WeakValueDictionary[str, Database] = weakref.WeakValueDictionary()
_opening = threading.Lock()
_forking_one = threading.RLock()
"""two threads that fork at once would wait for each other's databases"""
_forking: list[Database] = []


def open_database(path: str | Path, *, synchronous: str = "NORMAL") -> Database:
    """The database of a path: the same for all who ask for it. The file is not touched yet.

    Its commits are as durable as the strictest of them wants. Raises :class:`ConfigurationError`.
    """
    key = os.path.realpath(Path(path).expanduser())
    with _opening:
        database = _opened.get(key)
        if database is None:
            database = _opened[key] = Database(path, synchronous=synchronous)
    database.harden(synchronous)
    return database


def _before_fork() -> None:
    _forking_one.acquire()
    for database in list(living):
        database.before_fork()
        _forking.append(database)


def _after_fork_in_parent() -> None:
    while _forking:
        _forking.pop().after_fork(child=False)
    _forking_one.release()


def _after_fork_in_child() -> None:
    global _opening, _forking_one
    _opening, _forking_one = threading.Lock(), threading.RLock()
    while _forking:
        _forking.pop().after_fork(child=True)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
