"""The cases in which contexts get lost elsewhere, each with the money counted.

Tasks, threads and pools here; generators suspended, interleaved and closed early, sync and async, in
``test_generators.py``; a child that outlives its block in both.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import os
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from functools import partial
from multiprocessing.pool import ThreadPool

import pytest

from genops_ctx import BudgetExceeded, current_context, governance_context, governed, metered_call
from genops_ctx.core.errors import ConfigurationError
from genops_ctx.core.operations import Tries, trying
from genops_ctx.instrument.threads import instrument_threads, uninstrument_threads
from genops_ctx.testing import capture


@pytest.fixture(autouse=True)
def threads_carry():
    instrument_threads()
    yield
    instrument_threads()
    assert current_context() is None


def spend(cents=1):
    amount = Decimal(cents) / 100
    with metered_call("model", max_cost=amount) as call:
        call.record_cost(amount)
    return current_context()


async def spend_later(cents=1):
    await asyncio.sleep(0)
    return spend(cents)


def cents(context):
    return int(context.total_cost * 100)


# -- asyncio -------------------------------------------------------------------------------------


def test_create_task():
    async def main():
        with governance_context("test") as context:
            assert await asyncio.create_task(spend_later()) is context
        return cents(context)

    assert asyncio.run(main()) == 1


def test_gather():
    @governed
    async def tenant(number):
        found = await asyncio.gather(*(spend_later(number) for _ in range(3)))
        assert set(found) == {current_context()}
        return cents(current_context())

    async def main():
        with governance_context("test") as context:
            assert await asyncio.gather(*(tenant(number) for number in range(1, 5))) == [3, 6, 9, 12]
        return cents(context)

    assert asyncio.run(main()) == 30


def test_to_thread():
    async def main():
        with governance_context("test") as context:
            assert await asyncio.to_thread(spend) is context
        return cents(context)

    assert asyncio.run(main()) == 1


def test_run_in_executor():
    async def main():
        loop = asyncio.get_running_loop()
        with governance_context("test") as context, ThreadPoolExecutor(1) as pool:
            assert await loop.run_in_executor(None, spend) is context
            assert await loop.run_in_executor(pool, spend) is context
        assert await loop.run_in_executor(None, current_context) is None
        return cents(context)

    assert asyncio.run(main()) == 2


def test_a_task_that_outlives_its_block_counts_once():
    async def main():
        with governance_context("outer") as outer, governance_context("inner") as inner:
            task = asyncio.create_task(spend_later())
        assert (await task) is inner
        return cents(inner), cents(outer)

    assert asyncio.run(main()) == (1, 1)


# -- threads -------------------------------------------------------------------------------------


def test_a_thread_has_the_context_it_was_started_in():
    with governance_context("made"):
        thread = threading.Thread(target=spend)
    with governance_context("started") as started:
        thread.start()
        thread.join()
    assert cents(started) == 1


def test_a_class_of_threads_with_a_run_of_its_own():
    class Worker(threading.Thread):
        def run(self):
            self.found = spend()

    with governance_context("test") as context:
        worker = Worker()
        worker.start()
        worker.join()
        timer = threading.Timer(0.001, spend)
        timer.start()
        timer.join()
    assert worker.found is context
    assert cents(context) == 2


def test_a_thread_that_outlives_its_block_counts_once():
    ended = threading.Event()

    def work():
        assert ended.wait(60)
        spend()
        with governance_context("below"):
            spend()

    with governance_context("outer") as outer, governance_context("inner") as inner:
        thread = threading.Thread(target=work)
        thread.start()
    ended.set()
    thread.join()
    assert (cents(inner), cents(outer)) == (2, 2)


def test_a_thread_does_not_hold_itself():
    with governance_context("test"):
        thread = threading.Thread(target=spend)
        thread.start()
        thread.join()
    gc.collect()
    gc.disable()
    try:
        alive = weakref.ref(thread)
        del thread
        assert alive() is None
    finally:
        gc.enable()


def test_a_thread_that_cannot_be_started_twice():
    with governance_context("test"):
        thread = threading.Thread(target=spend)
        thread.start()
        thread.join()
        with pytest.raises(RuntimeError, match="only be started once"):
            thread.start()
        assert "run" not in thread.__dict__


# -- pools ---------------------------------------------------------------------------------------


def test_a_pool():
    with governance_context("test") as context, ThreadPoolExecutor(4) as pool:
        assert set(pool.map(spend, [1, 2, 3])) == {context}
        assert pool.submit(spend, cents=4).result() is context
    assert cents(context) == 10


def test_two_tenants_share_a_pool_and_are_never_mixed():
    """However jobs and tenants come to the threads, and whoever's job started the thread."""
    with ThreadPoolExecutor(3) as pool:

        def job(name):
            context = current_context()
            assert context.attribution == {"customer_id": name}
            return spend()

        def tenant(name, number):
            with governance_context(name, customer_id=name) as context:
                found = [future.result() for future in [pool.submit(job, name) for _ in range(number)]]
            assert set(found) == {context}
            return cents(context)

        names = [f"customer-{number}" for number in range(6)]
        with ThreadPoolExecutor(6) as tenants:
            assert list(tenants.map(tenant, names, [20] * 6)) == [20] * 6
        for _ in range(6):
            assert pool.submit(current_context).result() is None


