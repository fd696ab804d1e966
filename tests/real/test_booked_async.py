"""Booked equals billed, awaited: the async adapter against a real Flowise, the model as the judge."""

from __future__ import annotations

import asyncio
import uuid
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from genops_ctx import BudgetExceeded, governance_context
from genops_ctx.core.records import Exactness
from genops_ctx.providers.errors import (
    FlowiseAuthenticationError,
    FlowiseModelError,
    FlowiseNotFoundError,
    FlowiseTimeoutError,
)
from genops_ctx.providers.flowise_async import AsyncFlowiseAdapter

from .conftest import Held, RunningFlowise
from .test_booked import QUESTION, bill, served

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from genops_ctx.core.records import Charge
    from genops_ctx.testing.model_stub import ModelStub


def run(flowise: RunningFlowise, work: Callable[[AsyncFlowiseAdapter], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        async with AsyncFlowiseAdapter(flowise.url, flowise.api_key, team="real", timeout=60) as adapter:
            return await work(adapter)

    return asyncio.run(main())


async def ask(adapter: AsyncFlowiseAdapter, flow: str, stream: bool, **options: Any) -> Charge:
    """The charge of one prediction."""
    question = options.pop("question", QUESTION)
    if stream:
        events = await adapter.predict_flow(flow, question, stream=True, **options)
        assert [event["event"] async for event in events][-1] == "end"
        assert events.charge is not None
        return events.charge
    charge = (await adapter.predict_flow(flow, question, **options)).charge
    assert charge is not None
    return charge


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("flow", ["agentflow_llm", "agentflow_agent"])
def test_agentflows_are_booked_exactly(
    flowise: RunningFlowise, flowise_model: ModelStub, flow: str, stream: bool
) -> None:
    charge = run(flowise, lambda adapter: ask(adapter, flow, stream))
    assert charge.nanos == bill(flowise_model) > 0
    assert charge.exactness is Exactness.EXACT
    assert len(charge.lines) == len(served(flowise_model))


@pytest.mark.parametrize("flow", ["conversation_chain", "llm_chain", "tool_agent"])
def test_classic_flows_with_evaluation_are_booked_at_the_bill(
    flowise: RunningFlowise, flowise_model: ModelStub, flow: str
) -> None:
    charge = run(flowise, lambda adapter: ask(adapter, flow, False, metering="evaluation"))
    assert charge.nanos == bill(flowise_model) > 0
    assert {str(line.source) for line in charge.lines} == {"evaluation"}


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("flow", ["conversation_chain", "agentflow_structured"])
def test_what_flowise_does_not_report_is_flagged(
    flowise: RunningFlowise, flowise_model: ModelStub, flow: str, stream: bool
) -> None:
    charge = run(flowise, lambda adapter: ask(adapter, flow, stream))
    assert bill(flowise_model) > 0
    assert charge.nanos > 0
    assert charge.exactness is Exactness.ESTIMATED


def test_ten_of_fifty_at_once_fit_a_budget_for_ten(
    flowise: RunningFlowise, flowise_model: ModelStub, held: Held
) -> None:
    """No model answers before 40 were refused: none had room that another gave back."""
    refusals = 0

    async def call(adapter: AsyncFlowiseAdapter) -> bool:
        nonlocal refusals
        try:
            await adapter.predict_flow("agentflow_llm", "hello", max_cost="0.01")
        except BudgetExceeded:
            refusals += 1
            if refusals == 40:
                held.let_go()
            return False
        return True

    async def work(adapter: AsyncFlowiseAdapter) -> tuple[int, Any]:
        held.let_go()
        await adapter.predict_flow("agentflow_llm", "warm up")
        flowise_model.reset()
        held.keep_back()
        with governance_context("fifty", budget="0.10") as context:
            return sum(await asyncio.gather(*[call(adapter) for _ in range(50)])), context

    ran, context = run(flowise, work)
    assert ran == 10
    assert len(served(flowise_model)) == 10
    assert context.total_cost == Decimal(bill(flowise_model)).scaleb(-9)
    assert context.reserved == 0


def test_mixed_flows_at_once_are_booked_each_on_its_own(
    flowise: RunningFlowise, flowise_model: ModelStub
) -> None:
    flows = [("agentflow_llm", False), ("agentflow_agent", False), ("agentflow_llm", True)]

    async def work(adapter: AsyncFlowiseAdapter) -> list[Charge]:
        calls = []
        for number in range(24):
            flow, stream = flows[number % 3]
            question = " ".join(["word"] * (number + 1))
            calls.append(ask(adapter, flow, stream, question=question, attempt_no=str(number)))
        return await asyncio.gather(*calls)

    charges = run(flowise, work)
    assert sum(charge.nanos for charge in charges) == bill(flowise_model)
    for number, charge in enumerate(charges):
        # each question has a length of its own; an agent's first call also reads its tool (10 tokens)
        assert charge.usage[0].input_tokens == number + 1 + (10 if number % 3 == 1 else 0)
        assert charge.attribution["attempt_no"] == str(number)


def test_a_part_way_failure_is_booked_by_the_nodes_that_finished(
    flowise: RunningFlowise, flowise_model: ModelStub
) -> None:
    question = "[[fail:400@claude-haiku-4-5]] go"
    with pytest.raises(FlowiseModelError) as failed:
        run(
            flowise,
            lambda adapter: adapter.predict_flow("agentflow_two_providers_unstreamed", question),
        )
    assert failed.value.charge is not None
    assert failed.value.charge.nanos == bill(flowise_model) > 0


def test_a_cancelled_call_is_booked_and_billed(
    flowise: RunningFlowise, flowise_model: ModelStub, held: Held
) -> None:
    """Flowise runs the flow to its end, whoever listens."""

    async def work(adapter: AsyncFlowiseAdapter) -> None:
        async def call() -> None:
            await adapter.predict_flow("agentflow_llm", "hello")

        called = asyncio.create_task(call())
        await asyncio.to_thread(held.wait_for, 1)
        called.cancel()
        with pytest.raises(asyncio.CancelledError):
            await called

    with governance_context("cancelled", budget=1) as context:
        run(flowise, work)
    assert (context.calls, context.reserved) == (1, 0)
    assert context.total_cost >= Decimal(bill(flowise_model)).scaleb(-9) > 0
    assert context.inexact_cost == context.total_cost


def test_unknown_flows_keys_and_deadlines(
    flowise: RunningFlowise, flowise_model: ModelStub, held: Held
) -> None:
    unknown = str(uuid.uuid4())
    for stream in (False, True):
        with pytest.raises(FlowiseNotFoundError):
            run(flowise, lambda adapter, stream=stream: adapter.predict_flow(unknown, "?", stream=stream))
        with pytest.raises(FlowiseAuthenticationError) as refused:
            run(flowise, lambda adapter, stream=stream: ask(adapter, "protected", stream))
        assert refused.value.charge is not None
        assert refused.value.charge.nanos == 0

    async def work(adapter: AsyncFlowiseAdapter) -> None:
        held.let_go()
        await adapter.predict_flow("llm_chain", "hi")  # the next looks nothing up within its own time
        flowise_model.reset()
        held.keep_back()
        await adapter.predict_flow("llm_chain", "hi", timeout=1)

    with pytest.raises(FlowiseTimeoutError) as late:
        run(flowise, work)
    assert late.value.charge is not None
    assert late.value.charge.nanos > 0
    held.wait_for(1)  # Flowise waits for it: it must not run into the next test


def test_flows_and_messages(flowise: RunningFlowise, flowise_model: ModelStub) -> None:
    session = f"session-{uuid.uuid4()}"

    async def work(adapter: AsyncFlowiseAdapter) -> None:
        assert set(flowise.flows) <= {flow["name"] for flow in await adapter.get_chatflows()}
        assert (await adapter.get_chatflow("llm_chain"))["id"] == flowise.flows["llm_chain"]
        await adapter.predict_flow("conversation_chain", QUESTION, sessionId=session)
        messages = await adapter.get_chat_messages("conversation_chain", session)
        assert [message["role"] for message in messages] == ["userMessage", "apiMessage"]
        await adapter.delete_chat_messages("conversation_chain", session)
        assert await adapter.get_chat_messages("conversation_chain", session) == []

    run(flowise, work)
