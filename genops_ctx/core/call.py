"""The story of one attempt: admit before it is sent, finish after. Sync and async alike.

:func:`admit` and :func:`finish` are short generators that yield *effects* (what a store or ledger
has to do) and are driven by :func:`drive` or :func:`drive_async`. Between them lies a plain,
picklable :class:`Admitted`; whoever sends the request does so there, so no generator is ever
suspended across other people's code.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .accounts import HoldState, Refusal, Reserve, Watch, WrongWindow
from .admission import Expectation
from .booking import Report, book, hold_id, memo_of
from .effects import Ask, Book, Effect, Hold, Judge, LookUp, Release, Story, Undo, drive, drive_async
from .errors import (
    AlreadyCompleted,
    BudgetExceeded,
    CallRefused,
    OperationInProgress,
    StoreError,
    StoreUnavailable,
)
from .exceeded import asked, budget_exceeded, degrades, may_go_on, soften, would_refuse
from .outcomes import BOOKINGS, Booking, Outcome
from .policy import ALLOWED, Facts, Verdict
from .ports import Held, Prices
from .records import Charge

if TYPE_CHECKING:
    from .context import GovernanceContext

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

TRY_AGAIN = (HoldState.FAILED, HoldState.RELEASED, HoldState.LOST)
"""An attempt that ended so did not complete its operation: the next one may be sent."""

GRACE = 30.0
"""Seconds that a reservation outlives its call's deadline."""


@dataclass(frozen=True, slots=True)
class Call:
    """What is about to be sent."""

    name: str
    operation: str
    """the idempotency key"""
    attribution: Mapping[str, str]
    expectation: Expectation
    watches: tuple[Watch, ...]
    """limits on shared accounts, resolved for this call's attribution and time"""
    started_at: float
    """seconds since the epoch"""
    deadline: float
    """seconds the whole call may take"""
    flow: str = ""
    keyed: bool = False
    """the user gave the idempotency key, so it is remembered"""
    books_unpriced: bool = True
    enforced: bool = True
    """False where budgets only observe: what would have been refused is recorded instead"""
    kept: bool = True
    """False where no budgets are kept (mode ``off``)"""
    rewatch: Callable[[float], tuple[Watch, ...]] | None = None
    """the watches anew for the store's own time, where it is in another window"""
    needs_store: bool = True
    """a budget says ``on_store_error="block"``"""
    degraded_from: str = ""
    """the flow that it runs instead of: budgets that degrade do not refuse it"""
    facts: Facts | None = None
    """what the policies look at; None where there are none"""


@dataclass(frozen=True, slots=True)
class Admitted:
    """A call that may be sent. Plain and picklable; amounts in nano-dollars."""

    name: str
    operation: str
    attempt: int
    flow: str
    attribution: Mapping[str, str]
    context_path: tuple[str, ...]
    started_at: float
    reserved: int
    """set aside in the shared accounts, or in the contexts where there is no shared one"""
    held_here: int
    """set aside in the contexts of this process"""
    accounts: tuple[str, ...]
    stored: bool
    """the store has a hold for it"""
    because: str
    books_unpriced: bool = True
    """a budget says ``on_unpriced="reserve"``"""
    passed: tuple[str, ...] = ()
    """budgets that only warn and are passed by it"""
    flags: tuple[str, ...] = ()

    @property
    def hold(self) -> str:
        """The identity of its reservation: operation and attempt."""
        return hold_id(self.operation, self.attempt)


@dataclass(frozen=True, slots=True)
class Refused:
    """A call that must not be sent, with the error that says why."""

    error: CallRefused
    name: str
    attribution: Mapping[str, str]
    at: float
    refusal: Refusal | None = None
    """the limit that refused, where one did"""


def new_operation() -> str:
    """A key that no other operation has."""
    return os.urandom(12).hex()


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
        admitted = yield from _reserve(call, context, ())
        if isinstance(admitted, Refused) and admitted.refusal is not None:
            admitted = yield from _over(call, context, admitted, admitted.refusal)
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


def _over(
    call: Call, context: GovernanceContext | None, first: Refused, refusal: Refusal
) -> Story[Admitted | Refused]:
    """What comes of a refusal by budgets that do not simply block (see :mod:`.exceeded`).

    The call is reserved for without them, to see that no other budget refuses it.
    """
    known: list[tuple[Refused, Refusal]] = []
    answer: Admitted | Refused = first
    over: Refusal | None = refusal
    while isinstance(answer, Refused):
        if over is None or not may_go_on(over, [item for _, item in known]):
            return answer
        known.append((answer, over))
        answer = yield from _reserve(call, context, tuple(item for _, item in known))
        over = answer.refusal if isinstance(answer, Refused) else None
    try:
        refused = yield from _decide(known)
    except BaseException:
        yield from _give_back(call, context, answer)
        raise
    if refused is not None:
        yield from _give_back(call, context, answer)
        return refused
    approved = [item.watch.budget for _, item in known]
    return replace(
        answer,
        passed=tuple(budget for budget in answer.passed if budget not in approved),
        flags=answer.flags + tuple(f"approved:{budget}" for budget in approved),
    )


def _decide(known: list[tuple[Refused, Refusal]]) -> Story[Refused | None]:
    """The refusal that counts, once no budget blocks; None where functions let the call through."""
    for refused, refusal in known:
        if degrades(refusal.watch):
            return refused
    for refused, refusal in known:
        function = asked(refusal.watch)
        assert function is not None
        assert isinstance(refused.error, BudgetExceeded)
        try:
            answer = yield Ask(function, refused.error)
        except Exception as problem:
            refused.error.__cause__ = problem
            return refused
        if answer is not True:
            return refused
    return None


