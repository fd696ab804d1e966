"""Operators at the same moment, in processes of their own, while calls are booked: no deed undoes another."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from genops_ctx.controls import Controls
from genops_ctx.core.accounts import Control
from genops_ctx.ledger.sqlite import SQLiteLedger
from tests.stores.redis_server import RedisServer

from .workers import Plan, store_of

ACCOUNT = "in:|total"
COST, CALLS = 7, 60
UNTIL = 4_000_000_000.0


@pytest.fixture(params=["sqlite", "redis"])
def plan(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Plan]:
    ledger = str(tmp_path / "ledger.db")
    SQLiteLedger(ledger).close()
    if request.param == "sqlite":
        yield Plan(("sqlite", str(tmp_path / "store.db")), str(tmp_path / "ready"), ledger=ledger)
        return
    with RedisServer(tmp_path) as server:
        yield Plan(("redis", server.url), str(tmp_path / "ready"), ledger=ledger, command_timeout=20.0)


def controls_of(plan: Plan, name: str) -> Controls:
    return Controls(store_of(plan), SQLiteLedger(plan.ledger), time.time, name)


def together(plan: Plan, number: int) -> None:
    """Wait until so many processes have come as far as this."""
    folder = Path(plan.bill)
    folder.mkdir(exist_ok=True)
    (folder / str(os.getpid())).touch()
    until = time.monotonic() + 180
    while len(list(folder.iterdir())) < number:
        assert time.monotonic() < until
        time.sleep(0.005)


def spend(plan: Plan, worker: int) -> int:
    store = store_of(plan)
    store.accounts([ACCOUNT])
    together(plan, 6)
    for number in range(CALLS):
        time.sleep(0.005)
        store.settle(f"op{worker}-{number}#1", COST, (ACCOUNT,), time.time(), True)
    return CALLS * COST


def reset(plan: Plan, worker: int) -> int:
    controls = controls_of(plan, f"operator {worker}")
    together(plan, 6)
    until, taken = time.monotonic() + 1.5, 0
    while time.monotonic() < until:
        taken += sum(controls.reset("all").values())
        time.sleep(0.001)
    return taken


def freeze(plan: Plan) -> int:
    controls = controls_of(plan, "freeze")
    together(plan, 2)
    for number in range(15):
        controls.freeze("all", frozen=number % 2 == 0)
    return 0


def grant(plan: Plan) -> int:
    controls = controls_of(plan, "grant")
    together(plan, 2)
    for number in range(1, 16):
        controls.grant("all", number, UNTIL)
    return 0


def test_what_is_reset_is_taken_once_and_nothing_spent_meanwhile_is_lost(plan: Plan) -> None:
    with ProcessPoolExecutor(6, get_context("spawn")) as pool:
        spending = [pool.submit(spend, plan, number) for number in range(2)]
        resetting = [pool.submit(reset, plan, number) for number in range(4)]
        spent, taken = sum(one.result() for one in spending), sum(one.result() for one in resetting)
    left = store_of(plan).accounts([ACCOUNT])[ACCOUNT].spent
    assert spent == 2 * CALLS * COST
    assert left >= 0
    assert taken + left == spent
    records = [event.nanos or 0 for event in SQLiteLedger(plan.ledger).audits("reset")]
    assert sum(records) == taken > 0
    assert min(records) > 0


def test_a_freeze_and_a_grant_leave_each_other(plan: Plan) -> None:
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        deeds = [pool.submit(freeze, plan), pool.submit(grant, plan)]
        assert [one.result() for one in deeds] == [0, 0]
    assert store_of(plan).controls(["in:"])["in:"] == Control(True, 15, UNTIL)
