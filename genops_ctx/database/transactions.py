"""One guarded connection to a file: transactions that nest, and that wait fairly and within bounds."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ..core.errors import ConfigurationError, StoreError
from .fair_lock import FairLock
from .file import connect, execute, is_busy, make_private
from .parts import Migration, migrate

__all__ = ["Database", "Transactions", "living"]

LOCK_SECONDS = 5.0
"""How long it is waited at most for threads and processes that use the file too."""

SYNCHRONOUS = ("OFF", "NORMAL", "FULL", "EXTRA")
"""How durable a commit is, by SQLite's own names; the strictest last."""


living: weakref.WeakSet[Database] = weakref.WeakSet()
"""every database of this process, for those who fork it"""
_abandoned: list[sqlite3.Connection | None] = []
"""connections of a parent: to close them here would change the parent's file"""


class Database:
    """A file that is made, private to its user, by the first transaction; ``with`` it to write.

    ``synchronous="NORMAL"`` survives a killed process, ``"FULL"`` a power cut too. One connection
    serves all threads, one at a time. It is closed before a fork and opened anew by both sides:
    SQLite's locks do not survive one. Every failure of SQLite, and a wait of more than ``timeout``
    seconds, is a :class:`StoreError`.

    >>> with database as connection:                                             # doctest: +SKIP
    ...     connection.execute("INSERT …")

    An inner ``with`` joins the outer transaction; leaving the outermost commits, or rolls back where
    an exception passes.
    """

    def __init__(
        self, path: str | Path, *, synchronous: str = "NORMAL", timeout: float = LOCK_SECONDS
    ) -> None:
        if str(path) == ":memory:":
            raise ConfigurationError("SQLite's ':memory:' cannot be shared; use memory://, or a file")
        self.path = Path(path).expanduser().absolute()
        self.synchronous = _known(synchronous)
        self.generation = 0
        """rises with every opening and every rollback: what was learnt of ids before is void"""
        self._timeout = timeout
        self._lock = FairLock()
        self._reading = threading.RLock()
        self._depth = 0
        self._views = 0
        self._connection: sqlite3.Connection | None = None
        self._closer: weakref.finalize[..., Database] | None = None
        self._parts: dict[str, Sequence[Migration]] = {}
        self._paused = False
        """all its connections are closed for a fork"""
        self._torn = False
        """they could not be closed for the fork that made this process"""
        living.add(self)

    def add_part(self, name: str, migrations: Sequence[Migration]) -> None:
        """Have the file hold this part, at version ``len(migrations)``, from the next opening on."""
        with self._lock:
            if name not in self._parts:
                self._parts[name] = migrations
                self._disconnect()

    def harden(self, synchronous: str) -> None:
        """Make commits at least so durable: of those who share a file, the strictest decides."""
        if SYNCHRONOUS.index(_known(synchronous)) > SYNCHRONOUS.index(self.synchronous):
            with self._lock:
                self.synchronous = synchronous
                self._disconnect()

    @property
    def exists(self) -> bool:
        """False where nothing was ever written: there is nothing to read either."""
        return self._connection is not None or self.path.exists()

    # -- transactions -----------------------------------------------------------------------------

    def within(self, seconds: float) -> Transactions:
        """``with`` it instead, to wait for others at most so long."""
        return Transactions(self, seconds)

    def __enter__(self) -> sqlite3.Connection:
        return self.begin(self._timeout)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end(error)

    def begin(self, seconds: float) -> sqlite3.Connection:
        """As entering; one half of ``seconds`` is for the threads of this process, one for the others."""
        self._take(seconds / 2)
        try:
            connection = self._connection
            if connection is None:
                connection = self._connect(seconds / 2)
            if not self._depth:
                execute(connection, "BEGIN IMMEDIATE", (), seconds / 2)
            self._depth += 1
        except BaseException as error:
            if not self._depth and self._connection is not None and self._connection.in_transaction:
                self._roll_back(self._connection)
            self._lock.release()
            if _is_ours(error):
                raise self._failed(error) from error
            raise
        return connection

    def end(self, error: BaseException | None) -> None:
        """As leaving."""
        if not self._depth:
            return  # it began before a fork, and belongs to the process that forked
        try:
            self._depth -= 1
            if not self._depth and self._connection is not None:
                self._conclude(self._connection, keep=error is None)
        except sqlite3.Error as failure:
            raise self._failed(failure) from failure
        finally:
            self._lock.release()
        if error is not None and _is_ours(error):
            raise self._failed(error) from error

    def _conclude(self, connection: sqlite3.Connection, *, keep: bool) -> None:
        try:
            if keep:
                connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                self._roll_back(connection)

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        self.generation += 1
        if not connection.in_transaction:
            return
        try:
            connection.execute("ROLLBACK")
        except sqlite3.Error:
            # In which state it is nobody knows any more.
            self._disconnect()

    def read(
        self, statement: str, parameters: Sequence[object] = (), seconds: float | None = None
    ) -> list[tuple[Any, ...]]:
        """All rows of a query; none where the file was never made."""
        wait = (self._timeout if seconds is None else seconds) / 2
        self._take(wait)
        try:
            if not self.exists:
                return []
            connection = self._connection or self._connect(wait)
            return execute(connection, statement, parameters, wait).fetchall()
        except sqlite3.Error as error:
            raise self._failed(error) from error
        finally:
            self._lock.release()

    @contextlib.contextmanager
    def view(self) -> Iterator[sqlite3.Connection]:
        """The file as it is now, on a connection of its own: a long report keeps no call waiting."""
        with self._reading:
            self._take(self._timeout / 2)
            try:
                if self._connection is None:
                    self._connect(self._timeout / 2)
                connection = sqlite3.connect(self.path, timeout=self._timeout, isolation_level=None)
            except sqlite3.Error as error:
                raise self._failed(error) from error
            finally:
                self._lock.release()
            self._views += 1
            try:
                connection.execute("PRAGMA query_only=ON")
                connection.execute("BEGIN")
                yield connection
            except sqlite3.Error as error:
                raise self._failed(error) from error
            finally:
                connection.close()
                self._views -= 1

    # -- the connection -----------------------------------------------------------------------------

    def close(self) -> None:
        """Close the connection; the next use opens it again. One that is in use stays open."""
        if self._lock.acquire(timeout=self._timeout):
            try:
                self._disconnect()
            finally:
                self._lock.release()

    def _take(self, seconds: float) -> None:
        if not self._lock.acquire(timeout=seconds):
            raise StoreError(f"{self.path} is busy: other threads kept it locked for {seconds:g} s")

    def _disconnect(self) -> None:
        if self._closer is not None and not self._depth:
            self._closer()
            self._closer = self._connection = None

    def _connect(self, seconds: float) -> sqlite3.Connection:
        if self._torn:
            raise StoreError(
                f"{self.path} was in use when this process was forked, and cannot be used here: "
                "fork before threads are started, or start processes by spawn"
            )
        try:
            make_private(self.path)
        except OSError as error:
            raise self._failed(error) from error
        connection = connect(self.path, self.synchronous, seconds)
        try:
            for name, migrations in self._parts.items():
                migrate(connection, self.path, name, migrations)
            # SQLite's own waiting sleeps the longer the longer it waits, so that some wait for ever.
            connection.execute("PRAGMA busy_timeout = 0")
        except BaseException:
            connection.close()
            raise
        self.generation += 1
        self._connection = connection
        closer = weakref.finalize(self, connection.close)
        # What other exit handlers still book must not find it closed.
        closer.atexit = False
        self._closer = closer
        return connection

    def _failed(self, error: BaseException) -> StoreError:
        if isinstance(error, OverflowError) or "CHECK constraint failed" in str(error):
            return StoreError(f"{self.path}: a sum passed 9.2 billion dollars, the most that it can hold")
        if is_busy(error):
            return StoreError(f"{self.path} is busy: another process kept it locked ({error})")
        return StoreError(f"{self.path}: {error}")

    # -- forks --------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Close it: what a connection believes of its locks is not true in a child."""
        if not self._reading.acquire(timeout=self._timeout):
            return
        if not self._lock.acquire(timeout=self._timeout):
            self._reading.release()
            return
        self._paused = True
        self._disconnect()

    def after_fork(self, *, child: bool) -> None:
        paused, self._paused = self._paused, False
        if not child:
            if paused:
                self._lock.release()
                self._reading.release()
            return
        self._lock, self._reading = FairLock(), threading.RLock()
        self._torn = self._torn or not paused or self._depth > 0 or self._views > 0
        self._depth = self._views = 0
        if self._closer is not None:
            self._closer.detach()
            _abandoned.append(self._connection)
            self._closer = self._connection = None


class Transactions:
    """A database as one who waits for others at most so many seconds uses it."""

    __slots__ = ("_database", "_seconds")

    def __init__(self, database: Database, seconds: float) -> None:
        self._database = database
        self._seconds = seconds

    def __enter__(self) -> sqlite3.Connection:
        return self._database.begin(self._seconds)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.end(error)

    def read(self, statement: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """As :meth:`Database.read`."""
        return self._database.read(statement, parameters, self._seconds)


def _is_ours(error: BaseException) -> bool:
    return isinstance(error, sqlite3.Error | OverflowError)


def _known(synchronous: str) -> str:
    if synchronous not in SYNCHRONOUS:
        raise ConfigurationError(f"synchronous must be one of {', '.join(SYNCHRONOUS)}, not {synchronous!r}")
    return synchronous
