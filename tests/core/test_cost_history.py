"""What is remembered of earlier calls."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genops_ctx.core import cost_history
from genops_ctx.core.admission import Earlier
from genops_ctx.core.cost_history import CostHistory
from genops_ctx.core.errors import StoreError
from genops_ctx.core.outcomes import Outcome
from genops_ctx.core.records import UPSERT, Exactness
from tests.strategies import charge, line

NOTHING = Earlier()


@pytest.fixture
def history() -> CostHistory:
    return CostHistory()


def learn(history: CostHistory, *costs: int, flow: str = "a", **changes: Any) -> None:
    for nanos in costs:
        history.learn(replace(charge(line(nanos), name="flow"), flow=flow, **changes))


def test_the_newest_two_hundred_costs_of_each_flow(history: CostHistory) -> None:
    learn(history, *range(1, 251))
    learn(history, *[7] * 10, flow="b")
    # Of 51 to 250, two cost more than the 99th percentile, and 19 less than the 10th.
    assert history.of("a") == Earlier(248, 70, 200)
    assert history.of("b") == Earlier(None, 7, 10)
    assert history.of("flow") == NOTHING, "flows of one name on two servers are two"


@given(st.lists(st.integers(0, 9), min_size=190, max_size=420))
def test_whatever_came_before_the_newest_count(costs: list[int]) -> None:
    history = CostHistory()
    learn(history, *costs)
    known = history.of("a")
    newest = costs[-200:]
    assert (known.least, known.charges) == (sorted(newest)[-(-len(newest) // 10) - 1], len(newest))
    assert known.typical == sorted(newest, reverse=True)[len(newest) // 100]


def test_what_is_no_flow_has_a_name(history: CostHistory) -> None:
    learn(history, *[5] * 10, flow="")
    assert history.of("flow") == Earlier(None, 5, 10)


@pytest.mark.parametrize(
    "changes",
    [{"outcome": Outcome.FAILED}, {"outcome": Outcome.ABANDONED}, {"flags": (UPSERT,)}],
)
def test_what_does_not_say_what_a_call_costs_is_left_out(
    history: CostHistory, changes: dict[str, Any]
) -> None:
    learn(history, *[5] * 20, **changes)
    assert history.of("a") == NOTHING


def test_what_has_no_price_is_left_out(history: CostHistory) -> None:
    unknown = line(None, exactness=Exactness.UNKNOWN)
    for _ in range(20):
        history.learn(replace(charge(line(5), unknown), flow="a"))
    assert history.of("a") == NOTHING


def test_what_a_flow_cost_before_it_was_changed_is_forgotten(history: CostHistory) -> None:
    learn(history, *[50] * 10, started_at=100.0)
    learn(history, *[4] * 10, started_at=200.0)
    assert history.of("a", None) == Earlier(50, 4, 20)
    assert history.of("a", 100.0) == Earlier(50, 4, 20)
    assert history.of("a", 200.0) == Earlier(None, 4, 10)
    learn(history, 50, started_at=199.0)  # one that ends late
    assert history.of("a", None) == Earlier(None, 4, 10)
    assert history.of("a", 200.5) == NOTHING
    learn(history, *[3] * 10, started_at=201.0)
    assert history.of("a", 200.5) == Earlier(None, 3, 10)


def test_what_other_processes_have_booked_is_asked_for_while_too_little_is_known() -> None:
    ledger = [("a", 1.0, 5)] * 9 + [("b", 1.0, 6)] * 12
    asked = []

    def recent(count: int) -> list[tuple[str, float, int]]:
        asked.append(count)
        return ledger

    history = CostHistory(recent)
    assert not history.recalled
    learn(history, 9)
    history.recall()
    assert history.recalled
    assert (history.of("a"), history.of("b")) == (NOTHING, Earlier(None, 6, 12))
    ledger += [("a", 2.0, 9), *[("b", 3.0, 8)] * 8]
    history.recall()
    assert history.of("a") == Earlier(None, 5, 10)
    assert history.of("b") == Earlier(None, 6, 12), "ten are enough, and this process learns by itself"
    history.recall()
    assert asked == [1000] * 2, "nothing is wanting"


def test_what_is_told_of_a_flow_before_it_was_changed_does_not_count() -> None:
    ledger = [("a", 1.0, 50)] * 30
    history = CostHistory(lambda _: ledger)
    history.recall()
    assert history.of("a", 2.0) == NOTHING
    ledger += [("a", 3.0, 4)] * 10
    history.recall()
    assert history.of("a", 2.0) == Earlier(None, 4, 10)


def test_nobody_is_asked_of_flows_that_are_known_or_never_called() -> None:
    asked = []

    def recent(count: int) -> list[tuple[str, float, int]]:
        asked.append(count)
        return []

    history = CostHistory(recent)
    history.recall()
    history.recall()
    assert asked == [1000]
    learn(history, *[5] * 10)
    history.of("a")
    history.recall()
    assert asked == [1000]
    history.of("a", since=1e12)
    history.recall()
    assert asked == [1000, 1000]


def test_a_ledger_that_does_not_answer_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def recent(count: int) -> list[tuple[str, float, int]]:
        raise StoreError("it is away")

    history = CostHistory(recent)
    history.recall()
    assert history.recalled
    assert history.of("a") == NOTHING
    assert caplog.messages == ["the ledger does not say what flows have cost (StoreError)"]


def test_where_nobody_knows_of_earlier_ones_none_are_recalled(history: CostHistory) -> None:
    assert history.recalled
    history.recall()
    assert history.of("a") == NOTHING


def test_flows_are_bounded(history: CostHistory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost_history, "KEPT_FLOWS", 3)
    for number in range(5):
        learn(history, *[number] * 10, flow=f"flow {number}")
    assert [history.of(f"flow {number}").least for number in range(5)] == [None, None, 2, 3, 4]