def test_a_pools_thread_has_its_own_context_back_after_each_job():
    def job():
        governance_context("left open").open()
        return current_context().name

    with ThreadPoolExecutor(1) as pool:
        with governance_context("test"):
            assert pool.submit(job).result() == "left open"
        assert pool.submit(current_context).result() is None
        with governance_context("next") as context:
            assert pool.submit(current_context).result() is context


def test_a_pools_initializer_and_threads_belong_to_nobody():
    found = []
    with (
        governance_context("first"),
        ThreadPoolExecutor(1, initializer=lambda: found.append(current_context())) as pool,
    ):
        pool.submit(spend).result()
    assert found == [None]


def test_errors_of_a_job_come_through():
    with governance_context("test", budget="0.01"), ThreadPoolExecutor(1) as pool:
        pool.submit(spend).result()
        with pytest.raises(BudgetExceeded):
            pool.submit(spend).result()
        with pytest.raises(TypeError):
            pool.submit()
        with pytest.raises(TypeError):
            pool.submit(None).result()
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(spend)


def test_one_budget_over_many_threads():
    with governance_context("test", budget="0.10") as context, ThreadPoolExecutor(16) as pool:
        futures = [pool.submit(spend) for _ in range(50)]
        refused = [future.exception() for future in futures if future.exception()]
    assert (len(refused), cents(context)) == (40, 10)


def test_pools_that_carry_nothing_mix_nothing_either():
    with governance_context("first") as first, ThreadPool(2) as pool:
        assert pool.map(lambda _: current_context(), range(4)) == [None] * 4
        assert pool.map(first.wrap(spend), [1, 2]) == [first, first]
    assert cents(first) == 3


def test_retries_over_a_pool_are_attempts_of_one_operation():
    with ThreadPoolExecutor(1) as pool, capture() as charges:
        tries = Tries()
        for _ in range(3):
            tries.again()
            with trying(tries):
                pool.submit(spend).result()
                thread = threading.Thread(target=spend)
                thread.start()
                thread.join()
        pool.submit(spend).result()
    named = [(charge.operation, charge.attempt) for charge in charges]
    assert [attempt for _, attempt in named] == [1, 1, 2, 2, 3, 3, 1]
    assert len({operation for operation, _ in named}) == 3


@pytest.mark.parametrize("ours_first", [False, True])
def test_beside_opentelemetrys_threads(ours_first):
    threading_hooks = pytest.importorskip("opentelemetry.instrumentation.threading")
    theirs = threading_hooks.ThreadingInstrumentor()

    def works():
        with governance_context("test") as context, ThreadPoolExecutor(1) as pool:
            thread = threading.Thread(target=spend)
            thread.start()
            thread.join()
            return pool.submit(spend).result() is context and cents(context) == 2

    uninstrument_threads()
    for switch_on in (instrument_threads, theirs.instrument)[:: 1 if ours_first else -1]:
        switch_on()
    try:
        assert works()
        theirs.uninstrument()
        assert works()
        theirs.instrument()
        assert works()
        assert uninstrument_threads()
        assert not works()
        assert instrument_threads()
        assert works()
    finally:
        theirs.uninstrument()


# -- wrap ----------------------------------------------------------------------------------------


def test_wrap():
    with governance_context("test", budget=1) as context:
        wrapped = context.wrap(spend)
        with governance_context("other") as other:
            assert wrapped() is context
            assert current_context() is other
    assert wrapped(2) is context
    assert wrapped.__name__ == "spend"
    assert cents(context) == 3
    assert cents(other) == 0


