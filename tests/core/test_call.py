"""The story of one attempt, driven with stores and ledgers that fail or are cancelled anywhere."""

from __future__ import annotations

import asyncio
import dataclasses
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genops_ctx.core.accounts import Account, Reserve, Watch, WrongWindow
from genops_ctx.core.admission import Expectation
from genops_ctx.core.booking import Report, hold_id
from genops_ctx.core.call import (
    Admitted,
    Book,
    Call,
    Effect,
    Hold,
    LookUp,
    Refused,
    Release,
    admit,
    drive,
    drive_async,
    finish,
    new_operation,
)
from genops_ctx.core.context import GovernanceContext, governance_context
from genops_ctx.core.errors import (
    AlreadyCompleted,
    BudgetExceeded,
    OperationInProgress,
    StoreError,
    StoreUnavailable,
)
from genops_ctx.core.outcomes import Outcome
from genops_ctx.core.ports import Quote
from genops_ctx.core.records import Charge, Usage
from genops_ctx.ledger.memory import MemoryLedger
from genops_ctx.stores.memory import MemoryStore
from tests.strategies import watch

CENT = 10_000_000


class NanoPerToken:
    def quote(self, usage: Usage, at: float) -> Quote:
        return Quote(usage.total_tokens)

    def provider_of(self, name: str) -> str:
        return name


class Trouble(Exception):
    """What a store or ledger raises in these tests."""


