"""Processes that call through the public interface, and what they say of it afterwards.

A worker *bills* by appending a line to a file at the moment at which it would send. What the provider
would charge is therefore known whatever happens to the worker next.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextvars import copy_context
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty
from typing import Any

from genops_ctx import Budget, metered_call
from genops_ctx.core.errors import (
    AlreadyCompleted,
    BudgetExceeded,
    OperationInProgress,
    StoreError,
    StoreUnavailable,
)
from genops_ctx.core.outcomes import Outcome
from genops_ctx.core.ports import AccountStore, Clock
from genops_ctx.core.records import Charge
from genops_ctx.ledger.memory import MemoryLedger
from genops_ctx.runtime import Runtime, reset_runtime
from genops_ctx.settings import Settings
from tests.strategies import charge, line

CENT = 10_000_000  # nano-dollars
spawn = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Plan:
    """What each worker does."""

    store: tuple[str, str]
    """kind and place"""
    bill: str
    """the file that a call is appended to when it would be sent"""
    answer_after: float = 0.2
    """seconds that the provider takes"""
    settles_twice: bool = False
    """a fifth of the calls"""
    life: float = 60.0
    """seconds until a reservation expires"""
    stop_at_bill: bool = False
    """hang when a call is billed, to be killed there"""
    late: float = 0.0
    """seconds that it begins after the others"""
    patience: float = 90.0
    """seconds that a worker goes on while the store does not answer"""
    gates: str = ""
    """a folder: an operation begins once ``begin-OPERATION`` is there, is answered once ``answer-…`` is"""
    turned_away: str = ""
    """a file that a call is appended to each time that the store did not answer it"""
    command_timeout: float = 20.0
    ledger: str = ""
    """path of one that all workers share, and that is declared complete; each has its own in memory else"""
    windows: tuple[str, ...] = ("total",)
    """of each of which it has a budget of ten cents"""
    costs: tuple[str, ...] = ()
    """what the operations cost by turns, where nothing is promised of them; else a promised cent"""
    known: int = 0
    """nano-dollars that ten earlier calls have cost each; nothing is known of the flow else"""
    ahead: float = 0.0
    """seconds by which its clock is ahead of the others'"""

    def now(self) -> float:
        return time.time() + self.ahead

    def cost_of(self, operation: str) -> str:
        """In dollars."""
        if not self.costs:
            return "0.01"
        return self.costs[int(operation.removeprefix("op")) % len(self.costs)]


@dataclass
class Report:
    """What a worker saw. Amounts in nano-dollars."""

    ran: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    """the same operation was in flight, or done before"""
    given_up: list[str] = field(default_factory=list)
    unanswered: int = 0
    """how often the store did not answer"""
    charged: int = 0
    beyond: int = 0
    """what calls cost more than was set aside for them"""
    lost: list[str] = field(default_factory=list)
    """operations that this worker booked as never finished"""

    def add(self, other: Report) -> None:
        self.ran += other.ran
        self.refused += other.refused
        self.repeated += other.repeated
        self.given_up += other.given_up
        self.unanswered += other.unanswered
        self.charged += other.charged
        self.beyond += other.beyond
        self.lost += other.lost


def store_of(plan: Plan, *, callers_clock: bool = False) -> AccountStore:
    kind, place = plan.store
    if kind == "redis":
        from genops_ctx.stores.redis import RedisStore

        return RedisStore(
            place, command_timeout=plan.command_timeout, clock="caller" if callers_clock else "server"
        )
    from genops_ctx.stores.sqlite import SQLiteStore

    return SQLiteStore(place, timeout=60.0, clock="caller" if callers_clock else "machine")


def runtime_of(
    store: AccountStore,
    ledger: str = "",
    windows: Sequence[str] = ("total",),
    clock: Clock = time.time,
    **budget: Any,
) -> Runtime:
    budgets = tuple(Budget("0.10", window, **budget) for window in windows)
    if not ledger:
        return Runtime(Settings(budgets=budgets), store=store, ledger=MemoryLedger(), clock=clock)
    settings = Settings(budgets=budgets, ledger=f"sqlite:///{ledger}", ledger_complete=True)
    return Runtime(settings, store=store, clock=clock)


def account_of(store: AccountStore) -> tuple[int, int]:
    """Spent and reserved of the one budget; it is an error where there is another account."""
    ((_, account),) = store.accounts().items()
    return account.spent, account.reserved


def book_until(runtime: Runtime, account: tuple[int, int]) -> None:
    """Bring the books up until that is spent and reserved, by a store that may wait for a moment only."""
    until = time.monotonic() + 120
    found: object = None
    while time.monotonic() < until:
        try:
            runtime.books.catch_up(time.time())
            found = account_of(runtime.books.store)
        except StoreError as error:
            found = error
        if found == account:
            return
        time.sleep(0.05)
    raise AssertionError(f"it comes to {found}, and not to {account}")


class Elsewhere:
    """A metered call that another task makes meanwhile: what is called here is not inside it."""

    def __init__(self, name: str, max_cost: str, timeout: float = 120) -> None:
        self.call = metered_call(name, max_cost=max_cost, timeout=timeout)
        self._context = copy_context()
        self._context.run(self.call.__enter__)

    def end(self, cost: str) -> Charge:
        self._context.run(self.call.record_cost, cost)
        self._context.run(self.call.__exit__, None, None, None)
        assert self.call.charge is not None
        return self.call.charge


def shorten_lives(seconds: float) -> None:
    """A reservation outlives its call by a grace of 30 s: too long for a test."""
    from genops_ctx import runtime
    from genops_ctx.core import reserving

    reserving.GRACE = seconds
    runtime.REAP_EVERY = 0.2


