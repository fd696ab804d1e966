"""One connection for all threads of a process: nesting, bounds, sharing, and forks."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from genops_ctx.core.errors import ConfigurationError, StoreError
from genops_ctx.database import Database, open_database
from genops_ctx.ledger.sqlite import SQLiteLedger
from genops_ctx.stores.sqlite import SQLiteStore

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning"),
]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "file.sqlite3", timeout=0.4)
    with database as connection:
        connection.execute("CREATE TABLE numbers (n INTEGER)")
    yield database
    database.close()


def numbers(database: Database) -> list[int]:
    return [row[0] for row in database.read("SELECT n FROM numbers ORDER BY n")]


def add(database: Database, number: int) -> None:
    with database as connection:
        connection.execute("INSERT INTO numbers VALUES (?)", (number,))


@contextmanager
def held_by_a_thread(database: Database) -> Iterator[None]:
    """A transaction of another thread, open for as long as the block."""
    begun, enough = threading.Event(), threading.Event()

    def hold() -> None:
        with database as connection:
            connection.execute("INSERT INTO numbers VALUES (1)")
            begun.set()
            enough.wait(120)

    thread = threading.Thread(target=hold)
    thread.start()
    assert begun.wait(120)
    try:
        yield
    finally:
        enough.set()
        thread.join(120)


def test_an_inner_block_joins_the_outer_one(database: Database) -> None:
    other = sqlite3.connect(database.path)
    with database:
        add(database, 1)
        with database.within(1.0) as connection:
            connection.execute("INSERT INTO numbers VALUES (2)")
        assert numbers(database) == [1, 2]
        assert other.execute("SELECT count(*) FROM numbers").fetchone() == (0,)
    assert other.execute("SELECT count(*) FROM numbers").fetchone() == (2,)
    other.close()
    with pytest.raises(KeyError), database:
        add(database, 3)
        raise KeyError
    assert numbers(database) == [1, 2]


def test_an_error_of_sqlite_in_a_block_is_a_store_error_and_undoes_it(database: Database) -> None:
    with pytest.raises(StoreError, match="no such table: letters"), database as connection:
        connection.execute("INSERT INTO numbers VALUES (1)")
        connection.execute("INSERT INTO letters VALUES ('a')")
    assert numbers(database) == []


def test_a_thread_waits_for_another_no_longer_than_its_bound(database: Database) -> None:
    with held_by_a_thread(database):
        begun = time.monotonic()
        for use in (lambda: add(database, 2), lambda: numbers(database)):
            with pytest.raises(StoreError, match="busy: other threads"):
                use()
        assert 0.4 <= time.monotonic() - begun < 15.0
    add(database, 2)
    assert numbers(database) == [1, 2]


def test_a_process_waits_for_another_no_longer_than_its_bound(database: Database) -> None:
    other = sqlite3.connect(database.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for seconds in (0.1, 0.6):
        begun = time.monotonic()
        with pytest.raises(StoreError, match="busy: another process"), database.within(seconds):
            pass
        assert seconds / 2 <= time.monotonic() - begun < seconds / 2 + 15.0
    assert numbers(database) == [], "reading waits for nobody"
    other.execute("ROLLBACK")
    other.close()
    add(database, 2)


def test_every_thread_has_its_turn(tmp_path: Path) -> None:
    database = Database(tmp_path / "file.sqlite3", timeout=120.0)
    with database as connection:
        connection.execute("CREATE TABLE numbers (n INTEGER)")
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda n: add(database, n), range(400)))
    assert numbers(database) == list(range(400))
    database.close()


# -- who shares it -----------------------------------------------------------------------------------


def test_store_and_ledger_of_one_file_share_a_database_however_the_path_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    store = SQLiteStore("file.sqlite3")
    ledger = SQLiteLedger(tmp_path / "link" / "file.sqlite3")
    assert store.database is ledger.database
    assert SQLiteStore("other.sqlite3").database is not ledger.database
    assert ledger.together_with(store) is not None
    assert ledger.together_with(SQLiteStore("other.sqlite3")) is None
    with ledger.database as connection:
        parts = connection.execute("SELECT name FROM parts ORDER BY name").fetchall()
    assert parts == [("ledger",), ("store",)]


def test_what_shares_a_file_is_as_durable_as_the_strictest(tmp_path: Path) -> None:
    def durability() -> int:
        with database as connection:
            return int(connection.execute("PRAGMA synchronous").fetchone()[0])

    database = open_database(tmp_path / "file.sqlite3")
    assert durability() == 1
    assert open_database(tmp_path / "file.sqlite3", synchronous="FULL") is database
    assert durability() == 2
    assert open_database(tmp_path / "file.sqlite3") is database
    assert durability() == 2
    with pytest.raises(ConfigurationError, match="OFF, NORMAL, FULL, EXTRA"):
        open_database(tmp_path / "file.sqlite3", synchronous="SOMETIMES")


def test_a_database_in_memory_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="memory://"):
        open_database(":memory:")


# -- forks -------------------------------------------------------------------------------------------


def in_a_child(work: Callable[[], object]) -> str:
    """What becomes of it in a forked process: ``done``, or the name of its error."""
    receiving, sending = os.pipe()
    child = os.fork()
    if not child:
        try:
            work()
            os.write(sending, b"done")
        except BaseException as error:
            os.write(sending, type(error).__name__.encode())
        finally:
            os._exit(0)
    os.close(sending)
    os.waitpid(child, 0)
    said = os.read(receiving, 100).decode()
    os.close(receiving)
    return said


def test_both_sides_of_a_fork_go_on(database: Database) -> None:
    add(database, 1)
    assert in_a_child(lambda: add(database, 2)) == "done"
    add(database, 3)
    assert numbers(database) == [1, 2, 3]


def test_a_fork_in_the_middle_of_a_transaction_leaves_it_to_the_parent(database: Database) -> None:
    with database as connection:
        connection.execute("INSERT INTO numbers VALUES (1)")
        assert in_a_child(lambda: add(database, 2)) == "StoreError"
        assert in_a_child(lambda: database.__exit__(None, None, None)) == "done"
        connection.execute("INSERT INTO numbers VALUES (3)")
    assert numbers(database) == [1, 3]
    assert in_a_child(lambda: add(database, 4)) == "done"
    assert numbers(database) == [1, 3, 4]


def test_a_fork_waits_for_other_threads_within_bounds_and_the_child_keeps_away(database: Database) -> None:
    with held_by_a_thread(database):
        begun = time.monotonic()
        assert in_a_child(lambda: add(database, 2)) == "StoreError"
        assert time.monotonic() - begun < 15.0
    add(database, 3)
    assert numbers(database) == [1, 3]


def test_a_fork_in_the_middle_of_a_report_leaves_it_to_the_parent(database: Database) -> None:
    add(database, 1)
    with database.view() as connection:
        assert in_a_child(lambda: add(database, 2)) == "StoreError"
        assert connection.execute("SELECT n FROM numbers").fetchall() == [(1,)]
    assert in_a_child(lambda: add(database, 2)) == "done"


def test_threads_that_fork_at_once_do_not_lock_each_other_out(tmp_path: Path) -> None:
    several = [Database(tmp_path / f"{number}.sqlite3", timeout=120.0) for number in range(4)]
    for database in several:
        with database as connection:
            connection.execute("CREATE TABLE numbers (n INTEGER)")

    def fork(number: int) -> str:
        add(several[number % 4], number)
        return in_a_child(lambda: add(several[number % 4], 100 + number))

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(fork, range(12))) == ["done"] * 12
    assert sorted(n for database in several for n in numbers(database)) == [*range(12), *range(100, 112)]
    for database in several:
        database.close()
