"""What is remembered of earlier calls."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from genops_ctx.core import cost_history
from genops_ctx.core.cost_history import CostHistory
from genops_ctx.core.errors import StoreError
from genops_ctx.core.outcomes import Outcome
from genops_ctx.core.records import UPSERT, Exactness
from tests.strategies import charge, line


@pytest.fixture
def history() -> CostHistory:
    return CostHistory()


def learn(history: CostHistory, *costs: int, flow: str = "a", **changes: Any) -> None:
    for nanos in costs:
        history.learn(replace(charge(line(nanos), name="flow"), flow=flow, **changes))


def test_the_newest_two_hundred_costs_of_each_flow(history: CostHistory) -> None:
    learn(history, *range(1, 251))
    learn(history, 7, flow="b")
    assert history.of("a") == tuple(range(51, 251))
    assert history.of("b") == (7,)
    assert history.of("flow") == (), "flows of one name on two servers are two"


def test_what_is_no_flow_has_a_name(history: CostHistory) -> None:
    learn(history, 5, flow="")
    assert history.of("flow") == (5,)


@pytest.mark.parametrize(
    "changes",
    [{"outcome": Outcome.FAILED}, {"outcome": Outcome.ABANDONED}, {"flags": (UPSERT,)}],
)
def test_what_does_not_say_what_a_call_costs_is_left_out(
    history: CostHistory, changes: dict[str, Any]
) -> None:
    learn(history, 5, **changes)
    assert history.of("a") == ()


def test_what_has_no_price_is_left_out(history: CostHistory) -> None:
    history.learn(replace(charge(line(5), line(None, exactness=Exactness.UNKNOWN)), flow="a"))
    assert history.of("a") == ()


def test_what_a_flow_cost_before_it_was_changed_does_not_count(history: CostHistory) -> None:
    learn(history, 50, started_at=100.0)
    learn(history, 4, started_at=200.0)
    assert history.of("a", None) == (50, 4)
    assert history.of("a", 200.0) == (4,)
    assert history.of("a", 200.5) == ()


def test_what_other_processes_have_booked_is_asked_for_while_too_little_is_known() -> None:
    ledger: list[tuple[str, float, int]] = [("a", 1.0, 5), ("b", 1.0, 6), ("b", 2.0, 7)]
    asked = []

    def recent(count: int) -> list[tuple[str, float, int]]:
        asked.append(count)
        return ledger

    history = CostHistory(recent)
    assert not history.recalled
    learn(history, 9)
    history.recall()
    assert history.recalled
    assert (history.of("a"), history.of("b")) == ((9,), (6, 7))
    ledger += [("a", 2.0, 9), *[("b", 3.0, 8)] * 8]
    history.recall()
    assert (history.of("a"), history.of("b")) == ((5, 9), (6, 7, *[8] * 8))
    ledger += [("b", 4.0, 9)]
    history.recall()
    assert history.of("b") == (6, 7, *[8] * 8), "ten are enough, and this process learns by itself"
    assert asked == [1000] * 3


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
    history.of("a", since=1e9)
    history.recall()
    assert asked == [1000, 1000]


def test_a_ledger_that_does_not_answer_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def recent(count: int) -> list[tuple[str, float, int]]:
        raise StoreError("it is away")

    history = CostHistory(recent)
    history.recall()
    assert history.recalled
    assert history.of("a") == ()
    assert caplog.messages == ["the ledger does not say what flows have cost (StoreError)"]


def test_where_nobody_knows_of_earlier_ones_none_are_recalled(history: CostHistory) -> None:
    assert history.recalled
    history.recall()
    assert history.of("a") == ()


def test_flows_are_bounded(history: CostHistory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost_history, "KEPT_FLOWS", 3)
    for number in range(5):
        learn(history, number, flow=f"flow {number}")
    assert [history.of(f"flow {number}") for number in range(5)] == [(), (), (2,), (3,), (4,)]
