"""A Redis that loses its data while calls are made: brought back by itself, and never overspent."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import Context
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from genops_ctx import BudgetExceeded, metered_call
from genops_ctx.controls import Controls
from genops_ctx.core.errors import ConfigurationError, StoreDataLost, StoreError, StoreUnavailable
from genops_ctx.core.records import Charge
from genops_ctx.ledger.memory import MemoryLedger
from genops_ctx.ledger.sqlite import SQLiteLedger
from genops_ctx.recovery import Recovery
from genops_ctx.runtime import Runtime, reset_runtime
from genops_ctx.settings import Settings, load_settings
from genops_ctx.stores.memory import MemoryStore
from tests.stores.redis_sentinels import Sentinels
from tests.stores.redis_server import RedisServer

from .workers import (
    CENT,
    Plan,
    account_of,
    billed,
    gates_in,
    let,
    run_workers,
    runtime_of,
    store_of,
    wait_for,
)

OPERATIONS = [f"op{number}" for number in range(50)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as started:
        yield started


@pytest.fixture
def plan(server: RedisServer, tmp_path: Path) -> Plan:
    return plan_on(server.url, tmp_path)


def plan_on(url: str, folder: Path) -> Plan:
    """What is done when is said by :func:`let`."""
    return Plan(
        ("redis", url),
        str(folder / "bills"),
        answer_after=0.0,
        ledger=str(folder / "ledger.sqlite3"),
        life=1800.0,
        patience=240.0,
        gates=str(gates_in(folder)),
        turned_away=str(folder / "turned_away"),
    )


def flush(server: RedisServer, tmp_path: Path) -> None:
    server.cli("FLUSHALL")


def set_back(server: RedisServer, tmp_path: Path) -> None:
    server.kill()
    shutil.copy(tmp_path / "old.rdb", tmp_path / "dump.rdb")
    server.start()


@pytest.mark.slow
@pytest.mark.parametrize("lose", [flush, set_back])
def test_the_budget_is_right_again_by_itself_and_never_overspent(
    server: RedisServer, tmp_path: Path, plan: Plan, lose: Callable[[RedisServer, Path], None]
) -> None:
    """Some of the ten calls that fit are over when the data is lost, some are in flight."""
    ungated = replace(plan, gates="")
    first = run_workers([ungated], ["op100", "op101"])
    assert len(first.ran) == 2
    server.cli("SAVE")
    shutil.copy(tmp_path / "dump.rdb", tmp_path / "old.rdb")
    second = run_workers([ungated], ["op102"])
    assert len(second.ran) == 1
    bills, in_flight, after = tmp_path / "bills", OPERATIONS[:5], OPERATIONS[5:]

    def trouble(_: list[Any]) -> None:
        let(plan.gates, "begin", in_flight)
        wait_for(lambda: len(billed(bills)) == 3 + 5)
        lose(server, tmp_path)
        let(plan.gates, "begin", after)
        let(plan.gates, "answer", after)
        wait_for(lambda: len(billed(Path(plan.turned_away))) > 0)
        let(plan.gates, "answer", in_flight[:3])
        wait_for(lambda: len(billed(bills)) > 3 + 5)
        let(plan.gates, "answer", in_flight[3:])

    report = run_workers([plan] * 8, OPERATIONS, trouble)
    assert report.given_up == []
    assert len(billed(bills)) == len(set(billed(bills))) == 10
    assert len(report.ran) == 7
    assert len(report.refused) == 43
    assert account_of(store_of(plan)) == (10 * CENT, 0)
    ledger = SQLiteLedger(plan.ledger)
    assert sum(charge.nanos for charge in ledger.charges()) == 10 * CENT
    assert list(ledger.unsettled()) == []
    brought_back = [event for event in ledger.audits("rebuild") if event.actor == "recovery"]
    assert len(brought_back) == 1, "by one process"
    ledger.close()


@pytest.mark.slow
@pytest.mark.parametrize("behind", [False, True])
def test_a_failover_in_mid_run_overspends_nothing(tmp_path: Path, behind: bool) -> None:
    """What the replica had not heard of is noticed and brought back, of calls in flight and of ended ones."""
    bills = tmp_path / "bills"
    # Each of the four workers has one of the first and one of the next five, so that all have seen them.
    before, ended_meanwhile, in_flight = OPERATIONS[:4], OPERATIONS[4:7], OPERATIONS[7:9]
    after = OPERATIONS[9:24]
    with Sentinels(tmp_path) as sentinels:
        plan = plan_on(sentinels.url, tmp_path)
        store, ledger = store_of(plan), SQLiteLedger(plan.ledger)

        def trouble(_: list[Any]) -> None:
            let(plan.gates, "begin", before)
            let(plan.gates, "answer", before)
            wait_for(lambda: len(billed(bills)) == 4)
            wait_for(lambda: account_of(store) == (4 * CENT, 0))
            if behind:
                sentinels.cut_off()
            let(plan.gates, "begin", [*ended_meanwhile, *in_flight])
            wait_for(lambda: len(billed(bills)) == 9)
            assert account_of(store) == (4 * CENT, 5 * CENT)
            if not behind:
                sentinels.catch_up()
            sentinels.master.kill()
            let(plan.gates, "begin", after)
            let(plan.gates, "answer", after)
            wait_for(lambda: len(billed(Path(plan.turned_away))) > 0)
            let(plan.gates, "answer", ended_meanwhile)
            wait_for(lambda: sum(1 for _ in ledger.charges()) == 7)
            sentinels.promote()
            wait_for(lambda: len(billed(bills)) >= 10)
            wait_for(lambda: account_of(store) == (8 * CENT, 2 * CENT))
            let(plan.gates, "answer", in_flight)

        report = run_workers([plan] * 4, OPERATIONS[:24], trouble)
        assert report.given_up == []
        assert len(billed(bills)) == len(set(billed(bills))) == len(report.ran) == 10
        assert len(report.refused) == 14
        assert account_of(store) == (10 * CENT, 0)
        assert sum(charge.nanos for charge in ledger.charges()) == 10 * CENT
        assert list(ledger.unsettled()) == []
        brought_back = [event for event in ledger.audits("rebuild") if event.actor == "recovery"]
        assert len(brought_back) == behind, "by one process, where something was lost"
        ledger.close()
        store.close()


@pytest.fixture
def unwatched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks after a store but the test."""
    monkeypatch.setattr(Recovery, "watch", lambda recovery: None)


