"""The fixed clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from genops_ctx.testing import FixedClock


def test_it_stands_still_until_it_is_moved():
    clock = FixedClock(1000)
    assert [clock(), clock()] == [1000.0, 1000.0]
    clock.advance(2.5)
    assert clock() == 1002.5
    clock.set(5)
    assert clock() == 5.0


def test_it_starts_with_the_year_2026():
    assert FixedClock()() == datetime(2026, 1, 1, tzinfo=UTC).timestamp()


def test_it_takes_aware_datetimes():
    at = datetime(1970, 1, 1, 2, 0, 1, tzinfo=timezone(timedelta(hours=2)))
    assert FixedClock(at)() == 1.0
    clock = FixedClock(0)
    clock.set(at)
    assert clock() == 1.0


def test_it_refuses_naive_datetimes_and_steps_back():
    with pytest.raises(ValueError, match="time zone"):
        FixedClock(datetime(2026, 1, 1))
    with pytest.raises(ValueError, match="use set"):
        FixedClock().advance(-1)
