# ruff: noqa: S608 (the statements are put together of this module's own names)
"""The connections of one process to one PostgreSQL: bounded, shared by its threads, never by a fork."""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ..core.errors import ConfigurationError, StoreError
from .fair_slots import FairSlots

if TYPE_CHECKING:
    from psycopg import Connection

    Rows = Connection[tuple[Any, ...]]
    Migration = Callable[[Rows], None]

T = TypeVar("T")

__all__ = ["SCHEMA", "PostgresConnections"]

SCHEMA = "genops"
"""The schema that holds the tables: another application's ``lines`` stay its own."""

CONNECT_SECONDS = 2
ANSWER_SECONDS = 2.0
"""How long a call waits for a connection to be free, and then for the server."""
SILENT_SECONDS = 1.0
"""After a call has waited in vain, those that follow are told so at once for as long."""
KEPT = 4
"""Connections of a process: more would wait for the same disk."""

_ADDRESS = (
    "the address of a PostgreSQL ledger is written postgresql://user@host:5432/database; in its password, "
    "characters such as / @ ? # % are percent-encoded (%2F, %40 …)"
)

_LOCK = 0x67656E6F7073
"""The advisory lock under which tables are made; the letters of ``genops``."""

_left_by_forks: list[object] = []
"""A parent's connections, kept for ever: closing them here would end them there."""