def _give_back_unsure(call: Call, hold: str) -> Story[None]:
    """Nobody knows whether it was reserved: it is given back as soon as the store answers.

    Not under a name of the user's own: another process may have that reservation, in flight. What
    this one may have made expires.
    """
    if not call.keyed:
        yield Release(hold, call.started_at)


def _give_back(call: Call, context: GovernanceContext | None, admitted: Admitted) -> Story[None]:
    if context is not None:
        context.unreserve(admitted.held_here)
    if admitted.stored:
        yield Release(admitted.hold, call.started_at)


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


def _reserve(
    call: Call, context: GovernanceContext | None, refusals: tuple[Refusal, ...]
) -> Story[Admitted | Refused]:
    """Reserve in the contexts of this process first, in the store second, which undoes the first.

    The budgets of ``refusals`` are made to warn only.
    """

    def softened(watches: tuple[Watch, ...]) -> tuple[Watch, ...]:
        if not call.kept:
            return ()
        return soften(watches, refusals, enforced=call.enforced, degraded=bool(call.degraded_from))

    expectation = call.expectation
    amount, at_most, free = expectation.amount, expectation.at_most, expectation.free
    expires_at = call.started_at + call.deadline + GRACE
    passed: tuple[str, ...] = ()
    held_here = 0
    attempt = 1
    if call.keyed:
        # Before anything is reserved: what was paid for already is told so, also where nothing is left
        # to pay for it again. And the ledger remembers for longer than the store, whose attempts may
        # have begun anew: two charges must never have one name.
        before = yield LookUp(call.operation)
        assert isinstance(before, tuple)
        if any(charge.outcome == Outcome.COMPLETED for charge in before):
            completed = AlreadyCompleted(call.operation, before)
            return Refused(completed, call.name, call.attribution, call.started_at)
        attempt += max((charge.attempt for charge in before), default=0)
    if context is not None:
        here = context.reserve(Reserve("", amount, softened(context.watches), expires_at, at_most, free))
        if isinstance(here, Refusal):
            return _refused(call, here)
        amount = held_here = here.reserved
        passed = tuple([watch.budget for watch in here.passed])
    stored = bool(call.watches) or call.keyed
    flags: tuple[str, ...] = (f"degraded_from:{call.degraded_from}",) if call.degraded_from else ()
    if stored:
        answer: object = None
        wish = Reserve(
            hold_id(call.operation, attempt),
            amount,
            softened(call.watches),
            expires_at,
            at_most,
            free,
            call.keyed,
            memo_of(call, context),
        )
        try:
            answer = yield Hold(wish, call.started_at)
            if isinstance(answer, WrongWindow) and call.rewatch is not None:
                # The store's clock is in another window than ours: its time is the one that counts.
                wish = wish._replace(watches=softened(call.rewatch(answer.now)))
                answer = yield Hold(wish, call.started_at)
            while isinstance(answer, Held) and not answer.fresh and answer.state in TRY_AGAIN:
                attempt += 1
                wish = wish._replace(id=hold_id(call.operation, attempt))
                answer = yield Hold(wish, call.started_at)
        except StoreError as error:
            if call.needs_store:
                yield from _give_back_unsure(call, wish.id)
                return Refused(_unavailable(error), call.name, call.attribution, call.started_at)
            answer = Held(HoldState.HELD, amount, fresh=True)
            flags += ("store_unavailable",)
        except GeneratorExit:
            raise
        except BaseException:  # cancelled, interrupted
            yield from _give_back_unsure(call, wish.id)
            raise
        finally:
            # A refused, cancelled or failed reserve leaves nothing behind in the contexts.
            if context is not None and not (isinstance(answer, Held) and answer.fresh):
                context.unreserve(held_here)
        if isinstance(answer, Refusal):
            return _refused(call, answer)
        if isinstance(answer, WrongWindow):
            clock = StoreError("its clock is in another window than it says")
            return Refused(_unavailable(clock), call.name, call.attribution, call.started_at)
        assert isinstance(answer, Held)
        if not answer.fresh:
            return (yield from _seen_before(call, answer))
        if context is not None and answer.amount < held_here:
            context.unreserve(held_here - answer.amount)
            held_here = answer.amount
        amount = answer.amount
        passed += answer.passed
    return Admitted(
        name=call.name,
        operation=call.operation,
        attempt=attempt,
        flow=call.flow,
        attribution=call.attribution,
        context_path=context.ids if context is not None else (),
        started_at=call.started_at,
        reserved=amount,
        held_here=held_here,
        accounts=tuple(dict.fromkeys([watch.account for watch in wish.watches])) if stored else (),
        stored=stored,
        because=expectation.because,
        books_unpriced=call.books_unpriced,
        passed=passed,
        flags=flags,
    )


def _unavailable(error: StoreError) -> StoreUnavailable:
    return StoreUnavailable(
        f"the budget store does not answer ({error}), and a budget in scope says on_store_error='block': "
        "nothing was sent. See `genops-ctx check`, or set on_store_error='allow' for calls that must go on"
    )


def _refused(call: Call, refusal: Refusal) -> Refused:
    error = budget_exceeded(refusal, call.expectation.because)
    return Refused(error, call.name, call.attribution, call.started_at, refusal)


def _seen_before(call: Call, held: Held) -> Story[Refused]:
    error: CallRefused
    if held.state is HoldState.HELD:
        error = OperationInProgress(
            f"operation {call.operation!r} is being sent right now and was not sent again; "
            "wait for it, or use a new idempotency_key"
        )
    else:
        charges = yield LookUp(call.operation)
        assert isinstance(charges, tuple)
        error = AlreadyCompleted(call.operation, charges)
    return Refused(error, call.name, call.attribution, call.started_at)


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
