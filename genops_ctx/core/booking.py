"""From how an attempt ended to the charge that is booked for it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .compact_json import names_text, object_text, quoted
from .outcomes import BOOKINGS, Booking, Outcome
from .ports import Quote
from .records import Charge, CostSource, Exactness, Line, LineKind, Usage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .context import GovernanceContext
    from .ports import Lost, Prices
    from .stages import Admitted, Call

__all__ = ["BEYOND", "Report", "book", "charge_of_loss", "hold_id", "memo_of", "priced"]


@dataclass(frozen=True, slots=True)
class Report:
    """How an attempt ended, and all that is known of what it used.

    ``usages`` are proved (reported, traced …); ``estimates`` stand for model calls that happened or
    may have happened without being reported; ``unknown`` counts those of which not even the model is
    known; ``beyond`` and ``unknown_beyond`` are the same for calls that nothing will ever show (their lines
    stay when others are corrected); ``costs`` are amounts given as such, and fees.
    """

    outcome: Outcome
    ended_at: float
    """seconds since the epoch"""
    usages: tuple[Usage, ...] = ()
    estimates: tuple[Usage, ...] = ()
    unknown: int = 0
    beyond: tuple[Usage, ...] = ()
    """estimates for calls that no trace of the flow would show"""
    unknown_beyond: int = 0
    costs: tuple[Line, ...] = ()
    flags: tuple[str, ...] = ()
    trace_id: str = ""
    chat_id: str = ""
    message_id: str = ""


def hold_id(operation: str, attempt: int) -> str:
    """The identity of one attempt's reservation and charge."""
    return f"{operation}#{attempt}"


def memo_of(call: Call, context: GovernanceContext | None) -> str:
    """What the store keeps with a reservation, so that its loss can be booked by another process."""
    path = "[]" if context is None else names_text(context.ids)
    attribution = object_text(tuple(call.attribution.items()))
    return f"[{quoted(call.name)},{quoted(call.flow)},{attribution},{path},{call.started_at!r}]"


def charge_of_loss(lost: Lost) -> Charge:
    """The charge of an attempt that nobody finished: all that was reserved, source ``lost``.

    Where what was kept of it cannot be read, it is of ``?`` and of nobody.
    """
    try:
        return _charge_of_loss(lost, lost.memo or _NOTHING_KNOWN)
    except (ValueError, TypeError, AttributeError):
        return _charge_of_loss(lost, _NOTHING_KNOWN)


_NOTHING_KNOWN = '["?", "", {}, [], 0]'


def _charge_of_loss(lost: Lost, memo: str) -> Charge:
    operation, _, attempt = lost.name.rpartition("#")
    name, flow, attribution, path, started_at = json.loads(memo)
    return Charge(
        id=lost.name,
        operation=operation,
        attempt=int(attempt),
        name=name,
        flow=flow,
        outcome=Outcome.EXPIRED,
        lines=(_lost(lost.hold.amount),),
        attribution=attribution,
        context_path=tuple(path),
        started_at=started_at,
        ended_at=lost.hold.expires_at,
        reserved_nanos=lost.hold.amount,
        accounts=lost.hold.accounts,
    )


def book(admitted: Admitted, report: Report, prices: Prices) -> Charge:
    """The charge of one attempt, by the table in :mod:`genops_ctx.core.outcomes`.

    Each line is priced exactly at the time the call began, and rounded up once to a nano-dollar.
    """
    booking = BOOKINGS[report.outcome]
    if booking is Booking.NOTHING:
        lines: list[Line] = []
    elif booking is Booking.RESERVED:
        lines = [_lost(admitted.reserved)]
    else:
        at = admitted.started_at
        lines = [priced(usage, prices, at) for usage in (*report.usages, *report.estimates)]
        lines += [_beyond(priced(usage, prices, at)) for usage in report.beyond]
        lines += report.costs
        lines += [_UNKNOWN] * report.unknown
        lines += [_UNKNOWN_BEYOND] * report.unknown_beyond
        if booking is not Booking.USAGE and not lines:
            lines = [_UNKNOWN]
        if booking is Booking.ESTIMATE:
            lines = [_doubted(line) for line in lines]
        if admitted.books_unpriced:
            lines = _book_unpriced(lines, admitted.reserved)
    return Charge(
        id=admitted.hold,
        operation=admitted.operation,
        attempt=admitted.attempt,
        name=admitted.name,
        flow=admitted.flow,
        outcome=report.outcome,
        lines=tuple(lines),
        attribution=admitted.attribution,
        context_path=admitted.context_path,
        started_at=admitted.started_at,
        ended_at=report.ended_at,
        reserved_nanos=admitted.reserved,
        accounts=admitted.accounts,
        flags=(*admitted.flags, *report.flags),
        trace_id=report.trace_id,
        chat_id=report.chat_id,
        message_id=report.message_id,
    )


_UNKNOWN = Line(
    LineKind.COST, None, CostSource.ESTIMATED, Exactness.UNKNOWN, note="neither usage nor model is known"
)


BEYOND = "no export shows this call"
"""Marks an estimated line that stands beside whatever is exported later (embeddings, speech …)."""


def _beyond(line: Line) -> Line:
    return replace(line, note=f"{line.note}; {BEYOND}" if line.note else BEYOND)


_UNKNOWN_BEYOND = _beyond(_UNKNOWN)


def _lost(reserved: int) -> Line:
    return Line(
        LineKind.COST,
        reserved,
        CostSource.LOST,
        Exactness.ESTIMATED,
        note="the reservation expired: whoever made the call is gone",
    )


def priced(usage: Usage, prices: Prices, at: float) -> Line:
    """The line of one model call: priced exactly at a time (epoch seconds), rounded up once."""
    try:
        quote = prices.quote(usage, at)
        provider = prices.provider_of(usage.provider)
    except Exception as error:
        # Prices of the user's own may fail. The call is made and paid for: its charge must not be lost.
        quote, provider = Quote(None, note=f"the prices failed: {type(error).__name__}"), usage.provider
    if provider != usage.provider:
        usage = replace(usage, provider=provider)
    exactness = Exactness.UNKNOWN if quote.nanos is None else usage.exactness
    if quote.upper and exactness is Exactness.EXACT:
        exactness = Exactness.UPPER
    return Line(
        LineKind.MODEL,
        quote.nanos,
        usage.source,
        exactness,
        usage,
        price_version=quote.version,
        note=quote.note,
    )


def _doubted(line: Line) -> Line:
    if line.exactness not in (Exactness.EXACT, Exactness.UPPER):
        return line
    return replace(line, exactness=Exactness.ESTIMATED, note="the call did not end; there may be more")


def _book_unpriced(lines: Sequence[Line], reserved: int) -> list[Line]:
    """Give what is left of the reservation to the first line without a price."""
    left = reserved - sum(line.nanos for line in lines if line.nanos is not None)
    booked = list(lines)
    for index, line in enumerate(booked):
        if line.nanos is None and line.kind is not LineKind.FEE and left > 0:
            note = f"{line.note}; what was reserved is booked".lstrip("; ")
            booked[index] = replace(line, nanos=left, note=note)
            break
    return booked
