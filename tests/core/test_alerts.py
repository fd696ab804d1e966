"""Which alerts are due, and that each is due once."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from genops_ctx.core.accounts import Account
from genops_ctx.core.alerts import alert_of, crossed_here, marks_of, spent_of
from genops_ctx.core.budget import Budget
from genops_ctx.core.context import governance_context
from genops_ctx.core.errors import ConfigurationError
from genops_ctx.core.outcomes import Outcome
from genops_ctx.core.records import Charge, CostSource, Exactness, Line, LineKind

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp()
CENT = 10_000_000


def thresholds(budget: Budget, spent: int, at: float = NOON) -> list[str]:
    return [str(mark.threshold) for mark in marks_of(budget.watch({}, at), spent, at)]


def test_a_threshold_is_due_from_its_part_of_the_limit_on() -> None:
    budget = Budget("1/day")
    assert thresholds(budget, 499_999_999) == []
    assert thresholds(budget, 500_000_000) == ["0.5"]
    assert thresholds(budget, 999_999_999) == ["0.5", "0.8"]
    assert thresholds(budget, 5_000_000_000) == ["0.5", "0.8", "1.0"]
    third = Budget("0.10/day", alert_thresholds=("0.333333333333",))
    assert thresholds(third, 33_333_333) == []  # of 33,333,333.3333 nano-dollars
    assert thresholds(third, 33_333_334) == ["0.333333333333"]


def test_nothing_is_due_before_anything_is_spent() -> None:
    assert thresholds(Budget("0/day"), 0) == []
    assert thresholds(Budget("0/day"), 1) == ["0.5", "0.8", "1.0"]
    assert thresholds(Budget("1/day", alert_thresholds=()), 10**10) == []


def test_a_calendar_window_has_marks_of_its_own() -> None:
    budget = Budget("1/day", by="team")
    today, tomorrow = (budget.watch({"team": "a"}, NOON + day * 86_400) for day in (0, 1))
    (first,) = marks_of(today, 500_000_000, NOON)
    (second,) = marks_of(tomorrow, 500_000_000, NOON + 86_400)
    assert first.key != second.key
    midnight = datetime(2026, 11, 22, tzinfo=UTC).timestamp()
    assert first.until == midnight + 86_400
    (later,) = marks_of(today, 600_000_000, NOON + 3600)
    assert later == first
    (raised,) = marks_of(Budget("1.10/day", by="team").watch({"team": "a"}, NOON), 600_000_000, NOON)
    assert raised.key != first.key, "a raised limit alerts anew"
    (forever,) = marks_of(Budget("1/total").watch({}, NOON), 500_000_000, NOON)
    assert forever.until == NOON + 366 * 86_400


def test_a_sliding_window_s_mark_lasts_for_its_length() -> None:
    budget = Budget("1/24h")
    watch, later = budget.watch({}, NOON), budget.watch({}, NOON + 7200)
    assert watch.account != later.account
    (mark,) = marks_of(watch, 500_000_000, NOON)
    assert mark.until == NOON + 86_400
    assert marks_of(later, 500_000_000, NOON + 7200)[0].key == mark.key
    accounts = {watch.account: Account(3, 9), watch.also[0]: Account(4), "another": Account(5)}
    assert spent_of(watch, accounts) == 7


def test_an_alert_says_what_happened() -> None:
    watch = Budget("5/day", by="team", name="daily").watch({"team": "a"}, NOON)
    alert = alert_of(watch, Decimal("0.8"), 4_100_000_000, NOON)
    assert (alert.limit, alert.spent, alert.at) == (Decimal(5), Decimal("4.1"), NOON)
    assert alert.resets_at == datetime(2026, 11, 22, tzinfo=UTC)
    assert alert.text == (
        "budget 'daily' for team=a (day:2026-11-21) has spent $4.10 of $5.00, past 80 %; "
        "it resets at 2026-11-22T00:00:00+00:00"
    )
    assert alert_of(Budget("5/total").watch({}, NOON), Decimal("1.0"), 5 * 10**9, NOON).text.endswith(
        "past 100 %"
    )


def charge(nanos: int, number: int = 0) -> Charge:
    line = Line(LineKind.COST, nanos, CostSource.REPORTED, Exactness.EXACT)
    return Charge(f"{number}#1", str(number), 1, "x", "", Outcome.COMPLETED, (line,), {}, (), 0.0, 0.0)


def test_contexts_alert_for_themselves_and_those_around_them() -> None:
    outer = governance_context("outer", budget=Budget("1", name="whole", alert_thresholds=(0.5,)))
    with outer, governance_context("inner", budget=("0.10", Budget(9, alert_thresholds=()))) as inner:
        inner.book(charge(60_000_000), 0, ())
        assert [(a.budget, a.scope, str(a.threshold)) for a in crossed_here(inner, NOON)] == [
            ("$0.10", "context 'inner'", "0.5")
        ]
        assert crossed_here(inner, NOON) == []
        inner.book(charge(500_000_000, 2), 0, ())
        assert [(a.budget, str(a.threshold), a.spent) for a in crossed_here(inner, NOON)] == [
            ("whole", "0.5", Decimal("0.56")),
            ("$0.10", "0.8", Decimal("0.56")),
            ("$0.10", "1.0", Decimal("0.56")),
        ]
        assert crossed_here(outer, NOON) == []


def test_threads_that_pass_a_threshold_together_alert_once() -> None:
    with governance_context("job", budget="1") as context:
        barrier = threading.Barrier(16)
        found: list[str] = []

        def spend(number: int) -> None:
            barrier.wait()
            for step in range(5):
                context.book(charge(2 * CENT, number * 10 + step), 0, ())
                found.extend(str(alert.threshold) for alert in crossed_here(context, NOON))

        threads = [threading.Thread(target=spend, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert context.total_cost == Decimal("1.60")
    assert sorted(found) == ["0.5", "0.8", "1.0"]


@pytest.mark.parametrize("given", [(0,), (-0.5,), (80,), "0.8", (True,), ("many",), 0.8, None])
def test_what_is_no_threshold(given: object) -> None:
    with pytest.raises(ConfigurationError):
        Budget("1/day", alert_thresholds=given)  # type: ignore[arg-type]


def test_thresholds_are_sorted_and_each_is_there_once() -> None:
    assert Budget(1, alert_thresholds=[1, 0.5, "0.50"]).alert_thresholds == (Decimal("0.5"), Decimal(1))
