"""Entry points nested in one another: one call is metered once, by the innermost that sends."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import json
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from urllib.parse import quote

import aiohttp
import httpx
import httpx2
import pytest
import requests

from genops_ctx import (
    Budget,
    BudgetExceeded,
    Usage,
    auto_instrument,
    configure,
    disable_auto_instrument,
    governance_context,
    governed,
    instrument_flowise,
    metered_call,
    record_usage,
)
from genops_ctx.core.accounts import Account
from genops_ctx.core.current import around
from genops_ctx.core.errors import AlreadyCompleted
from genops_ctx.providers.flowise_async import AsyncFlowiseAdapter
from genops_ctx.runtime import get_runtime
from genops_ctx.stores.sqlite import SQLiteStore
from genops_ctx.testing import Flow, FlowiseStandIn, capture

from .providers.bills import nanos_of
from .stores.redis_server import RedisServer

OWN = {"input_tokens": 10, "output_tokens": 2}
OWN_NANOS = 10 * 150 + 2 * 600  # gpt-4o-mini


@pytest.fixture(scope="module")
def server():
    with FlowiseStandIn([Flow("one", "agentflow")]) as running:
        yield running


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory):
    with RedisServer(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture(autouse=True)
def as_before(server):
    server.reset()
    auto_instrument(server.url)
    yield
    disable_auto_instrument()


# -- what is inside: each makes one call, of the flow or of a model --------------------------------


def url_of(server):
    return f"{server.url}/api/v1/prediction/{server.flow_id('one')}"


def by_adapter(server):
    return instrument_flowise(server.url).predict_flow("one", "hello")


def by_async_adapter(server):
    async def main():
        async with AsyncFlowiseAdapter(server.url) as adapter:
            return await adapter.predict_flow("one", "hello")

    return asyncio.run(main())


def by_requests(server):
    return requests.post(url_of(server), json={"question": "hello"}, timeout=60).json()


def by_httpx(server):
    return httpx.post(url_of(server), json={"question": "hello"}).json()


def by_httpx2(server):
    return httpx2.post(url_of(server), json={"question": "hello"}).json()


def by_aiohttp(server):
    async def main():
        async with (
            aiohttp.ClientSession() as session,
            session.post(url_of(server), json={"question": "h"}) as r,
        ):
            return await r.json()

    return asyncio.run(main())


def by_stream(server):
    return list(instrument_flowise(server.url).predict_flow("one", "hello", stream=True))


SENDERS = (by_adapter, by_async_adapter, by_requests, by_httpx, by_httpx2, by_aiohttp, by_stream)


def by_metered_call(server):
    with metered_call("inner") as call:
        call.record_usage("openai", "gpt-4o-mini", **OWN)


def by_governed(server):
    @governed(meter=lambda result: Usage("openai", "gpt-4o-mini", **OWN))
    def inner():
        return None

    inner()


def by_record_usage(server):
    record_usage("openai", "gpt-4o-mini", **OWN)


RECORDERS = (by_metered_call, by_governed, by_record_usage)
INSIDE = SENDERS + RECORDERS


def paid(server):
    """What everything inside costs: what the model billed, or else what was recorded."""
    return nanos_of(server.billed) or OWN_NANOS


# -- what is around ---------------------------------------------------------------------------------


def around_metered_call(inside, server):
    with metered_call("outer") as call:
        inside(server)
    return call.cost


def around_governed(inside, server):
    @governed(meter=lambda result: None)
    def outer():
        inside(server)

    outer()


def around_governed_and_its_usage(inside, server):
    @governed(meter=lambda result: result.usage if hasattr(result, "usage") else None)
    def outer():
        return inside(server)

    outer()


def around_governed_and_its_cost(inside, server):
    @governed(meter=lambda result: result.cost if hasattr(result, "cost") else None)
    def outer():
        return inside(server)

    outer()


def around_a_context(inside, server):
    with governance_context("outer"):
        inside(server)


AROUND = (
    around_metered_call,
    around_governed,
    around_governed_and_its_usage,
    around_governed_and_its_cost,
    around_a_context,
)


@pytest.mark.parametrize("around", AROUND, ids=lambda one: one.__name__)
@pytest.mark.parametrize("inside", INSIDE, ids=lambda one: one.__name__)
def test_a_call_is_booked_once_by_what_sends_it(server, inside, around):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with governance_context("test", budget=1) as context, capture() as charges:
            around(inside, server)
    (charge,) = charges
    assert charge.nanos == paid(server) > 0
    assert charge.exactness == "exact"
    assert charge.name != "outer"
    assert context.total_cost == Decimal(charge.nanos) / 10**9
    assert (context.calls, context.reserved) == (1, 0)


@pytest.mark.parametrize("outer", [around_metered_call, around_governed], ids=lambda one: one.__name__)
@pytest.mark.parametrize("inside", INSIDE, ids=lambda one: one.__name__)
def test_three_deep(server, outer, inside):
    with governance_context("test", budget=1) as context, capture() as charges:
        outer(lambda server: around_metered_call(inside, server), server)
    assert [charge.nanos for charge in charges] == [paid(server)]
    assert context.reserved == 0


@pytest.mark.parametrize("inside", SENDERS, ids=lambda one: one.__name__)
def test_a_budget_is_not_asked_for_twice(server, inside):
    """The outer call reserves all there is; what is inside gets it, and is held to it."""
    with governance_context("test", budget="0.01") as context:
        with metered_call("outer", max_cost="0.01") as call:
            inside(server)
        assert call.cost == context.total_cost == Decimal(nanos_of(server.billed)) / 10**9
        assert context.reserved == 0


@pytest.fixture(params=["context", "memory", "sqlite", "redis"])
def one_cent(request, tmp_path, monkeypatch):
    """A budget of a cent around what is called in it, of a context and of each store; reads its account."""
    if request.param == "context":
        with governance_context("test", budget="0.01") as context:
            yield lambda: (context.total_cost, context.reserved)
        return
    monkeypatch.setitem(SQLiteStore.__init__.__kwdefaults__, "timeout", 60.0)  # on a busy machine too
    store = {"memory": "memory://", "sqlite": f"sqlite:///{tmp_path}/store.db"}.get(request.param)
    if store is None:
        from genops_ctx.stores.redis import RedisStore

        store = request.getfixturevalue("redis_server").url
        monkeypatch.setitem(
            RedisStore.__init__.__kwdefaults__, "command_timeout", 20.0
        )  # on a busy machine too
    name = f"test {tmp_path.name}"
    configure(budgets=Budget("0.01/day", by="project"), store=store, project=name)

    def account():
        books = get_runtime().books
        books.hand_off.close()  # a server is told by a thread, for which no task waits
        found = {Account()}
        for key, value in books.store.accounts().items():
            if quote(name, safe="") in key:
                found.add(value)
        spent, reserved = max(found)
        return Decimal(spent) / 10**9, Decimal(reserved) / 10**9

    yield account


CENT = Decimal("0.01")


@pytest.mark.parametrize("inside", INSIDE, ids=lambda one: one.__name__)
def test_what_is_inside_draws_on_what_is_set_aside(server, one_cent, inside):
    """The whole cent stays set aside for the block, less what was spent in it; for nobody else."""
    with metered_call("outer", max_cost="0.01") as call:
        assert one_cent() == (0, CENT)
        for number in (1, 2):
            inside(server)
            spent = Decimal(nanos_of(server.billed) or number * OWN_NANOS) / 10**9
            assert one_cent() == (spent, CENT - spent)
            with contextvars_of_nobody(), pytest.raises(BudgetExceeded), metered_call("stranger", max_cost=1):
                pass
    assert one_cent() == (call.cost, 0) == (spent, 0)


@contextlib.contextmanager
def contextvars_of_nobody():
    """As in a thread that was not started inside: only the context is the same."""
    before = around.get()
    around.set(None)
    try:
        yield
    finally:
        around.set(before)


def test_while_it_is_sent_the_whole_stays_set_aside(server, one_cent):
    seen = []

    class Looking(requests.adapters.HTTPAdapter):
        def send(self, *args, **kwargs):
            seen.append(one_cent())
            return super().send(*args, **kwargs)

    with metered_call("outer", max_cost="0.01"), requests.Session() as session:
        session.mount("http://", Looking())
        for _ in range(2):
            session.post(url_of(server), json={"question": "hello"}, timeout=60)
    one = Decimal(nanos_of(server.billed) // 2) / 10**9
    assert seen == [(0, CENT), (one, CENT - one)]


def test_what_a_call_inside_wants_beyond_it_is_asked_of_the_budget(server, one_cent):
    with metered_call("outer", max_cost="0.004"):
        with pytest.raises(BudgetExceeded), metered_call("inner", max_cost="0.011"):
            pass
        assert one_cent() == (0, Decimal("0.004"))
        with metered_call("inner", max_cost="0.009") as inner:
            assert one_cent() == (0, Decimal("0.009"))
            inner.record_cost("0.003")
        assert one_cent() == (Decimal("0.003"), Decimal("0.001"))
        with metered_call("inner", max_cost="0.002") as inner:
            inner.record_cost("0.002")
        assert one_cent() == (Decimal("0.005"), 0)
    assert one_cent() == (Decimal("0.005"), 0)


def test_three_deep_the_outermost_has_it_all_back(server, one_cent):
    with metered_call("outer", max_cost="0.01"):
        with metered_call("middle", max_cost="0.001"):
            with metered_call("inner", max_cost="0.006") as inner:
                assert one_cent() == (0, CENT)
                inner.record_cost("0.0005")
            assert one_cent() == (Decimal("0.0005"), Decimal("0.0095"))
        with metered_call("inner", max_cost="0.0095") as inner:
            inner.record_cost("0.0095")
        assert one_cent() == (CENT, 0)


def test_where_the_store_has_less_the_contexts_set_no_more_aside(server):
    configure(budgets=Budget("0.01/day", default_reservation="0.01"))
    with governance_context("test", budget=1) as context:
        with contextvars_of_nobody():
            stranger = metered_call("stranger", max_cost="0.004").__enter__()
        with metered_call("outer"):
            assert context.reserved == CENT, "of a cent that is wanted 0.006 are left"
            with metered_call("inner") as inner:
                assert context.reserved == CENT, "it wants a cent too, and gets the 0.006 of the outer"
                inner.record_cost("0.001")
            assert context.reserved == Decimal("0.009")
        assert context.reserved == Decimal("0.004")
        stranger.record_cost("0.004")
        stranger.__exit__(None, None, None)
    assert (context.total_cost, context.reserved) == (Decimal("0.005"), 0)


def test_a_block_that_fails_gives_the_rest_back(server, one_cent):
    with pytest.raises(RuntimeError), metered_call("outer", max_cost="0.01"):
        by_adapter(server)
        raise RuntimeError
    assert one_cent() == (Decimal(nanos_of(server.billed)) / 10**9, 0)


def test_what_the_block_spends_itself_is_booked_of_the_rest(server, one_cent):
    with metered_call("outer", max_cost="0.01") as call:
        by_adapter(server)
        call.record_cost("0.002")
    paid = Decimal(nanos_of(server.billed)) / 10**9 + Decimal("0.002")
    assert one_cent() == (call.cost, 0) == (paid, 0)


def test_a_block_of_unknown_cost_is_booked_at_what_the_calls_inside_left(server, one_cent):
    with capture() as charges, metered_call("outer", max_cost="0.01") as call:
        by_adapter(server)
        call.record_usage("openai", "no-such-model", input_tokens=1)
    assert one_cent() == (CENT, 0)
    assert charges[-1].exactness == "unknown"
    assert charges[-1].nanos == 10_000_000 - nanos_of(server.billed)


def test_tasks_inside_draw_on_it_at_the_same_time(server, one_cent):
    async def main():
        async with AsyncFlowiseAdapter(server.url) as adapter:
            async with metered_call("outer", max_cost="0.01") as call:
                await asyncio.gather(
                    *[adapter.predict_flow("one", "hello", max_cost="0.002") for _ in range(5)]
                )
            # Where the store is on a server, threads settle: the loop does not wait for them.
            for _ in range(200):
                if one_cent() == (call.cost, 0):
                    break
                await asyncio.sleep(0.02)
            return call.cost

    cost = asyncio.run(main())
    assert cost == Decimal(nanos_of(server.billed)) / 10**9
    assert len(server.billed) == 5
    assert one_cent() == (cost, 0)


def test_threads_inside_draw_on_it_at_the_same_time(server, one_cent):
    def work(_):
        with metered_call("inner", max_cost="0.001") as inner:
            inner.record_cost("0.00001")

    with metered_call("outer", max_cost="0.01"), ThreadPoolExecutor(5) as pool:
        assert len(list(pool.map(work, range(200)))) == 200
        assert one_cent() == (Decimal("0.002"), Decimal("0.008"))
    assert one_cent() == (Decimal("0.002"), 0)


def test_a_thread_that_outlives_the_block_keeps_what_it_drew(server, one_cent):
    inside, end = threading.Event(), threading.Event()

    def later():
        with metered_call("inner", max_cost="0.003") as inner:
            inside.set()
            end.wait(60)
            inner.record_cost("0.001")

    with metered_call("outer", max_cost="0.01") as call:
        thread = threading.Thread(target=contextvars.copy_context().run, args=(later,))
        thread.start()
        inside.wait(60)
        call.record_cost("0.002")
    assert one_cent() == (Decimal("0.002"), Decimal("0.003"))
    end.set()
    thread.join()
    assert one_cent() == (Decimal("0.003"), 0)


def test_what_the_block_records_besides_is_booked_too(server):
    with governance_context("test", budget=1) as context, capture() as charges:
        with metered_call("outer") as call:
            by_adapter(server)
            call.record_usage("openai", "gpt-4o-mini", **OWN)
        assert context.reserved == 0
    assert [charge.nanos for charge in charges] == [nanos_of(server.billed), OWN_NANOS]
    assert call.cost == context.total_cost == Decimal(nanos_of(server.billed) + OWN_NANOS) / 10**9
    assert call.charge is charges[1]


def test_what_was_recorded_before_keeps_its_reservation(server):
    with governance_context("test", budget="0.01") as context:
        with metered_call("outer", max_cost="0.01") as call:
            call.record_usage("openai", "gpt-4o-mini", **OWN)
            with pytest.raises(BudgetExceeded):
                by_adapter(server)
        assert context.total_cost == Decimal(OWN_NANOS) / 10**9
    assert server.billed == []


def test_a_block_whose_inner_call_was_refused_and_says_nothing_is_unknown(server):
    adapter = instrument_flowise(server.url)
    with (
        governance_context("test", budget="0.01"),
        capture() as charges,
        pytest.warns(UserWarning, match="ended without"),
        metered_call("outer", max_cost="0.001"),
        pytest.raises(BudgetExceeded),
    ):
        adapter.predict_flow("one", "hello", max_cost=1)
    (charge,) = charges
    assert (charge.name, charge.exactness) == ("outer", "unknown")


def test_a_named_operation_is_remembered_and_not_sent_again(server):
    with capture() as charges:
        with metered_call("outer", idempotency_key="order-1"):
            by_adapter(server)
        with pytest.raises(AlreadyCompleted), metered_call("outer", idempotency_key="order-1"):
            by_adapter(server)
    assert len(server.billed) == 1
    assert [(charge.name, charge.nanos, charge.flags) for charge in charges] == [
        ("one", nanos_of(server.billed), ()),
        ("outer", 0, ("metered_inside",)),
    ]


def test_a_named_operation_that_failed_may_be_sent_again(server):
    for _ in range(2):
        with pytest.raises(RuntimeError), metered_call("outer", idempotency_key="order-2"):
            by_adapter(server)
            raise RuntimeError("after it")
    assert len(server.billed) == 2


def test_tasks_inside_are_each_booked(server):
    async def main():
        async with AsyncFlowiseAdapter(server.url) as adapter:
            with metered_call("outer") as call:
                await asyncio.gather(*[adapter.predict_flow("one", "hello") for _ in range(5)])
            return call.cost

    with governance_context("test", budget=1) as context, capture() as charges:
        cost = asyncio.run(main())
    assert [charge.name for charge in charges] == ["one"] * 5
    assert cost == context.total_cost == Decimal(nanos_of(server.billed)) / 10**9


def test_a_thread_that_outlives_the_block_is_booked_once(server):
    left = threading.Event()

    def later():
        left.wait(60)
        by_requests(server)

    with governance_context("test") as context, capture() as charges:
        with metered_call("outer") as call:
            call.record_usage("openai", "gpt-4o-mini", **OWN)
            thread = threading.Thread(target=contextvars.copy_context().run, args=(later,))
            thread.start()
        left.set()
        thread.join()
    assert [charge.name for charge in charges] == ["outer", "one"]
    assert context.total_cost == Decimal(nanos_of(server.billed) + OWN_NANOS) / 10**9


# -- the mark of a send is for that send ------------------------------------------------------------


def test_a_hook_of_the_adapters_session_that_calls_another_flow_is_booked_too():
    with FlowiseStandIn([Flow("one", "agentflow"), Flow("two", "agentflow")]) as server:
        auto_instrument(server.url)
        adapter = instrument_flowise(server.url)

        def hook(response, *args, **kwargs):
            if response.request.method == "POST":
                other = f"{server.url}/api/v1/prediction/{server.flow_id('two')}"
                requests.post(other, json={"question": "hello"}, timeout=60)

        adapter.session.hooks["response"].append(hook)
        with capture() as charges:
            adapter.predict_flow("one", "hello")
        assert sorted(charge.name for charge in charges) == ["one", "two"]
        assert sum(charge.nanos for charge in charges) == nanos_of(server.billed)


def test_a_thread_started_in_a_send_is_no_part_of_it(server):
    adapter = instrument_flowise(server.url)

    def hook(response, *args, **kwargs):
        if response.request.method == "POST":
            thread = threading.Thread(target=contextvars.copy_context().run, args=(by_requests, server))
            thread.start()
            thread.join()

    adapter.session.hooks["response"].append(hook)
    with capture() as charges:
        adapter.predict_flow("one", "hello")
    assert [charge.nanos for charge in charges] == [nanos_of(server.billed) // 2] * 2


def test_a_task_started_in_a_send_is_no_part_of_it(server):
    """An aiohttp trace hook runs in the send of the async adapter, and starts a call of its own."""

    async def main():
        tasks = []

        async def call():
            async with (
                aiohttp.ClientSession() as other,
                other.post(url_of(server), json={"question": "h"}) as r,
            ):
                await r.json()

        async def start(session, context, params):
            if params.method == "POST":
                tasks.append(asyncio.ensure_future(call()))
                await asyncio.sleep(0)

        config = aiohttp.TraceConfig()
        config.on_request_start.append(start)
        async with (
            aiohttp.ClientSession(trace_configs=[config]) as session,
            AsyncFlowiseAdapter(server.url) as adapter,
        ):
            adapter.session = session
            await adapter.predict_flow("one", "hello")
            await asyncio.gather(*tasks)

    with capture() as charges:
        asyncio.run(main())
    assert len(charges) == len(server.billed) == 2
    assert sum(charge.nanos for charge in charges) == nanos_of(server.billed)


def test_an_answer_to_a_challenge_is_a_call_of_its_own(server):
    """``requests`` sends it again from within the first answer's hooks."""

    def again(response, *args, **kwargs):
        if not hasattr(response.request, "again"):
            request = response.request.copy()
            request.again = True
            assert response.content
            response.close()
            return response.connection.send(request, **kwargs)
        return None

    with capture() as charges, requests.Session() as session:
        answer = session.post(
            url_of(server), json={"question": "hello"}, hooks={"response": again}, timeout=10
        )
        assert json.loads(answer.content)["text"]
    assert [charge.nanos for charge in charges] == [nanos_of(server.billed) // 2] * 2


def test_budgets_of_the_store_too(server):
    configure(budgets="0.01/day")
    with metered_call("outer", max_cost="0.01"):
        by_requests(server)
    with metered_call("outer", max_cost="0.005"):
        by_adapter(server)
    assert len(server.billed) == 2


def test_a_metered_call_in_a_generator_is_not_around_its_consumer(server):
    @governed
    def steps():
        with metered_call("inside") as call:
            yield 1
            call.record_usage("openai", "gpt-4o-mini", **OWN)
            yield 2

    with governance_context("test", budget=1), capture() as charges:
        for _ in steps():
            by_adapter(server)
    assert [charge.name for charge in charges] == ["one", "one", "inside"]
    assert charges[-1].reserved_nanos > 0, "it did not give way to its consumer's calls"


def test_what_a_pool_runs_inside_is_inside(server):
    with governance_context("test", budget="0.01") as context, ThreadPoolExecutor(2) as pool:
        with metered_call("outer", max_cost="0.01") as call:
            assert list(pool.map(by_requests, [server] * 2))
        assert call.cost == context.total_cost == Decimal(nanos_of(server.billed)) / 10**9
        assert context.calls == 2
