"""Many tasks in one loop: budgets hold, contexts stay apart, and what is left behind is booked."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from decimal import Decimal

import pytest

from genops_ctx import BudgetExceeded, configure, current_context, governance_context
from genops_ctx.core.errors import AlreadyCompleted, OperationInProgress
from genops_ctx.core.ports import Quote
from genops_ctx.providers.flowise_async import AsyncFlowiseAdapter
from genops_ctx.testing import Flow, FlowiseStandIn, capture

CENT = 10_000_000


class OneCent:
    """Each model call costs exactly one cent."""

    def quote(self, usage, at):
        return Quote(CENT, "test")

    def provider_of(self, name):
        return "openai"


@pytest.fixture(scope="module")
def server():
    with FlowiseStandIn([Flow("graph", "agentflow")]) as running:
        yield running


@pytest.fixture(autouse=True)
def forget(server):
    server.reset()


def posts(server):
    return sum(seen.method == "POST" for seen in server.requests)


async def call(adapter, question="[[sleep:0.1]] Hello", **options):
    """True where it ran, False where a budget refused it."""
    try:
        if not options.get("stream"):
            await adapter.predict_flow("graph", question, **options)
        else:
            async for _ in await adapter.predict_flow("graph", question, **options):
                pass
    except BudgetExceeded:
        return False
    return True


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("windowed", [False, True])
def test_ten_of_fifty_at_once_fit_a_budget_for_ten(server, windowed, stream):
    configure(prices=OneCent())

    async def main():
        async with AsyncFlowiseAdapter(server.url) as adapter:
            calls = [call(adapter, max_cost="0.01", stream=stream) for _ in range(50)]
            return await asyncio.gather(*calls)

    with governance_context("fifty", budget="0.10/day" if windowed else "0.10") as context:
        ran = asyncio.run(main())
    assert sum(ran) == posts(server) == 10
    assert len(server.billed) == 10
    assert (context.total_cost, context.reserved, context.refused_calls) == (Decimal("0.10"), 0, 40)


def test_fifty_cancelled_at_once_leave_nothing_reserved(server):
    async def main():
        async with AsyncFlowiseAdapter(server.url) as adapter:
            await adapter.get_chatflows()
            tasks = [
                asyncio.create_task(call(adapter, "[[sleep:30]] Hello", max_cost="0.01")) for _ in range(50)
            ]
            for number, task in enumerate(tasks):
                await asyncio.sleep(0.001 * (number % 3))
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(result, asyncio.CancelledError) for result in results)

    with governance_context("fifty", budget=10) as context, capture() as charges:
        asyncio.run(main())
        assert context.reserved == 0
    assert {charge.outcome for charge in charges} <= {"cancelled"}
    assert len(charges) == context.calls
    assert len(charges) >= posts(server)
    assert len({charge.id for charge in charges}) == len(charges)


def test_one_operation_asked_for_by_eight_tasks_is_sent_once(server):
    async def one(adapter):
        try:
            return await adapter.predict_flow("graph", "[[sleep:0.1]] Hello", idempotency_key="order-1")
        except (OperationInProgress, AlreadyCompleted) as refusal:
            return type(refusal)

    async def main():
        async with AsyncFlowiseAdapter(server.url) as adapter:
            return await asyncio.gather(*[one(adapter) for _ in range(8)])

    results = asyncio.run(main())
    assert sum(isinstance(result, dict) for result in results) == 1
    assert posts(server) == 1


def test_two_tenants_in_one_loop_are_never_mixed(server):
    """Their calls and events interleave; each charge has its tenant, each budget its own calls."""
    configure(prices=OneCent())
    contexts = {}

    async def work(adapter, tenant, number):
        assert current_context().customer_id == tenant
        stream = number % 2 == 1
        answer = await adapter.predict_flow("graph", f"Hello {tenant}", stream=stream, max_cost="0.01")
        if stream:
            async for _ in answer:
                assert current_context().customer_id == tenant
                await asyncio.sleep(0)
        assert current_context().customer_id == tenant
        return answer.charge

    async def tenancy(adapter, tenant, calls, budget):
        with governance_context(tenant, customer_id=tenant, budget=budget) as context:
            contexts[tenant] = context
            tasks = [asyncio.create_task(work(adapter, tenant, number)) for number in range(calls)]
            return await asyncio.gather(*tasks, return_exceptions=True)

    async def main():
        async with AsyncFlowiseAdapter(server.url) as adapter:
            return await asyncio.gather(
                tenancy(adapter, "acme", 20, "0.05"), tenancy(adapter, "globex", 20, "0.20")
            )

    with capture() as charges:
        acme, globex = asyncio.run(main())
    assert sum(isinstance(result, BudgetExceeded) for result in acme) == 15
    assert not any(isinstance(result, BaseException) for result in globex)
    assert contexts["acme"].total_cost == Decimal("0.05")
    assert contexts["globex"].total_cost == Decimal("0.20")
    owners = [charge.attribution["customer_id"] for charge in charges]
    assert (owners.count("acme"), owners.count("globex")) == (5, 20)
    questions = [seen for seen in server.requests if seen.method == "POST"]
    assert len(questions) == 25


@pytest.mark.parametrize("way", ["create_task", "gather", "TaskGroup", "to_thread", "wait_for", "shield"])
def test_tasks_and_threads_inherit_the_context(server, way):
    async def main():
        async with AsyncFlowiseAdapter(server.url) as adapter:
            with governance_context("outer", team="support", budget=1) as context:
                if way == "create_task":
                    await asyncio.create_task(call(adapter))
                elif way == "gather":
                    await asyncio.gather(call(adapter))
                elif way == "TaskGroup":
                    async with asyncio.TaskGroup() as group:
                        group.create_task(call(adapter))
                elif way == "to_thread":
                    # a loop of its own there: the adapter has a session for each
                    await asyncio.to_thread(asyncio.run, call(adapter))
                elif way == "wait_for":
                    await asyncio.wait_for(call(adapter), 60)
                else:
                    await asyncio.shield(call(adapter))
                return context

    with capture() as charges:
        context = asyncio.run(main())
    (charge,) = charges
    assert charge.attribution["team"] == "support"
    assert charge.context_path == context.ids
    assert (context.calls, context.total_cost, context.reserved) == (1, charge.cost, 0)


def test_a_task_that_outlives_its_block_counts_there_once(server):
    async def main():
        async with AsyncFlowiseAdapter(server.url) as adapter:
            with governance_context("outer", budget=1) as outer:
                with governance_context("inner") as inner:
                    task = asyncio.create_task(call(adapter, "[[sleep:0.5]] Hello"))
                    await asyncio.sleep(0.02)
                assert inner.calls == 0
            await task
            return outer, inner

    outer, inner = asyncio.run(main())
    assert (outer.calls, inner.calls) == (1, 1)
    assert outer.total_cost == inner.total_cost > 0
    assert outer.reserved == 0


def test_a_loop_that_ends_books_what_it_leaves(server):
    """asyncio.run cancels the tasks that still run."""

    async def main(adapter):
        asyncio.get_running_loop().leave = asyncio.create_task(call(adapter, "[[sleep:5]] Hello"))
        while not posts(server):
            await asyncio.sleep(0.005)

    with governance_context("test", budget=1) as context, capture() as charges:
        asyncio.run(main(AsyncFlowiseAdapter(server.url)))
        assert [charge.outcome for charge in charges] == ["cancelled"]
        assert context.reserved == 0


def test_a_process_that_ends_books_its_open_streams(server):
    code = f"""
import asyncio
from genops_ctx.providers.flowise import AsyncFlowiseAdapter
from genops_ctx.runtime import Runtime
Runtime.listeners.append(lambda charge: print(charge.outcome, charge.nanos > 0, flush=True))
adapter = AsyncFlowiseAdapter({server.url!r}, metering="estimate")
kept = []

async def main():
    stream = await adapter.predict_flow("graph", "[[long:30]] How many?", stream=True)
    await anext(stream)
    kept.append(stream)

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=os.getcwd(),
        env={**os.environ, "GENOPS_LEDGER": "memory://"},
    )
    assert (done.stdout.strip(), done.stderr) == ("abandoned True", "")