def know(runtime: Runtime, nanos: int) -> None:
    """Ten earlier calls of the flow cost that much, if anything."""
    for _ in range(10 if nanos else 0):
        runtime.costs.learn(charge(line(nanos), name="flow"))


def bill(path: str, operation: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, f"{operation}\n".encode())
    os.close(file)


def gates_in(folder: Path, answer: Sequence[str] = ()) -> Path:
    """Shut ones, but that these operations are answered when they are made."""
    gates = folder / "gates"
    gates.mkdir()
    let(gates, "answer", answer)
    return gates


def let(gates: str | Path, step: str, operations: Sequence[str]) -> None:
    """Have them ``begin``, or have their ``answer`` come."""
    for operation in operations:
        (Path(gates) / f"{step}-{operation}").touch()


def wait_for(condition: Callable[[], bool]) -> None:
    """Return when it holds. It does not where the store cannot be asked now."""
    end = time.monotonic() + 240
    while time.monotonic() < end:
        with contextlib.suppress(StoreError):
            if condition():
                return
        time.sleep(0.005)
    raise AssertionError("it did not come to that")


def pass_gate(plan: Plan, step: str, operation: str) -> None:
    while plan.gates and not os.path.exists(f"{plan.gates}/{step}-{operation}"):
        time.sleep(0.05)


def billed(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def attempt(plan: Plan, runtime: Runtime, operation: str) -> Report:
    """One call of a cent, tried again while the store does not answer."""
    report = Report()
    pass_gate(plan, "begin", operation)
    until = time.monotonic() + plan.patience
    unsure = False
    while time.monotonic() < until:
        try:
            with metered_call(
                "flow",
                max_cost=None if plan.costs else "0.01",
                idempotency_key=operation,
                timeout=plan.life,
            ) as call:
                bill(plan.bill, operation)
                if plan.stop_at_bill:
                    time.sleep(600)
                time.sleep(plan.answer_after)
                pass_gate(plan, "answer", operation)
                call.record_cost(plan.cost_of(operation))
        except BudgetExceeded:
            report.refused.append(operation)
            return report
        except (OperationInProgress, AlreadyCompleted) as seen:
            if isinstance(seen, OperationInProgress) and unsure:
                time.sleep(0.05)  # our own reservation, of which we did not hear: it will be given back
                continue
            report.repeated.append(operation)
            return report
        except StoreUnavailable:
            report.unanswered += 1
            if plan.turned_away:
                bill(plan.turned_away, operation)
            unsure = True
            time.sleep(0.02)
            continue
        assert call.charge is not None
        report.ran.append(operation)
        report.charged += call.charge.nanos
        report.beyond += max(0, call.charge.nanos - call.charge.reserved_nanos)
        if plan.settles_twice and int(operation.removeprefix("op")) % 5 == 0:
            charge = call.charge
            runtime.books.store.settle(charge.id, charge.nanos, charge.accounts, time.time(), True)
        return report
    report.given_up.append(operation)
    return report


def join(store: AccountStore) -> None:
    """Meet the server, also where that takes longer than a call of this plan would wait."""
    until = time.monotonic() + 60
    while True:
        try:
            store.accounts()
            return
        except StoreError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def work(plan: Plan, operations: Sequence[str], ready: Any, go: Any, reports: Any) -> None:
    """All operations of one worker at once, each in a thread."""
    shorten_lives(0.0)
    runtime = runtime_of(store_of(plan), plan.ledger, plan.windows, plan.now)
    join(runtime.books.store)
    know(runtime, plan.known)
    reset_runtime(runtime)
    mine = Report()
    lock = threading.Lock()

    def one(operation: str) -> None:
        part = attempt(plan, runtime, operation)
        with lock:
            mine.add(part)

    threads = [threading.Thread(target=one, args=(operation,)) for operation in operations]
    ready.put(os.getpid())
    go.wait(300)
    time.sleep(plan.late)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until = time.monotonic() + plan.patience
    while runtime.books.ledger.unsettled() and time.monotonic() < until:
        runtime.books.catch_up(plan.now())
        time.sleep(0.05)
    runtime.books.catch_up(plan.now())
    mine.lost = [one.operation for one in runtime.books.ledger.charges() if one.outcome == Outcome.EXPIRED]
    reports.put(mine)


def run_workers(
    plans: Sequence[Plan],
    operations: Sequence[str],
    meanwhile: Callable[[list[Any]], object] = lambda workers: None,
) -> Report:
    """Share the operations out, let all begin at once, and gather what those say that live to say it."""
    ready, go, reports = spawn.Queue(), spawn.Event(), spawn.Queue()
    shares = [operations[number :: len(plans)] for number in range(len(plans))]
    workers = [
        spawn.Process(target=work, args=(plan, share, ready, go, reports), daemon=True)
        for plan, share in zip(plans, shares, strict=True)
    ]
    for worker in workers:
        worker.start()
    for _ in workers:
        ready.get(timeout=300)
    go.set()
    meanwhile(workers)
    total = Report()
    expected = sum(not plan.stop_at_bill for plan in plans)
    try:
        for _ in range(expected):
            total.add(reports.get(timeout=2 * max(plan.patience for plan in plans)))
    except Empty:
        raise AssertionError("a worker did not come back") from None
    finally:
        for worker in workers:
            worker.join(10 if worker.is_alive() and expected == len(plans) else 0.1)
            if worker.is_alive():
                worker.kill()
                worker.join(10)
    return total
