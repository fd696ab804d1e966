"""A Redis that loses data mid-way: noticed, and made good from the ledger to the nano-dollar."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from genops_ctx import Budget, generations, metered_call
from genops_ctx.controls import Controls
from genops_ctx.core.errors import AlreadyCompleted, StoreError, StoreUnavailable
from genops_ctx.core.ports import AuditEvent
from genops_ctx.ledger.sqlite import SQLiteLedger
from genops_ctx.runtime import Runtime, reset_runtime
from genops_ctx.settings import Settings
from tests.stores.redis_server import RedisServer
from tests.strategies import charge, line

from .workers import account_of, spawn


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as started:
        yield started


def governed_by(server: RedisServer, folder: Path, ledger: SQLiteLedger | None = None) -> Runtime:
    from genops_ctx.stores.redis import RedisStore

    store = RedisStore(server.url, command_timeout=20.0)
    ledger = ledger or SQLiteLedger(folder / "ledger.sqlite3")
    runtime = Runtime(Settings(budgets=(Budget("0.10", "total"),)), store=store, ledger=ledger)
    reset_runtime(runtime)
    return runtime


def rebuild(runtime: Runtime) -> None:
    Controls(runtime.books.store, runtime.books.ledger, time.time).rebuild()


def call(name: str, meanwhile: Callable[[], object] = lambda: None) -> None:
    with metered_call("flow", max_cost="0.01", idempotency_key=name) as one:
        meanwhile()
        one.record_cost("0.004")


def call_by(runtime: Runtime, name: str) -> None:
    reset_runtime(runtime)
    call(name)


class Away(SQLiteLedger):
    """Does not say what it knows of stores, until it does."""

    away = True

    def audits(self, action: str | None = None) -> Iterable[AuditEvent]:
        if self.away:
            raise StoreError("the ledger does not answer")
        return super().audits(action)


def test_a_charge_that_waits_for_lost_accounts_does_not_stand_in_the_way(
    server: RedisServer, tmp_path: Path
) -> None:
    runtime = governed_by(server, tmp_path)
    call("before")
    call("during", lambda: server.cli("FLUSHALL"))
    assert len(runtime.books.ledger.unsettled()) == 1
    with pytest.raises(StoreUnavailable):
        call("after")
    rebuild(runtime)
    assert account_of(runtime.books.store) == (8_000_000, 0)
    charge = next(iter(runtime.books.ledger.charges("during")))
    runtime.books.store.settle(charge.id, charge.nanos, charge.accounts, time.time(), True)
    runtime.books.catch_up(time.time())
    assert account_of(runtime.books.store) == (8_000_000, 0), "settled again, and booked once"
    for name in ("before", "during"):
        with pytest.raises(AlreadyCompleted):
            call(name)
    call("after")
    assert account_of(runtime.books.store) == (12_000_000, 0)


def test_a_charge_of_days_ago_that_was_corrected_today_is_remembered_whole(
    server: RedisServer, tmp_path: Path
) -> None:
    runtime = governed_by(server, tmp_path)
    ledger, store, now = runtime.books.ledger, runtime.books.store, time.time()
    total = ("in:|total",)
    days_ago = replace(charge(line(50)), accounts=total, started_at=now - 200_000, ended_at=now - 200_000)
    ledger.append(days_ago)
    ledger.append(
        replace(charge(line(-20)), id="op#1~1", adjustment_of="op#1", accounts=total, ended_at=now - 60)
    )
    rebuild(runtime)
    assert account_of(store) == (30, 0)
    store.settle("op#1", 35, total, now, True)  # a further correction says the whole amount
    assert account_of(store) == (35, 0)


def test_a_reservation_that_an_old_snapshot_brings_back_is_not_booked_beside_its_charge(
    server: RedisServer, tmp_path: Path
) -> None:
    runtime = governed_by(server, tmp_path)

    def keep() -> None:
        server.cli("SAVE")
        shutil.copy(tmp_path / "dump.rdb", tmp_path / "old.rdb")

    call("op", keep)
    call("later")
    server.kill()
    shutil.copy(tmp_path / "old.rdb", tmp_path / "dump.rdb")
    server.start()
    with pytest.raises(StoreUnavailable):
        call("after")
    rebuild(runtime)
    assert account_of(runtime.books.store) == (8_000_000, 0), "nothing is reserved for what has ended"
    assert sum(one.nanos for one in runtime.books.ledger.charges()) == 8_000_000
    with pytest.raises(AlreadyCompleted):
        call("op")


def test_a_rebuild_of_a_store_that_has_lost_nothing_waits_for_calls_in_flight(
    server: RedisServer, tmp_path: Path
) -> None:
    from genops_ctx.core.errors import StoreError

    runtime = governed_by(server, tmp_path)

    def try_it() -> None:
        with pytest.raises(StoreError, match="in flight"):
            rebuild(runtime)

    call("op", try_it)
    assert account_of(runtime.books.store) == (4_000_000, 0)


def test_what_was_emptied_while_no_process_ran_is_not_taken_for_new(
    server: RedisServer, tmp_path: Path
) -> None:
    governed_by(server, tmp_path)
    call("before")
    server.cli("FLUSHALL")
    later = governed_by(server, tmp_path)
    with pytest.raises(StoreUnavailable, match="emptied"):
        call("after")
    rebuild(later)
    call("after")
    assert account_of(later.books.store) == (8_000_000, 0)
    last = governed_by(server, tmp_path)
    call("last")
    assert account_of(last.books.store) == (12_000_000, 0), "and knows the restored data again"
    known = [event.reason for event in last.books.ledger.audits("store")]
    assert len(set(known)) == len(known) == 2


def test_a_ledger_that_was_away_at_the_start_is_asked_again_what_it_knows(
    server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failure of everything: Redis is back, and empty, before the ledger answers."""
    monkeypatch.setattr(generations, "AGAIN_SECONDS", 0.0)
    for number in range(9):
        call_by(governed_by(server, tmp_path), f"before {number}")
    server.cli("FLUSHALL")

    ledger = Away(tmp_path / "ledger.sqlite3")
    runtime = governed_by(server, tmp_path, ledger)
    runtime.tidy()
    call_by(runtime, "meanwhile")  # no call fails for a ledger that is away
    ledger.away = False
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            call_by(runtime, "after")
    with pytest.raises(StoreUnavailable):
        call_by(governed_by(server, tmp_path), "of a process that began later")
    rebuild(runtime)
    assert account_of(runtime.books.store) == (40_000_000, 0)
    call_by(runtime, "and on")
    assert account_of(runtime.books.store) == (44_000_000, 0)


