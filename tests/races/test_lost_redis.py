"""A Redis that loses data mid-way: noticed, and made good from the ledger to the nano-dollar."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from genops_ctx import Budget, metered_call
from genops_ctx.controls import Controls
from genops_ctx.core.errors import AlreadyCompleted, StoreUnavailable
from genops_ctx.ledger.sqlite import SQLiteLedger
from genops_ctx.runtime import Runtime, reset_runtime
from genops_ctx.settings import Settings
from tests.stores.redis_server import RedisServer

from .workers import account_of


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as started:
        yield started


def governed_by(server: RedisServer, folder: Path) -> Runtime:
    from genops_ctx.stores.redis import RedisStore

    store = RedisStore(server.url, command_timeout=1.0)
    ledger = SQLiteLedger(folder / "ledger.sqlite3")
    runtime = Runtime(Settings(budgets=(Budget("0.10", "total"),)), store=store, ledger=ledger)
    reset_runtime(runtime)
    return runtime


def rebuild(runtime: Runtime) -> None:
    Controls(runtime.books.store, runtime.books.ledger, time.time).rebuild()


def call(name: str, meanwhile: Callable[[], object] = lambda: None) -> None:
    with metered_call("flow", max_cost="0.01", idempotency_key=name) as one:
        meanwhile()
        one.record_cost("0.004")


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


def test_another_database_of_the_server_is_another_store(server: RedisServer, tmp_path: Path) -> None:
    from genops_ctx.stores.redis import RedisStore

    governed_by(server, tmp_path)
    call("before")
    base = server.url.rpartition("/")[0] if server.url.count("/") > 2 else server.url
    secret = base.replace("://", "://:secret@")
    places = {RedisStore(url).place for url in (f"{base}/0", f"{base}/1", f"{secret}/0", f"{base}?db=1")}
    assert len(places) == 2
    assert not any("secret" in place for place in places)
