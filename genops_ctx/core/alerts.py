"""Alerts: what is said once a window when a budget's spending passes a part of its limit."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

from .money import EXACT, dollars, format_dollars, nanos_up

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .accounts import Account, Watch
    from .context import GovernanceContext

__all__ = ["Alert", "Mark", "alert_of", "crossed_here", "marks_of", "spent_of"]


@dataclass(frozen=True, slots=True)
class Alert:
    """A budget's spending has passed a part of its limit. Amounts are exact Decimals of dollars."""

    budget: str
    """its name"""
    scope: str
    """whom the account belongs to, ``team=search (day:2026-11-21)``"""
    threshold: Decimal
    """the part of the limit that was passed, 0.8 for 80 %"""
    limit: Decimal
    spent: Decimal
    at: float
    """when it was noticed, epoch seconds"""
    resets_at: datetime | None = None
    """end of the window; None where it has none"""

    @property
    def text(self) -> str:
        """In one sentence."""
        part = EXACT.multiply(self.threshold, Decimal(100)).normalize(EXACT)
        when = f"; it resets at {self.resets_at.isoformat()}" if self.resets_at is not None else ""
        return (
            f"budget {self.budget!r} for {self.scope} has spent {format_dollars(nanos_up(self.spent))} of "
            f"{format_dollars(nanos_up(self.limit))}, past {part:f} %{when}"
        )


class Mark(NamedTuple):
    """The key that a store sets once, so that an alert fires once, and until when it is kept."""

    key: str
    threshold: Decimal
    until: float
    """epoch seconds"""


DAY = 86_400.0
YEAR = 366 * DAY
"""A budget that is never reset says so once a year."""


def marks_of(watch: Watch, spent: int, now: float) -> tuple[Mark, ...]:
    """The alerts that are due on an account that has spent so much (nano-dollars), the lowest first.

    A calendar window has a mark of its own in each period. A sliding window has no beginning, so its
    marks last for its length. Another limit has other marks: a raised budget alerts anew.
    """
    if watch.source is None or spent <= 0:
        return ()
    if watch.also:
        scope = f"{watch.control}|{watch.source.window}"
        length = (watch.ends_at or now) - watch.starts_at
        until = now + length * len(watch.also)
    else:
        scope = watch.account
        until = (now + YEAR) if watch.ends_at is None else watch.ends_at + DAY
    return tuple(
        Mark(f"alert|{scope}|{watch.limit}|{threshold}", threshold, until)
        for threshold in watch.source.alert_parts
        if spent >= EXACT.multiply(Decimal(watch.limit), threshold)
    )


def spent_of(watch: Watch, accounts: Mapping[str, Account]) -> int:
    """Nano-dollars that count against the watch's limit."""
    return sum(accounts[key].spent for key in (watch.account, *watch.also) if key in accounts)


def alert_of(watch: Watch, threshold: Decimal, spent: int, now: float) -> Alert:
    """What is said of it."""
    return Alert(
        budget=watch.budget,
        scope=watch.scope,
        threshold=threshold,
        limit=dollars(watch.limit),
        spent=dollars(spent),
        at=now,
        resets_at=None if watch.ends_at is None else datetime.fromtimestamp(watch.ends_at, UTC),
    )


def crossed_here(context: GovernanceContext, now: float) -> list[Alert]:
    """The alerts, not given before, of budgets without a window in a context and those around it."""
    alerts: list[Alert] = []
    watches = context.watches
    if watches:
        scopes = {str(scope._number): scope for scope in context.path}
        for watch in watches:
            if watch.source is not None:
                past, spent = scopes[watch.account].newly_past(watch.source)
                alerts += [alert_of(watch, threshold, spent, now) for threshold in past]
    return alerts
