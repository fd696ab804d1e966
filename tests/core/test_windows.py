"""Windows: the calendar of many zones, daylight saving, month ends, and an oracle that walks the hours."""

from __future__ import annotations

import calendar
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from genops_ctx.core.errors import ConfigurationError
from genops_ctx.core.windows import Period, Sliding, Window, check_time_zone, parse_window, period_of

HOUR = 3600.0

ZONES = [
    "UTC",
    "Europe/Berlin",
    "Europe/London",
    "America/New_York",
    "America/Sao_Paulo",  # daylight saving began at midnight, until 2019
    "America/Havana",  # falls back from 01:00 to 00:00
    "America/Asuncion",
    "Asia/Beirut",  # begins at midnight
    "Africa/Cairo",
    "Asia/Kathmandu",  # UTC+5:45
    "Asia/Kolkata",
    "Australia/Lord_Howe",  # half an hour of daylight saving
    "Pacific/Apia",  # had no 30 December 2011
    "Pacific/Kiritimati",  # UTC+14
    "Pacific/Marquesas",  # UTC-9:30
    "America/Nuuk",
    "Atlantic/Azores",
    "Africa/Casablanca",
]
CALENDAR = [Window.DAY, Window.WEEK, Window.MONTH]
instants = st.floats(
    datetime(2011, 12, 1, tzinfo=UTC).timestamp(), datetime(2040, 1, 1, tzinfo=UTC).timestamp()
)


