"""``sqlite://`` ledger: what goes in comes out, once; threads, forks, processes, versions, permissions."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import stat
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genops_ctx.core.errors import ConfigurationError, StoreError
from genops_ctx.core.money import MAX_NANOS
from genops_ctx.core.ports import AuditEvent, Ledger
from genops_ctx.core.records import Charge
from genops_ctx.database import Database
from genops_ctx.ledger import sqlite
from genops_ctx.ledger.schema import MIGRATIONS, PART
from genops_ctx.ledger.sqlite import SQLiteLedger
from tests.ledger.charges import charges
from tests.strategies import charge, line


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite3"


@pytest.fixture
def ledger(path: Path) -> Iterator[SQLiteLedger]:
    ledger = SQLiteLedger(path)
    yield ledger
    ledger.close()


def first_of_each_id(booked: Sequence[Charge]) -> list[Charge]:
    kept: dict[str, Charge] = {}
    for one in booked:
        kept.setdefault(one.id, one)
    return list(kept.values())


@given(st.lists(charges, max_size=6))
def test_what_goes_in_comes_out(booked: list[Charge]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ledger = SQLiteLedger(Path(folder) / "ledger.sqlite3", synchronous="OFF")
        port: Ledger = ledger
        kept = first_of_each_id(booked)
        fresh = [port.append(one, settled=False) for one in booked]
        assert sum(map(bool, fresh)) == len(kept)
        ledger.close()  # and as another process would see it
        assert list(port.charges()) == kept
        assert list(port.unsettled(limit=1000)) == kept
        for operation in {one.operation for one in booked}:
            assert list(port.charges(operation)) == [one for one in kept if one.operation == operation]
        port.mark_settled([one.id for one in kept[:3]])
        assert list(port.unsettled(limit=1000)) == kept[3:]
        ledger.close()


def test_the_same_id_twice_changes_nothing(ledger: SQLiteLedger) -> None:
    assert ledger.append(charge(line(5), line(2)))
    assert not ledger.append(charge(line(6)), settled=False)
    (kept,) = ledger.charges()
    assert kept.nanos == 7
    assert ledger.unsettled() == ()
    (total,) = ledger.totals()
    assert (total.nanos, total.calls, total.lines) == (7, 1, 2)


def test_an_amount_no_store_can_hold_is_refused_whole(ledger: SQLiteLedger) -> None:
    with pytest.raises(StoreError, match="9223372036854775808"):
        ledger.append(charge(line(1), line(MAX_NANOS + 1)))
    assert list(ledger.charges()) == []
    assert ledger.totals()[0].calls == 0
    assert ledger.append(charge(line(1)))


def test_sums_pass_sixty_four_bits(ledger: SQLiteLedger) -> None:
    for number in range(4):
        ledger.append(charge(line(MAX_NANOS), operation=f"op{number}"))
    (total,) = ledger.totals()
    assert total.nanos == 4 * (2**63 - 1)


def test_charges_are_read_in_pages(ledger: SQLiteLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "PAGE", 3)
    booked = [charge(line(n), line(1), operation=f"op{n}") for n in range(10)]
    for one in booked:
        ledger.append(one)
    reading = iter(ledger.charges())
    assert next(reading) == booked[0]
    late = charge(line(77), operation="late")
    ledger.append(late)  # nothing is locked between pages
    assert list(reading) == [*booked[1:], late]


def test_what_is_booked_is_never_changed_or_deleted(ledger: SQLiteLedger, path: Path) -> None:
    ledger.append(charge(line(5)))
    other = sqlite3.connect(path)
    for statement in ("UPDATE charges SET name = 'x'", "DELETE FROM charges", "UPDATE lines SET nanos = 1"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            other.execute(statement)
    other.close()


def test_audits_are_kept_in_order(ledger: SQLiteLedger) -> None:
    events = [
        AuditEvent(1.5, "grant", "team=\u202e\U0001f600", "ada", "launch", nanos=5 * 10**9, until=9.25),
        AuditEvent(0.5, "freeze", "team=\ud800"),
    ]
    for event in events:
        ledger.audit(event)
    ledger.close()
    assert list(ledger.audits()) == events


# -- where it is ---------------------------------------------------------------------------------


def test_the_file_is_made_by_the_first_charge_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "new" / "state" / "ledger.sqlite3"
    ledger = SQLiteLedger(path)
    assert list(ledger.charges()) == []
    assert ledger.unsettled() == ()
    assert list(ledger.audits()) == []
    assert ledger.totals(by=("team",)) == ()
    assert not path.parent.parent.exists()
    ledger.append(charge(line(5)))
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    for file in path.parent.iterdir():  # the log and its index too
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    ledger.close()


def test_a_file_that_cannot_be_made_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ledger = SQLiteLedger(tmp_path / "file" / "ledger.sqlite3")
    with pytest.raises(StoreError, match=r"ledger\.sqlite3"):
        ledger.append(charge(line(5)))


def test_a_file_that_is_no_database_is_a_store_error(path: Path) -> None:
    path.write_text("not a database" * 100)
    with pytest.raises(StoreError, match="not a database"):
        SQLiteLedger(path).append(charge(line(5)))
    assert path.read_text() == "not a database" * 100


def test_a_file_that_is_no_database_cannot_be_read_either(path: Path) -> None:
    path.write_text("not a database" * 100)
    ledger = SQLiteLedger(path)
    for read in (ledger.unsettled, ledger.totals, ledger.audits, lambda: list(ledger.charges())):
        with pytest.raises(StoreError, match="not a database"):
            read()


def test_a_file_that_breaks_later_is_a_store_error(ledger: SQLiteLedger) -> None:
    ledger.append(charge(line(5)))
    with ledger.database as connection:
        connection.execute("DROP TABLE audits")
        connection.execute("DROP TABLE rollups")
    for use in (ledger.audits, ledger.totals, lambda: ledger.append(charge(line(6), operation="b"))):
        with pytest.raises(StoreError, match="no such table"):
            use()
    assert list(ledger.charges()) == [charge(line(5))]


def test_a_commit_that_fails_is_rolled_back_and_a_store_error(path: Path) -> None:
    database = Database(path)
    with database as connection:
        connection.execute("CREATE TABLE a (id INTEGER PRIMARY KEY)")
        connection.execute("CREATE TABLE b (a REFERENCES a (id) DEFERRABLE INITIALLY DEFERRED)")
    connection.execute("PRAGMA foreign_keys=ON")
    with pytest.raises(StoreError, match="FOREIGN KEY"), database as connection:
        connection.execute("INSERT INTO b VALUES (1)")
    with database as connection:
        connection.execute("INSERT INTO a VALUES (7)")
    assert database.read("SELECT * FROM b") == []
    assert database.read("SELECT * FROM a") == [(7,)]
    database.close()


def test_how_durable_it_is_must_be_known(path: Path) -> None:
    with pytest.raises(ConfigurationError, match="OFF, NORMAL, FULL, EXTRA"):
        SQLiteLedger(path, synchronous="MAYBE")
    full = SQLiteLedger(path, synchronous="FULL")
    with full.database as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    full.close()


# -- versions ------------------------------------------------------------------------------------


def older(path: Path, version: int) -> Database:
    """A file as an older version of the package made it."""
    database = Database(path)
    database.add_part(PART, MIGRATIONS[:version])
    return database


V1_CHARGE = (
    "INSERT INTO charges VALUES (?, ?, ?, 1, 'support', 'f1', 'completed', '{\"team\":\"a\"}', '[\"c1\"]', "
    "?, ?, 9, '[\"day\"]', '[]', '', '')"
)
V1_LINE = (
    "INSERT INTO lines VALUES (?, ?, 'model', ?, 'reported', 'exact', 'v', '', 'openai', 'small', '', "
    "'reported', 'exact', 10, 5, 2, 1, 1, 0, 0, 0)"
)


def test_a_ledger_of_the_version_before_is_migrated_without_losing_a_row(path: Path) -> None:
    before = older(path, 1)
    with before as connection:
        for number in range(1, 2502):  # more than one batch
            day = 86_400.0 * (20_000 + number % 2)
            connection.execute(V1_CHARGE, (number, f"op{number}#1", f"op{number}", day, day + 1))
            connection.execute(V1_LINE, (number, 0, number))
            connection.execute(V1_LINE, (number, 1, None if number == 7 else 1))
        connection.execute("INSERT INTO outbox VALUES (3)")
        connection.execute("INSERT INTO audits VALUES (1, 5.0, 'grant', 'team=a', 'ada', '', 7, NULL)")
    before.close()

    ledger = SQLiteLedger(path)
    kept = list(ledger.charges())
    assert [one.id for one in kept] == [f"op{number}#1" for number in range(1, 2502)]
    assert [one.lines[0].nanos for one in kept] == list(range(1, 2502))
    assert kept[6].lines[1].nanos is None
    assert [one.id for one in ledger.unsettled()] == ["op3#1"]
    assert list(ledger.audits()) == [AuditEvent(5.0, "grant", "team=a", "ada", "", 7, None)]
    (total,) = ledger.totals(by=("team",))
    # 1 + 2 + … + 2501, and 1 for every second line but one
    assert total.nanos == 2501 * 2502 // 2 + 2500
    assert (total.calls, total.lines, total.unpriced) == (2501, 5002, 1)
    assert (total.input_tokens, total.cache_write_tokens) == (50_020, 10_004)
    assert [(one.key, one.calls) for one in ledger.totals(by=("day",), where={"team": "a"})] == [
        (("2024-10-05",), 1251),
        (("2024-10-04",), 1250),
    ]
    ledger.append(charge(line(5), operation="new"))
    assert len(list(ledger.charges())) == 2502
    ledger.close()


def test_a_migration_that_fails_leaves_the_file_as_it_was(path: Path) -> None:
    before = older(path, 1)
    with before as connection:
        connection.execute(V1_CHARGE, (1, "op#1", "op", 0.0, 1.0))
    before.close()

    def broken(connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE half (a)")
        raise RuntimeError("power")

    wrong = Database(path)
    wrong.add_part(PART, (MIGRATIONS[0], broken))
    with pytest.raises(RuntimeError, match="power"):
        wrong.__enter__()
    ledger = SQLiteLedger(path)
    assert [one.id for one in ledger.charges()] == ["op#1"]
    assert ledger.database.read("SELECT name FROM sqlite_master WHERE name = 'half'") == []
    ledger.close()


def test_a_ledger_of_a_newer_version_is_refused_and_left_alone(path: Path) -> None:
    newer = Database(path)
    newer.add_part(PART, (*MIGRATIONS, lambda connection: None))
    with newer:
        pass
    newer.close()
    ledger = SQLiteLedger(path)
    with pytest.raises(ConfigurationError, match=r"has version 6, .* knows 5 at most; update"):
        ledger.append(charge(line(5)))
    with pytest.raises(ConfigurationError, match="version 6"):
        list(ledger.charges())


# -- transactions --------------------------------------------------------------------------------


def test_a_charge_joins_the_transaction_around_it(ledger: SQLiteLedger) -> None:
    class Stop(Exception):
        pass

    with pytest.raises(Stop), ledger.database:
        ledger.append(charge(line(5), operation="gone", attribution={"team": "gone"}))
        ledger.append(charge(line(6), operation="too", attribution={"team": "gone"}))
        raise Stop
    assert list(ledger.charges()) == []
    with ledger.database:
        ledger.append(charge(line(7), operation="kept", attribution={"team": "kept"}))
        ledger.append(charge(line(8), operation="gone", attribution={"team": "gone"}))
    # A number that a series had in a transaction that was rolled back is another's now.
    assert [(one.key, one.nanos) for one in ledger.totals(by=("team",))] == [(("gone",), 8), (("kept",), 7)]


def test_a_file_that_another_process_keeps_locked_is_a_store_error(path: Path) -> None:
    ledger = SQLiteLedger(path)
    ledger.append(charge(line(5)))
    ledger.database._timeout = 0.05
    ledger.close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked"):
        ledger.append(charge(line(6), operation="b"))
    other.execute("ROLLBACK")
    other.close()
    assert ledger.append(charge(line(6), operation="b"))
    ledger.close()


# -- threads, forks, processes -------------------------------------------------------------------


def test_appends_of_many_threads_are_all_kept_once(ledger: SQLiteLedger) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: ledger.append(charge(line(1), operation=f"op{n % 200}")), range(400)))
    assert sum(one.nanos for one in ledger.charges()) == 200
    assert ledger.totals()[0].nanos == 200


def book_many(path: Path, start: int) -> None:
    ledger = SQLiteLedger(path)
    for number in range(start, start + 60):
        ledger.append(charge(line(1), operation=f"op{number}"))
    ledger.close()


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_several_processes_book_into_one_file(path: Path, method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    context = multiprocessing.get_context(method)
    # every operation by two of the four
    workers = [context.Process(target=book_many, args=(path, start)) for start in (0, 0, 60, 60)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    ledger = SQLiteLedger(path)
    assert sorted(one.operation for one in ledger.charges()) == sorted(f"op{n}" for n in range(120))
    assert ledger.totals()[0].nanos == 120
    ledger.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_and_its_parent_go_on_with_the_same_ledger(ledger: SQLiteLedger) -> None:
    ledger.append(charge(line(1), operation="before"))
    children = []
    for number in range(3):
        child = os.fork()
        if not child:
            status = 1
            try:
                for count in range(20):
                    ledger.append(charge(line(1), operation=f"child{number}-{count}"))
                status = 0
            finally:
                os._exit(status)
        children.append(child)
        ledger.append(charge(line(1), operation=f"parent{number}"))
        ledger.close()  # the child must not lose its log by it
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    assert len(list(ledger.charges())) == 1 + 3 + 60
    assert ledger.totals()[0].nanos == 64


@settings(max_examples=20)
@given(st.data())
def test_books_of_two_connections_are_one_ledger(data: st.DataObject) -> None:
    """As two processes: each has its own connection, and does not know what the other has learnt."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.sqlite3"
        both = [SQLiteLedger(path, synchronous="OFF"), SQLiteLedger(path)]
        both[1].database = Database(path, synchronous="OFF")
        both[1].database.add_part(PART, MIGRATIONS)
        booked = data.draw(st.lists(st.tuples(st.integers(0, 1), charges), max_size=8))
        for which, one in booked:
            both[which].append(one)
        kept = first_of_each_id([one for _, one in booked])
        for ledger in both:
            assert list(ledger.charges()) == kept
            assert ledger.totals()[0].lines == sum(line.sign for one in kept for line in one.lines)
        for ledger in both:
            ledger.close()
