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
from .errors import CallRefused, CircuitOpen, RateLimitExceeded
from .exceeded import would_refuse
from .guarding import Guards, enter, leave, put_back, throttle
from .operations import new_operation
from .outcomes import BOOKINGS, Booking
from .policy import ALLOWED, Verdict
from .reserving import give_back, over, reserve
from .stages import Admitted, Call, Refused

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
    """Ask policies, rate limits, budgets and the breakers, in this order.

    A refusal gives back what came before it. Nothing has been sent, whatever it answers.
    """
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
        if call.guards is None:
            admitted = yield from _reserved(call, context)
        else:
            admitted = yield from _guarded(call, context, call.guards)
    finally:
        if facts is not None and not isinstance(admitted, Admitted):
            yield Undo(facts)
    if isinstance(admitted, Refused):
        limited = isinstance(admitted.error, RateLimitExceeded | CircuitOpen)
        if context is not None and (limited or admitted.refusal is not None):
            context.refuse()
        return admitted
    if admitted.passed or verdict.would_refuse:
        return _observed(call, context, admitted, verdict)
    return admitted


def _reserved(call: Call, context: GovernanceContext | None) -> Story[Admitted | Refused]:
    answer = yield from reserve(call, context, ())
    if isinstance(answer, Refused) and answer.refusal is not None:
        answer = yield from over(call, context, answer, answer.refusal)
    return answer


def _guarded(call: Call, context: GovernanceContext | None, guards: Guards) -> Story[Admitted | Refused]:
    """Rate limits, reservation, permit."""
    now = call.started_at
    taken = yield from throttle(guards.limiters, call.attribution, call.flow or call.name, now, call.deadline)
    if isinstance(taken, CallRefused):
        return Refused(taken, call.name, call.attribution, now)
    admitted: Admitted | Refused | None = None
    try:
        admitted = yield from _reserved(call, context)
        if isinstance(admitted, Admitted):
            try:
                passages = yield from enter(guards, now, call.deadline)
            except BaseException:
                reserved, admitted = admitted, None
                yield from give_back(call, context, reserved)
                raise
            if isinstance(passages, CallRefused):
                reserved, admitted = admitted, Refused(passages, call.name, call.attribution, now)
                yield from give_back(call, context, reserved)
            else:
                admitted = replace(admitted, passages=passages)
    finally:
        if not isinstance(admitted, Admitted):
            yield from put_back(taken, now)
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
    admitted: Admitted,
    report: Report,
    prices: Prices,
    context: GovernanceContext | None,
    error: BaseException | None = None,
) -> Story[Charge | None]:
    """Book what the attempt cost: ledger first, then the accounts, then the contexts' totals.

    The breakers that let it through are told how it ended; ``error`` is what the caller sees. Returns the
    charge, or None where nothing was sent.
    """
    try:
        if BOOKINGS[report.outcome] is Booking.RELEASE:
            if context is not None:
                context.unreserve(admitted.held_here, admitted.draws)
            if admitted.stored:
                yield Release(admitted.hold, report.ended_at)
            return None
        charge = book(admitted, report, prices)
        try:
            yield Book(charge, admitted.stored)
        finally:
            if context is not None:
                attribution = tuple(sorted(charge.attribution.items()))
                context.book(charge, admitted.held_here, attribution, admitted.draws)
        return charge
    finally:
        yield from leave(admitted.passages, report.outcome, error, report.ended_at)
