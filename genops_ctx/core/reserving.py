"""Reserving for a call in every budget in scope, and what comes of a refusal. Part of its story."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from .accounts import HoldState, Refusal, Reserve, Watch, WrongWindow
from .booking import hold_id, memo_of
from .effects import Ask, Hold, LookUp, Release, Story
from .errors import (
    AlreadyCompleted,
    BudgetExceeded,
    CallRefused,
    OperationInProgress,
    StoreError,
    StoreUnavailable,
)
from .exceeded import asked, budget_exceeded, degrades, may_go_on, soften
from .operations import new_operation
from .outcomes import Outcome
from .ports import Held
from .stages import Admitted, Call, Refused

if TYPE_CHECKING:
    from .context import GovernanceContext
    from .holds import Draw

__all__ = ["give_back", "over", "reserve", "unavailable"]

TRY_AGAIN = (HoldState.FAILED, HoldState.RELEASED, HoldState.LOST)
"""An attempt that ended so did not complete its operation: the next one may be sent."""

GRACE = 30.0
"""Seconds that a reservation outlives its call's deadline."""


def over(
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
        answer = yield from reserve(call, context, tuple(item for _, item in known))
        over = answer.refusal if isinstance(answer, Refused) else None
    try:
        refused = yield from _decide(known)
    except BaseException:
        yield from give_back(call, context, answer)
        raise
    if refused is not None:
        yield from give_back(call, context, answer)
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


def _give_back_unsure(call: Call, wish: Reserve) -> Story[None]:
    """Nobody knows whether it was reserved: it is given back as soon as the store answers.

    Under this name another process may have a reservation, in flight, where it is the user's own or a
    queue delivers its work twice: the token tells them apart.
    """
    yield Release(wish.id, call.started_at, wish.token)


def give_back(call: Call, context: GovernanceContext | None, admitted: Admitted) -> Story[None]:
    if context is not None:
        context.unreserve(admitted.held_here, admitted.draws)
    if admitted.stored:
        yield Release(admitted.hold, call.started_at)


def reserve(
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
    floor = expectation.floor
    expires_at = call.started_at + call.deadline + GRACE
    passed: tuple[str, ...] = ()
    held_here = 0
    draws: tuple[Draw, ...] = ()
    attempt = call.attempt
    if call.keyed:
        # Before anything is reserved: what was paid for already is told so, also where nothing is left
        # to pay for it again. And the ledger remembers for longer than the store, whose attempts may
        # have begun anew: two charges must never have one name.
        before = yield LookUp(call.operation)
        assert isinstance(before, tuple)
        if any(charge.outcome == Outcome.COMPLETED for charge in before):
            completed = AlreadyCompleted(call.operation, before)
            return Refused(completed, call.name, call.attribution, call.started_at)
        attempt = max((charge.attempt + 1 for charge in before), default=attempt)
    if context is not None:
        here = context.reserve(
            Reserve(
                "",
                amount,
                softened(context.watches),
                expires_at,
                at_most,
                free,
                within=call.within,
                floor=floor,
            )
        )
        if isinstance(here, Refusal):
            return _refused(call, here)
        amount = held_here = here.reserved
        draws = here.hold.draws
        passed = tuple([watch.budget for watch in here.passed])
    stored = bool(call.watches) or call.keyed
    flags = call.flags
    if call.degraded_from:
        flags += (f"degraded_from:{call.degraded_from}",)
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
            new_operation(),
            call.within,
            floor,
        )
        try:
            answer = yield Hold(wish, call.started_at)
            if isinstance(answer, WrongWindow) and call.rewatch is not None:
                # The store's clock is in another window than ours: its time is the one that counts.
                wish = wish._replace(watches=softened(call.rewatch(answer.now)))
                answer = yield Hold(wish, call.started_at)
            while isinstance(answer, Held) and not answer.fresh and _try_next(call, answer.state):
                attempt += 1
                wish = wish._replace(id=hold_id(call.operation, attempt))
                answer = yield Hold(wish, call.started_at)
        except StoreError as error:
            if call.needs_store:
                yield from _give_back_unsure(call, wish)
                return Refused(unavailable(error), call.name, call.attribution, call.started_at)
            answer = Held(HoldState.HELD, amount, fresh=True)
            flags += ("store_unavailable",)
        except GeneratorExit:
            raise
        except BaseException:  # cancelled, interrupted
            yield from _give_back_unsure(call, wish)
            raise
        finally:
            # A refused, cancelled or failed reserve leaves nothing behind in the contexts.
            if context is not None and not (isinstance(answer, Held) and answer.fresh):
                context.unreserve(held_here, draws)
        if isinstance(answer, Refusal):
            return _refused(call, answer)
        if isinstance(answer, WrongWindow):
            clock = StoreError("its clock is in another window than it says")
            return Refused(unavailable(clock), call.name, call.attribution, call.started_at)
        assert isinstance(answer, Held)
        if not answer.fresh:
            return (yield from _seen_before(call, answer))
        if context is not None and answer.amount < held_here:
            draws = context.cut(held_here, answer.amount, draws)
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
        draws=draws,
    )


def _try_next(call: Call, state: HoldState) -> bool:
    # Nobody asked that an operation without a name of the user's be sent once only: where a queue delivers
    # its work again, the attempt that was interrupted has the number that this one would.
    return state in TRY_AGAIN or not call.keyed


def unavailable(error: StoreError) -> StoreUnavailable:
    """What a call is told that may not go on without the store."""
    return StoreUnavailable(
        f"the budget store does not answer ({error}), and a budget in scope says on_store_error='block': "
        "nothing was sent. See `genops-ctx check`, or set on_store_error='allow' for calls that must go on"
    )


def _refused(call: Call, refusal: Refusal) -> Refused:
    expected = call.expectation
    error = budget_exceeded(refusal, expected.because, expected.floor, expected.floor_because)
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
