"""What follows where budgets refuse: block before degrade before a function before a warning."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from decimal import Decimal

import pytest

from genops_ctx.core.admission import Expectation
from genops_ctx.core.booking import Report
from genops_ctx.core.budget import Budget
from genops_ctx.core.call import Admitted, Ask, Call, Refused, admit, drive, finish
from genops_ctx.core.context import GovernanceContext, governance_context
from genops_ctx.core.effects import Hold, Release
from genops_ctx.core.errors import BudgetExceeded, ConfigurationError
from genops_ctx.core.outcomes import Outcome
from genops_ctx.core.ports import Held
from genops_ctx.stores.memory import MemoryStore

NOW = 1_795_219_200.0  # 2026-11-21T00:00:00Z
CENT = 10_000_000
_keys = itertools.count()


class World:
    """A memory store, and the effects that were asked of it."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.seen: list[str] = []

    def perform(self, effect: object) -> object:
        self.seen.append(type(effect).__name__)
        if isinstance(effect, Hold):
            return self.store.reserve(effect.wish, effect.now)
        if isinstance(effect, Release):
            return self.store.release(effect.hold, effect.now)
        assert isinstance(effect, Ask)
        return effect.function(effect.refusal)

    def admit(
        self, *budgets: Budget, context: GovernanceContext | None = None, cents: int = 2, **options: object
    ) -> Admitted | Refused:
        watches = tuple(budget.watch({}, NOW, budget.name or "") for budget in budgets)
        call = Call(
            "flow",
            str(next(_keys)),
            {},
            Expectation(cents * CENT, "max_cost", at_most=False),
            watches,
            NOW,
            60.0,
            **options,  # type: ignore[arg-type]
        )
        return drive(admit(call, context), self.perform)

    @property
    def reserved(self) -> int:
        return sum(account.reserved for account in self.store.accounts().values())


@pytest.fixture
def world() -> World:
    return World()


def budget(name: str, action: object, cents: int = 1, fallback: str | None = None) -> Budget:
    """A budget that a call of 2 cents passes."""
    return Budget(Decimal(cents) / 100, "day", name=name, on_exceeded=action, fallback=fallback)  # type: ignore[arg-type]


def yes(_: BudgetExceeded) -> bool:
    return True


def no(_: BudgetExceeded) -> bool:
    return False


ACTIONS = {
    "block": budget("block", "block"),
    "degrade": budget("degrade", "degrade", fallback="cheap"),
    "ask": budget("ask", yes),
    "warn": budget("warn", "warn"),
}


@pytest.mark.parametrize("order", list(itertools.permutations(ACTIONS)), ids="-".join)
@pytest.mark.parametrize("without", [0, 1, 2, 3])
def test_precedence_whatever_the_order(world: World, order: tuple[str, ...], without: int) -> None:
    """The first without some of block, degrade, ask, warn."""
    strictest = list(ACTIONS)[without]
    answer = world.admit(*(ACTIONS[name] for name in order if list(ACTIONS).index(name) >= without))
    if strictest in ("block", "degrade"):
        assert isinstance(answer, Refused)
        assert isinstance(answer.error, BudgetExceeded)
        assert answer.error.budget == strictest
        assert answer.error.fallback == ("cheap" if strictest == "degrade" else "")
        assert "Ask" not in world.seen
        assert world.reserved == 0
    else:
        assert isinstance(answer, Admitted)
        assert answer.passed == ("warn",)
        assert answer.flags == (("approved:ask",) if strictest == "ask" else ())
        accounts = len(ACTIONS) - without
        assert world.reserved == accounts * 2 * CENT


def test_a_call_that_fits_asks_nobody(world: World) -> None:
    answer = world.admit(*ACTIONS.values(), cents=1)
    assert isinstance(answer, Admitted)
    assert world.seen == ["Hold"]
    assert answer.flags == answer.passed == ()


def boom(_: BudgetExceeded) -> bool:
    raise RuntimeError("the pager is down")


@pytest.mark.parametrize(
    ("function", "cause"),
    [(no, None), (lambda _: None, None), (lambda _: 1, None), (lambda _: "yes", None), (boom, RuntimeError)],
)
def test_only_true_lets_a_call_through(
    world: World, function: Callable[[BudgetExceeded], object], cause: type | None
) -> None:
    answer = world.admit(budget("ask", function))
    assert isinstance(answer, Refused)
    assert isinstance(answer.error, BudgetExceeded)
    assert answer.error.budget == "ask"
    assert type(answer.error.__cause__) is (cause or type(None))
    assert world.reserved == 0
    assert world.seen[-1] == "Release"


def test_each_function_is_told_of_its_own_budget_and_one_no_is_enough(world: World) -> None:
    told: list[tuple[str, Decimal, Decimal]] = []

    def ask(answer: bool) -> Callable[[BudgetExceeded], bool]:
        def function(error: BudgetExceeded) -> bool:
            told.append((error.budget, error.limit, error.wanted))
            return answer

        return function

    allowed = world.admit(budget("one", ask(True)), budget("two", ask(True), cents=0))
    assert isinstance(allowed, Admitted)
    assert set(allowed.flags) == {"approved:one", "approved:two"}
    assert sorted(told) == [
        ("one", Decimal("0.01"), Decimal("0.02")),
        ("two", Decimal(0), Decimal("0.02")),
    ]
    refused = world.admit(budget("three", ask(True)), budget("four", ask(False)))
    assert isinstance(refused, Refused)
    assert refused.error.budget == "four"  # type: ignore[attr-defined]


class Interrupted(BaseException):
    pass


