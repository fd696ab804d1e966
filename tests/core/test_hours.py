"""Times of the week."""

from __future__ import annotations

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from genops_ctx.core.errors import ConfigurationError
from genops_ctx.core.hours import parse_hours

MONDAY = datetime(2026, 11, 16, tzinfo=ZoneInfo("UTC"))


def open_hours(text: str, zone: str = "UTC", monday: datetime = MONDAY) -> list[str]:
    """Every hour of the week, from Monday on, whose beginning is within them."""
    hours = parse_hours(text)
    begin = monday.timestamp()
    week = [datetime.fromtimestamp(begin + 3600 * step, ZoneInfo(zone)) for step in range(168)]
    return [f"{time:%a %H}" for time in week if hours.hold(time.timestamp(), zone)]


def test_a_span_of_some_days() -> None:
    assert open_hours("tue,Sat-Sun 9:00-11:00") == [
        "Tue 09",
        "Tue 10",
        "Sat 09",
        "Sat 10",
        "Sun 09",
        "Sun 10",
    ]
    assert len(open_hours("00:00-24:00")) == 168
    assert open_hours("fri-mon 23:00-24:00") == ["Mon 23", "Fri 23", "Sat 23", "Sun 23"]


def test_a_span_over_midnight_belongs_to_the_day_it_begins_on() -> None:
    assert open_hours("sun 22:00-02:00") == ["Mon 00", "Mon 01", "Sun 22", "Sun 23"]


def test_the_end_is_exclusive_to_the_second() -> None:
    hours = parse_hours("08:00-08:01")
    eight = MONDAY + timedelta(hours=8)
    assert not hours.hold(eight.timestamp() - 0.001, "UTC")
    assert hours.hold(eight.timestamp(), "UTC")
    assert hours.hold(eight.timestamp() + 59.999, "UTC")
    assert not hours.hold(eight.timestamp() + 60, "UTC")


def test_the_zone_s_clocks_count_when_they_change() -> None:
    # In Berlin, clocks go from 03:00 back to 02:00 on Sunday 2026-10-25: its 02:00-03:00 has two hours.
    week = datetime(2026, 10, 19, tzinfo=ZoneInfo("Europe/Berlin"))
    assert open_hours("sun 02:00-03:00", "Europe/Berlin", week) == ["Sun 02", "Sun 02"]


@pytest.mark.parametrize(
    "text",
    ["", "08:00", "8-18", "08:00-08:00", "24:00-25:00", "08:00-24:30", "mo 08:00-18:00", "mon- 08:00-09:00"],
)
def test_what_are_no_hours(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_hours(text)
    with pytest.raises(ConfigurationError):
        parse_hours(8)
