"""One SQLite file as threads, forks and other processes may share it: connection, transactions, versions.

Ledger and account store may live in the same file. Each has tables of its own and a *part* with a
version of its own; whoever opens the same path in the same process gets the same :class:`Database`,
so that one transaction can hold what both of them write.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ..core.errors import ConfigurationError, StoreError

__all__ = ["Database", "Migration", "open_database"]

Migration = Callable[[sqlite3.Connection], None]
"""Brings a part's tables from one version to the next, inside a transaction that it does not end."""

LOCK_SECONDS = 5.0
"""How long a writer waits for writers of other processes."""

PAGE_BYTES = 2048
"""A commit writes whole pages, so small ones write less. Counts where the file is made."""
CHECKPOINT_PAGES = 8000
"""Pages of the write-ahead log between checkpoints (16 MB): each costs two fsyncs."""

SYNCHRONOUS = ("NORMAL", "FULL", "EXTRA", "OFF")


class Database:
    """A file that is made, private to its user, by the first transaction; ``with`` it to write.

    ``synchronous="NORMAL"`` survives a killed process, ``"FULL"`` a power cut too. One connection
    serves all threads, one at a time. It is closed before a fork and opened anew by both sides:
    SQLite's locks do not survive one. Every failure of SQLite is a :class:`StoreError`.

    >>> with database as connection:                                             # doctest: +SKIP
    ...     connection.execute("INSERT …")

    An inner ``with`` joins the outer transaction; leaving the outermost commits, or rolls back where
    an exception passes.
    """

    def __init__(
        self, path: str | Path, *, synchronous: str = "NORMAL", timeout: float = LOCK_SECONDS
    ) -> None:
        if synchronous not in SYNCHRONOUS:
            raise ConfigurationError(
                f"synchronous must be one of {', '.join(SYNCHRONOUS)}, not {synchronous!r}"
            )
        self.path = Path(path).expanduser().absolute()
        self.synchronous = synchronous
        self.generation = 0
        """rises with every opening and every rollback: what was learnt of ids before is void"""
        self._timeout = timeout
        self._lock = threading.RLock()
        self._reading = threading.RLock()
        self._depth = 0
        self._connection: sqlite3.Connection | None = None
        self._closer: Callable[[], object] | None = None
        self._parts: dict[str, Sequence[Migration]] = {}
        _ALL.add(self)

    def add_part(self, name: str, migrations: Sequence[Migration]) -> None:
        """Have the file hold this part, at version ``len(migrations)``, from the next opening on."""
        with self._lock:
            if name not in self._parts:
                self._parts[name] = migrations
                self._disconnect()

    def prepare(self) -> None:
        """Have file and tables ready for another connection to write to."""
        if self._connection is None:
            with self:
                pass

    @property
    def exists(self) -> bool:
        """False where nothing was ever written: there is nothing to read either."""
        return self._connection is not None or self.path.exists()

    def __enter__(self) -> sqlite3.Connection:
        self._lock.acquire()
        try:
            connection = self._connection
            if connection is None:
                connection = self._connect()
            if not self._depth:
                connection.execute("BEGIN IMMEDIATE")
            self._depth += 1
        except BaseException as error:
            self._lock.release()
            if isinstance(error, sqlite3.Error):
                raise self._failed(error) from error
            raise
        return connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._depth -= 1
            connection = self._connection
            if self._depth or connection is None:
                return
            if error is None:
                try:
                    connection.execute("COMMIT")
                except BaseException:
                    self._roll_back(connection)
                    raise
            else:
                self._roll_back(connection)
        except sqlite3.Error as failure:
            raise self._failed(failure) from failure
        finally:
            self._lock.release()
        if isinstance(error, sqlite3.Error):
            raise self._failed(error) from error

    def read(self, statement: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query; none where the file was never made."""
        with self._lock:
            if not self.exists:
                return []
            try:
                connection = self._connection or self._connect()
                return connection.execute(statement, parameters).fetchall()
            except sqlite3.Error as error:
                raise self._failed(error) from error

    @contextlib.contextmanager
    def view(self) -> Iterator[sqlite3.Connection]:
        """The file as it is now, on a connection of its own: a long report keeps no call waiting."""
        with self._reading:
            with self._lock:
                if self._connection is None:
                    self._connect()
            try:
                connection = sqlite3.connect(self.path, timeout=self._timeout, isolation_level=None)
            except sqlite3.Error as error:
                raise self._failed(error) from error
            try:
                connection.execute("PRAGMA query_only=ON")
                connection.execute("BEGIN")
                yield connection
            except sqlite3.Error as error:
                raise self._failed(error) from error
            finally:
                connection.close()

    def close(self) -> None:
        """Close the connection; the next use opens it again."""
        with self._lock:
            self._disconnect()

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        self.generation += 1
        if not connection.in_transaction:
            return
        try:
            connection.execute("ROLLBACK")
        except sqlite3.Error:
            # In which state it is nobody knows any more.
            self._disconnect()

    def _disconnect(self) -> None:
        if self._closer is not None and not self._depth:
            self._closer()
            self._closer = self._connection = None

    def _connect(self) -> sqlite3.Connection:
        try:
            _make_private(self.path)
            # cached_statements: every statement of ledger and store stays compiled
            connection = sqlite3.connect(
                self.path,
                timeout=self._timeout,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=512,
            )
        except (OSError, sqlite3.Error) as error:
            raise self._failed(error) from error
        try:
            connection.execute(f"PRAGMA page_size={PAGE_BYTES}")
            _use_write_ahead_log(connection, self._timeout)
            connection.execute(f"PRAGMA synchronous={self.synchronous}")
            connection.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
            connection.execute("PRAGMA cache_size=-16000")
            for name, migrations in self._parts.items():
                self._migrate(connection, name, migrations)
        except BaseException as error:
            connection.close()
            if isinstance(error, sqlite3.Error):
                raise self._failed(error) from error
            raise
        self.generation += 1
        self._connection = connection
        closer = weakref.finalize(self, connection.close)
        # What other exit handlers still book must not find it closed.
        closer.atexit = False
        self._closer = closer
        return connection

    def _migrate(self, connection: sqlite3.Connection, name: str, migrations: Sequence[Migration]) -> None:
        if _version(connection, name) == len(migrations):
            return
        connection.execute("BEGIN IMMEDIATE")
        try:
            version = _version(connection, name)  # another process may have been first
            if version > len(migrations):
                raise ConfigurationError(
                    f"the {name} in {self.path} has version {version}, and this version of genops_ctx knows "
                    f"{len(migrations)} at most; update genops_ctx, or use another file"
                )
            for migration in migrations[version:]:
                migration(connection)
            connection.execute("CREATE TABLE IF NOT EXISTS parts (name TEXT PRIMARY KEY, version INTEGER)")
            connection.execute("INSERT OR REPLACE INTO parts VALUES (?, ?)", (name, len(migrations)))
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _failed(self, error: BaseException) -> StoreError:
        return StoreError(f"{self.path}: {error}")


def _version(connection: sqlite3.Connection, name: str) -> int:
    # A table rather than PRAGMA user_version: a file has only one of those, and several parts.
    try:
        row = connection.execute("SELECT version FROM parts WHERE name = ?", (name,)).fetchone()
    except sqlite3.OperationalError as error:
        if "no such table" not in str(error):
            raise
        return 0
    return int(row[0]) if row else 0


def _make_private(path: Path) -> None:
    """Nobody else may read who spent what: directory 0700, file 0600, where they are not there yet."""
    if path.exists():
        return
    if not path.parent.exists():
        path.parent.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.parent.mkdir(mode=0o700)
    with contextlib.suppress(FileExistsError):
        # SQLite gives its log and index the mode of the file.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def _use_write_ahead_log(connection: sqlite3.Connection, timeout: float) -> None:
    """SQLite does not wait while another connection makes the same change, so this does."""
    until = time.monotonic() + timeout
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
        time.sleep(0.01)


_ALL: weakref.WeakSet[Database] = weakref.WeakSet()
_SHARED: weakref.WeakValueDictionary[tuple[str, str], Database] = weakref.WeakValueDictionary()
_shared_lock = threading.Lock()
_forking: list[Database] = []


def open_database(path: str | Path, *, synchronous: str = "NORMAL") -> Database:
    """The database of a path: the same for all who ask for it alike. The file is not touched yet."""
    key = (os.path.realpath(Path(path).expanduser()), synchronous)
    with _shared_lock:
        database = _SHARED.get(key)
        if database is None:
            database = _SHARED[key] = Database(path, synchronous=synchronous)
        return database


def _before_fork() -> None:
    for database in list(_ALL):
        database._reading.acquire()
        database._lock.acquire()
        database._disconnect()
        _forking.append(database)


def _after_fork_in_parent() -> None:
    while _forking:
        database = _forking.pop()
        database._lock.release()
        database._reading.release()


def _after_fork_in_child() -> None:
    global _shared_lock
    _shared_lock = threading.Lock()
    while _forking:
        database = _forking.pop()
        database._lock, database._reading = threading.RLock(), threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
