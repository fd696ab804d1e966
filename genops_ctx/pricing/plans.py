"""Flowise's plans as Flowise sells them: a monthly fee, included predictions, then a hard stop.

A plan's price is per 30 days from the subscription's start, not per prediction. Past the included
predictions Flowise answers 402 and charges nothing more. What one prediction "costs" is therefore an
*allocation* of the fee, and says which:

``included``
    fee ÷ included predictions. Known beforehand; what is not used stays unallocated.
``actual``
    fee ÷ predictions really made (or expected). Allocates the whole fee.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from math import inf
from typing import Literal, TypeAlias

from ..core.errors import ConfigurationError
from ..core.money import EXACT, nanos_up, parse_dollars
from ..core.records import CostSource, Exactness, Line, LineKind
from .overrides import LAST_SECOND, When, moment

__all__ = [
    "PLANS",
    "WINDOW_DAYS",
    "Allocation",
    "Plan",
    "fee_line",
    "fee_per_prediction",
    "plan_for",
    "plan_window",
    "pricing_tier",
]

Allocation: TypeAlias = Literal["included", "actual"]

WINDOW_DAYS = 30
"""Length of a plan's window, from the day the subscription started."""

_WINDOW = WINDOW_DAYS * 86_400
_FIRST = -62_135_596_800
"""The start of the year 1, in seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One tier from a day on. ``monthly_fee`` is None where it is agreed with Flowise."""

    tier: str
    title: str
    monthly_fee: Decimal | None
    """dollars per 30 days, for the included users"""
    included_predictions: int | None
    """predictions per 30 days, after which Flowise answers 402; None where nothing stops"""
    included_users: int | None = None
    """None where the plan does not say"""
    user_fee: Decimal | None = None
    """dollars per 30 days for each further user; None where there can be none"""
    since: date | None = None
    source: str = ""

    def __post_init__(self) -> None:
        for name in ("monthly_fee", "user_fee"):
            amount = getattr(self, name)
            if amount is not None:
                object.__setattr__(self, name, parse_dollars(amount, what=f"{name} of {self.tier}"))
        count = self.included_predictions
        if count is not None and (type(count) is not int or count < 1):
            raise ConfigurationError(f"included_predictions of {self.tier} must be a whole number above 0")

    def fee(self, users: int | None = None) -> Decimal | None:
        """Dollars per 30 days for so many users; None where it is agreed with Flowise."""
        if users is not None and (type(users) is not int or users < 1):
            raise ConfigurationError(f"users must be a whole number above 0, not {users!r}")
        if self.monthly_fee is None or users is None or self.included_users is None:
            return self.monthly_fee
        further = max(0, users - self.included_users)
        if further and self.user_fee is None:
            raise ConfigurationError(
                f"{self.tier} is for {self.included_users} user(s); {users} need another plan"
            )
        return EXACT.fma(Decimal(further), self.user_fee or Decimal(0), self.monthly_fee)

    def remaining(self, made: int) -> int | None:
        """Predictions left in the window; 0 means the next is refused, None that nothing stops."""
        return None if self.included_predictions is None else max(0, self.included_predictions - made)


_SOURCE = "Flowise Cloud's plans, checked 2026-11-21"

PLANS: tuple[Plan, ...] = (
    Plan("self_hosted", "Self-hosted", Decimal(0), None, source="open source: no fee"),
    Plan("cloud_free", "Free", Decimal(0), 100, source=_SOURCE),
    Plan("cloud_starter", "Starter", Decimal(35), 10_000, source=_SOURCE),
    Plan("cloud_pro", "Pro", Decimal(65), 50_000, 5, Decimal(15), source=_SOURCE),
    Plan("cloud_enterprise", "Enterprise", None, None, source="by agreement with Flowise"),
)
"""The shipped plans. Give others, or later ones with ``since``, wherever a function takes ``plans``."""


def pricing_tier(tier: str | None = None, *, environment: Mapping[str, str] | None = None) -> str:
    """The tier's name; where none is given, ``FLOWISE_PRICING_TIER``, else ``self_hosted``.

    A name that is none of the five raises :class:`ConfigurationError`.
    """
    given = (
        tier
        or (os.environ if environment is None else environment).get("FLOWISE_PRICING_TIER")
        or "self_hosted"
    )
    name = given.strip().lower().replace("-", "_") if isinstance(given, str) else ""
    known = [plan.tier for plan in PLANS]
    if name not in known:
        raise ConfigurationError(
            f"there is no Flowise plan {str(given)[:40]!r}; pricing_tier is one of {', '.join(known)}"
        )
    return name


