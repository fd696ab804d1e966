"""Budgets of a day where a day is not 24 hours long, and charges that are corrected after theirs is over.

The instants are worked out by hand from the rules of each zone, not by the code that is tested.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from genops_ctx import Budget, BudgetExceeded, configure, metered_call
from genops_ctx.core.outcomes import Outcome
from genops_ctx.runtime import Runtime, get_runtime
from genops_ctx.testing import FixedClock

from .conftest import Run
from .workers import Elsewhere

DOLLAR = 1_000_000_000
DAY = 86_400.0


def utc(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


DAYS = {
    # summer time begins at 02:00, ends at 03:00: midnight itself is as always
    "Berlin, spring": ("Europe/Berlin", "2026-03-28T23:00", "2026-03-29T22:00", 23),
    "Berlin, autumn": ("Europe/Berlin", "2026-10-24T22:00", "2026-10-25T23:00", 25),
    # at midnight it is 01:00 at once: there is no 00:00
    "Santiago, spring": ("America/Santiago", "2026-09-06T04:00", "2026-09-07T03:00", 23),
    "Beirut, spring": ("Asia/Beirut", "2026-03-28T22:00", "2026-03-29T21:00", 23),
    # at midnight it is 23:00 again, on the same day
    "Santiago, autumn": ("America/Santiago", "2026-04-04T03:00", "2026-04-05T04:00", 25),
    # at 01:00 it is 00:00 again, and no second day begins
    "Havana, autumn": ("America/Havana", "2026-11-01T04:00", "2026-11-02T05:00", 25),
}


def spend(amount: str) -> bool:
    try:
        with metered_call("flow", max_cost=amount) as call:
            call.record_cost(amount)
    except BudgetExceeded:
        return False
    return True


@pytest.mark.parametrize("day", DAYS)
def test_a_budget_begins_anew_exactly_at_midnight(run_at: Run, day: str) -> None:
    zone, begins, ends, hours = DAYS[day]
    start, end = utc(begins), utc(ends)
    assert end - start == hours * 3600
    clock = FixedClock(start - 0.001)
    runtime = run_at(clock, [Budget("1/day", time_zone=zone)])
    check_midnights(runtime, clock, start, end)


@pytest.mark.parametrize("day", ["Berlin, spring", "Santiago, spring"])
@pytest.mark.parametrize("store", ["memory", "file"])
def test_it_does_as_users_set_it_up(tmp_path, day: str, store: str) -> None:
    zone, begins, ends, _ = DAYS[day]
    clock = FixedClock(utc(begins) - 0.001)
    url = f"sqlite:///{tmp_path / 'books.db'}" if store == "file" else "memory://"
    configure(store=url, ledger=url, clock=clock, budgets=[Budget("1/day", time_zone=zone)])
    check_midnights(get_runtime(), clock, utc(begins), utc(ends))


def check_midnights(runtime: Runtime, clock: FixedClock, start: float, end: float) -> None:
    """The clock stands just before ``start``."""
    assert spend("1"), "the day before"
    assert not spend("0.01")
    for minutes in (0, 59, 60, 61, 119, 120, 121, 179, 180, 181, 12 * 60):
        clock.set(start + minutes * 60)
        assert spend("0.05")
    with pytest.raises(BudgetExceeded) as refused, metered_call("flow", max_cost="0.50"):
        pass
    assert refused.value.spent == Decimal("0.55"), "all of it is one day"
    assert refused.value.resets_at == datetime.fromtimestamp(end, UTC)
    clock.set(end - 0.001)
    assert not spend("0.50")
    over = Elsewhere("over midnight", max_cost="0.45")
    clock.set(end)
    assert spend("1"), "at midnight"
    assert not spend("0.01")
    over.end("0.45")
    accounts = runtime.books.store.accounts()
    assert sorted(account.spent for account in accounts.values()) == [DOLLAR] * 3
    assert all(account.reserved == 0 for account in accounts.values())
    agree(runtime)


def agree(runtime: Runtime) -> None:
    """Ledger and accounts say the same of every window."""
    booked = dict.fromkeys(runtime.books.store.accounts(), 0)
    for charge in runtime.books.ledger.charges():
        for key in charge.accounts:
            booked[key] += charge.nanos
    assert {key: account.spent for key, account in runtime.books.store.accounts().items()} == booked


@pytest.mark.parametrize("cost", ["0.05", "0.9", "1.2"])
@pytest.mark.parametrize("after", [60.0, 20 * 3600.0])
def test_a_charge_that_is_corrected_after_its_window_closed_is_booked_there(
    run_at: Run, cost: str, after: float
) -> None:
    midnight = utc("2026-11-22T00:00")
    clock = FixedClock(midnight - 10)
    runtime = run_at(clock, [Budget("1/day"), Budget("10/month"), Budget("3/24h")])
    slow = Elsewhere("slow", max_cost="0.9", timeout=10)
    clock.set(midnight + 40)  # its reservation ended at 30 s past midnight
    assert spend("0.3"), "a new day, whatever became of it"
    (lost,) = [one for one in runtime.books.ledger.charges() if one.outcome == Outcome.EXPIRED]
    assert lost.nanos == 9 * DOLLAR // 10
    yesterday, today = "in:|day:2026-11-21", "in:|day:2026-11-22"
    assert spent(runtime, yesterday) == Decimal("0.9")
    assert spent(runtime, today) == Decimal("0.3")

    clock.set(midnight + after)
    slow.end(cost)
    assert spent(runtime, yesterday) == Decimal(cost)
    assert spent(runtime, today) == Decimal("0.3")
    assert spent(runtime, "in:|month:2026-11-01") == Decimal(cost) + Decimal("0.3")
    ((_, adjustment),) = [
        (one.id, one) for one in runtime.books.ledger.charges() if one.adjustment_of == lost.id
    ]
    assert adjustment.accounts == lost.accounts
    assert adjustment.cost == Decimal(cost) - Decimal("0.9")
    agree(runtime)
    assert spend("0.7"), "nothing of it counts today"
    assert not spend("0.01")
    agree(runtime)


def spent(runtime: Runtime, account: str) -> Decimal:
    found = runtime.books.store.accounts([account])[account]
    assert found.reserved == 0
    return Decimal(found.spent) / DOLLAR


def test_what_is_written_down_late_is_booked_to_its_own_window(run_at: Run) -> None:
    """The ledger was away until the next day; the account has it from the day it was spent on."""
    midnight = utc("2026-11-22T00:00")
    clock = FixedClock(midnight - 10)
    runtime = run_at(clock, [Budget("1/day")])
    append = runtime.books.ledger.append

    def away(*_: object, **__: object) -> bool:
        raise OSError("the ledger is away")

    runtime.books.ledger.append = away  # type: ignore[method-assign]
    assert spend("0.4")
    clock.set(midnight + 3600)
    runtime.books.ledger.append = append  # type: ignore[method-assign]
    assert spend("0.3")
    assert spent(runtime, "in:|day:2026-11-21") == Decimal("0.4")
    assert spent(runtime, "in:|day:2026-11-22") == Decimal("0.3")
    assert len(list(runtime.books.ledger.charges())) == 2
    agree(runtime)
