"""Governed generators, async generators and context managers: where their steps' costs land."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import pickle
import sys
import threading
import types
import warnings
from collections.abc import AsyncGenerator, Generator
from decimal import Decimal

import pytest

from genops_ctx import current_context, governance_context, governed, metered_call
from genops_ctx.core.errors import BudgetExceeded, GovernanceWarning
from genops_ctx.core.steps import Dropped
from genops_ctx.runtime import get_runtime


def spend(cents=1):
    amount = Decimal(cents) / 100
    with metered_call("model", max_cost=amount) as call:
        call.record_cost(amount)


def cents(context):
    return int(context.total_cost * 100)


seen: list[object] = []


@pytest.fixture(autouse=True)
def nothing_seen():
    seen.clear()
    yield
    assert current_context() is None


@governed(team="steps")
def paying(number: int) -> Generator[int, int, str]:
    """Pay a cent a step."""
    seen.append(current_context())
    try:
        for index in range(number):
            spend()
            assert current_context().team == "steps"
            got = yield index
            seen.append(got)
        return "done"
    finally:
        seen.append(current_context().name)


@governed(team="steps")
async def paying_later(number: int) -> AsyncGenerator[int, int]:
    seen.append(current_context())
    try:
        for index in range(number):
            await asyncio.sleep(0)
            spend()
            assert current_context().team == "steps"
            yield index
    finally:
        await asyncio.sleep(0)
        seen.append(current_context().name)


# -- what stays as it was ------------------------------------------------------------------------


def test_they_stay_what_they_are():
    assert inspect.isgeneratorfunction(paying)
    assert inspect.isasyncgenfunction(paying_later)
    assert paying.__doc__ == "Pay a cent a step."
    assert str(inspect.signature(paying)) == "(number: 'int') -> 'Generator[int, int, str]'"
    assert pickle.loads(pickle.dumps(paying)) is paying
    generator = paying(1)
    assert inspect.isgenerator(generator)
    generator.close()
    assert inspect.isasyncgen(paying_later(1))


def test_wrong_arguments_are_told_at_the_call():
    with pytest.raises(TypeError):
        paying()
    with pytest.raises(TypeError):
        paying_later()


def test_values_sent_and_returned():
    generator = paying(2)
    assert next(generator) == 0
    assert generator.send(7) == 1
    with pytest.raises(StopIteration) as stop:
        generator.send(8)
    assert stop.value.value == "done"
    assert seen[1:3] == [7, 8]
    assert cents(seen[0]) == 2


def test_yield_from_gives_the_return_value():
    @governed
    def outer():
        result = yield from paying(2)
        seen.append(result)

    with governance_context("test") as context:
        assert list(outer()) == [0, 1]
    assert seen[-1] == "done"
    assert cents(context) == 2
    assert seen[0].parent.name.endswith("outer")


def test_an_exception_thrown_in_arrives_in_the_context():
    @governed
    def stubborn():
        while True:
            try:
                yield "waiting"
            except KeyError:
                spend()
                seen.append(current_context())
                yield "caught"

    with governance_context("test") as context:
        generator = stubborn()
        next(generator)
        assert generator.throw(KeyError("x")) == "caught"
        assert current_context() is context
        with pytest.raises(LookupError):
            generator.throw(LookupError("y"))
    assert cents(seen[0]) == cents(context) == 1


def test_a_generator_that_fails_ends_its_context():
    @governed
    def failing():
        yield 1
        spend()
        raise ZeroDivisionError

    with governance_context("test") as context:
        generator = failing()
        next(generator)
        with pytest.raises(ZeroDivisionError):
            next(generator)
        assert current_context() is context
    assert cents(context) == 1


def test_what_breaks_a_plain_generator_breaks_a_governed_one_alike():
    def plain():
        try:
            yield 1
        except GeneratorExit:
            yield 2

    def stops():
        yield 1
        raise StopIteration

    for function in (plain, governed(plain)):
        generator = function()
        next(generator)
        with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
            generator.close()
    for function in (stops, governed(stops)):
        generator = function()
        next(generator)
        with pytest.raises(RuntimeError, match="raised StopIteration"):
            next(generator)
    for function in (paying, governed(paying)):
        generator = function(2)
        next(generator)
        with pytest.raises(GeneratorExit):
            generator.throw(GeneratorExit())


def test_a_generator_that_is_running_cannot_be_run():
    @governed
    def own():
        yield from generator

    generator = own()
    with pytest.raises(ValueError, match="already executing"):
        next(generator)


@pytest.mark.skipif(sys.version_info < (3, 13), reason="close() gives a value from Python 3.13 on")
def test_close_gives_the_value_returned():
    @governed
    def tidy():
        try:
            yield 1
        except GeneratorExit:
            return 5

    generator = tidy()
    next(generator)
    assert generator.close() == 5


# -- sync generators: suspended, interleaved, closed early ---------------------------------------


def test_suspended_the_caller_pays_for_itself():
    with governance_context("test") as context:
        generator = paying(3)
        next(generator)
        assert current_context() is context
        spend(5)
        next(generator)
        assert current_context() is context
    assert cents(context) == 7
    assert cents(seen[0]) == 2
    assert list(generator) == [2]  # after the block: it still counts, once
    assert cents(context) == 8
    assert cents(seen[0]) == 3


def test_interleaved_each_pays_for_its_own():
    with governance_context("a") as a:
        one = paying(3)
        next(one)
        with governance_context("b") as b:
            two = paying(3)
            next(two)
            next(one)
            next(two)
            assert current_context() is b
        next(one)
        assert current_context() is a
        next(two)
    first, second = [item for item in seen if hasattr(item, "total_cost")]
    assert (first.parent, second.parent) == (a, b)
    assert (cents(first), cents(second), cents(b), cents(a)) == (3, 3, 3, 6)
    one.close()
    two.close()


def test_closed_early_its_cleaning_up_runs_in_its_context():
    with governance_context("test") as context:
        generator = paying(3)
        next(generator)
        generator.close()
        assert current_context() is context
        generator.close()
    assert (seen[-1], cents(context)) == ("paying", 1)


def test_left_in_a_loop():
    with governance_context("test") as context:
        for index in paying(10):
            spend(10)
            if index == 2:
                break
        gc.collect()
        assert current_context() is context
    assert cents(context) == 33
    assert seen[-1] == "paying"


def test_never_begun_it_opens_nothing():
    with governance_context("test") as context:
        paying(3).close()
        paying(3)
        gc.collect()
    assert (seen, cents(context), len(context.tree().children)) == ([], 0, 0)


def test_a_dropped_one_is_closed_by_somebody_who_may_wait(monkeypatch):
    """A finalizer may run in the middle of anything; explicit closing closes at once."""
    queued = []
    monkeypatch.setattr(Dropped, "put", queued.append)
    generator = paying(3)
    next(generator)
    del generator
    gc.collect()
    assert (seen[-1], len(queued)) == ("paying", 1)
    queued[0]()
    generator = paying(3)
    next(generator)
    generator.close()
    assert len(queued) == 1


def test_a_dropped_one_in_a_cycle_is_too(monkeypatch):
    @governed
    def steps():
        yield 1

    queued = []
    monkeypatch.setattr(Dropped, "put", queued.append)
    generator = steps()
    next(generator)
    ring = [generator]
    ring.append(ring)
    del generator, ring
    gc.collect()
    assert len(queued) == 1


def test_what_is_dropped_goes_to_the_runtime():
    generator = paying(3)
    next(generator)
    del generator
    gc.collect()
    assert not get_runtime().abandoned.empty()
    with governance_context("test"):
        spend()
    assert get_runtime().abandoned.empty()


def test_it_belongs_to_where_it_was_asked_for():
    with governance_context("request") as request:
        generator = paying(2)
    assert list(generator) == [0, 1]
    assert cents(request) == 2
    with governance_context("a") as a:
        generator = paying(2)
    with governance_context("b") as b:
        assert list(generator) == [0, 1]
    assert (cents(a), cents(b)) == (2, 0)


def test_to_a_budget_around_its_first_step_where_that_is_further_in():
    generator = paying(3)
    with governance_context("loop", budget="0.02") as loop, pytest.raises(BudgetExceeded):
        list(generator)
    assert cents(loop) == 2
    with governance_context("outer") as outer:
        generator = paying(3)
        with governance_context("inner", budget="0.02") as inner, pytest.raises(BudgetExceeded):
            list(generator)
    assert (cents(outer), cents(inner)) == (2, 2)


def test_each_invocation_has_a_budget_over_all_its_steps():
    @governed(budget="0.03")
    def limited():
        while True:
            spend()
            yield

    for _ in range(2):
        steps = limited()
        for _ in range(3):
            next(steps)
        with pytest.raises(BudgetExceeded):
            next(steps)


def test_stepped_by_several_threads():
    """As a server does that streams an answer: each step on any worker."""
    with governance_context("request") as request:
        generator = paying(5)

    def step():
        next(generator)
        assert current_context() is None

    for _ in range(5):
        thread = threading.Thread(target=step)
        thread.start()
        thread.join()
    assert cents(request) == 5
    generator.close()


def test_contexts_opened_in_its_body_stay_inside():
    @governed
    def body():
        with governance_context("inside") as inside:
            seen.append(inside)
            spend()
            yield 1
            assert current_context() is inside
            spend()
            yield 2

    with governance_context("test") as context:
        for _ in body():
            assert current_context() is context
            spend(10)
    assert (cents(seen[0]), cents(context)) == (2, 22)


# -- what was decorated otherwise ----------------------------------------------------------------


def test_a_function_that_returns_a_generator_is_governed_until_that_ends():
    @governed(budget="0.03")
    def made():
        spend()
        return (spend() for _ in range(5))

    with governance_context("test") as context:
        generator = made()
        assert current_context() is context
        with pytest.raises(BudgetExceeded):
            list(generator)
        assert current_context() is context
    assert cents(context) == 3


def test_a_function_that_returns_a_coroutine_or_async_generator_too():
    async def work():
        await asyncio.sleep(0)
        spend()
        return current_context()

    async def stream():
        yield current_context()
        spend()
        yield current_context()

    later = governed(name="later")(lambda: work())
    streamed = governed(name="streamed")(lambda: stream())

    async def main():
        with governance_context("test") as context:
            inner = await later()
            assert (inner.name, inner.parent) == ("later", context)
            assert current_context() is context
            found = {inside async for inside in streamed()}
            assert [(inside.name, cents(inside)) for inside in found] == [("streamed", 1)]
        return cents(context)

    assert asyncio.run(main()) == 2


def test_generators_that_are_coroutines():
    @governed(name="old")
    @types.coroutine
    def old():
        spend()
        yield from asyncio.sleep(0).__await__()
        spend()
        return current_context()

    async def main():
        with governance_context("test") as context:
            found = await old()
            assert (found.name, found.parent) == ("old", context)
            assert current_context() is context
        return cents(context)

    assert asyncio.run(main()) == 2


def test_as_methods():
    class Desk:
        @governed
        def numbers(self, number):
            for index in range(number):
                spend()
                yield self, index

        @governed
        @classmethod
        async def more(cls, number):
            for index in range(number):
                spend()
                yield cls, index

        @staticmethod
        @governed
        def plain(number):
            yield from range(number)

        @governed
        def __iter__(self):
            spend()
            yield 1

    async def main():
        return [item async for item in Desk.more(2)]

    desk = Desk()
    with governance_context("test") as context:
        assert list(desk.numbers(2)) == [(desk, 0), (desk, 1)]
        assert asyncio.run(main()) == [(Desk, 0), (Desk, 1)]
        assert list(desk.plain(2)) == [0, 1]
        assert list(desk) == [1]
        assert inspect.isgeneratorfunction(desk.numbers)
        assert inspect.isasyncgenfunction(Desk.more)
    assert cents(context) == 5


def test_a_context_as_decorator_does_the_same():
    @governance_context("steps", team="x")
    def numbers():
        spend()
        yield current_context().team
        spend()

    with governance_context("test") as context:
        for team in numbers():
            assert team == "x"
            assert current_context() is context
    assert cents(context) == 2


# -- async generators: the same three ------------------------------------------------------------


def test_async_suspended():
    async def main():
        with governance_context("test") as context:
            generator = paying_later(3)
            await anext(generator)
            assert current_context() is context
            spend(5)
            await anext(generator)
            assert current_context() is context
        assert [index async for index in generator] == [2]
        return context

    assert cents(asyncio.run(main())) == 8


def test_async_interleaved_over_tasks():
    async def use(name):
        with governance_context(name) as context:
            async for _ in paying_later(4):
                assert current_context() is context
                spend(10)
                await asyncio.sleep(0)
        return cents(context)

    async def main():
        with governance_context("all") as everything:
            assert await asyncio.gather(*(use(f"t{n}") for n in range(5))) == [44] * 5
        return cents(everything)

    assert asyncio.run(main()) == 220


def test_async_stepped_by_several_tasks():
    async def main():
        with governance_context("request") as request:
            generator = paying_later(4)
        for _ in range(4):
            await asyncio.create_task(anext(generator))
        await generator.aclose()
        return cents(request), seen[-1]

    assert asyncio.run(main()) == (4, "paying_later")


def test_async_closed_early():
    async def main():
        with governance_context("test") as context:
            async with contextlib.aclosing(paying_later(9)) as generator:
                async for index in generator:
                    if index == 1:
                        break
            assert current_context() is context
        return cents(context), seen[-1]

    assert asyncio.run(main()) == (2, "paying_later")


def test_async_dropped_is_closed_by_the_loop():
    async def main():
        with governance_context("test") as context:
            async for index in paying_later(9):
                if index == 1:
                    break
            gc.collect()
            for _ in range(5):
                await asyncio.sleep(0)
            assert current_context() is context
        return cents(context), seen[-1]

    assert asyncio.run(main()) == (2, "paying_later")


def test_async_left_open_when_the_loop_ends(caplog):
    held = []

    async def main():
        generator = paying_later(9)
        await anext(generator)
        held.append(generator)

    asyncio.run(main())
    assert seen[-1] == "paying_later"
    assert [record for record in caplog.records if record.name == "asyncio"] == []


def test_async_thrown_into_and_sent_to():
    @governed
    async def stubborn():
        got = None
        while True:
            try:
                got = yield got
            except KeyError:
                spend()
                got = "caught"

    async def main():
        with governance_context("test") as context:
            generator = stubborn()
            await anext(generator)
            assert await generator.asend("hello") == "hello"
            assert await generator.athrow(KeyError("x")) == "caught"
            assert current_context() is context
            with pytest.raises(LookupError):
                await generator.athrow(LookupError("y"))
        return cents(context)

    assert asyncio.run(main()) == 1


def test_async_cancelled_in_a_step():
    @governed
    async def waiting():
        spend()
        yield 1
        try:
            await asyncio.sleep(30)
        finally:
            seen.append(current_context())
        yield 2

    async def use():
        async for _ in waiting():
            pass

    async def main():
        with governance_context("test") as context:
            task = asyncio.create_task(use())
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        return cents(context)

    assert asyncio.run(main()) == 1
    assert seen[0].name.endswith("waiting")


def test_tasks_begun_in_a_step_belong_to_it():
    @governed
    async def spreading():
        await asyncio.gather(*(asyncio.to_thread(spend) for _ in range(3)))
        seen.append(current_context())
        yield 1

    async def main():
        with governance_context("test") as context:
            async for _ in spreading():
                await asyncio.to_thread(spend, 10)
        return cents(context)

    assert asyncio.run(main()) == 13
    assert cents(seen[0]) == 3


# -- context managers ----------------------------------------------------------------------------


@governed(team="block")
@contextlib.contextmanager
def block(fail=False):
    spend()
    seen.append(current_context())
    try:
        yield "value"
    except KeyError:
        seen.append("swallowed")
    finally:
        spend()
        if fail:
            raise ZeroDivisionError


@governed(team="block")
@contextlib.asynccontextmanager
async def block_later():
    spend()
    seen.append(current_context())
    yield "value"
    await asyncio.sleep(0)
    spend()


def test_the_block_of_a_governed_context_manager_is_inside():
    with governance_context("test") as context:
        with block() as value:
            assert (value, current_context().team) == ("value", "block")
            spend(10)
        assert current_context() is context
    assert cents(seen[0]) == cents(context) == 12


def test_errors_of_a_governed_context_manager():
    with governance_context("test") as context:
        with block():
            raise KeyError
        assert seen[-1] == "swallowed"
        with pytest.raises(ZeroDivisionError), block(fail=True):
            pass
        with pytest.raises(LookupError), block():
            raise LookupError
        assert current_context() is context
        with pytest.raises(TypeError):
            block(1, 2)


def test_a_governed_context_manager_as_decorator():
    @block()
    def work():
        spend(10)
        return current_context().team

    with governance_context("test") as context:
        assert [work(), work()] == ["block", "block"]
    assert cents(context) == 24


def test_async_context_managers():
    @block_later()
    async def work():
        spend(10)

    async def main():
        with governance_context("test") as context:
            async with block_later() as value:
                assert (value, current_context().team) == ("value", "block")
                spend(10)
            assert current_context() is context
            await work()
        return cents(context)

    assert asyncio.run(main()) == 24


def test_governed_below_contextmanager_is_a_generator_like_any_other():
    """Its own two halves are governed; the block is not."""

    @contextlib.contextmanager
    @governed(team="halves")
    def halves():
        spend()
        yield current_context()
        spend()

    with governance_context("test") as context, halves() as inside:
        assert current_context() is context
        spend(10)
    assert (cents(inside), cents(context)) == (2, 12)


# -- a bare context in a bare generator ----------------------------------------------------------


def bare():
    with governance_context("leaking"):
        spend()
        yield 1
        spend()
        yield 2


def test_a_context_that_a_bare_generator_leaks_is_told_of():
    def loop():
        for _ in bare():
            spend()

    with pytest.warns(GovernanceWarning, match=r"'leaking'.*generator bare.*@governed") as told:
        loop()
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in bare():  # once for each generator
            spend()


def test_a_bare_context_where_it_is_meant_is_not():
    @contextlib.contextmanager
    def session():
        with governance_context("session") as context:
            yield context

    @contextlib.asynccontextmanager
    async def session_later():
        async with governance_context("session") as context:
            yield context

    def whole():
        with governance_context("whole"):
            spend()
        yield 1

    async def tasks():
        async with governance_context("tasks") as context:
            await asyncio.gather(asyncio.to_thread(spend), asyncio.create_task(asyncio.sleep(0)))
            spend()
            yield context

    async def main():
        async with session_later() as context:
            spend()
            assert current_context() is context
        (context,) = [context async for context in tasks()]
        return cents(context)

    def fixture():
        with governance_context("fixture") as context:
            yield context

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with session() as context:
            spend()
        assert cents(context) == 1
        for _ in whole():
            spend()
        assert asyncio.run(main()) == 2

        def begin(generator):
            return next(generator)

        running = fixture()
        context = begin(running)
        spend()
        assert cents(context) == 1
        assert next(running, None) is None