def test_a_ledger_that_was_away_and_knows_the_same_changes_nothing(
    server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generations, "AGAIN_SECONDS", 0.0)
    call_by(governed_by(server, tmp_path), "before")

    ledger = Away(tmp_path / "ledger.sqlite3")
    runtime = governed_by(server, tmp_path, ledger)
    call_by(runtime, "meanwhile")
    ledger.away = False
    call_by(runtime, "after")
    assert account_of(runtime.books.store) == (12_000_000, 0)
    assert len(list(ledger.audits("store"))) == 1


def test_another_database_of_the_server_is_another_store(server: RedisServer, tmp_path: Path) -> None:
    from genops_ctx.stores.redis import RedisStore

    governed_by(server, tmp_path)
    call("before")
    base = server.url.rpartition("/")[0] if server.url.count("/") > 2 else server.url
    secret = base.replace("://", "://:secret@")
    places = {RedisStore(url).place for url in (f"{base}/0", f"{base}/1", f"{secret}/0", f"{base}?db=1")}
    assert len(places) == 2
    assert not any("secret" in place for place in places)


# -- set back while nobody runs that could notice ----------------------------------------------------


def spend(url: str, folder: str, names: Sequence[str], answers: Any) -> None:
    """What a process of its own does: calls, until one is refused; it says how each ended."""
    from genops_ctx.stores.redis import RedisStore

    ledger = SQLiteLedger(Path(folder) / "ledger.sqlite3")
    store = RedisStore(url, command_timeout=20.0)
    runtime = Runtime(Settings(budgets=(Budget("0.10", "total"),)), store=store, ledger=ledger)
    reset_runtime(runtime)
    said = []
    for name in names:
        try:
            call(name)
        except StoreUnavailable as error:
            said.append(str(error))
        else:
            said.append("ran")
    answers.put(said)


def in_a_new_process(server: RedisServer, folder: Path, *names: str) -> list[str]:
    folder.mkdir(exist_ok=True)
    answers = spawn.Queue()
    process = spawn.Process(target=spend, args=(server.url, str(folder), names, answers), daemon=True)
    process.start()
    said: list[str] = answers.get(timeout=60)
    process.join(60)
    return said


def set_back(server: RedisServer, tmp_path: Path) -> None:
    """To the snapshot that was kept as old.rdb, as after a loss of its disk."""
    server.kill()
    shutil.copy(tmp_path / "old.rdb", tmp_path / "dump.rdb")
    server.start()