class PostgresConnections:
    """Lends connections to work; every failure is a :class:`StoreError` within the bounds above.

    A connection that failed is thrown away, so a restarted server is found again by the next call.
    The tables of its part are brought to their version by the first connection. A password stays in the
    URL, and out of every message.
    """

    def __init__(
        self,
        url: str,
        migrations: Sequence[Migration],
        *,
        part: str = "ledger",
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        try:
            import psycopg
            from psycopg import conninfo
        except ImportError as error:
            raise ConfigurationError(
                "a PostgreSQL ledger needs psycopg: pip install 'genops_ctx[postgres]'"
            ) from error
        try:
            parts = conninfo.conninfo_to_dict(url)
        except psycopg.ProgrammingError:  # its text quotes the address, and so the password
            raise ConfigurationError(_ADDRESS) from None
        told = [str(parts.get(name, "")) for name in ("host", "port", "dbname")]
        if any("@" in text for text in told) or not set(told[1]) <= set("0123456789,"):
            # A part of the password was taken for one of these, which errors name.
            raise ConfigurationError(_ADDRESS)
        where = f"{parts.get('host', 'localhost')}:{parts.get('port', 5432)}/{parts.get('dbname', '')}"
        self.server = f"PostgreSQL at {where}"
        """for people, without credentials"""
        self._url = conninfo.make_conninfo(
            url, **{"connect_timeout": CONNECT_SECONDS, "application_name": "genops_ctx", **parts}
        )
        self._seconds = answer_seconds
        self._migrations = migrations
        self._part = part
        self._ready = False
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._idle: list[Rows] = []
        self._free = FairSlots(KEPT)
        self._silent_until = 0.0
        weakref.finalize(self, _close, self._idle, self._process)

    def run(self, work: Callable[[Rows], T], seconds: float | None = None, *, again: bool = True) -> T:
        """Have ``work`` do its statements within ``seconds``; each commits unless it opens a transaction.

        A connection that broke while it was idle (the server was restarted) is found out by its next
        use: ``work`` is then done once more on a new one, unless ``again`` is False because doing it
        twice is not the same as once.
        """
        seconds = self._seconds if seconds is None else seconds
        if self._process != os.getpid():
            _left_by_forks.extend(self._idle)
            self._begin()
        if time.monotonic() < self._silent_until:
            raise StoreError(f"{self.server} did not answer a moment ago")
        free = self._free
        if not free.acquire(timeout=self._seconds):
            raise StoreError(f"{self.server}: no connection was free for {self._seconds} s")
        try:
            if self._idle:
                try:
                    return self._use(self._idle.pop(), work, seconds)
                except _Broken:
                    self.close()  # the others are as old
                    if not again:
                        raise
            return self._use(self._connect(), work, seconds)
        except _Broken as broken:
            raise self._failed(broken.error) from broken.error
        finally:
            free.release()

    def _use(self, connection: Rows, work: Callable[[Rows], T], seconds: float) -> T:
        import psycopg

        usable = False
        try:
            with _deadline(connection, seconds):
                answer = work(connection)
            usable = True
            return answer
        except _TooLate:
            raise self._silent(seconds) from None
        except psycopg.Error as error:
            if connection.broken:
                raise _Broken(error) from None
            usable = connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
            raise self._failed(error) from error
        finally:
            if usable:
                self._idle.append(connection)
            else:
                connection.close()

    def _silent(self, seconds: float) -> StoreError:
        self._silent_until = time.monotonic() + SILENT_SECONDS
        return StoreError(f"{self.server} did not answer within {seconds} s")

    def _connect(self) -> Rows:
        import psycopg

        try:
            connection = _bounded_class().connect(self._url, autocommit=True)
        except psycopg.Error as error:
            self._silent_until = time.monotonic() + SILENT_SECONDS
            raise self._failed(error) from error
        try:
            with _deadline(connection, self._seconds):
                connection.execute(f"SET search_path = {SCHEMA}")
                # What the client gives up, the server gives up too.
                connection.execute(f"SET statement_timeout = {int(self._seconds * 1000)}")
                if not self._ready:
                    self._migrate(connection)
                    self._ready = True
        except BaseException as error:
            connection.close()
            if isinstance(error, _TooLate):
                raise self._silent(self._seconds) from None
            if isinstance(error, psycopg.Error):
                raise self._failed(error) from error
            raise
        return connection

    def _migrate(self, connection: Rows) -> None:
        known = len(self._migrations)
        if _version(connection, self._part) != known:
            with connection.transaction():
                connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
                version = _version(connection, self._part)  # another process may have been first
                if version > known:
                    raise ConfigurationError(
                        f"the {self._part} in {self.server} has version {version}, and this version of "
                        f"genops_ctx knows {known} at most; update genops_ctx, or use another database"
                    )
                if not version:
                    connection.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
                    connection.execute(
                        f"CREATE TABLE IF NOT EXISTS {SCHEMA}.parts (name text PRIMARY KEY, version int)"
                    )
                for migration in self._migrations[version:]:
                    migration(connection)
                connection.execute(
                    "INSERT INTO parts VALUES (%s, %s) "
                    "ON CONFLICT (name) DO UPDATE SET version = excluded.version",
                    (self._part, known),
                )

    def _failed(self, error: Exception) -> StoreError:
        # Not the whole text of it: a server's details quote the values that it was sent.
        primary = getattr(getattr(error, "diag", None), "message_primary", None)
        return StoreError(f"{self.server} failed ({primary or type(error).__name__})")

    def close(self) -> None:
        """Close what is idle; a later use connects again."""
        _close(self._idle, self._process)


def _close(idle: list[Rows], process: int) -> None:
    if process == os.getpid():
        while idle:
            idle.pop().close()


def _version(connection: Rows, part: str) -> int:
    # By the catalogue's rows: a session's cached "there is no such name" outlives another's making it.
    there = connection.execute(
        "SELECT 1 FROM pg_catalog.pg_tables WHERE schemaname = %s AND tablename = 'parts'", (SCHEMA,)
    ).fetchone()
    if there is None:
        return 0
    row = connection.execute(f"SELECT version FROM {SCHEMA}.parts WHERE name = %s", (part,)).fetchone()
    return int(row[0]) if row else 0


class _TooLate(Exception):
    """The server holds the connection and says nothing."""


class _Broken(Exception):
    """The connection is gone, and what was asked for may or may not have been done."""

    def __init__(self, error: Exception) -> None:
        self.error = error


@contextlib.contextmanager
def _deadline(connection: Any, seconds: float) -> Iterator[None]:
    connection.until = time.monotonic() + seconds
    try:
        yield
    finally:
        connection.until = None


def _bounded_class() -> type[Rows]:
    """A connection that gives up by a clock of its own: the bounds of libpq end with the connecting."""
    import psycopg

    class Bounded(psycopg.Connection[tuple[Any, ...]]):
        until: float | None = None

        def wait(self, gen: Generator[Any, Any, T], *args: Any, **kwargs: Any) -> T:
            until = self.until
            return super().wait(gen if until is None else _until(gen, until), *args, **kwargs)

    return Bounded


def _until(gen: Generator[Any, Any, T], until: float) -> Generator[Any, Any, T]:
    """The same, giving up at that time: it is resumed now and then, whether or not anything came."""
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() > until:
                raise _TooLate
            wanted = gen.send(ready)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