class World:
    """A memory store and ledger that do as the effects say, and fail where a test says."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.ledger = MemoryLedger()
        self.seen: list[str] = []
        self.fail_before: type | None = None
        self.fail_after: type | None = None
        self.error: BaseException = Trouble("the disk is full")

    def perform(self, effect: Effect) -> object:
        self.seen.append(type(effect).__name__)
        if self.fail_before is type(effect):
            raise self.error
        answer: object = None
        match effect:
            case Hold(wish, now):
                answer = self.store.reserve(wish, now)
            case Release(hold, now, token):
                self.store.release(hold, now, token)
            case Book(charge, settles):
                self.ledger.append(charge, settled=not settles)
                if settles:
                    completed = charge.outcome == "completed"
                    self.store.settle(charge.id, charge.nanos, charge.accounts, charge.ended_at, completed)
            case LookUp(operation):
                answer = tuple(self.ledger.charges(operation))
        if self.fail_after is type(effect):
            raise self.error
        return answer

    async def perform_async(self, effect: Effect) -> object:
        await asyncio.sleep(0)
        return self.perform(effect)

    def admit(self, call: Call, context: GovernanceContext | None = None) -> Admitted | Refused:
        return drive(admit(call, context), self.perform)

    def admitted(self, call: Call, context: GovernanceContext | None = None) -> Admitted:
        answer = self.admit(call, context)
        assert isinstance(answer, Admitted), answer
        return answer

    def refused(self, call: Call, context: GovernanceContext | None = None) -> Refused:
        answer = self.admit(call, context)
        assert isinstance(answer, Refused), answer
        return answer

    def finish(
        self, admitted: Admitted, report: Report, context: GovernanceContext | None = None
    ) -> Charge | None:
        return drive(finish(admitted, report, NanoPerToken(), context), self.perform)


@pytest.fixture
def world() -> World:
    return World()


def shared(world: World) -> Account:
    return world.store.accounts(["shared"])["shared"]


class Driver:
    """Runs stories the sync way or the async way."""

    def __init__(self, world: World, is_async: bool) -> None:
        self.world, self.is_async = world, is_async

    def __call__(self, story: Any) -> Any:
        if self.is_async:
            return asyncio.run(self._run(story))
        return drive(story, self.world.perform)

    async def _run(self, story: Any) -> Any:
        return await drive_async(story, self.world.perform_async)


@pytest.fixture(params=["sync", "async"])
def run(request: pytest.FixtureRequest, world: World) -> Driver:
    return Driver(world, request.param == "async")


def call(
    amount: int = 5,
    *watches: Watch,
    operation: str = "",
    at_most: bool = False,
    free: bool = False,
    **more: Any,
) -> Call:
    return Call(
        name="support",
        operation=operation or new_operation(),
        attribution={"team": "a"},
        expectation=Expectation(amount, "max_cost", at_most, free),
        watches=watches,
        started_at=1000.0,
        deadline=60.0,
        **more,
    )


def done(tokens: int = 3, outcome: Outcome = Outcome.COMPLETED) -> Report:
    return Report(outcome, 1002.0, (Usage("openai", "small", tokens),))


NOT_SENT = Report(Outcome.NOT_SENT, 1002.0)
SHARED = watch("shared", 100, budget="day")


# -- admit -----------------------------------------------------------------------------------------


def test_without_limits_nothing_is_asked_of_a_store(world: World, run: Driver) -> None:
    with governance_context("job") as context:
        admitted = run(admit(call(5), context))
        assert context.reserved == Decimal("0.000000005")
        run(finish(admitted, done(3), NanoPerToken(), context))
    assert world.seen == ["Book"]
    assert (context.total_cost, context.reserved) == (Decimal("0.000000003"), 0)


def test_admitted_carries_all_that_finish_needs(world: World) -> None:
    with governance_context("outer") as outer, governance_context("inner", budget=1) as inner:
        answer = world.admitted(
            call(5, SHARED, watch("other", 100), SHARED, operation="op", flow="f1"), inner
        )
        assert answer == Admitted(
            name="support",
            operation="op",
            attempt=1,
            flow="f1",
            attribution={"team": "a"},
            context_path=(outer.id, inner.id),
            started_at=1000.0,
            reserved=5,
            held_here=5,
            accounts=("shared", "other"),
            stored=True,
            because="max_cost",
            books_unpriced=True,
            passed=(),
        )
        assert answer.hold == "op#1"
        again = pickle.loads(pickle.dumps(answer))
        assert again == answer
        charge = world.finish(again, done(3), inner)
    assert charge is not None
    assert shared(world) == Account(3, 0)
    assert outer.total_cost == inner.total_cost == Decimal("0.000000003")


def test_the_reservation_outlives_the_deadline(world: World) -> None:
    world.admitted(call(5, SHARED))
    assert world.store.reap(1000.0 + 60.0 + 29.9) == ()
    assert len(world.store.reap(1000.0 + 60.0 + 30.0)) == 1


def test_operations_are_told_apart() -> None:
    assert len({new_operation() for _ in range(1000)}) == 1000
    assert hold_id("a#1", 1) != hold_id("a", 11)


@given(st.text(max_size=5), st.integers(1, 99), st.text(max_size=5), st.integers(1, 99))
def test_hold_ids_are_told_apart(one: str, attempt: int, other: str, other_attempt: int) -> None:
    same = hold_id(one, attempt) == hold_id(other, other_attempt)
    assert same == ((one, attempt) == (other, other_attempt))


def test_a_refusal_by_the_context_asks_no_store(world: World, run: Driver) -> None:
    with governance_context("outer"), governance_context("job", budget="0.000000004") as context:
        refused = run(admit(call(5, SHARED), context))
    assert world.seen == []
    error = refused.error
    assert isinstance(error, BudgetExceeded)
    assert (error.scope, error.limit, error.wanted) == (
        "context 'job'",
        Decimal("0.000000004"),
        Decimal("0.000000005"),
    )
    assert error.wanted_because == "max_cost"
    assert error.resets_at is None
    assert (refused.name, refused.attribution, refused.at) == ("support", {"team": "a"}, 1000.0)
    assert (context.refused_calls, context.reserved, context.calls) == (1, 0, 0)
    assert context.parent is not None
    assert context.parent.refused_calls == 1


def test_a_refusal_by_the_store_undoes_the_contexts(world: World, run: Driver) -> None:
    tight = Watch("shared", 4, "day", "all calls (day)", 1_795_305_600.0)
    with governance_context("outer", budget=1) as outer, governance_context("job", budget=1) as context:
        refused = run(admit(call(5, tight), context))
    assert isinstance(refused.error, BudgetExceeded)
    assert refused.error.resets_at == datetime(2026, 11, 22, tzinfo=UTC)
    assert (outer.reserved, context.reserved, outer.refused_calls, context.refused_calls) == (0, 0, 1, 1)
    assert shared(world) == Account()


def test_a_refusal_by_the_store_without_a_context(world: World, run: Driver) -> None:
    assert isinstance(run(admit(call(5, watch("shared", 4)), None)).error, BudgetExceeded)


@pytest.mark.parametrize("cut_to", [1, 3, 99])
def test_a_cut_in_the_store_is_a_cut_in_the_contexts(world: World, run: Driver, cut_to: int) -> None:
    with governance_context("outer") as outer, governance_context("job", budget=1) as context:
        admitted = run(admit(call(100, watch("shared", cut_to), at_most=True), context))
        nano = Decimal(1).scaleb(-9)
        assert (admitted.reserved, admitted.held_here) == (cut_to, cut_to)
        assert outer.reserved == context.reserved == cut_to * nano
        run(finish(admitted, done(1), NanoPerToken(), context))
    assert outer.reserved == context.reserved == 0
    assert shared(world) == Account(1, 0)


def test_a_cut_in_the_contexts_is_what_the_store_is_asked_for(world: World, run: Driver) -> None:
    with governance_context("job", budget="0.000000007") as context:
        admitted = run(admit(call(100, SHARED, at_most=True), context))
    assert (admitted.reserved, admitted.held_here) == (7, 7)
    assert shared(world) == Account(0, 7)


def test_a_cut_in_the_store_without_a_context(world: World, run: Driver) -> None:
    admitted = run(admit(call(100, watch("shared", 7), at_most=True), None))
    assert (admitted.reserved, admitted.held_here, admitted.context_path) == (7, 0, ())


def test_a_free_call_passes_a_used_up_budget(world: World, run: Driver) -> None:
    with governance_context("job", budget=0) as context:
        admitted = run(admit(call(0, watch("shared", 0), free=True), context))
        run(finish(admitted, done(0), NanoPerToken(), context))
    assert (context.calls, context.refused_calls) == (1, 0)


def test_soft_limits_of_both_kinds_are_named(world: World, run: Driver) -> None:
    from genops_ctx.core.budget import Budget

    soft = Budget("0.000000001", on_exceeded="warn", name="soft context")
    with governance_context("job", budget=soft) as context:
        admitted = run(admit(call(5, watch("shared", 4, enforced=False, budget="soft day")), context))
    assert admitted.passed == ("soft context", "soft day")


def test_observing_refuses_nothing_and_names_what_would_have(world: World, run: Driver) -> None:
    with governance_context("job", budget="0.000000001") as context:
        admitted = run(admit(call(5, watch("shared", 4, budget="day"), enforced=False), context))
    assert admitted.passed == ()
    assert admitted.flags == ("would_refuse:$0.000000001", "would_refuse:day")
    assert admitted.reserved == 5
    assert (context.refused_calls, context.would_refuse_calls) == (0, 1)


# -- trouble ---------------------------------------------------------------------------------------

TROUBLES = [Trouble("the disk is full"), KeyboardInterrupt(), asyncio.CancelledError(), SystemExit(3)]


@pytest.mark.parametrize("error", TROUBLES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_reserve_that_fails_leaves_nothing_in_the_contexts(
    world: World, error: BaseException, when: str
) -> None:
    world.error = error
    setattr(world, f"fail_{when}", Hold)
    with governance_context("outer", budget=1) as outer, governance_context("job", budget=1) as context:
        with pytest.raises(type(error)) as raised:
            world.admit(call(5, SHARED), context)
        assert raised.value is error
        assert (outer.reserved, context.reserved, context.refused_calls) == (0, 0, 0)
    # whether the store had it is not known: it was given back
    world.store.reap(1e6)
    assert shared(world) == Account()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("error", TROUBLES, ids=lambda error: type(error).__name__)
def test_a_finish_that_fails_still_ends_the_reservation_and_counts_in_the_contexts(
    world: World, error: BaseException, when: str
) -> None:
    with governance_context("outer", budget=1) as outer, governance_context("job", budget=1) as context:
        admitted = world.admitted(call(5, SHARED), context)
        world.error = error
        setattr(world, f"fail_{when}", Book)
        with pytest.raises(type(error)) as raised:
            world.finish(admitted, done(3), context)
    assert raised.value is error
    assert outer.reserved == context.reserved == 0
    assert outer.total_cost == context.total_cost == Decimal("0.000000003")
    assert shared(world) == (Account(3, 0) if when == "after" else Account(0, 5))
    world.store.reap(1e6)
    assert shared(world).reserved == 0, "the expiry frees what trouble left"


def test_a_store_that_does_not_answer_refuses_where_a_budget_says_so(world: World, run: Driver) -> None:
    world.error = StoreError("no answer within 1 s")
    for when in ("before", "after"):
        world.fail_before = world.fail_after = None
        setattr(world, f"fail_{when}", Hold)
        with governance_context("job", budget=1) as context:
            refused = run(admit(call(5, SHARED), context))
            assert isinstance(refused.error, StoreUnavailable)
            assert "no answer within 1 s" in str(refused.error)
            assert context.reserved == 0
        # what it may have reserved after all was given back
        assert world.seen[-2:] == ["Hold", "Release"]
        assert shared(world) == Account()


def test_a_store_that_does_not_answer_lets_a_call_through_where_all_budgets_say_so(
    world: World, run: Driver
) -> None:
    world.error, world.fail_before = StoreError("no answer within 1 s"), Hold
    with governance_context("job", budget=1) as context:
        admitted = run(admit(call(5, SHARED, needs_store=False), context))
        assert (admitted.reserved, admitted.held_here, admitted.stored) == (5, 5, True)
        assert admitted.flags == ("store_unavailable",)
        charge = run(finish(admitted, done(3), NanoPerToken(), context))
        assert context.reserved == 0
    assert charge.flags == ("store_unavailable",)
    assert shared(world) == Account(3, 0), "booked once the store is back"


TODAY = watch("today", 100)._replace(starts_at=0.0, ends_at=500.0)
TOMORROW = watch("tomorrow", 100)._replace(starts_at=500.0, ends_at=9e9)


def test_where_the_store_is_in_another_window_the_watches_are_made_for_its_time(
    world: World, run: Driver
) -> None:
    asked: list[float] = []

    def rewatch(now: float) -> tuple[Watch, ...]:
        asked.append(now)
        return (TOMORROW,)

    with governance_context("job", budget=1) as context:
        admitted = run(admit(call(5, TODAY, rewatch=rewatch), context))
        assert asked == [1000.0]
        assert admitted.accounts == ("tomorrow",)
        run(finish(admitted, done(3), NanoPerToken(), context))
    assert world.store.accounts(["today", "tomorrow"]) == {"today": Account(), "tomorrow": Account(3, 0)}


@pytest.mark.parametrize("rewatch", [None, lambda now: (TODAY,)], ids=["none", "no better"])
def test_a_store_whose_clock_fits_no_window_refuses_and_leaves_nothing(
    world: World, run: Driver, rewatch: Any
) -> None:
    with governance_context("job", budget=1) as context:
        refused = run(admit(call(5, TODAY, rewatch=rewatch), context))
        assert isinstance(refused.error, StoreUnavailable)
        assert "clock" in str(refused.error)
        assert context.reserved == 0
        context.refuse()
    assert isinstance(world.store.reserve(Reserve("x#1", 1, (TODAY,), 9.0), 1000.0), WrongWindow)


def test_a_release_that_fails_leaves_nothing_in_the_contexts(world: World, run: Driver) -> None:
    with governance_context("job", budget=1) as context:
        admitted = run(admit(call(5, SHARED), context))
        world.fail_before = Release
        with pytest.raises(Trouble):
            run(finish(admitted, NOT_SENT, NanoPerToken(), context))
        assert context.reserved == 0


def test_cancelling_a_task_that_reserves(world: World) -> None:
    async def main() -> None:
        waiting = asyncio.Event()

        given_back = []

        async def never(effect: Effect) -> object:
            if isinstance(effect, Release):
                given_back.append(effect.hold)
                return None
            waiting.set()
            await asyncio.Event().wait()
            raise AssertionError

        with governance_context("job", budget=1) as context:
            task = asyncio.create_task(drive_async(admit(call(5, SHARED, operation="op"), context), never))
            await waiting.wait()
            assert context.reserved == Decimal("0.000000005")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert context.reserved == 0
            assert given_back == ["op#1"], "nobody knows whether the store has it"
            context.refuse()  # no warning that nothing was called

    asyncio.run(main())


def test_a_story_that_is_dropped_leaves_nothing(world: World) -> None:
    with governance_context("job", budget=1) as context:
        story = admit(call(5, SHARED), context)
        assert isinstance(next(story), Hold)
        assert context.reserved != 0
        story.close()
        assert context.reserved == 0


# -- finish ----------------------------------------------------------------------------------------


def test_ledger_first_then_account(world: World, run: Driver) -> None:
    admitted = run(admit(call(5, SHARED), None))
    run(finish(admitted, done(3), NanoPerToken(), None))
    assert world.seen == ["Hold", "Book"]


def test_what_was_not_sent_is_released_and_not_charged(world: World, run: Driver) -> None:
    with governance_context("job", budget=1) as context:
        admitted = run(admit(call(5, SHARED), context))
        assert run(finish(admitted, NOT_SENT, NanoPerToken(), context)) is None
    assert world.seen == ["Hold", "Release"]
    assert shared(world) == Account()
    assert (context.reserved, context.total_cost, context.calls) == (0, 0, 0)


def test_what_was_not_sent_and_not_stored_asks_nothing(world: World, run: Driver) -> None:
    assert run(finish(run(admit(call(5), None)), NOT_SENT, NanoPerToken(), None)) is None
    assert world.seen == []


@pytest.mark.parametrize("tokens", [0, 3, 5, 6, 500])
def test_the_actual_cost_is_booked_over_the_limit_too(world: World, run: Driver, tokens: int) -> None:
    with governance_context("job", budget="0.000000005") as context:
        admitted = run(admit(call(5, watch("shared", 5)), context))
        charge = run(finish(admitted, done(tokens), NanoPerToken(), context))
        assert charge.nanos == tokens
        assert context.remaining == max(0, 5 - tokens) * Decimal(1).scaleb(-9)
    assert shared(world) == Account(tokens, 0)


def test_it_is_booked_to_the_accounts_that_were_reserved_even_where_the_store_forgot(world: World) -> None:
    admitted = world.admitted(call(5, watch("team=a|day:2026-11-20", 100)))
    world.store = MemoryStore()
    world.finish(admitted, done(3))
    assert world.store.accounts()["team=a|day:2026-11-20"] == Account(3, 0)


# -- named operations --------------------------------------------------------------------------------


def named(*watches: Watch, amount: int = 5) -> Call:
    return call(amount, *watches, operation="order-5", keyed=True)


@pytest.mark.parametrize("watches", [(), (SHARED,)], ids=["no account", "an account"])
def test_a_named_operation_is_sent_once(world: World, run: Driver, watches: tuple[Watch, ...]) -> None:
    with governance_context("job", budget=1) as context:
        admitted = run(admit(named(*watches), context))
        again = run(admit(named(*watches), context))
        assert isinstance(again.error, OperationInProgress)
        assert "'order-5' is being sent right now" in str(again.error)
        assert context.reserved == Decimal("0.000000005"), "the second has given its part back"
        charge = run(finish(admitted, done(3), NanoPerToken(), context))
        over = run(admit(named(*watches), context))
        assert isinstance(over.error, AlreadyCompleted)
        assert over.error.charges == (charge,)
        assert (context.reserved, context.calls, context.refused_calls) == (0, 1, 0)


@pytest.mark.parametrize(
    "end",
    [done(3, Outcome.FAILED), done(3, Outcome.TIMED_OUT), Report(Outcome.REFUSED, 1002.0), NOT_SENT],
    ids=["failed", "timed out", "refused", "not sent"],
)
def test_after_an_attempt_that_did_not_complete_comes_the_next(
    world: World, run: Driver, end: Report
) -> None:
    for number in (1, 2, 3):
        admitted = run(admit(named(SHARED), None))
        assert (admitted.attempt, admitted.hold) == (number, f"order-5#{number}")
        run(finish(admitted, end, NanoPerToken(), None))
    last = run(admit(named(SHARED), None))
    assert last.attempt == 4
    run(finish(last, done(7), NanoPerToken(), None))
    over = run(admit(named(SHARED), None)).error
    assert isinstance(over, AlreadyCompleted)
    booked = [charge.attempt for charge in over.charges]
    assert booked == ([4] if end is NOT_SENT else [1, 2, 3, 4])
    cost = 7 + sum(charge.nanos for charge in over.charges[:-1])
    assert shared(world) == Account(cost, 0)


def test_after_a_lost_attempt_comes_the_next_and_both_are_booked(world: World, run: Driver) -> None:
    run(admit(named(SHARED), None))
    world.store.reap(2000.0)
    admitted = run(admit(named(SHARED), None))
    assert admitted.attempt == 2
    run(finish(admitted, done(3), NanoPerToken(), None))
    assert shared(world) == Account(5 + 3, 0)


def test_the_next_attempt_may_be_refused_and_leaves_nothing(world: World, run: Driver) -> None:
    tight = watch("shared", 9)
    with governance_context("job", budget=1) as context:
        admitted = run(admit(named(tight), context))
        run(finish(admitted, done(5, Outcome.FAILED), NanoPerToken(), context))
        refused = run(admit(named(tight), context))
        assert isinstance(refused.error, BudgetExceeded)
        assert (context.reserved, context.refused_calls) == (0, 1)


def test_a_look_up_that_fails_surfaces_and_leaves_nothing(world: World, run: Driver) -> None:
    with governance_context("job", budget=1) as context:
        run(finish(run(admit(named(), context)), done(3), NanoPerToken(), context))
        world.fail_before = LookUp
        with pytest.raises(Trouble):
            run(admit(named(), context))
        assert context.reserved == 0


# -- many at once --------------------------------------------------------------------------------------


def cent_call(shared: bool) -> Call:
    return call(CENT, *([watch("shared", 10 * CENT)] if shared else []))


@pytest.mark.parametrize("where", ["context", "account", "both"])
def test_of_fifty_threads_ten_run(world: World, where: str) -> None:
    ready = threading.Barrier(50, timeout=120)
    budget = None if where == "account" else "0.10"

    def one(context: GovernanceContext) -> bool:
        ready.wait()
        answer = world.admit(cent_call(where != "context"), context)
        if isinstance(answer, Refused):
            return False
        world.finish(answer, done(CENT), context)
        return True

    with governance_context("job", budget=budget) as context, ThreadPoolExecutor(50) as threads:
        ran = list(threads.map(one, [context] * 50))
    assert ran.count(True) == 10
    assert (context.total_cost, context.reserved) == (Decimal("0.10"), 0)
    assert (context.calls, context.refused_calls) == (10, 40)
    if where != "context":
        assert shared(world) == Account(10 * CENT, 0)


@pytest.mark.parametrize("where", ["context", "account", "both"])
def test_of_fifty_tasks_ten_run(world: World, where: str) -> None:
    budget = None if where == "account" else "0.10"

    async def one(context: GovernanceContext) -> bool:
        answer = await drive_async(admit(cent_call(where != "context"), context), world.perform_async)
        await asyncio.sleep(0.001)
        if isinstance(answer, Refused):
            return False
        await drive_async(finish(answer, done(CENT), NanoPerToken(), context), world.perform_async)
        return True

    async def main() -> GovernanceContext:
        async with governance_context("job", budget=budget) as context:
            ran = await asyncio.gather(*[one(context) for _ in range(50)])
        assert ran.count(True) == 10
        return context

    context = asyncio.run(main())
    assert (context.total_cost, context.reserved) == (Decimal("0.10"), 0)
    assert (context.calls, context.refused_calls) == (10, 40)


def test_of_fifty_threads_in_contexts_of_their_own_ten_run(world: World) -> None:
    ready = threading.Barrier(50, timeout=120)

    def one(_: int) -> bool:
        with governance_context("job", budget=5) as context:
            ready.wait()
            answer = world.admit(cent_call(True), context)
            if isinstance(answer, Admitted):
                world.finish(answer, done(CENT), context)
            return isinstance(answer, Admitted)

    with ThreadPoolExecutor(50) as threads:
        assert list(threads.map(one, range(50))).count(True) == 10
    assert shared(world) == Account(10 * CENT, 0)


# -- any order of anything ---------------------------------------------------------------------------------

steps = st.lists(
    st.tuples(
        st.sampled_from(["admit", "complete", "fail", "not_sent", "lost answer", "dead store", "expire"]),
        st.integers(1, 40),
        st.booleans(),
    ),
    max_size=30,
)


@given(steps, st.integers(0, 60), st.integers(0, 60))
def test_contexts_and_store_agree_when_all_is_over(
    history: list[tuple[str, int, bool]], inner_limit: int, shared_limit: int
) -> None:
    world = World()
    nano = Decimal(1).scaleb(-9)
    in_flight: list[Admitted] = []
    booked = lost = 0
    with governance_context("outer") as outer, governance_context("job", budget=inner_limit * nano) as job:
        job.refuse()  # so that a history without calls is no reason to warn
        for step, amount, at_most in history:
            if step in ("admit", "lost answer", "dead store"):
                world.fail_after = Hold if step == "lost answer" else None
                world.fail_before = Hold if step == "dead store" else None
                trouble = step != "admit"
                with pytest.raises(Trouble) if trouble and _asks(job, amount, at_most) else nullcontext():
                    answer = world.admit(call(amount, watch("shared", shared_limit), at_most=at_most), job)
                    if isinstance(answer, Admitted):
                        assert 0 < answer.reserved <= amount
                        assert answer.held_here == answer.reserved
                        in_flight.append(answer)
                world.fail_after = world.fail_before = None
            elif step == "expire":
                lost += reap(world)  # what the store has reserved without our knowing, and calls in flight
                for gone in in_flight:  # whose processes are gone
                    job.unreserve(gone.held_here)
                in_flight.clear()
            elif in_flight:
                admitted = in_flight.pop(amount % len(in_flight))
                outcome = {"complete": Outcome.COMPLETED, "fail": Outcome.FAILED}.get(step, Outcome.NOT_SENT)
                charge = world.finish(admitted, done(amount, outcome), job)
                booked += charge.nanos if charge is not None else 0
        for admitted in in_flight:
            world.finish(admitted, done(2), job)
            booked += 2
    lost += reap(world)
    assert outer.reserved == job.reserved == 0
    assert outer.total_cost == job.total_cost == booked * nano
    assert shared(world) == Account(booked + lost, 0)
    assert sum(charge.nanos for charge in world.ledger.charges()) == booked


def _asks(context: GovernanceContext, amount: int, at_most: bool) -> bool:
    """Whether the context would admit it, so that the store is asked."""
    assert context.remaining is not None
    left = int(context.remaining * 10**9)
    return amount <= left or (at_most and left > 0)


def reap(world: World) -> int:
    losses = world.store.reap(1e6)
    world.store.acknowledge([loss.name for loss in losses])
    return sum(loss.hold.booked for loss in losses)


# -- the drivers ---------------------------------------------------------------------------------------------


def story(log: list[object]) -> Any:
    try:
        log.append((yield LookUp("one")))
    except Trouble:
        log.append((yield LookUp("two")))
    return "end"


def test_a_story_may_go_on_after_an_effect_failed() -> None:
    def perform(effect: Any) -> object:
        if effect.operation == "one":
            raise Trouble
        return effect.operation

    async def perform_async(effect: Any) -> object:
        return perform(effect)

    log: list[object] = []
    assert drive(story(log), perform) == "end"
    assert asyncio.run(drive_async(story(log), perform_async)) == "end"
    assert log == ["two", "two"]


def test_a_story_without_effects() -> None:
    async def nothing(effect: object) -> object:
        raise AssertionError

    perform: Callable[[object], object] = nothing
    assert isinstance(drive(admit(call(5), None), perform), Admitted)
    assert isinstance(asyncio.run(drive_async(admit(call(5), None), nothing)), Admitted)


def test_effects_are_plain_and_picklable() -> None:
    wish = Reserve("op#1", 5, (SHARED,), 9.0)
    for effect in (Hold(wish, 1.0), Release("op#1", 1.0), LookUp("op")):
        assert pickle.loads(pickle.dumps(effect)) == effect
    assert pickle.loads(pickle.dumps(call(5, SHARED))).watches == (SHARED,)
    with pytest.raises(dataclasses.FrozenInstanceError):
        call(5).name = "x"  # type: ignore[misc]


def test_what_was_paid_for_is_told_also_where_nothing_is_left(world: World, run: Driver) -> None:
    with governance_context("job", budget="0.000000010") as context:
        admitted = run(admit(call(5, operation="op", keyed=True), context))
        assert isinstance(admitted, Admitted)
        world.finish(admitted, done(10), context)
        refused = run(admit(call(5, operation="op", keyed=True), context))
        assert isinstance(refused, Refused)
        assert isinstance(refused.error, AlreadyCompleted)
        assert [charge.nanos for charge in refused.error.charges] == [10]
        other = run(admit(call(5, operation="other", keyed=True), context))
        assert isinstance(other, Refused)
        assert isinstance(other.error, BudgetExceeded)


def test_an_unsure_reservation_of_a_named_operation_is_given_back_by_its_token(
    world: World, run: Driver
) -> None:
    world.error, world.fail_after = StoreError("away, and had done it"), Hold
    refused = run(admit(call(5, SHARED, operation="op", keyed=True), None))
    assert isinstance(refused, Refused)
    assert world.seen == ["LookUp", "Hold", "Release"]
    assert shared(world) == Account(0, 0)
    world.fail_after = None
    assert world.admitted(call(5, SHARED, operation="op", keyed=True), None).attempt == 2


@pytest.mark.parametrize("keyed", [True, False], ids=["named by the user", "delivered twice by a queue"])
def test_an_unsure_release_lets_anothers_reservation_of_that_name_stand(
    world: World, run: Driver, keyed: bool
) -> None:
    """Another process may have it in flight."""
    world.admitted(call(5, SHARED, operation="op", keyed=keyed), None)
    world.error, world.fail_before = StoreError("away"), Hold
    refused = run(admit(call(5, SHARED, operation="op", keyed=keyed), None))
    assert isinstance(refused, Refused)
    assert isinstance(refused.error, StoreUnavailable)
    assert shared(world) == Account(0, 5), "the other's reservation stands"
