"""Fifty at once over eight processes, with duplicates, kills, and a Redis that is paused and restarted."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from genops_ctx import metered_call
from genops_ctx.runtime import reset_runtime
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

pytestmark = pytest.mark.slow

OPERATIONS = [f"op{number}" for number in range(50)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path, "--appendonly", "yes", "--appendfsync", "no") as started:
        yield started


@pytest.fixture(params=["sqlite", "redis"])
def plan(request: pytest.FixtureRequest, tmp_path: Path) -> Plan:
    bills = str(tmp_path / "bills")
    if request.param == "sqlite":
        return Plan(("sqlite", str(tmp_path / "store.db")), bills)
    return Plan(("redis", request.getfixturevalue("server").url), bills)


def test_of_fifty_calls_exactly_ten_run(plan: Plan, tmp_path: Path) -> None:
    report = run_workers([plan] * 8, OPERATIONS)
    assert len(billed(tmp_path / "bills")) == len(report.ran) == 10
    assert (len(report.refused), report.given_up) == (40, [])
    assert report.charged == 10 * CENT
    assert account_of(store_of(plan)) == (10 * CENT, 0)


def test_duplicates_are_neither_sent_nor_booked_twice(plan: Plan, tmp_path: Path) -> None:
    """A fifth of the operations comes twice, to another process or at another time; so do settles."""
    shuffle = random.Random(7)
    operations = OPERATIONS + shuffle.sample(OPERATIONS, 10)
    shuffle.shuffle(operations)
    report = run_workers([replace(plan, settles_twice=True)] * 8, operations)
    bills = billed(tmp_path / "bills")
    assert len(bills) == len(set(bills)) == 10
    assert sorted(report.ran) == sorted(bills)
    assert len(report.ran) + len(report.refused) + len(report.repeated) == 60
    assert account_of(store_of(plan)) == (10 * CENT, 0)


@pytest.mark.parametrize("costs", [("0.002", "0.004", "0.01", "0.02"), ("0.001",), ("0.03",)])
def test_without_max_cost_the_overspend_of_processes_keeps_its_bound_and_nobody_starves(
    plan: Plan, tmp_path: Path, costs: tuple[str, ...]
) -> None:
    """Overspend is at most what the calls in flight cost more than was set aside for them.

    Nothing is known of the flow, so a 20th of the limit is set aside for each: half a cent.
    """
    report = run_workers([replace(plan, costs=costs)] * 8, OPERATIONS)
    spent, reserved = account_of(store_of(plan))
    assert len(billed(tmp_path / "bills")) == len(report.ran) >= 20, "as many as half cents are in ten"
    assert (report.charged, reserved, report.given_up) == (spent, 0, [])
    assert spent - 10 * CENT <= report.beyond
    if costs == ("0.001",):
        assert spent <= 10 * CENT, "no call cost more than was set aside"


def test_of_fifty_calls_as_many_run_as_are_known_to_fit(plan: Plan, tmp_path: Path) -> None:
    """Nothing is promised; each process knows that a call costs a cent, and 9.6 of them are left."""
    store = store_of(plan)
    reset_before = reset_runtime(runtime_of(store))
    with metered_call("other") as one:
        one.record_cost("0.004")
    reset_runtime(reset_before)
    report = run_workers([replace(plan, costs=("0.01",), known=CENT)] * 8, OPERATIONS)
    assert len(billed(tmp_path / "bills")) == len(report.ran) == 9
    assert (len(report.refused), report.given_up, report.beyond) == (41, [], 0)
    assert account_of(store) == (94 * CENT // 10, 0)


def test_with_a_tenth_of_the_workers_killed_what_ran_and_what_is_lost_is_the_budget(
    plan: Plan, tmp_path: Path
) -> None:
    plan = replace(plan, life=600.0)
    gates = gates_in(tmp_path, answer=OPERATIONS)
    plans = [replace(plan, stop_at_bill=True), *[replace(plan, gates=str(gates))] * 9]

    def kill_the_first(workers: list[Any]) -> None:
        wait_for(lambda: len(billed(tmp_path / "bills")) == 5)
        let(gates, "begin", OPERATIONS)
        wait_for(lambda: len(billed(tmp_path / "bills")) == 10)
        workers[0].kill()

    report = run_workers(plans, OPERATIONS, kill_the_first)
    bills = billed(tmp_path / "bills")
    store = store_of(plan)
    spent, reserved = account_of(store)
    died = len(bills) - len(report.ran)
    assert len(bills) == 10
    assert died == 5, "all five calls of the killed one were in flight"
    assert (spent, reserved) == ((10 - died) * CENT, died * CENT), "what was in flight stays set aside"
    later = time.time() + 601
    reaper = runtime_of(store_of(plan, callers_clock=True))
    reaper.books.catch_up(later)
    lost = list(reaper.books.ledger.charges())
    assert len(report.ran) + len(lost) == 10
    assert {charge.operation for charge in lost} == set(bills) - set(report.ran)
    assert account_of(store) == (10 * CENT, 0), "nothing is reserved after its expiry"


def test_a_redis_that_is_paused_and_killed_in_between_changes_nothing(
    server: RedisServer, tmp_path: Path
) -> None:
    gates = gates_in(tmp_path, answer=OPERATIONS)
    plan = Plan(
        ("redis", server.url),
        str(tmp_path / "bills"),
        command_timeout=0.25,
        patience=240.0,
        life=600.0,
        gates=str(gates),
        turned_away=str(tmp_path / "turned_away"),
    )

    def trouble(_: list[Any]) -> None:
        server.pause()
        let(gates, "begin", OPERATIONS)
        wait_for(lambda: len(billed(tmp_path / "turned_away")) > 0)
        server.resume()
        time.sleep(0.1)
        server.kill()
        time.sleep(0.3)
        server.start()
        time.sleep(0.2)
        server.pause()
        time.sleep(0.4)
        server.resume()

    report = run_workers([plan] * 8, OPERATIONS, trouble)
    bills = billed(tmp_path / "bills")
    assert report.given_up == []
    assert len(bills) == len(set(bills)) == len(report.ran) == 10
    assert len(report.refused) == 40
    assert account_of(store_of(replace(plan, command_timeout=20.0))) == (10 * CENT, 0)
