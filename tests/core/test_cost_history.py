"""What is remembered of earlier calls."""

from __future__ import annotations

from dataclasses import replace

import pytest

from genops_ctx.core import cost_history
from genops_ctx.core.cost_history import CostHistory
from genops_ctx.core.outcomes import Outcome
from genops_ctx.core.records import UPSERT, Exactness
from tests.strategies import charge, line


@pytest.fixture
def history() -> CostHistory:
    return CostHistory()


def learn(history: CostHistory, *costs: int, name: str = "flow") -> None:
    for nanos in costs:
        history.learn(charge(line(nanos), name=name))


def test_the_newest_two_hundred_costs_of_each_name(history: CostHistory) -> None:
    learn(history, *range(1, 251))
    learn(history, 7, name="other")
    assert history.of("flow") == tuple(range(51, 251))
    assert history.of("other") == (7,)
    assert history.of("never called") == ()


@pytest.mark.parametrize(
    "changes",
    [{"outcome": Outcome.FAILED}, {"outcome": Outcome.ABANDONED}, {"flags": (UPSERT,)}],
)
def test_what_does_not_say_what_a_call_costs_is_left_out(
    history: CostHistory, changes: dict[str, object]
) -> None:
    history.learn(replace(charge(line(5)), **changes))  # type: ignore[arg-type]
    assert history.of("flow") == ()


def test_what_has_no_price_is_left_out(history: CostHistory) -> None:
    history.learn(charge(line(5), line(None, exactness=Exactness.UNKNOWN)))
    assert history.of("flow") == ()


def test_what_a_flow_cost_before_it_was_changed_is_forgotten(history: CostHistory) -> None:
    learn(history, 50, 50)
    assert history.of("flow", 1) == (50, 50), "those of before anything was known of the flow"
    learn(history, 60)
    assert history.of("flow", None) == (50, 50, 60), "its definition cannot be read now"
    assert history.of("flow", 1) == (50, 50, 60)
    assert history.of("flow", 2) == ()
    learn(history, 4)
    assert history.of("flow", 2) == (4,)


def test_names_are_bounded(history: CostHistory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost_history, "KEPT_FLOWS", 3)
    for number in range(5):
        learn(history, number, name=f"flow {number}")
        history.of(f"flow {number}", number)
    assert [history.of(f"flow {number}") for number in range(5)] == [(), (), (2,), (3,), (4,)]
    assert len(history._versions) == 3