def plan_for(tier: str | None = None, at: When = None, plans: Iterable[Plan] = ()) -> Plan:
    """The plan of a tier in force at a time; ``plans`` go before the shipped ones.

    Of several in force the latest counts. Without ``at`` the last known plan is meant.
    """
    name = pricing_tier(tier)
    when = inf if at is None else moment(at, what="at")
    found: Plan | None = None
    for plan in (*PLANS, *plans):
        start = moment(plan.since)
        if plan.tier == name and start <= when and (found is None or start >= moment(found.since)):
            found = plan
    assert found is not None, "every tier ships with a plan that has always been in force"
    return found


def plan_window(anchor: When, at: When) -> tuple[datetime, datetime]:
    """The 30-day window a time falls in, counted from the subscription's start: [start, end) in UTC."""
    first = moment(anchor, what="the subscription's start")
    when = moment(at, what="at")
    if first == -inf or when == -inf:
        raise ConfigurationError("a plan's window needs the day the subscription started and a time")
    start = first + (when - first) // _WINDOW * _WINDOW
    if not _FIRST <= start < LAST_SECOND - _WINDOW:
        raise ConfigurationError("a plan's window lies between the years 1 and 9999")
    return datetime.fromtimestamp(start, UTC), datetime.fromtimestamp(start + _WINDOW, UTC)


def fee_per_prediction(
    plan: Plan,
    *,
    allocation: Allocation = "included",
    predictions: int | None = None,
    users: int | None = None,
) -> Decimal | None:
    """What one prediction is allocated of the plan's fee, in dollars; None where the fee is not known.

    ``predictions`` is the number made (or expected) in the window: the divisor of ``"actual"``, and for
    ``"included"`` those before this one, so that the allocations of a window never pass the fee. A
    quotient that has no end is rounded up to a nano-dollar.
    """
    if predictions is not None and (type(predictions) is not int or predictions < 0):
        raise ConfigurationError(f"predictions must be a whole number, not {predictions!r}")
    fee = plan.fee(users)
    if allocation == "included":
        if fee is None or plan.included_predictions is None:
            return fee if not fee else None
        if predictions is not None and not plan.remaining(predictions):
            return Decimal(0)  # Flowise answers 402: the fee is already allocated in full
        return _share(fee, plan.included_predictions)
    if allocation == "actual":
        if not predictions:
            raise ConfigurationError('allocation="actual" needs predictions: how many are made in the window')
        return None if fee is None else _share(fee, predictions)
    raise ConfigurationError(f'allocation is "included" or "actual", not {allocation!r}')


def fee_line(
    tier: str | None = None,
    at: When = None,
    *,
    allocation: Allocation = "included",
    predictions: int | None = None,
    users: int | None = None,
    plans: Iterable[Plan] = (),
) -> Line | None:
    """The fee line of one prediction, or None on a self-hosted Flowise, which has no fee.

    A line whose fee is not known (Enterprise, unless ``plans`` says) has no amount: it is not nought.
    """
    plan = plan_for(tier, at, plans)
    if plan.tier == "self_hosted":
        return None
    version = f"Flowise {plan.title}{f' {plan.since}' if plan.since else ''}"
    share = fee_per_prediction(plan, allocation=allocation, predictions=predictions, users=users)
    if share is None:
        note = f"the fee of {plan.tier} is agreed with Flowise; give it as Plan({plan.tier!r}, …)"
        return Line(
            LineKind.FEE, None, CostSource.REPORTED, Exactness.UNKNOWN, price_version=version, note=note
        )
    if allocation == "actual":
        return Line(
            LineKind.FEE,
            nanos_up(share),
            CostSource.ESTIMATED,
            Exactness.ESTIMATED,
            price_version=version,
            note=f"fee over {predictions} predictions a window",
        )
    note = (
        "fee over the included predictions"
        if share or not plan.monthly_fee
        else "past the included predictions"
    )
    return Line(
        LineKind.FEE, nanos_up(share), CostSource.REPORTED, Exactness.EXACT, price_version=version, note=note
    )


def _share(fee: Decimal, predictions: int) -> Decimal:
    """The quotient, exact where it ends within 70 digits, else rounded up to a nano-dollar."""
    quotient = EXACT.divide(fee, Decimal(predictions))
    if EXACT.multiply(quotient, Decimal(predictions)) == fee and len(quotient.as_tuple().digits) < 70:
        return quotient
    return Decimal(nanos_up(quotient)).scaleb(-9, EXACT)
