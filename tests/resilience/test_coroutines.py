"""Coroutines: ``@resilient``, the fallback of the guide, a rate that follows errors, and an end by SIGINT."""

from __future__ import annotations

import asyncio
import os
import signal
from decimal import Decimal

import pytest

from genops_ctx import governance_context, governed
from genops_ctx.core.errors import ShuttingDown
from genops_ctx.metered import metered_call
from genops_ctx.resilience import (
    AdaptiveRateLimiter,
    GracefulShutdown,
    RetryConfig,
    query_with_fallback,
    resilient,
)

FAST = RetryConfig(max_retries=2, base_delay=0.0, jitter=0.0)

pytestmark = pytest.mark.usefixtures("genops_runtime")


def test_ten_tasks_that_ask_the_same_pay_for_two_tries_of_one() -> None:
    tries = []

    @governed(meter=lambda result: Decimal("0.01"))
    @resilient(retry=FAST, cache=60)
    async def ask(question: str) -> str:
        tries.append(question)
        await asyncio.sleep(0.02)
        if len(tries) == 1:
            raise ConnectionRefusedError
        return question

    async def main() -> list[str]:
        return await asyncio.gather(*(ask("why?") for _ in range(10)))

    with governance_context(budget=1) as context:
        assert asyncio.run(main()) == ["why?"] * 10
    assert len(tries) == 2
    assert (context.total_cost, context.cached_calls, context.reserved) == (Decimal("0.01"), 9, 0)


class Agent:
    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)

    async def run(self, query: str) -> object:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_a_query_is_tried_again_and_then_answered_by_the_fallback() -> None:
    fails_once = Agent(ConnectionRefusedError(), {"text": "Paris"})
    assert asyncio.run(query_with_fallback(fails_once, "capital?", config=FAST)) == "Paris"
    fails = Agent(*(ConnectionRefusedError() for _ in range(3)), "never")
    assert asyncio.run(query_with_fallback(fails, "capital?", "Sorry.", FAST)) == "Sorry."
    assert fails.answers == ["never"]
    wrong = Agent(ValueError("a bug"), "never")
    assert asyncio.run(query_with_fallback(wrong, "capital?", "Sorry.", FAST)) == "Sorry."
    assert wrong.answers == ["never"], "a bug is not tried again"


def test_the_rate_follows_how_guarded_calls_end() -> None:
    limiter = AdaptiveRateLimiter(100, 1, 200, sample=10)

    @resilient(rate_limit=limiter)
    async def ask(fails: bool) -> None:
        if fails:
            raise ConnectionRefusedError

    async def many(fails: bool) -> int:
        await asyncio.gather(*(ask(fails) for _ in range(10)), return_exceptions=True)
        return limiter.current_rate

    assert asyncio.run(many(True)) < 100
    lowest = limiter.current_rate
    assert asyncio.run(many(False)) > lowest


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_sigint_ends_an_event_loop_s_work_in_order() -> None:
    async def work() -> str:
        with metered_call("slow") as call:
            await asyncio.sleep(0.2)
            call.record_cost("0.01")
        return "done"

    async def main() -> str:
        async with GracefulShutdown(timeout=60) as shutdown:
            task = asyncio.create_task(work())
            await asyncio.sleep(0.05)
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.wait_for(shutdown.wait_async(), 60)
            with pytest.raises(ShuttingDown), metered_call("late"):
                pass
        assert task.done(), "the block waited for it"
        return await task

    with governance_context() as context:
        assert asyncio.run(main()) == "done"
    assert context.total_cost == Decimal("0.01")
