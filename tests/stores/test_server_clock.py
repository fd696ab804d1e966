"""The server's time, as its answers prove it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genops_ctx.stores.server_clock import ServerClock


def test_before_any_answer_nothing_is_known() -> None:
    assert ServerClock().at(5.0) is None


def test_an_answer_bounds_it_from_below() -> None:
    clock = ServerClock()
    clock.learn(said=1000.0, sent=10.0, received=10.4)
    assert clock.at(20.0) == pytest.approx(1009.6)


def test_a_quick_answer_tells_more_than_a_slow_one() -> None:
    clock = ServerClock()
    clock.learn(said=1000.001, sent=10.0, received=10.002)
    clock.learn(said=1001.0, sent=11.0, received=12.0)
    assert clock.at(12.0) == pytest.approx(1001.999, abs=0.001)


def test_a_server_whose_clock_was_set_is_believed() -> None:
    for jump in (3600.0, -3600.0):
        clock = ServerClock()
        clock.learn(said=1000.0, sent=10.0, received=10.001)
        clock.learn(said=1001.0 + jump, sent=11.0, received=11.001)
        assert clock.at(11.001) == pytest.approx(1001.0 + jump)


@given(
    st.floats(-1e9, 1e9),
    st.lists(st.tuples(st.floats(0, 5), st.floats(0, 5), st.floats(0, 20)), min_size=1, max_size=20),
)
def test_it_is_never_ahead_of_a_server_that_runs_evenly(
    ahead: float, trips: list[tuple[float, float, float]]
) -> None:
    clock, now = ServerClock(), 0.0
    for out, back, pause in trips:
        sent, now = now, now + out + back
        clock.learn(said=sent + out + ahead, sent=sent, received=now)
        earliest = clock.at(now)
        assert earliest is not None
        assert earliest <= now + ahead + 1e-5
        now += pause