@pytest.mark.usefixtures("unwatched")
def test_calls_in_flight_keep_what_they_reserved(server: RedisServer, plan: Plan) -> None:
    """Theirs is the money that neither the ledger nor the emptied store knows of."""
    runtime = runtime_of(store_of(plan), plan.ledger)
    recovery = Recovery(runtime.books.store, runtime.books.ledger, time.time)
    other = runtime_of(store_of(plan), plan.ledger)
    apart = [Context(), Context()]  # neither is made inside the other
    reset_runtime(runtime)
    mine = apart[0].run(metered_call("flow", max_cost="0.03").__enter__)
    reset_runtime(other)
    theirs = apart[1].run(metered_call("flow", max_cost="0.05", idempotency_key="theirs").__enter__)
    server.cli("FLUSHALL")
    with pytest.raises(StoreDataLost):
        other.books.store.accounts()
    recovery.look()
    assert account_of(runtime.books.store) in ((0, 3 * CENT), (0, 8 * CENT))
    with pytest.raises(StoreUnavailable, match="calls in flight"), metered_call("flow"):
        raise AssertionError("sent")
    assert account_of(other.books.store) == (0, 8 * CENT)

    def refused_by_the_budget() -> bool:
        with (
            pytest.raises((BudgetExceeded, StoreUnavailable)) as refusal,
            metered_call("flow", max_cost="0.03"),
        ):
            raise AssertionError("sent")
        return refusal.type is BudgetExceeded

    wait_for(refused_by_the_budget)
    theirs.record_cost("0.04")
    apart[1].run(theirs.__exit__, None, None, None)
    mine.record_cost("0.01")
    apart[0].run(mine.__exit__, None, None, None)
    assert account_of(runtime.books.store) == (5 * CENT, 0)
    for one in (runtime, other):
        one.books.close()


@pytest.mark.usefixtures("unwatched")
def test_a_call_that_ended_meanwhile_is_not_reserved_for_ever(server: RedisServer, plan: Plan) -> None:
    runtime = runtime_of(store_of(plan), plan.ledger)
    reset_runtime(runtime)
    with metered_call("flow", max_cost="0.03") as call:
        server.cli("FLUSHALL")
        call.record_cost("0.02")
    assert len(runtime.books.ledger.unsettled()) == 1
    Recovery(runtime.books.store, runtime.books.ledger, time.time).look()
    runtime.books.catch_up(time.time())
    assert account_of(runtime.books.store) == (2 * CENT, 0)
    assert list(runtime.books.ledger.unsettled()) == []
    runtime.books.close()


def let_the_claim_age(server: RedisServer, store: Any, seconds: float) -> None:
    """It ends so much earlier, as if that time had passed."""
    server.cli("HINCRBYFLOAT", store.keys[0], "restorer_until", str(-seconds))


