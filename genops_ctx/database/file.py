"""The file itself: who may read it, whether it can be written, a connection to it, and waiting for others."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

from ..core.errors import ConfigurationError

__all__ = ["check_writable", "connect", "execute", "is_busy", "make_private"]

PAGE_BYTES = 2_048
"""A commit writes whole pages, so small ones write less. Counts where the file is made."""
CHECKPOINT_PAGES = 8_000
"""Pages of the write-ahead log between checkpoints (16 MB): each costs two fsyncs."""
CACHE_KIBIBYTES = 16_000
MOST_BETWEEN_TRIES = 0.0005
"""Seconds; a transaction takes a tenth of that."""
STATEMENTS = 512
"""Every statement of ledger and store stays compiled."""


def make_private(path: Path) -> None:
    """Nobody else may read who spent what: directory 0700, file 0600, where they are not there yet.

    Raises :class:`OSError`.
    """
    if path.exists():
        return
    if not path.parent.exists():
        path.parent.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.parent.mkdir(mode=0o700)
    with contextlib.suppress(FileExistsError):
        # SQLite gives its log and index the mode of the file.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def check_writable(path: Path) -> None:
    """Raises :class:`ConfigurationError` that says why a file cannot be made or written there."""
    folder = path.parent
    if not folder.is_dir():
        raise ConfigurationError(f"{path} cannot be made: there is no folder {folder}")
    target = path if path.exists() else folder
    if path.is_dir() or not os.access(target, os.W_OK) or not os.access(folder, os.W_OK):
        raise ConfigurationError(
            f"{path} cannot be written: give this user the right to write {target} and its folder, "
            "or choose another file"
        )


def connect(path: Path, synchronous: str, seconds: float) -> sqlite3.Connection:
    """A connection that begins no transaction by itself, and waits ``seconds`` for locks.

    Raises :class:`sqlite3.Error`, and :class:`ConfigurationError` where the file cannot be shared.
    """
    connection = sqlite3.connect(
        path, seconds, isolation_level=None, check_same_thread=False, cached_statements=STATEMENTS
    )
    try:
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        mode = _write_ahead(connection, seconds)
        if mode != "wal":
            raise ConfigurationError(
                f"{path} cannot be shared: its file system has no write-ahead log (it says {mode!r}); "
                "choose a file on a local disk"
            )
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIBIBYTES}")
    except BaseException:
        connection.close()
        raise
    return connection


def _write_ahead(connection: sqlite3.Connection, seconds: float) -> str:
    """SQLite does not wait while another connection makes the same change, so this does."""
    until = time.monotonic() + seconds
    while True:
        try:
            return str(connection.execute("PRAGMA journal_mode = WAL").fetchone()[0])
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
        time.sleep(0.01)


def execute(
    connection: sqlite3.Connection, statement: str, parameters: Sequence[object], seconds: float
) -> sqlite3.Cursor:
    """Try again while another process has the file, at random times, so that each has its turn."""
    until = 0.0
    while True:
        try:
            return connection.execute(statement, parameters)
        except sqlite3.OperationalError as error:
            if not is_busy(error):
                raise
            until = until or time.monotonic() + seconds
            if time.monotonic() > until:
                raise
        time.sleep(random.uniform(0.0001, MOST_BETWEEN_TRIES))  # noqa: S311


def is_busy(error: BaseException) -> bool:
    """Whether another process or connection has the file locked."""
    return (
        isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
    )
