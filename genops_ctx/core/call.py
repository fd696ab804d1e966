"""The story of one attempt: admit before it is sent, finish after. Sync and async alike.

:func:`admit` and :func:`finish` are short generators that yield *effects* (what a store or ledger
has to do) and are driven by :func:`drive` or :func:`drive_async`. Between them lies a plain,
picklable :class:`Admitted`; whoever sends the request does so there, so no generator is ever
suspended across other people's code.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from .accounts import HoldState, Refusal, Reserve, Watch
from .admission import Expectation
from .booking import Report, book
from .errors import AlreadyCompleted, BudgetExceeded, CallRefused, OperationInProgress
from .money import dollars
from .outcomes import BOOKINGS, Booking, Outcome
from .ports import Held, Prices
from .records import Charge

if TYPE_CHECKING:
    from datetime import datetime

    from .context import GovernanceContext

__all__ = [
    "Admitted",
    "Append",
    "Call",
    "Effect",
    "Hold",
    "LookUp",
    "Refused",
    "Release",
    "Settle",
    "admit",
    "drive",
    "drive_async",
    "finish",
    "hold_id",
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


class Settle(NamedTuple):
    """Effect: book the actual cost to the shared accounts."""

    hold: str
    actual: int
    accounts: tuple[str, ...]
    now: float
    completed: bool


class Release(NamedTuple):
    """Effect: give the reservation back."""

    hold: str
    now: float


class Append(NamedTuple):
    """Effect: write the charge to the ledger."""

    charge: Charge


class LookUp(NamedTuple):
    """Effect: the charges of an operation. Answers a tuple."""

    operation: str


class Hold(NamedTuple):
    """Effect: reserve. Answers :class:`Held` or :class:`Refusal`."""

    wish: Reserve
    now: float


Effect = Hold | Settle | Release | Append | LookUp
T = TypeVar("T")
Story = Generator[Effect, object, T]


def hold_id(operation: str, attempt: int) -> str:
    """The identity of one attempt's reservation and charge."""
    return f"{operation}#{attempt}"


def new_operation() -> str:
    """A key that no other operation has."""
    return os.urandom(12).hex()


def admit(call: Call, context: GovernanceContext | None) -> Story[Admitted | Refused]:
    """Reserve for a call, in the contexts of this process first, in the store second.

    The second refusing undoes the first. Nothing has been sent, whatever it answers.
    """
    expectation = call.expectation
    wish = Reserve(
        id=hold_id(call.operation, 1),
        amount=expectation.amount,
        watches=_as_enforced(call, call.watches),
        expires_at=call.started_at + call.deadline + GRACE,
        at_most=expectation.at_most,
        free=expectation.free,
        keyed=call.keyed,
    )
    passed: tuple[str, ...] = ()
    held_here = 0
    if context is not None:
        here = context.reserve(wish._replace(watches=_as_enforced(call, context.watches)))
        if isinstance(here, Refusal):
            context.refuse()
            return _refused(call, here)
        held_here = here.reserved
        passed = tuple(watch.budget for watch in here.passed)
    amount = held_here if context is not None else wish.amount
    attempt = 1
    stored = bool(call.watches) or call.keyed
    if stored:
        answer: object = None
        try:
            answer = yield Hold(wish._replace(amount=amount), call.started_at)
            while isinstance(answer, Held) and not answer.fresh and answer.state in TRY_AGAIN:
                attempt += 1
                answer = yield Hold(
                    wish._replace(id=hold_id(call.operation, attempt), amount=amount), call.started_at
                )
        finally:
            # A refused, cancelled or failed reserve leaves nothing behind in the contexts.
            if context is not None and not (isinstance(answer, Held) and answer.fresh):
                context.unreserve(held_here)
        if isinstance(answer, Refusal):
            if context is not None:
                context.refuse()
            return _refused(call, answer)
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
        context_path=tuple(scope.id for scope in context.path) if context is not None else (),
        started_at=call.started_at,
        reserved=amount,
        held_here=held_here,
        accounts=tuple(dict.fromkeys(watch.account for watch in call.watches)),
        stored=stored,
        because=expectation.because,
        books_unpriced=call.books_unpriced,
        passed=passed,
    )


def _as_enforced(call: Call, watches: tuple[Watch, ...]) -> tuple[Watch, ...]:
    return watches if call.enforced else tuple(watch._replace(enforced=False) for watch in watches)


def _refused(call: Call, refusal: Refusal) -> Refused:
    watch, account = refusal.watch, refusal.account
    resets_at: datetime | None = None
    if watch.ends_at is not None:
        from datetime import UTC, datetime

        resets_at = datetime.fromtimestamp(watch.ends_at, UTC)
    error = BudgetExceeded(
        budget=watch.budget,
        scope=watch.scope,
        limit=dollars(watch.limit),
        spent=dollars(account.spent),
        reserved=dollars(account.reserved),
        wanted=dollars(refusal.wanted),
        wanted_because=call.expectation.because,
        resets_at=resets_at,
    )
    return Refused(error, call.name, call.attribution, call.started_at)


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
        yield Append(charge)
        if admitted.stored:
            completed = report.outcome is Outcome.COMPLETED
            yield Settle(admitted.hold, charge.nanos, admitted.accounts, report.ended_at, completed)
    finally:
        if context is not None:
            context.book(charge, admitted.held_here, tuple(sorted(charge.attribution.items())))
    return charge


def drive(story: Story[T], perform: Callable[[Effect], object]) -> T:
    """Run a story to its end, performing each effect; what fails is raised inside the story."""
    try:
        effect = next(story)
        while True:
            try:
                answer = perform(effect)
            except BaseException as error:
                effect = story.throw(error)
            else:
                effect = story.send(answer)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


async def drive_async(story: Story[T], perform: Callable[[Effect], Awaitable[object]]) -> T:
    """As :func:`drive`, awaiting each effect; a cancellation is raised inside the story too."""
    try:
        effect = next(story)
        while True:
            try:
                answer = await perform(effect)
            except BaseException as error:
                effect = story.throw(error)
            else:
                effect = story.send(answer)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