def at(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def utc(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("window", "moment", "zone", "key", "start", "end"),
    [
        # plain days, and their edges
        ("day", "2026-11-21T00:00:00", "UTC", "day:2026-11-21", "2026-11-21T00:00", "2026-11-22T00:00"),
        ("day", "2026-11-21T23:59:59.999", "UTC", "day:2026-11-21", "2026-11-21T00:00", "2026-11-22T00:00"),
        # 23 hours: clocks went from 02:00 to 03:00
        (
            "day",
            "2026-03-29T12:00:00",
            "Europe/Berlin",
            "day:2026-03-29@Europe/Berlin",
            "2026-03-28T23:00",
            "2026-03-29T22:00",
        ),
        # 25 hours: clocks go from 03:00 to 02:00
        (
            "day",
            "2026-10-25T12:00:00",
            "Europe/Berlin",
            "day:2026-10-25@Europe/Berlin",
            "2026-10-24T22:00",
            "2026-10-25T23:00",
        ),
        (
            "day",
            "2026-03-08T12:00:00",
            "America/New_York",
            "day:2026-03-08@America/New_York",
            "2026-03-08T05:00",
            "2026-03-09T04:00",
        ),
        # 24.5 hours
        (
            "day",
            "2026-04-05T12:00:00",
            "Australia/Lord_Howe",
            "day:2026-04-05@Australia/Lord_Howe",
            "2026-04-04T13:00",
            "2026-04-05T13:30",
        ),
        (
            "day",
            "2026-11-21T12:00:00",
            "Asia/Kathmandu",
            "day:2026-11-21@Asia/Kathmandu",
            "2026-11-20T18:15",
            "2026-11-21T18:15",
        ),
        # a day that began at 01:00, because midnight did not exist
        (
            "day",
            "2018-11-04T12:00:00",
            "America/Sao_Paulo",
            "day:2018-11-04@America/Sao_Paulo",
            "2018-11-04T03:00",
            "2018-11-05T02:00",
        ),
        # weeks begin on Monday, over the end of a year too
        ("week", "2026-11-22T23:00:00", "UTC", "week:2026-11-16", "2026-11-16T00:00", "2026-11-23T00:00"),
        ("week", "2027-01-01T00:00:00", "UTC", "week:2026-12-28", "2026-12-28T00:00", "2027-01-04T00:00"),
        # months: leap years, the end of the year, daylight saving inside
        ("month", "2028-02-29T12:00:00", "UTC", "month:2028-02-01", "2028-02-01T00:00", "2028-03-01T00:00"),
        ("month", "2027-02-28T23:59:59", "UTC", "month:2027-02-01", "2027-02-01T00:00", "2027-03-01T00:00"),
        ("month", "2026-12-31T23:59:59", "UTC", "month:2026-12-01", "2026-12-01T00:00", "2027-01-01T00:00"),
        (
            "month",
            "2026-10-31T12:00:00",
            "Europe/Berlin",
            "month:2026-10-01@Europe/Berlin",
            "2026-09-30T22:00",
            "2026-10-31T23:00",
        ),
        # spans of elapsed time
        (
            "minute",
            "2026-11-21T10:59:59",
            "UTC",
            "minute:2026-11-21T10:59Z",
            "2026-11-21T10:59",
            "2026-11-21T11:00",
        ),
        (
            "hour",
            "2026-11-21T10:59:59",
            "UTC",
            "hour:2026-11-21T10:00Z",
            "2026-11-21T10:00",
            "2026-11-21T11:00",
        ),
    ],
)
def test_period_by_hand(window: str, moment: str, zone: str, key: str, start: str, end: str) -> None:
    assert period_of(Window(window), at(moment, zone), zone) == Period(key, utc(start), utc(end))


def test_the_repeated_hour_belongs_to_one_day_and_to_two_hours() -> None:
    first, second = utc("2026-10-25T00:30"), utc("2026-10-25T01:30")  # 02:30 twice in Berlin
    assert period_of(Window.DAY, first, "Europe/Berlin") == period_of(Window.DAY, second, "Europe/Berlin")
    hours = [period_of(Window.HOUR, moment, "Europe/Berlin").key for moment in (first, second)]
    assert hours == ["hour:2026-10-25T00:00Z", "hour:2026-10-25T01:00Z"]


def test_total_never_ends() -> None:
    assert period_of(Window.TOTAL, 5.0) == period_of(Window.TOTAL, 9e9) == Period("total", 0.0, None)


def test_lengths_over_a_year_of_days() -> None:
    def days(zone: str) -> dict[float, int]:
        moment, lengths = at("2026-01-01T00:00:00", zone), {}
        for _ in range(365):
            period = period_of(Window.DAY, moment, zone)
            assert period.end is not None
            hours = (period.end - period.start) / HOUR
            lengths[hours] = lengths.get(hours, 0) + 1
            moment = period.end
        assert datetime.fromtimestamp(moment, ZoneInfo(zone)).date() == date(2027, 1, 1)
        return lengths

    assert days("Europe/Berlin") == {24.0: 363, 23.0: 1, 25.0: 1}
    assert days("America/New_York") == {24.0: 363, 23.0: 1, 25.0: 1}
    assert days("Australia/Lord_Howe") == {24.0: 363, 23.5: 1, 24.5: 1}
    assert days("Asia/Kathmandu") == days("UTC") == {24.0: 365}


@given(st.sampled_from([w for w in Window if w is not Window.TOTAL]), instants, st.sampled_from(ZONES))
@example(Window.DAY, utc("2011-12-30T09:59:59"), "Pacific/Apia")
@example(Window.DAY, utc("2018-02-18T01:30"), "America/Sao_Paulo")  # 23:30, for the second time
@example(Window.DAY, utc("2026-11-01T04:30"), "America/Havana")  # 00:30, for the first time
@example(Window.DAY, utc("2026-11-01T05:30"), "America/Havana")  # and for the second
@example(Window.MONTH, utc("2014-10-31T23:30"), "Africa/Cairo")
def test_periods_hold_their_instant_and_tile(window: Window, moment: float, zone: str) -> None:
    period = period_of(window, moment, zone)
    assert period.end is not None
    assert period.start <= moment < period.end
    assert period_of(window, period.start, zone) == period
    following = period_of(window, period.end, zone)
    assert following.start == period.end
    assert following.key > period.key, "keys sort in time"
    before = period_of(window, period.start - 0.001, zone)
    assert before.end == period.start
    assert before.key < period.key


@given(st.sampled_from(list(Window)), instants, instants, st.sampled_from(ZONES))
@example(Window.MONTH, 2206310400.0, 2208988799.9999995, "UTC")  # half a microsecond before 2040
def test_one_key_means_one_period(window: Window, one: float, other: float, zone: str) -> None:
    first, second = period_of(window, one, zone), period_of(window, other, zone)
    assert (first.key == second.key) == (first == second)
    inside = first.start <= other and (first.end is None or other < first.end)
    assert inside == (first.key == second.key)


@given(st.sampled_from(CALENDAR), instants, st.sampled_from(ZONES))
def test_the_calendar_says_the_same(window: Window, moment: float, zone: str) -> None:
    """The oracle looks at wall clocks: the first and last instants carry the dates that they should."""
    where = ZoneInfo(zone)
    period = period_of(window, moment, zone)
    assert period.end is not None
    today = datetime.fromtimestamp(int(moment), where).date()
    first = datetime.fromtimestamp(period.start, where).date()
    last = datetime.fromtimestamp(period.end - 0.001, where).date()
    # a skipped date (Apia) has no wall clock; the first one there is then stands for it
    if window is Window.DAY:
        assert first == last == today
    elif window is Window.WEEK:
        assert (first.weekday(), last.weekday()) == (0, 6)
        assert first <= today <= last
        assert last - first == timedelta(days=6)
    else:
        days = calendar.monthrange(today.year, today.month)[1]
        assert (first, last) == (today.replace(day=1), today.replace(day=days))


@pytest.mark.parametrize(
    ("zone", "around"),
    [
        ("Europe/Berlin", "2026-03-29"),
        ("Europe/Berlin", "2026-10-25"),
        ("America/New_York", "2026-11-01"),
        ("Australia/Lord_Howe", "2026-04-05"),
        ("Australia/Lord_Howe", "2026-10-04"),
        ("America/Sao_Paulo", "2018-02-18"),
        ("America/Sao_Paulo", "2018-11-04"),
        ("Asia/Beirut", "2026-03-29"),
        ("America/Havana", "2026-11-01"),
    ],
)
def test_walking_minutes_over_a_change_of_clocks(zone: str, around: str) -> None:
    """The day changes exactly when the date on the wall does."""
    where = ZoneInfo(zone)
    start = utc(around) - 36 * HOUR
    dates: dict[str, set[date]] = {}
    for minute in range(0, 72 * 60, 5):
        moment = start + minute * 60
        key = period_of(Window.DAY, moment, zone).key
        dates.setdefault(key, set()).add(datetime.fromtimestamp(moment, where).date())
    assert all(len(seen) == 1 for seen in dates.values())
    assert len(dates) == len({seen.pop() for seen in dates.values()})


@pytest.mark.parametrize(
    ("text", "window"),
    [
        ("day", Window.DAY),
        (" Daily ", Window.DAY),
        ("HOUR", Window.HOUR),
        ("hourly", Window.HOUR),
        ("min", Window.MINUTE),
        ("minute", Window.MINUTE),
        ("weekly", Window.WEEK),
        ("week", Window.WEEK),
        ("month", Window.MONTH),
        ("monthly", Window.MONTH),
        ("total", Window.TOTAL),
        ("12s", Sliding(12)),
        ("90m", Sliding(5400)),
        (" 24H ", Sliding(86_400)),
        ("7d", Sliding(604_800)),
        ("366d", Sliding(366 * 86_400)),
    ],
)
def test_windows_by_name(text: str, window: Window | Sliding) -> None:
    assert parse_window(text) == window


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(12, "12s"), (90, "90s"), (5400, "90m"), (7200, "2h"), (86_400, "1d"), (90_000, "25h")],
)
def test_a_sliding_window_in_words(seconds: int, text: str) -> None:
    assert str(Sliding(seconds)) == text
    assert parse_window(text) == Sliding(seconds)