@pytest.mark.usefixtures("unwatched")
def test_the_claim_of_a_process_that_died_runs_out_and_what_is_late_is_fenced_off(
    server: RedisServer, plan: Plan
) -> None:
    runtime = runtime_of(store_of(plan), plan.ledger)
    reset_runtime(runtime)
    with metered_call("flow", max_cost="0.03") as call:
        call.record_cost("0.02")
    store: Any = runtime.books.store
    server.cli("FLUSHALL")
    with pytest.raises(StoreDataLost):
        store.accounts()
    dead = store.claim_restore(600.0)
    assert dead
    recovery = Recovery(store, runtime.books.ledger, time.time)
    recovery.look()
    with pytest.raises(StoreDataLost):  # it waits for the one who has claimed it
        store.accounts()
    let_the_claim_age(server, store, 601.0)
    recovery.look()
    assert account_of(store) == (2 * CENT, 0)
    with pytest.raises(StoreError, match="another process"):
        store.restore({}, claim=dead, anyway=True)
    assert account_of(store) == (2 * CENT, 0)
    runtime.books.close()


@pytest.mark.usefixtures("unwatched")
@pytest.mark.parametrize("meanwhile", ["nobody", "another"])
def test_a_ledger_that_takes_longer_to_read_than_a_claim_lasts(
    server: RedisServer, plan: Plan, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    """A claim is for 60 s, a charge takes 25 s."""
    passed = [0.0]
    monkeypatch.setattr("genops_ctx.controls.time", SimpleNamespace(monotonic=lambda: passed[0]))
    runtime = runtime_of(store_of(plan), plan.ledger)
    reset_runtime(runtime)
    for _ in range(5):
        with metered_call("flow", max_cost="0.01") as call:
            call.record_cost("0.01")
    store: Any = runtime.books.store
    server.cli("FLUSHALL")
    with pytest.raises(StoreDataLost):
        store.accounts()
    of_others: list[str | None] = []

    def pass_time(seconds: float) -> None:
        passed[0] += seconds
        let_the_claim_age(server, store, seconds)

    class Slow(SQLiteLedger):
        def charges(self, operation: str | None = None) -> Iterator[Charge]:
            for charge in super().charges(operation):
                pass_time(25.0)
                if meanwhile == "another" and not of_others:
                    pass_time(40.0)  # this process stood still
                of_others.append(store.claim_restore(600.0))
                yield charge

    controls = Controls(store, Slow(plan.ledger), time.time)
    if meanwhile == "nobody":
        assert controls.bring_back(0.0)
        assert of_others == [None] * 5, "it took longer than a claim lasts, and was its own all the time"
        assert account_of(store) == (5 * CENT, 0)
    else:
        with pytest.raises(StoreError, match="another rebuild runs"):
            controls.bring_back(0.0)
        assert of_others[0], "the claim had run out"
    runtime.books.close()


def test_without_the_declaration_it_stays_refused_and_says_how_to_mend_it(
    server: RedisServer, tmp_path: Path, plan: Plan
) -> None:
    runtime = Runtime(
        Settings(budgets=runtime_of(store_of(plan)).settings.budgets),
        store=store_of(plan),
        ledger=SQLiteLedger(plan.ledger),
    )
    reset_runtime(runtime)
    with metered_call("flow", max_cost="0.03") as call:
        call.record_cost("0.02")
    server.cli("FLUSHALL")
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="budgets rebuild"), metered_call("flow"):
            raise AssertionError("sent")
        time.sleep(1.2)
    assert Controls(runtime.books.store, runtime.books.ledger, time.time).rebuild() == {
        "in:|total": (0, 2 * CENT)
    }
    with metered_call("flow", max_cost="0.03") as call:
        call.record_cost("0.02")
    assert account_of(runtime.books.store) == (4 * CENT, 0)


def test_the_declaration_needs_a_ledger_that_processes_share(tmp_path: Path) -> None:
    for ledger in ("memory://", "default://"):
        with pytest.raises(ConfigurationError, match="ledger_complete"):
            Settings(ledger=ledger, ledger_complete=True)
    environ = {"GENOPS_LEDGER": f"sqlite:///{tmp_path}/ledger.db", "GENOPS_LEDGER_COMPLETE": "true"}
    assert load_settings(environ, tmp_path).ledger_complete
    with pytest.raises(ConfigurationError, match="true or false"):
        load_settings({**environ, "GENOPS_LEDGER_COMPLETE": "perhaps"}, tmp_path)
    file = tmp_path / "genops.toml"
    file.write_text(f'ledger = "sqlite:///{tmp_path}/ledger.db"\nledger_complete = true\n')
    assert load_settings({}, tmp_path).ledger_complete
    assert not load_settings({"GENOPS_LEDGER_COMPLETE": "no"}, tmp_path).ledger_complete
    file.write_text('ledger_complete = "yes"\n')
    with pytest.raises(ConfigurationError, match="true or false"):
        load_settings({}, tmp_path)


def test_it_looks_again_where_the_books_are_used_after_they_were_closed() -> None:
    asked = threading.Event()

    class Asked(MemoryStore):
        def probe(self) -> None:
            asked.set()

    recovery = Recovery(Asked(), MemoryLedger(), time.time)
    for _ in range(2):
        recovery.watch()
        recovery.wake()
        assert asked.wait(60)
        recovery.stop()
        asked.clear()
