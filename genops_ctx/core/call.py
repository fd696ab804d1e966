"""The story of one attempt: admit before it is sent, finish after. Sync and async alike.

:func:`admit` and :func:`finish` are short generators that yield *effects* (what a store or ledger
has to do) and are driven by :func:`drive` or :func:`drive_async`. Between them lies a plain,
picklable :class:`Admitted`; whoever sends the request does so there, so no generator is ever
suspended across other people's code.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from .booking import Report, book
from .effects import Ask, Book, Effect, Hold, Judge, LookUp, Release, Story, Undo, drive, drive_async
from .exceeded import would_refuse
from .outcomes import BOOKINGS, Booking
from .policy import ALLOWED, Verdict
from .reserving import over, reserve
from .stages import Admitted, Call, Refused, new_operation

if TYPE_CHECKING:
    from .context import GovernanceContext
    from .ports import Prices
    from .records import Charge

__all__ = [
    "Admitted",
    "Ask",
    "Book",
    "Call",
    "Effect",
    "Hold",
    "Judge",
    "LookUp",
    "Refused",
    "Release",
    "Undo",
    "admit",
    "drive",
    "drive_async",
    "finish",
    "new_operation",
]


def admit(call: Call, context: GovernanceContext | None) -> Story[Admitted | Refused]:
    """Ask the policies, then reserve in every budget. Nothing has been sent, whatever it answers."""
    facts = call.facts
    verdict = ALLOWED
    if facts is not None:
        answer = yield Judge(facts)
        assert isinstance(answer, Verdict)
        verdict = answer
        if verdict.violation is not None:
            if context is not None:
                context.refuse()
            return Refused(verdict.violation, call.name, call.attribution, call.started_at)
    admitted: Admitted | Refused | None = None
    try:
        admitted = yield from reserve(call, context, ())
        if isinstance(admitted, Refused) and admitted.refusal is not None:
            admitted = yield from over(call, context, admitted, admitted.refusal)
    finally:
        if facts is not None and not isinstance(admitted, Admitted):
            yield Undo(facts)
    if isinstance(admitted, Refused):
        if context is not None and admitted.refusal is not None:
            context.refuse()
        return admitted
    if admitted.passed or verdict.would_refuse:
        return _observed(call, context, admitted, verdict)
    return admitted


def _observed(
    call: Call, context: GovernanceContext | None, admitted: Admitted, verdict: Verdict
) -> Admitted:
    """Note what would have been refused, had the mode not been ``observe``."""
    would = verdict.would_refuse
    passed = admitted.passed
    if not call.enforced:
        watches = call.watches + (context.watches if context is not None else ())
        refusing = tuple(budget for budget in passed if would_refuse(budget, watches))
        passed = tuple(budget for budget in passed if budget not in refusing)
        would += refusing
    if not would:
        return admitted
    if context is not None:
        context.refuse(would=True)
    flags = admitted.flags + tuple(f"would_refuse:{name}" for name in dict.fromkeys(would))
    return replace(admitted, passed=passed, flags=flags)


def finish(
    admitted: Admitted, report: Report, prices: Prices, context: GovernanceContext | None
) -> Story[Charge | None]:
    """Book what the attempt cost: ledger first, then the accounts, then the contexts' totals.

    Returns the charge, or None where nothing was sent.
    """
    if BOOKINGS[report.outcome] is Booking.RELEASE:
        if context is not None:
            context.unreserve(admitted.held_here)
        if admitted.stored:
            yield Release(admitted.hold, report.ended_at)
        return None
    charge = book(admitted, report, prices)
    try:
        yield Book(charge, admitted.stored)
    finally:
        if context is not None:
            context.book(charge, admitted.held_here, tuple(sorted(charge.attribution.items())))
    return charge
