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

from .accounts import HoldState, Refusal, Reserve, Watch, WrongWindow
from .admission import Expectation
from .booking import Report, book, hold_id, memo_of
from .errors import (
    AlreadyCompleted,
    BudgetExceeded,
    CallRefused,
    OperationInProgress,
    StoreError,
    StoreUnavailable,
)
from .money import dollars
from .outcomes import BOOKINGS, Booking
from .ports import Held, Prices
from .records import Charge

if TYPE_CHECKING:
    from datetime import datetime

    from .context import GovernanceContext

__all__ = [
    "Admitted",
    "Book",
    "Call",
    "Effect",
    "Hold",
    "LookUp",
    "Refused",
    "Release",
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
    rewatch: Callable[[float], tuple[Watch, ...]] | None = None
    """the watches anew for the store's own time, where it is in another window"""
    needs_store: bool = True
    """a budget says ``on_store_error="block"``"""


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


class Hold(NamedTuple):
    """Effect: reserve. Answers :class:`Held`, :class:`Refusal` or :class:`WrongWindow`."""

    wish: Reserve
    now: float


class Release(NamedTuple):
    """Effect: give the reservation back. Never raises: what fails now is done later."""

    hold: str
    now: float


class Book(NamedTuple):
    """Effect: the charge into the ledger first, then to the accounts. Never raises."""

    charge: Charge
    settles: bool
    """the store has, or may have, a hold for it"""


class LookUp(NamedTuple):
    """Effect: the charges of an operation. Answers a tuple."""

    operation: str


Effect = Hold | Release | Book | LookUp
T = TypeVar("T")
Story = Generator[Effect, object, T]


def new_operation() -> str:
    """A key that no other operation has."""
    return os.urandom(12).hex()


def admit(call: Call, context: GovernanceContext | None) -> Story[Admitted | Refused]:
    """Reserve for a call, in the contexts of this process first, in the store second.

    The second refusing undoes the first. Nothing has been sent, whatever it answers.
    """
    expectation = call.expectation
    amount, at_most, free = expectation.amount, expectation.at_most, expectation.free
    expires_at = call.started_at + call.deadline + GRACE
    passed: tuple[str, ...] = ()
    held_here = 0
    if context is not None:
        here = context.reserve(
            Reserve("", amount, _as_enforced(call, context.watches), expires_at, at_most, free)
        )
        if isinstance(here, Refusal):
            context.refuse()
            return _refused(call, here)
        amount = held_here = here.reserved
        passed = tuple([watch.budget for watch in here.passed])
    attempt = 1
    stored = bool(call.watches) or call.keyed
    flags: tuple[str, ...] = ()
    if stored:
        answer: object = None
        wish = Reserve(
            hold_id(call.operation, 1),
            amount,
            _as_enforced(call, call.watches),
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
                wish = wish._replace(watches=_as_enforced(call, call.rewatch(answer.now)))
                answer = yield Hold(wish, call.started_at)
            while isinstance(answer, Held) and not answer.fresh and answer.state in TRY_AGAIN:
                attempt += 1
                wish = wish._replace(id=hold_id(call.operation, attempt))
                answer = yield Hold(wish, call.started_at)
        except StoreError as error:
            if call.needs_store:
                # Nobody knows whether it was reserved: it is given back as soon as the store answers.
                yield Release(wish.id, call.started_at)
                return Refused(_unavailable(error), call.name, call.attribution, call.started_at)
            answer = Held(HoldState.HELD, amount, fresh=True)
            flags = ("store_unavailable",)
        finally:
            # A refused, cancelled or failed reserve leaves nothing behind in the contexts.
            if context is not None and not (isinstance(answer, Held) and answer.fresh):
                context.unreserve(held_here)
        if isinstance(answer, Refusal):
            if context is not None:
                context.refuse()
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
        limit=dollars(refusal.limit),
        spent=dollars(account.spent),
        reserved=dollars(account.reserved),
        wanted=dollars(refusal.wanted),
        wanted_because=call.expectation.because,
        resets_at=resets_at,
        frozen=refusal.frozen,
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
        yield Book(charge, admitted.stored)
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