def test_wrap_coroutines_and_generators():
    def steps():
        yield spend()
        yield spend()

    async def steps_later():
        yield await spend_later()

    async def main():
        assert await context.wrap(spend_later)() is context
        return [item async for item in context.wrap(steps_later)()]

    with governance_context("test") as context:
        pass
    with governance_context("other") as other:
        for found in context.wrap(steps)():
            assert found is context
            assert current_context() is other
        assert asyncio.run(main()) == [context]
        with contextlib.suppress(ZeroDivisionError):
            context.wrap(lambda: 1 / 0)()
        assert current_context() is other
    assert (cents(context), cents(other)) == (4, 0)


def test_what_is_not_open_cannot_wrap():
    with pytest.raises(ConfigurationError, match="not open"):
        governance_context("test").wrap(spend)


# -- on and off ----------------------------------------------------------------------------------


def test_on_and_off():
    start, submit = threading.Thread.start, ThreadPoolExecutor.submit
    assert not instrument_threads()
    assert (threading.Thread.start, ThreadPoolExecutor.submit) == (start, submit)
    with ThreadPoolExecutor(1) as pool, governance_context("test") as context:
        assert uninstrument_threads()
        assert not uninstrument_threads()
        assert threading.Thread.start is not start
        assert ThreadPoolExecutor.submit is not submit
        assert pool.submit(current_context).result() is None
        assert instrument_threads()
        assert pool.submit(current_context).result() is context


def test_others_may_wrap_the_same_methods(monkeypatch):
    def above(self, *args, _wrapped=ThreadPoolExecutor.submit, **kwargs):
        called.append("above")
        return _wrapped(self, *args, **kwargs)

    called = []
    monkeypatch.setattr(ThreadPoolExecutor, "submit", above)
    with governance_context("test") as context, ThreadPoolExecutor(1) as pool:
        assert pool.submit(current_context).result() is context
        assert uninstrument_threads()
        assert pool.submit(current_context).result() is None
        assert instrument_threads()
        assert pool.submit(current_context).result() is context
    assert called == ["above"] * 3


FIRST = """
import threading
before = threading.Thread.start
{importing}
assert threading.Thread.start is before, "importing changes nothing"
found = []
with governance_context("first") as context:
    thread = threading.Thread(target=lambda: found.append(current_context()))
    thread.start()
    thread.join()
print(found == [context])
"""


@pytest.mark.parametrize(
    "importing",
    [
        "from genops_ctx import governance_context, current_context",
        "from genops_ctx.core.context import governance_context, current_context; import genops_ctx.metered",
    ],
)
@pytest.mark.parametrize(("choice", "carried"), [("", True), ("on", True), ("off", False)])
def test_it_begins_with_the_first_context(importing, choice, carried, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FIRST.format(importing=importing)],
        env={**os.environ, "GENOPS_THREADS": choice},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == (str(carried), "")


# -- threads that inherit ------------------------------------------------------------------------


@pytest.fixture
def inherited():
    """As with Python 3.14's ``thread_inherit_context``: a thread runs in a copy of its starter's variables.

    Where this Python has it, the tests run with it by ``python -X thread_inherit_context=1 -m pytest``.
    """
    uninstrument_threads()
    start = threading.Thread.start

    def inheriting(self):
        run = self.run
        self.run = partial(contextvars.copy_context().run, run)
        start(self)

    # Not the fixture of that name, which puts back later, over what the other tests' fixture has put in.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", inheriting)
        instrument_threads()
        yield
        uninstrument_threads()


def test_with_inheriting_threads_the_money_is_where_it_was(inherited):
    with governance_context("first") as first, ThreadPoolExecutor(2) as pool:
        assert pool.submit(spend).result() is first
        thread = threading.Thread(target=spend)
        thread.start()
        thread.join()
        with governance_context("second") as second:
            assert set(pool.map(spend, [1] * 4)) == {second}
    assert (cents(first), cents(second)) == (6, 4)


def test_with_inheriting_threads_a_pools_threads_belong_to_nobody(inherited):
    with ThreadPoolExecutor(2) as pool:
        with governance_context("first"):
            pool.submit(spend).result()
        assert [pool.submit(current_context).result() for _ in range(4)] == [None] * 4
