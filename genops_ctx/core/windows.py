"""Windows of budgets: calendar periods in a time zone, as [start, end) in epoch seconds.

Calendar arithmetic is done in local time, so that a day that daylight saving makes 23 or 25 hours
long is one day, a month ends where the calendar says, and weeks begin on Monday (ISO 8601).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from enum import StrEnum
from functools import lru_cache

from .errors import ConfigurationError

__all__ = ["Period", "Sliding", "Window", "check_time_zone", "parse_window", "period_of"]


class Window(StrEnum):
    """How long a budget counts before it starts again."""

    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    TOTAL = "total"
    """for ever"""


SLIDING_PARTS = 12
"""A sliding window is counted in so many parts and the one that is running: never less than its
length, at most a twelfth more."""


@dataclass(frozen=True, slots=True)
class Sliding:
    """The last so many seconds, at any time."""

    seconds: int

    def __str__(self) -> str:
        for unit, span in (("d", 86_400), ("h", 3_600), ("m", 60)):
            if self.seconds % span == 0:
                return f"{self.seconds // span}{unit}"
        return f"{self.seconds}s"


@dataclass(frozen=True, slots=True)
class Period:
    """One period of a window: ``start`` inclusive, ``end`` exclusive, in epoch seconds."""

    key: str
    """sorts in time and is unique for the window and zone, like ``day:2026-11-21@Europe/Berlin``"""
    start: float
    end: float | None
    """None for a window that never ends"""
    also: tuple[str, ...] = ()
    """keys of the earlier parts that count too, in a sliding window"""


_NAMES = {
    "min": Window.MINUTE,
    "hourly": Window.HOUR,
    "daily": Window.DAY,
    "weekly": Window.WEEK,
    "monthly": Window.MONTH,
}


_SPAN = re.compile(r"([1-9][0-9]{0,8})([smhd])\Z")
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_LONGEST = 366 * 86_400


def parse_window(text: str) -> Window | Sliding:
    """``day``, ``daily``, ``month`` …, or the last ``90m``, ``24h``, ``7d``.

    Raises :class:`ConfigurationError` for anything else.
    """
    name = text.strip().lower()
    if span := _SPAN.match(name):
        seconds = int(span[1]) * _UNITS[span[2]]
        if not SLIDING_PARTS <= seconds <= _LONGEST:
            raise ConfigurationError(f"a sliding window has 12 seconds to 366 days, not {text[:40]}")
        return Sliding(seconds)
    try:
        return _NAMES.get(name) or Window(name)
    except ValueError:
        choices = ", ".join(Window)
        raise ConfigurationError(
            f"no such window: {text[:40]!r}; choose one of {choices}, or a sliding one like 24h or 7d"
        ) from None


def check_time_zone(name: str) -> tzinfo:
    """The IANA zone of that name; raises :class:`ConfigurationError` where there is none."""
    if not isinstance(name, str):
        raise ConfigurationError(
            f"a time zone is an IANA name like 'Europe/Berlin', not {type(name).__name__}"
        )
    return _zone(name)


@lru_cache(maxsize=64)
def _zone(name: str) -> tzinfo:
    if name == "UTC":
        return UTC
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(name)
    except (ValueError, OSError, LookupError):
        raise ConfigurationError(
            f"no such time zone: {name[:60]!r}; use an IANA name like 'Europe/Berlin' "
            "(on systems without a zone database: pip install tzdata)"
        ) from None


_latest: dict[tuple[Window | Sliding, str], Period] = {}
"""The period of each window that was asked for last: nearly every call falls into it again."""
_KEPT_PERIODS = 256


def period_of(window: Window | Sliding, at: float, zone_name: str = "UTC") -> Period:
    """The period of ``window`` that holds the instant ``at``.

    Minutes and hours are spans of elapsed time and aligned to UTC in every zone; days, weeks and
    months are the zone's calendar.
    """
    key = (window, zone_name)
    period = _latest.get(key)
    if period is None or at < period.start or (period.end is not None and at >= period.end):
        period = _period(window, at, zone_name)
        if len(_latest) >= _KEPT_PERIODS:
            _latest.clear()
        _latest[key] = period
    return period


def _period(window: Window | Sliding, at: float, zone_name: str) -> Period:
    if isinstance(window, Sliding):
        return _sliding(window, at)
    if window is Window.TOTAL:
        return Period("total", 0.0, None)
    if window is Window.MINUTE or window is Window.HOUR:
        span = 60 if window is Window.MINUTE else 3600
        start = at // span * span
        stamp = datetime.fromtimestamp(start, UTC).strftime("%Y-%m-%dT%H:%MZ")
        return Period(f"{window}:{stamp}", start, start + span)
    # Whole seconds, since fromtimestamp would round the last half microsecond into the next period.
    begin, end = _calendar(window, datetime.fromtimestamp(at // 1, check_time_zone(zone_name)))
    suffix = "" if zone_name == "UTC" else f"@{zone_name}"
    return Period(f"{window}:{begin:%Y-%m-%d}{suffix}", begin.timestamp(), end.timestamp())


def _sliding(window: Sliding, at: float) -> Period:
    """In whole milliseconds, so that every process cuts the parts alike."""
    part = -(-window.seconds * 1000 // SLIDING_PARTS)
    index = int(at * 1000) // part
    if at < index * part / 1000:  # the product was rounded up
        index -= 1
    keys = [f"last {window}:{number:x}" for number in range(index, index - SLIDING_PARTS - 1, -1)]
    return Period(keys[0], index * part / 1000, (index + 1) * part / 1000, tuple(keys[1:]))


def _calendar(window: Window, local: datetime) -> tuple[datetime, datetime]:
    midnight = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    if window is Window.DAY:
        return midnight, midnight + timedelta(days=1)
    if window is Window.WEEK:
        begin = midnight - timedelta(days=midnight.weekday())
        return begin, begin + timedelta(days=7)
    begin = midnight.replace(day=1)
    return begin, (begin + timedelta(days=32)).replace(day=1)
