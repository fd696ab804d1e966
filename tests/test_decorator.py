"""``@governed``: a context for each invocation, budgets for one or for all, and metering."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import pickle
import threading
import warnings
from decimal import Decimal

import pytest

from genops_ctx import (
    Budget,
    BudgetExceeded,
    Usage,
    configure,
    current_context,
    governance_context,
    governed,
    metered_call,
    record_usage,
)
from genops_ctx.core.errors import ConfigurationError, LockedAttributeError, UnknownKeywordError
from genops_ctx.testing import FixedClock, capture

MINI = {"input_tokens": 1000, "output_tokens": 100}
MINI_NANOS = 1000 * 150 + 100 * 600
"""gpt-4o-mini: $0.15 and $0.60 for a million tokens"""


def spend(amount="0.01", **options):
    with metered_call("model", max_cost=amount, **options) as call:
        call.record_cost(amount)
    return call.charge


@governed(team="search")
def documented(question: str, *, deep: bool = False) -> str:
    """Find something."""
    context = current_context()
    return f"{question} {deep} {context.name} {context.team}"


@governed
async def documented_coroutine(question: str) -> str:
    await asyncio.sleep(0)
    return f"{question} {current_context().name}"


# -- what it wraps -----------------------------------------------------------------------------------


def test_a_function_keeps_what_it_is():
    assert documented("Where?", deep=True) == "Where? True documented search"
    assert documented.__name__ == "documented"
    assert documented.__doc__ == "Find something."
    assert documented.__module__ == __name__
    assert str(inspect.signature(documented)) == "(question: 'str', *, deep: 'bool' = False) -> 'str'"
    assert inspect.isfunction(documented.__wrapped__)
    assert current_context() is None


def test_a_coroutine_function_stays_one():
    assert inspect.iscoroutinefunction(documented_coroutine)
    assert asyncio.run(documented_coroutine("Where?")) == "Where? documented_coroutine"


def test_a_governed_function_goes_to_other_processes():
    """By its name, as any function of a module does."""
    assert pickle.loads(pickle.dumps(documented)) is documented
    assert pickle.loads(pickle.dumps(documented_coroutine)) is documented_coroutine
    desk = Desk()
    desk.greeting = "Good day"
    assert pickle.loads(pickle.dumps(desk.method))("Ada") == "Good day Ada Desk.method"
    assert pickle.loads(pickle.dumps(Desk.below))("Ada") == "Hello Ada True"
    assert pickle.loads(pickle.dumps(Desk.static))("Ada") == "Ada True"
    assert pickle.loads(pickle.dumps(Desk.method))(desk, "Ada") == "Good day Ada Desk.method"


def test_a_copy_of_a_governed_function_is_itself():
    """As of any function: settings and dataclasses that hold one may be copied."""
    assert copy.copy(documented) is documented
    assert copy.deepcopy([documented_coroutine]) == [documented_coroutine]
    desk = Desk()
    desk.greeting = "Good day"
    method = copy.deepcopy(desk.method)
    desk.greeting = "Changed"
    assert method("Ada") == "Good day Ada Desk.method"
    assert copy.copy(desk.method)("Ada") == "Changed Ada Desk.method"
    assert copy.deepcopy(Desk.below)("Ada") == "Hello Ada True"


class Desk:
    greeting = "Hello"

    @governed(team="desk")
    def method(self, who):
        return f"{self.greeting} {who} {current_context().name}"

    @governed(team="desk")
    async def coroutine(self, who):
        return f"{self.greeting} {who} {current_context().team}"

    @classmethod
    @governed
    def above(cls, who):
        return f"{cls.greeting} {who} {current_context() is not None}"

    @governed
    @classmethod
    def below(cls, who):
        return f"{cls.greeting} {who} {current_context() is not None}"

    @governed(team="desk")
    @classmethod
    async def below_later(cls, who):
        return f"{cls.greeting} {who} {current_context().team}"

    @governed
    @staticmethod
    def static(who):
        return f"{who} {current_context() is not None}"

    @property
    @governed
    def state(self):
        return current_context().name

    @governed
    def __call__(self, who):
        return self.method(who)


def test_methods():
    desk = Desk()
    assert desk.method("Ada") == "Hello Ada Desk.method"
    assert Desk.method(desk, "Ada") == "Hello Ada Desk.method"
    assert asyncio.run(desk.coroutine("Ada")) == "Hello Ada desk"
    assert inspect.iscoroutinefunction(desk.coroutine)
    assert Desk.above("Ada") == desk.above("Ada") == "Hello Ada True"
    assert Desk.below("Ada") == desk.below("Ada") == "Hello Ada True"
    assert asyncio.run(Desk.below_later("Ada")) == "Hello Ada desk"
    assert Desk.static("Ada") == desk.static("Ada") == "Ada True"
    assert desk.state == "Desk.state"
    assert desk("Ada") == "Hello Ada Desk.method"


def test_other_callables():
    wrapped = governed(team="x")(functools.partial(documented, "Where?"))
    assert wrapped() == "Where? False documented search"
    assert governed(Desk())("Ada") == "Hello Ada Desk.method"
    assert governed(lambda: current_context().team)() is None
    assert governed(len)("abc") == 3


def test_an_object_that_is_called_as_a_coroutine():
    class Caller:
        async def __call__(self):
            await asyncio.sleep(0)
            return current_context().team

    assert asyncio.run(governed(team="x")(Caller())()) == "x"
    assert asyncio.run(governed(team="x")(functools.partial(Caller()))()) == "x"
    assert asyncio.run(governed(team="y")(functools.partial(documented_coroutine, "Where?"))())


def test_decorators_stack():
    @governed(team="outer", feature="outer")
    @governed(team="inner")
    def both():
        context = current_context()
        return context.team, context.feature, len(context.path)

    assert both() == ("inner", "outer", 2)


@pytest.mark.parametrize(
    ("decorate", "error"),
    [
        (lambda: governed("search"), ConfigurationError),
        (lambda: governed(5), ConfigurationError),
        (lambda: governed(Desk), ConfigurationError),
        (lambda: governed(team="x")(Desk), ConfigurationError),
        (lambda: governed(budget="lots"), ConfigurationError),
        (lambda: governed(budget=float("nan")), ConfigurationError),
        (lambda: governed(budget=-1), ConfigurationError),
        (lambda: governed(budget="5/fortnight"), ConfigurationError),
        (lambda: governed(max_cost=1), ConfigurationError),
        (lambda: governed(max_cost="x", meter=len), ConfigurationError),
        (lambda: governed(meter="auto-matic"), ConfigurationError),
        (lambda: governed(meter=5), ConfigurationError),
        (lambda: governed(buget=5), UnknownKeywordError),
        (lambda: governed(tean="x"), UnknownKeywordError),
        (lambda: governed(metre=len), UnknownKeywordError),
        (lambda: governed(team=""), ConfigurationError),
        (lambda: governed(team=object()), ConfigurationError),
    ],
)
def test_bad_decorations(decorate, error):
    with pytest.raises(error):
        decorate()


@pytest.mark.parametrize("bad", [staticmethod(5), None.__class__])
def test_what_cannot_be_called(bad):
    with pytest.raises((ConfigurationError, TypeError)):
        governed(bad)()


# -- budgets -----------------------------------------------------------------------------------------


def test_a_plain_budget_is_for_each_invocation():
    @governed(budget="0.05")
    def work(times):
        for _ in range(times):
            spend()

    for _ in range(4):
        work(5)
    with pytest.raises(BudgetExceeded):
        work(6)
    work(5)


def test_a_windowed_budget_is_for_all_invocations(empty_directory):
    clock = FixedClock()
    configure(clock=clock)

    @governed(budget="0.05/day")
    def work(times):
        for _ in range(times):
            spend()

    @governed(budget="0.05/day")
    def other():
        spend()

    work(3)
    with pytest.raises(BudgetExceeded) as caught:
        work(3)
    assert "work" in caught.value.scope
    assert caught.value.spent == Decimal("0.05")
    other()  # an account of its own
    clock.advance(86_400)
    work(5)


def test_one_name_one_account(empty_directory):
    configure(clock=FixedClock())
    shared = Budget("0.02/day", by="team")

    @governed(budget=shared, team="a")
    def one():
        spend()

    @governed(budget=shared, team="a")
    def two():
        spend()

    one()
    two()
    with pytest.raises(BudgetExceeded):
        one()


def test_several_budgets_hold_together(empty_directory):
    configure(clock=FixedClock())

    @governed(budget=["0.03", "0.04/day"])
    def work(times):
        for _ in range(times):
            spend()

    with pytest.raises(BudgetExceeded, match=r"0\.03"):
        work(4)
    with pytest.raises(BudgetExceeded, match="day"):
        work(2)


def test_recursion_opens_a_context_each_time():
    @governed(budget="0.03")
    def down(depth):
        spend()
        if depth:
            down(depth - 1)

    down(2)
    with pytest.raises(BudgetExceeded):
        down(3)


def test_locked_attributes():
    @governed(team="locked", locked="team")
    def work():
        with governance_context(team="other"):
            pass

    with pytest.raises(LockedAttributeError):
        work()
    with governance_context(team="outer", locked=("team",)), pytest.raises(LockedAttributeError):
        documented("Where?")
    assert current_context() is None


def test_an_exception_comes_through_and_the_context_ends():
    @governed(budget=1)
    def fail():
        spend()
        raise KeyError("mine")

    @governed(budget=1)
    async def fail_later():
        spend()
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fail()
    with pytest.raises(KeyError, match="mine"):
        asyncio.run(fail_later())
    assert current_context() is None


def test_tasks_have_contexts_of_their_own():
    @governed
    async def work(name):
        before = current_context()
        with governance_context(team=name):
            await asyncio.sleep(0.01)
            assert current_context().team == name
        assert current_context() is before
        return name

    async def main():
        with governance_context("main") as context:
            names = await asyncio.gather(*(work(f"t{n}") for n in range(20)))
            assert current_context() is context
            return names

    assert asyncio.run(main()) == [f"t{n}" for n in range(20)]


def test_a_cancelled_coroutine_leaves_nothing_reserved():
    contexts = []

    @governed(budget=1, meter=lambda result: Decimal(result), max_cost="0.5")
    async def work():
        contexts.append(current_context())
        await asyncio.sleep(30)

    async def main():
        task = asyncio.create_task(work())
        await asyncio.sleep(0.01)
        assert contexts[0].reserved == Decimal("0.5")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with capture() as charges:
        asyncio.run(main())
    assert contexts[0].reserved == 0
    assert [(charge.outcome, charge.cost) for charge in charges] == [("cancelled", Decimal("0.5"))]


# -- meters ------------------------------------------------------------------------------------------

USAGE = Usage("openai", "gpt-4o-mini", **MINI)


@pytest.mark.parametrize(
    ("metered", "nanos"),
    [
        (USAGE, MINI_NANOS),
        ([USAGE, USAGE], 2 * MINI_NANOS),
        ((USAGE,), MINI_NANOS),
        (Decimal("0.02"), 20_000_000),
        (Decimal(0), 0),
    ],
    ids=["usage", "list", "tuple", "cost", "free"],
)
@pytest.mark.parametrize("later", [False, True])
def test_what_a_meter_may_give(metered, nanos, later):
    def meter(result):
        assert result == "answer"
        return metered

    if later:

        @governed(meter=meter, name="model", team="help", budget=1, max_cost="0.1")
        async def call():
            assert current_context().reserved == Decimal("0.1")
            return "answer"
    else:

        @governed(meter=meter, name="model", team="help", budget=1, max_cost="0.1")
        def call():
            assert current_context().reserved == Decimal("0.1")
            return "answer"

    with governance_context("test") as context, capture() as charges:
        assert (asyncio.run(call()) if later else call()) == "answer"
    (charge,) = charges
    assert (charge.nanos, charge.name, charge.exactness) == (nanos, "model", "exact")
    assert charge.attribution["team"] == "help"
    assert context.reserved == 0
    if not later:
        assert context.total_cost == charge.cost


def test_a_meter_may_be_a_generator():
    def meter(result):
        yield USAGE
        yield USAGE

    with capture() as charges:
        governed(meter=meter)(lambda: "answer")()
    assert charges[0].nanos == 2 * MINI_NANOS


@pytest.mark.parametrize("nothing", [None, [], ()])
def test_a_meter_that_says_nothing_was_called(nothing):
    with governance_context("test", budget=1) as context, capture() as charges:
        assert governed(meter=lambda result: nothing, max_cost="0.5")(lambda: "cached")() == "cached"
    assert (charges, context.total_cost, context.reserved) == ([], 0, 0)


def bad_meter(result):
    raise ZeroDivisionError("zq7-secret")


@pytest.mark.parametrize(
    "meter",
    [
        bad_meter,
        lambda result: 5,
        lambda result: 0.5,
        lambda result: "text",
        lambda result: b"bytes",
        lambda result: {"input_tokens": 5},
        lambda result: object(),
        lambda result: Decimal("NaN"),
        lambda result: Decimal(-1),
        lambda result: [USAGE, "zq7-secret"],
        lambda result: (part for part in [USAGE, 1 / 0]),
        lambda: None,
    ],
    ids=[
        "raises",
        "int",
        "float",
        "str",
        "bytes",
        "dict",
        "object",
        "NaN",
        "negative",
        "half",
        "generator",
        "arity",
    ],
)
@pytest.mark.parametrize("action", ["error", "ignore"])
def test_a_meter_that_fails_does_not_take_the_result_away(meter, action, caplog):
    """The call is paid for. Its cost is unknown, and what was reserved is booked: all of it."""
    with (
        warnings.catch_warnings(),
        governance_context("test", budget=1) as context,
        capture() as charges,
    ):
        warnings.simplefilter(action)
        assert governed(meter=meter, max_cost="0.25")(lambda: "zq7-answer")() == "zq7-answer"
        assert context.reserved == 0
        assert context.total_cost == Decimal("0.25")
    (charge,) = charges
    assert (charge.cost, charge.exactness) == (Decimal("0.25"), "unknown")
    assert "meter of" in caplog.text
    assert "zq7" not in caplog.text


def test_a_metered_function_that_does_not_fit_is_not_run():
    ran = []
    with governance_context("test", budget="0.10") as context:
        call = governed(meter=lambda result: Decimal("0.04"), max_cost="0.06")(lambda: ran.append(1))
        call()
        call()
        with pytest.raises(BudgetExceeded):
            call()
    assert len(ran) == 2
    assert context.total_cost == Decimal("0.08")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, TimeoutError, ConnectionResetError])
def test_a_metered_function_that_fails_books_what_was_reserved(error):
    def fail():
        raise error("zq7")

    with governance_context("test", budget=1) as context, pytest.raises(error):
        governed(meter=lambda result: Decimal(1), max_cost="0.25")(fail)()
    assert (context.reserved, context.total_cost) == (0, Decimal("0.25"))


def test_a_refused_connection_costs_nothing():
    def fail():
        raise ConnectionRefusedError

    with governance_context("test", budget=1) as context, pytest.raises(ConnectionRefusedError):
        governed(meter=lambda result: Decimal(1), max_cost="0.25")(fail)()
    assert (context.reserved, context.total_cost, context.calls) == (0, 0, 0)


def test_without_a_meter_nothing_is_metered_by_itself():
    with capture() as charges:
        documented("Where?")
    assert charges == []


def test_what_runs_inside_counts_once_in_every_context():
    @governed
    def inner():
        record_usage("openai", "gpt-4o-mini", **MINI)

    @governed
    def outer():
        inner()
        inner()
        return current_context().total_cost

    with governance_context("test") as context:
        assert outer() == context.total_cost == Decimal(2 * MINI_NANOS) / 10**9


def test_many_threads_call_one_function():
    seen = []

    @governed(budget="0.02", team="x")
    def work():
        spend()
        seen.append(current_context().total_cost)

    threads = [threading.Thread(target=work) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [Decimal("0.01")] * 30
