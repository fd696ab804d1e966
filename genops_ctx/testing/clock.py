"""A clock that stands still until a test moves it."""

from __future__ import annotations

from datetime import datetime

__all__ = ["FixedClock"]


class FixedClock:
    """Seconds since the epoch, as :class:`genops_ctx.core.ports.Clock` asks for; set by the test.

    ``at`` is a number of seconds or an aware datetime. A naive datetime raises ValueError, since it
    would mean another moment on another machine.
    """

    def __init__(self, at: float | datetime = 1_767_225_600.0) -> None:
        # The default is 2026-01-01T00:00:00Z.
        self._now = _seconds(at)

    def __call__(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Move on by that many seconds; ValueError for a step back (:meth:`set` does that)."""
        if seconds < 0:
            raise ValueError("a clock does not run backwards: use set() to go to an earlier time")
        self._now += seconds

    def set(self, at: float | datetime) -> None:
        """Go to that time."""
        self._now = _seconds(at)

    def __repr__(self) -> str:
        return f"FixedClock({self._now})"


def _seconds(at: float | datetime) -> float:
    if isinstance(at, datetime):
        if at.tzinfo is None:
            raise ValueError("give the datetime a time zone, for example datetime(..., tzinfo=UTC)")
        return at.timestamp()
    return float(at)
