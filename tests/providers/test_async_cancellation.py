"""Cancelled, or thrown away, at each of its awaits: a call is booked once if it left, else not at all."""

from __future__ import annotations

import asyncio
import time

import pytest

from genops_ctx import governance_context
from genops_ctx.providers import errors
from genops_ctx.providers.flowise_async import AsyncFlowiseAdapter
from genops_ctx.providers.flows import forget_directories
from genops_ctx.testing import Flow, FlowiseStandIn, ModelNode, capture

FLOWS = (
    Flow("graph", "agentflow"),
    Flow("two", "agentflow", (ModelNode("gpt-4o", "First"), ModelNode(label="Second"))),
)


@pytest.fixture(scope="module")
def server():
    with FlowiseStandIn(FLOWS) as running:
        yield running


@pytest.fixture(autouse=True)
def forget(server):
    server.reset()


class AtAwait:
    """Awaits a coroutine, and does something where it waits for the ``number``-th time."""

    def __init__(self, coroutine, number, act):
        self.coroutine = coroutine
        self.number = number
        self.act = act
        self.acted = False

    def __await__(self):
        step, given = self.coroutine.send, None
        waits = 0
        while True:
            try:
                waiting = step(given)
            except StopIteration as end:
                return end.value
            waits += 1
            if waits == self.number:
                self.acted = True
                if self.act(self.coroutine):
                    return None
            try:
                step, given = self.coroutine.send, (yield waiting)
            except BaseException as error:
                step, given = self.coroutine.throw, error


def cancel(coroutine):
    asyncio.current_task().cancel()


def throw_away(coroutine):
    """As the garbage collector does, in the middle of anything: here while the context's lock is held."""
    began = time.monotonic()
    with CONTEXT[0]._lock:
        coroutine.close()
    assert time.monotonic() - began < 10
    return True


CONTEXT = []


async def answer(adapter, question):
    return (await adapter.predict_flow("graph", question)).charge


async def streamed(adapter, question):
    stream = await adapter.predict_flow("graph", question, stream=True)
    async for _ in stream:
        pass
    return stream.charge


async def failing(adapter, question):
    """An AgentFlow that fails part-way: its execution record is read before it is booked."""
    with pytest.raises(errors.FlowiseModelError):
        await adapter.predict_flow("two", f"[[fail:400@gpt-4o-mini]] {question}")


def posts(server):
    return sum(seen.method == "POST" for seen in server.requests)


def until(condition, within=30.0):
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


@pytest.mark.parametrize("act", [cancel, throw_away])
@pytest.mark.parametrize("call", [answer, streamed, failing])
def test_at_every_await(server, call, act):
    ended = []
    for number in range(1, 60):
        server.reset()
        forget_directories()
        with governance_context("test", budget=1) as context, capture() as charges:
            CONTEXT[:] = [context]

            async def main():
                async with AsyncFlowiseAdapter(server.url, metering="estimate") as adapter:
                    at = AtAwait(call(adapter, "How many?"), number, act)  # noqa: B023
                    try:
                        await at
                    except asyncio.CancelledError:
                        assert act is cancel
                        asyncio.current_task().uncancel()
                        return "cancelled"
                    return "thrown away" if at.acted and act is throw_away else "done"

            how = asyncio.run(main())
            # What was thrown away is finished by the reaper thread.
            until(lambda: context.reserved == 0)
            until(lambda: len(charges) >= posts(server))
            if act is cancel:
                # The server may take a moment to see what was sent.
                until(lambda: len(charges) == posts(server))
            time.sleep(0.03)
            if act is cancel:
                assert len(charges) == posts(server) <= 1
            else:
                # Between the connection and the first byte aiohttp waits once more: taken to have left.
                assert posts(server) <= len(charges) <= 1
            assert context.calls == len(charges)
            assert context.total_cost == sum(charge.cost for charge in charges)
        ended.append((how, charges[0].outcome if charges else None))
        if how == "done":
            break
    else:
        pytest.fail("it never came to its end")
    assert len(ended) > 4
    outcomes = [outcome for _, outcome in ended]
    # Look-ups come first: nothing had been sent, nothing was reserved, nothing is booked.
    assert outcomes[0] is None
    assert outcomes[-1] == ("failed" if call is failing else "completed")
    assert ended[-2][0] != "done"
    assert {"cancelled", "abandoned"} & set(outcomes)
