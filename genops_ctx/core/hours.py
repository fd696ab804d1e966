"""Times of the week: ``mon-fri 08:00-18:00``, ``22:00-06:00``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from .errors import ConfigurationError
from .windows import check_time_zone

__all__ = ["Hours", "parse_hours"]

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_TIME = r"([01]?[0-9]|2[0-4]):([0-5][0-9])"
_HOURS = re.compile(rf"(?:(?P<days>[a-z,\- ]+?)\s+)?{_TIME}\s*-\s*{_TIME}\Z")


@dataclass(frozen=True, slots=True)
class Hours:
    """A span of each of some days; ``end`` is exclusive and after midnight where it is past 24 h."""

    days: frozenset[int]
    """0 is Monday"""
    start: int
    """minutes since midnight"""
    end: int

    def hold(self, at: float, time_zone: str) -> bool:
        """Whether the instant (epoch seconds) is within them, by the clocks of the zone."""
        local = datetime.fromtimestamp(at // 1, check_time_zone(time_zone))
        minute = local.hour * 60 + local.minute
        today, yesterday = local.weekday(), (local.weekday() - 1) % 7
        return (today in self.days and self.start <= minute < self.end) or (
            yesterday in self.days and minute + 1440 < self.end
        )


def parse_hours(text: object) -> Hours:
    """Read ``mon-fri 08:00-18:00``; without days it is every day. A span may pass midnight: it belongs
    to the day it begins on. Raises :class:`ConfigurationError` for anything else."""
    found = _HOURS.match(text.strip().lower()) if isinstance(text, str) and len(text) <= 100 else None
    if found is None:
        raise ConfigurationError(
            f"hours are written like 'mon-fri 08:00-18:00' or '22:00-06:00', not {str(text)[:40]!r}"
        )
    start, end = int(found[2]) * 60 + int(found[3]), int(found[4]) * 60 + int(found[5])
    if start >= 1440 or end > 1440 or start == end:
        raise ConfigurationError(
            f"hours {str(text)[:40]!r}: a day goes from 00:00 to 24:00, and no span is empty"
        )
    return Hours(_days(found["days"]), start, end if end > start else end + 1440)


def _days(text: str | None) -> frozenset[int]:
    if text is None:
        return frozenset(range(7))
    days: set[int] = set()
    for part in text.split(","):
        first, dash, last = (name.strip() for name in part.partition("-"))
        if first not in DAYS or (dash and last not in DAYS):
            raise ConfigurationError(
                f"days are {', '.join(DAYS)}, or a span like mon-fri, not {part.strip()!r}"
            )
        begin = DAYS.index(first)
        length = (DAYS.index(last) - begin) % 7 if dash else 0
        days.update((begin + step) % 7 for step in range(length + 1))
    return frozenset(days)