@given(st.integers(12, 40 * 86_400), instants, st.integers(0, 20))
def test_a_sliding_window_counts_its_length_and_hardly_more(seconds: int, moment: float, back: int) -> None:
    """The oracle takes the parts that count and asks which instants they hold."""
    window = Sliding(seconds)
    now = period_of(window, moment)
    assert now.end is not None
    assert now.start <= moment < now.end
    counted = {now.key, *now.also}
    part = now.end - now.start
    assert part == pytest.approx(-(-seconds * 1000 // 12) / 1000)  # a twelfth, in whole milliseconds
    earlier = period_of(window, now.start + part / 2 - back * part)
    assert (earlier.key in counted) == (back <= 12)
    assert period_of(window, moment - seconds).key in counted, "never less than its length"
    # a twelfth more, and the parts rounded up to whole milliseconds
    assert period_of(window, moment - seconds * 13 / 12 - 0.1).key not in counted, "hardly more"


@pytest.mark.parametrize("text", ["", "days", "fortnight", "year", "1", "day week", "d" * 10_000])
def test_no_such_window(text: str) -> None:
    with pytest.raises(
        ConfigurationError, match="choose one of minute, hour, day, week, month, total"
    ) as raised:
        parse_window(text)
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize(
    "name",
    ["", "Mars/Olympus", "../../etc/passwd", "/etc/passwd", "Europe", "Europe/Berlin\0", "x" * 5000, "Ä/ö"],
)
def test_no_such_zone(name: str) -> None:
    with pytest.raises(ConfigurationError, match="use an IANA name like 'Europe/Berlin'") as raised:
        check_time_zone(name)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize("name", [None, 5, b"UTC", ["UTC"], UTC])
def test_a_zone_is_a_string(name: object) -> None:
    with pytest.raises(ConfigurationError):
        check_time_zone(name)  # type: ignore[arg-type]