def test_a_function_that_interrupts_leaves_nothing_reserved(world: World) -> None:
    def stop(_: BudgetExceeded) -> bool:
        raise Interrupted

    with governance_context("job", budget=1) as context, pytest.raises(Interrupted):
        world.admit(budget("ask", stop), context=context)
    assert world.reserved == 0
    assert context.reserved == 0


@pytest.mark.parametrize("action", [yes, "degrade", "warn"])
def test_a_frozen_scope_is_blocked_whatever_the_budget_says(world: World, action: object) -> None:
    one = budget("one", action, fallback="cheap" if action == "degrade" else None)
    world.store.set_control(one.watch({}, NOW, "one").control, frozen=True)
    answer = world.admit(one, cents=0)
    assert isinstance(answer, Refused)
    assert answer.error.frozen  # type: ignore[attr-defined]
    assert answer.error.fallback == ""  # type: ignore[attr-defined]
    # Also behind a budget that would have degraded.
    both = world.admit(ACTIONS["degrade"], one)
    assert isinstance(both, Refused)
    assert both.error.budget == "one"  # type: ignore[attr-defined]
    # And the cheaper flow is blocked too.
    cheaper = world.admit(one, cents=0, degraded_from="dear")
    assert isinstance(cheaper, Refused)
    assert cheaper.error.frozen  # type: ignore[attr-defined]


def test_in_a_frozen_scope_observing_refuses_nothing(world: World) -> None:
    one = budget("one", "block")
    world.store.set_control(one.watch({}, NOW, "one").control, frozen=True)
    answer = world.admit(one, cents=0, enforced=False)
    assert isinstance(answer, Admitted)
    assert answer.flags == ("would_refuse:one",)


def test_budgets_of_contexts_take_part(world: World) -> None:
    told: list[str] = []

    def ask(error: BudgetExceeded) -> bool:
        told.append(error.scope)
        return True

    with governance_context("job", budget=Budget("0.01", on_exceeded=ask, name="mine")) as context:
        answer = world.admit(budget("day", "block", cents=3), context=context)
        assert isinstance(answer, Admitted)
        assert answer.flags == ("approved:mine",)
        assert told == ["context 'job'"]
        assert context.reserved == Decimal("0.02")
        refused = world.admit(budget("day", "block", cents=3), context=context)
        assert isinstance(refused, Refused)
        assert told == ["context 'job'"], "nobody is asked where another budget blocks"
        assert (context.reserved, context.refused_calls) == (Decimal("0.02"), 1)
        report = Report(Outcome.NOT_SENT, NOW)
        drive(finish(answer, report, None, context), world.perform)  # type: ignore[arg-type]
        assert context.reserved == 0
    assert world.reserved == 0


def test_the_cheaper_call_is_not_refused_by_budgets_that_degrade(world: World) -> None:
    cheap = world.admit(ACTIONS["degrade"], degraded_from="dear")
    assert isinstance(cheap, Admitted)
    assert cheap.flags == ("degraded_from:dear",)
    assert cheap.passed == ("degrade",)
    blocked = world.admit(ACTIONS["degrade"], ACTIONS["block"], degraded_from="dear")
    assert isinstance(blocked, Refused)
    assert (blocked.error.budget, blocked.error.fallback) == ("block", "")  # type: ignore[attr-defined]


def test_observing_lets_all_through_and_says_what_each_would_have_done(world: World) -> None:
    with governance_context("job", budget=Budget("0.01", name="mine")) as context:
        answer = world.admit(*ACTIONS.values(), context=context, enforced=False)
    assert isinstance(answer, Admitted)
    assert answer.passed == ("warn",)
    assert set(answer.flags) == {f"would_refuse:{name}" for name in ("mine", "block", "degrade", "ask")}
    assert "Ask" not in world.seen
    assert (context.would_refuse_calls, context.refused_calls) == (1, 0)


def test_where_no_budgets_are_kept_none_is_flagged(world: World) -> None:
    with governance_context("job", budget=0) as context:
        answer = world.admit(context=context, enforced=False, kept=False)
    assert isinstance(answer, Admitted)
    assert answer.flags == answer.passed == ()
    assert context.would_refuse_calls == 0


def test_a_store_that_fails_the_second_time_refuses(world: World) -> None:
    from genops_ctx.core.errors import StoreError, StoreUnavailable

    answers = iter([world.store.reserve, None])

    def perform(effect: object) -> object:
        if isinstance(effect, Hold):
            reserve = next(answers)
            if reserve is None:
                raise StoreError("gone")
            answer = reserve(effect.wish, effect.now)
            assert not isinstance(answer, Held)
            return answer
        return world.perform(effect)

    watches = (ACTIONS["ask"].watch({}, NOW, "ask"),)
    call = Call("flow", "key", {}, Expectation(2 * CENT, "max_cost", at_most=False), watches, NOW, 60.0)
    answer = drive(admit(call, None), perform)
    assert isinstance(answer, Refused)
    assert isinstance(answer.error, StoreUnavailable)


async def _coroutine(_: BudgetExceeded) -> bool:
    return True


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"on_exceeded": "stop"}, "block, warn, degrade or a function"),
        ({"on_exceeded": None}, "block, warn, degrade or a function"),
        ({"on_exceeded": _coroutine}, "plain function"),
        ({"on_exceeded": "degrade"}, "needs fallback="),
        ({"on_exceeded": "degrade", "fallback": " "}, "needs fallback="),
        ({"on_exceeded": "degrade", "fallback": {"model": "gpt-4o-mini"}}, "ignores in silence"),
        ({"fallback": "cheap"}, "belongs to"),
        ({"on_exceeded": "warn", "fallback": "cheap"}, "belongs to"),
    ],
)
def test_what_a_budget_cannot_do(options: dict, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        Budget(1, **options)