def snapshot(server: RedisServer, tmp_path: Path) -> None:
    server.cli("SAVE")
    shutil.copy(tmp_path / "dump.rdb", tmp_path / "old.rdb")


def test_an_old_snapshot_is_noticed_by_processes_that_were_not_there(
    server: RedisServer, tmp_path: Path
) -> None:
    assert in_a_new_process(server, tmp_path / "a", "one") == ["ran"]
    snapshot(server, tmp_path)
    assert in_a_new_process(server, tmp_path / "a", "two", "three") == ["ran", "ran"]
    set_back(server, tmp_path)
    (said,) = in_a_new_process(server, tmp_path / "a", "four")
    assert "earlier state" in said
    assert "budgets rebuild" in said
    # For everybody: a machine whose own charges are all there would read less than was spent.
    (said,) = in_a_new_process(server, tmp_path / "another machine", "five")
    assert "earlier state" in said
    runtime = governed_by(server, tmp_path / "a")
    rebuild(runtime)
    assert account_of(runtime.books.store) == (12_000_000, 0)
    assert in_a_new_process(server, tmp_path / "a", "six") == ["ran"]
    assert in_a_new_process(server, tmp_path / "another machine", "seven") == ["ran"]
    assert account_of(runtime.books.store) == (20_000_000, 0)


def test_an_old_snapshot_that_others_went_on_from_is_noticed(server: RedisServer, tmp_path: Path) -> None:
    """The count of its changes is past what this machine knows; the end of its last call is missing."""
    assert in_a_new_process(server, tmp_path / "a", "one") == ["ran"]
    snapshot(server, tmp_path)
    assert in_a_new_process(server, tmp_path / "a", "two") == ["ran"]
    set_back(server, tmp_path)
    assert in_a_new_process(server, tmp_path / "b", "three", "four", "five") == ["ran"] * 3
    (said,) = in_a_new_process(server, tmp_path / "a", "six")
    assert "earlier state" in said


def test_a_client_that_was_idle_meanwhile_notices_it_too(server: RedisServer, tmp_path: Path) -> None:
    runtime = governed_by(server, tmp_path)
    call("zero")
    snapshot(server, tmp_path)
    call("one")
    runtime.alerts.flush()  # its thread asks the store too
    set_back(server, tmp_path)
    assert in_a_new_process(server, tmp_path / "b", "two", "three", "four") == ["ran"] * 3
    with pytest.raises(StoreUnavailable, match="earlier state"):
        call("five")
    assert runtime.books.ledger.witness(runtime.books.store.place) is not None  # type: ignore[attr-defined]


def test_machines_with_a_ledger_each_do_not_take_each_others_charges_for_lost(
    server: RedisServer, tmp_path: Path
) -> None:
    for number in range(3):
        for machine in ("a", "b"):
            assert in_a_new_process(server, tmp_path / machine, f"{machine}{number}") == ["ran"]
    governed_by(server, tmp_path / "a")
    # Set to zero by an operator it is the same data still.
    from genops_ctx.runtime import get_runtime

    books = get_runtime().books
    assert Controls(books.store, books.ledger, time.time).reset("all") == {"in:|total": 24_000_000}
    assert in_a_new_process(server, tmp_path / "b", "b4") == ["ran"]
    assert in_a_new_process(server, tmp_path / "a", "a4") == ["ran"]


def test_another_store_under_the_same_ledger_is_new_and_not_lost(server: RedisServer, tmp_path: Path) -> None:
    assert in_a_new_process(server, tmp_path / "a", "one") == ["ran"]
    url = server.url
    server_of_another_database = type("Other", (), {"url": url.removesuffix("/0") + "/1"})()
    assert in_a_new_process(server_of_another_database, tmp_path / "a", "two", "three") == ["ran", "ran"]
    assert in_a_new_process(server, tmp_path / "a", "four") == ["ran"]


def test_an_end_is_looked_for_as_long_as_a_store_must_remember_it(server: RedisServer) -> None:
    from genops_ctx.core.errors import StoreDataLost
    from genops_ctx.stores.redis import RedisStore

    first = RedisStore(server.url, command_timeout=20.0)
    first.accounts()
    assert first.generation is not None
    for age, known in ((19.9 * 3600, False), (20.1 * 3600, True), (-60.0, False), (-3 * 3600.0, True)):
        client = RedisStore(server.url, command_timeout=20.0)
        client.expect(first.generation, ("long ago#1", time.time() - age))
        if known:
            assert client.accounts() == {}
        else:
            with pytest.raises(StoreDataLost, match="earlier state"):
                client.accounts()
            server.cli("HDEL", "{genops}:meta", "lost")
