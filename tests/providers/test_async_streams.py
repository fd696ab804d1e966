"""Streams as async iterators: events as they come, and one charge however a stream ends."""

from __future__ import annotations

import asyncio
import gc

import pytest

from genops_ctx import governance_context
from genops_ctx.providers.async_streams import AsyncFlowiseStream
from genops_ctx.providers.flowise_async import AsyncFlowiseAdapter
from genops_ctx.testing import capture

from . import test_streams as sync
from .bridge import again

globals().update(
    again(
        sync,
        without=(
            # see below
            "test_a_stream_says_nothing_of_its_words",
            # a sync program; for asyncio see tests/races/test_asyncio.py
            "test_a_process_that_ends_books_what_it_left",
            # a loop does not survive a fork
            "test_a_child_that_is_born_meanwhile_changes_nothing",
        ),
    )
)


def test_a_stream_says_nothing_of_its_words(server):
    async def main():
        async with AsyncFlowiseAdapter(server.url) as adapter:
            stream = await adapter.predict_flow("graph", "[[long:30]] Secret question", stream=True)
            assert isinstance(stream, AsyncFlowiseStream)
            shown = [repr(stream)]
            async for _ in stream:
                shown.append(repr(stream))
            return shown

    assert set(asyncio.run(main())) == {"<AsyncFlowiseStream open>", "<AsyncFlowiseStream ended>"}


@pytest.mark.parametrize("how", ["aclose", "close", "with", "break and drop", "cancel"])
def test_ways_to_leave_a_stream(server, how):
    async def main():
        async with AsyncFlowiseAdapter(server.url) as adapter:
            server.drip_next(0.02)
            stream = await adapter.predict_flow("graph", "[[long:30]] How many?", stream=True)
            assert (await anext(stream))["event"]
            if how == "aclose":
                await stream.aclose()
            elif how == "close":
                stream.close()
            elif how == "with":
                async with stream as same:
                    assert same is stream
            elif how == "break and drop":
                async for _ in stream:
                    break
                del stream
                gc.collect()
                while not charges:
                    await asyncio.sleep(0.005)
                return
            else:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        async for _ in stream:
                            pass
            assert [event async for event in stream] == []
            assert stream.charge is charges[0]
            stream.close()

    with governance_context("test", budget=1) as context, capture() as charges:
        asyncio.run(main())
        assert context.reserved == 0
    (charge,) = charges
    assert charge.outcome == ("cancelled" if how == "cancel" else "abandoned")
    assert charge.exactness != "exact"
    assert context.total_cost == charge.cost > 0
