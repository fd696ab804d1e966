"""What only a SQLite store can get wrong: other processes, forks, kills, files that cannot be used."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import time
from pathlib import Path

import pytest

from genops_ctx.core.accounts import Account, Control, HoldState, Refusal, Reserve
from genops_ctx.core.errors import ConfigurationError, StoreError
from genops_ctx.core.ports import Held
from genops_ctx.ledger.sqlite import SQLiteLedger
from genops_ctx.stores.sqlite import SQLiteStore
from tests.strategies import charge, line, watch

MOST = 2**63 - 1
fork = multiprocessing.get_context("fork")
spawn = multiprocessing.get_context("spawn")


def wish(name: str, amount: int = 5, limit: int = 100) -> Reserve:
    return Reserve(name, amount, (watch("a", limit),), 100.0)


def held(store: SQLiteStore, name: str, amount: int = 5, limit: int = 10**9) -> bool:
    return isinstance(store.reserve(wish(name, amount, limit), 0.0), Held)


def spent(store: SQLiteStore) -> Account:
    return store.accounts(["a"])["a"]


def test_what_was_booked_is_there_when_the_file_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    first = SQLiteStore(path)
    held(first, "op#1")
    first.settle("op#1", 3, (), 1.0, True)
    first.close()
    assert spent(SQLiteStore(path)) == Account(3, 0)
    assert held(first, "op#2"), "a closed store opens again where it is used"
    assert spent(SQLiteStore(path)) == Account(3, 5)


def _reserve_many(path: str, who: int, answers: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    store = SQLiteStore(path, timeout=60)
    answers.put(sum(held(store, f"{who}-{number}#1", 1, limit=100) for number in range(40)))


def test_of_eight_processes_each_reservation_fits(tmp_path: Path) -> None:
    path = str(tmp_path / "store.db")
    answers = spawn.Queue()
    workers = [spawn.Process(target=_reserve_many, args=(path, who, answers)) for who in range(8)]
    for worker in workers:
        worker.start()
    admitted = [answers.get(timeout=180) for _ in workers]
    for worker in workers:
        worker.join(60)
    assert sum(admitted) == 100
    assert spent(SQLiteStore(path)) == Account(0, 100)


def _settle_in_child(store: SQLiteStore) -> None:
    for number in range(50):
        held(store, f"child{number}#1")
        store.settle(f"child{number}#1", 7, (), 1.0, True)
    os._exit(0)


def test_both_sides_of_a_fork_book(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "store.db", timeout=60)
    held(store, "before#1")
    child = fork.Process(target=_settle_in_child, args=(store,))
    child.start()
    for number in range(50):
        held(store, f"parent{number}#1")
    child.join(30)
    assert child.exitcode == 0
    assert spent(store) == Account(50 * 7, 51 * 5)
    with sqlite3.connect(store.path) as file:
        assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    file.close()


def _reserve_until_killed(path: str, started: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    store = SQLiteStore(path, timeout=60, clock="caller")
    number = 0
    while True:
        number += 1
        held(store, f"op{number}#1")
        if number % 2:
            store.settle(f"op{number}#1", 2, (), 1.0, True)
        started.put(number)


def test_what_a_killed_process_was_told_is_booked(tmp_path: Path) -> None:
    path = str(tmp_path / "store.db")
    told = spawn.Queue()
    worker = spawn.Process(target=_reserve_until_killed, args=(path, told))
    worker.start()
    while told.get(timeout=180) < 50:
        pass
    assert worker.pid
    os.kill(worker.pid, signal.SIGKILL)
    worker.join(60)
    store = SQLiteStore(path, clock="caller")
    account = spent(store)
    assert account.spent >= 25 * 2
    assert account.spent % 2 == 0
    assert account.reserved >= 25 * 5
    store.reap(1000.0)
    after = spent(store)
    assert after == Account(account.spent + account.reserved, 0), "all that was held is lost, and no more"


def test_a_file_that_stays_locked_is_a_store_error_within_the_bound(tmp_path: Path) -> None:
    held(SQLiteStore(tmp_path / "store.db", timeout=60), "op#1")
    store = SQLiteStore(tmp_path / "store.db", timeout=0.4)
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    begun = time.monotonic()
    with pytest.raises(StoreError, match="busy"):
        held(store, "op#2")
    assert time.monotonic() - begun < 15.0
    other.execute("ROLLBACK")
    other.close()
    store = SQLiteStore(store.path, timeout=60)
    assert held(store, "op#2")
    assert spent(store) == Account(0, 10)


def test_an_account_past_64_bits_is_an_error_and_not_a_float(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "store.db")
    store.adjust("a", MOST)
    with pytest.raises(StoreError, match=r"9\.2 billion"):
        store.adjust("a", 1)
    assert spent(store) == Account(MOST, 0)
    held(store, "op#1", limit=MOST)
    assert isinstance(store.reserve(wish("op#2", 1, MOST), 0.0), Refusal)


def test_a_path_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no folder"):
        SQLiteStore(tmp_path / "nowhere" / "store.db")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        SQLiteStore(tmp_path)
    with pytest.raises(ConfigurationError, match="synchronous"):
        SQLiteStore(tmp_path / "store.db", synchronous="SOMETIMES")


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database, whatever its name says. " * 50)
    with pytest.raises((ConfigurationError, StoreError), match=r"notes\.txt"):
        held(SQLiteStore(path), "op#1")
    assert path.read_text().startswith("not a database")


def test_a_file_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = SQLiteStore(path)
    held(store, "op#1")
    store.close()
    with sqlite3.connect(path) as file:
        file.execute(NEWER)
    file.close()
    with pytest.raises((ConfigurationError, StoreError), match="newer"):
        held(SQLiteStore(path), "op#2")


NEWER = "UPDATE parts SET version = version + 1 WHERE name = 'store'"


# A file as it was made before store and ledger had one layer, and one version table.
BEFORE_PARTS = """
CREATE TABLE store_version (version INTEGER NOT NULL);
CREATE TABLE store_accounts (
    key TEXT PRIMARY KEY,
    spent INTEGER NOT NULL CHECK (typeof(spent) = 'integer'),
    reserved INTEGER NOT NULL CHECK (typeof(reserved) = 'integer'),
    gone_at REAL
) WITHOUT ROWID;
CREATE INDEX store_accounts_gone ON store_accounts (gone_at) WHERE gone_at IS NOT NULL;
CREATE TABLE store_holds (
    id TEXT NOT NULL UNIQUE, state TEXT NOT NULL, amount INTEGER NOT NULL, booked INTEGER NOT NULL,
    accounts TEXT NOT NULL, expires_at REAL NOT NULL, keyed INTEGER NOT NULL, due REAL NOT NULL,
    memo TEXT NOT NULL
);
CREATE INDEX store_holds_due ON store_holds (due);
CREATE TABLE store_losses (
    id TEXT PRIMARY KEY, amount INTEGER NOT NULL, accounts TEXT NOT NULL,
    expires_at REAL NOT NULL, memo TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE store_controls (
    key TEXT PRIMARY KEY, frozen INTEGER NOT NULL, granted INTEGER NOT NULL, granted_until REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE store_marks (key TEXT PRIMARY KEY, until REAL) WITHOUT ROWID;
INSERT INTO store_version VALUES (1);
INSERT INTO store_accounts VALUES ('a', 40, 7, NULL), ('b', 3, 0, 500.0);
INSERT INTO store_holds VALUES ('op#1', 'held', 7, 0, '["a"]', 50.0, 1, 50.0, 'memo');
INSERT INTO store_holds VALUES ('done#1', 'settled', 9, 40, '["a"]', 50.0, 1, 90000.0, '');
INSERT INTO store_losses VALUES ('lost#1', 3, '["b"]', 20.0, '');
INSERT INTO store_controls VALUES ('in:', 1, 5, 99.0);
INSERT INTO store_marks VALUES ('told', NULL);
"""


def before_parts(path: Path, script: str = BEFORE_PARTS) -> None:
    file = sqlite3.connect(path)
    file.execute("PRAGMA journal_mode = WAL")
    file.executescript(script)
    file.close()


def tables(path: Path) -> dict[str, list[tuple[object, ...]]]:
    file = sqlite3.connect(path)
    names = [
        name
        for (name,) in file.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name GLOB 'store_*'"
        )
    ]
    found = {name: file.execute(f"SELECT * FROM {name} ORDER BY 1").fetchall() for name in names}
    file.close()
    return found


@pytest.mark.parametrize("with_ledger", [False, True])
def test_a_file_of_before_there_were_parts_is_opened_without_losing_a_row(
    tmp_path: Path, with_ledger: bool
) -> None:
    path = tmp_path / "store.db"
    if with_ledger:  # which had the table of parts already
        SQLiteLedger(path).append(charge(line(5)))
    before_parts(path)
    before = tables(path)
    store = SQLiteStore(path, clock="caller")
    assert store.accounts() == {"a": Account(40, 7), "b": Account(3, 0)}
    assert store.controls(["in:"])["in:"] == Control(True, 5, 99.0)
    after = tables(path)
    assert before.pop("store_version") == [(1,)]
    assert before.pop("store_marks") == [("told", None)]
    assert [name for name, _ in after.pop("store_marks")] == ["told"]
    before["store_holds"] = [(*row, "") for row in before["store_holds"]]  # no reserve made them by a token
    assert after.pop("store_draws") == []
    assert after == before
    assert not store.mark("told", time.time() + 365 * 86_400, 1e12)
    again = store.reserve(wish("done#1"), 0.0)
    assert again == Held(HoldState.SETTLED, 9, False)
    assert sorted(loss.name for loss in store.reap(60.0)) == ["lost#1", "op#1"]
    assert store.accounts()["a"] == Account(47, 0)
    if with_ledger:
        assert [one.nanos for one in SQLiteLedger(path).charges()] == [5]


def test_a_file_of_a_version_that_was_never_there_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    before_parts(path, BEFORE_PARTS.replace("store_version VALUES (1)", "store_version VALUES (2)"))
    before = tables(path)
    with pytest.raises(ConfigurationError, match="newer"):
        SQLiteStore(path).accounts()
    assert tables(path) == before


def test_with_full_synchronous_it_works_the_same(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "store.db", synchronous="FULL")
    assert held(store, "op#1")
    assert spent(store) == Account(0, 5)
