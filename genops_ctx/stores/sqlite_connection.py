"""One guarded connection to a SQLite file: bounded, and safe across forks."""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
import weakref
from pathlib import Path
from types import TracebackType

from ..core.errors import ConfigurationError, StoreError
from .sqlite_schema import migrate

__all__ = ["Transactions", "check_writable"]

SYNCHRONOUS = ("NORMAL", "FULL", "EXTRA")
CHECKPOINT_PAGES = 8_000
"""A checkpoint waits for the disk; one each so many pages costs little per call and 16 MB of file."""
MOST_BETWEEN_TRIES = 0.0005
"""Seconds; a transaction takes a tenth of that."""
PAGE_BYTES = 2_048
"""Each commit writes whole pages, so small ones write less. Counts where the file is made."""


class Transactions:
    """``with transactions as connection:`` is one write transaction; its end commits it.

    Threads of this process take turns on one connection: waiting for a lock of ours wakes at once,
    while SQLite's own waiting sleeps. Other processes are waited for by SQLite.

    Raises :class:`StoreError` where the file stays locked for ``timeout`` seconds or fails, and
    :class:`ConfigurationError` for a file that cannot be opened.
    """

    def __init__(self, path: str, timeout: float, synchronous: str) -> None:
        if synchronous not in SYNCHRONOUS:
            raise ConfigurationError(
                f"synchronous must be one of {', '.join(SYNCHRONOUS)}, not {synchronous!r}"
            )
        self.path = path
        self._timeout = timeout
        self._synchronous = synchronous
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._quiet = False
        """locked for a fork"""
        _living.add(self)

    def __enter__(self) -> sqlite3.Connection:
        if not self._lock.acquire(timeout=self._timeout / 2):
            raise StoreError(f"{self.path} is busy: its lock was not free within {self._timeout / 2:g} s")
        try:
            connection = self._connection
            if connection is None:
                connection = self._connection = self._open()
            self._begin(connection)
        except BaseException as error:
            self._lock.release()
            raise self._as_ours(error) from None
        return connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        connection = self._connection
        assert connection is not None
        try:
            if error is None:
                connection.execute("COMMIT")
        except BaseException as failed:
            error = failed
        finally:
            self._undo(connection)
            self._lock.release()
        if error is not None:
            ours = self._as_ours(error)
            if ours is not error or kind is None:
                raise ours from None

    def _begin(self, connection: sqlite3.Connection) -> None:
        """SQLite's own waiting sleeps the longer the longer it waits, so that some wait for ever."""
        until = 0.0
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    raise
                until = until or time.monotonic() + self._timeout / 2
                if time.monotonic() > until:
                    raise
            time.sleep(random.uniform(0.0001, MOST_BETWEEN_TRIES))  # noqa: S311

    def _undo(self, connection: sqlite3.Connection) -> None:
        """Roll back what was not committed."""
        if not connection.in_transaction:
            return
        try:
            connection.execute("ROLLBACK")
        except sqlite3.Error:
            # In which state it is nobody knows any more.
            self._close()

    def close(self) -> None:
        with self._lock:
            self._close()

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _as_ours(self, error: BaseException) -> BaseException:
        checked = isinstance(error, sqlite3.IntegrityError) and "CHECK" in str(error)
        if checked or isinstance(error, OverflowError):
            return StoreError(
                f"{self.path}: an account passed 9.2 billion dollars, the most that it can hold"
            )
        if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
            return StoreError(f"{self.path} is busy: another process held it for {self._timeout / 2:g} s")
        if isinstance(error, sqlite3.Error):
            return StoreError(f"{self.path}: {error}")
        return error

    def _open(self) -> sqlite3.Connection:
        advice = "choose a file that can be written, on a local disk: sqlite:////var/lib/genops/store.db"
        try:
            connection = sqlite3.connect(
                self.path, self._timeout / 2, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise ConfigurationError(f"the store {self.path} cannot be opened ({error}); {advice}") from None
        try:
            connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            mode = _write_ahead(connection, self._timeout / 2)
            if mode != "wal":
                raise ConfigurationError(
                    f"the store {self.path} cannot be shared: its file system has no WAL (it says {mode!r}); "
                    f"{advice}"
                )
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
            connection.execute("PRAGMA cache_size = -8000")
            migrate(connection, self.path)
            connection.execute("PRAGMA busy_timeout = 0")
        except sqlite3.DatabaseError as error:
            connection.close()
            if "locked" in str(error):
                raise
            raise ConfigurationError(f"the store {self.path} cannot be used ({error}); {advice}") from None
        except BaseException:
            connection.close()
            raise
        return connection

    def before_fork(self) -> None:
        """Close it: a connection that two processes share corrupts the file."""
        self._quiet = self._lock.acquire(timeout=self._timeout)
        if self._quiet:
            self._close()

    def after_fork(self, *, child: bool) -> None:
        if child:
            self._lock = threading.Lock()
            # Where it could not be closed, this process must not touch it either.
            _abandoned.append(self._connection)
            self._connection = None
        elif self._quiet:
            self._lock.release()
        self._quiet = False


def _write_ahead(connection: sqlite3.Connection, timeout: float) -> str:
    """SQLite itself does not wait while another process makes the same change."""
    until = time.monotonic() + timeout
    while True:
        try:
            return str(connection.execute("PRAGMA journal_mode = WAL").fetchone()[0])
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
        time.sleep(0.01)


def check_writable(path: str) -> None:
    """Raises :class:`ConfigurationError` that says why a file cannot be made or written there."""
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise ConfigurationError(f"the store {path} cannot be made: there is no folder {folder}")
    target = Path(path) if Path(path).exists() else folder
    if Path(path).is_dir() or not os.access(target, os.W_OK) or not os.access(folder, os.W_OK):
        raise ConfigurationError(
            f"the store {path} cannot be written: give this user the right to write {target} and its folder, "
            "or choose another file"
        )


_living: weakref.WeakSet[Transactions] = weakref.WeakSet()
_abandoned: list[sqlite3.Connection | None] = []
_forking: list[Transactions] = []


def _before_fork() -> None:
    _forking[:] = list(_living)
    for each in _forking:
        each.before_fork()


def _after_fork_in_parent() -> None:
    for each in _forking:
        each.after_fork(child=False)
    _forking.clear()


def _after_fork_in_child() -> None:
    for each in _forking:
        each.after_fork(child=True)
    _forking.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
