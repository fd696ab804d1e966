"""Booked equals billed: the adapter against a real Flowise, the model behind it as the judge.

Prices are written out by hand, in nano-dollars a token, from the providers' price lists; the bill is
made of them and of the tokens that the model counted.
"""

from __future__ import annotations

import contextvars
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from genops_ctx import BudgetExceeded, governance_context, governed, instrument_flowise
from genops_ctx.core.records import Exactness
from genops_ctx.providers.errors import (
    FlowiseAuthenticationError,
    FlowiseModelError,
    FlowiseNotFoundError,
    FlowisePermissionError,
    FlowiseRateLimitError,
    FlowiseTimeoutError,
)

from .conftest import Held, RunningFlowise

if TYPE_CHECKING:
    from collections.abc import Callable

    from genops_ctx.core.records import Charge
    from genops_ctx.providers.flowise import GenOpsFlowiseAdapter
    from genops_ctx.testing.model_stub import BilledCall, ModelStub

QUESTION = "What is two plus three?"

# nano-dollars for one token read and one written
PRICES = {
    "gpt-4o-mini": (150, 600),  # $0.15 and $0.60 a million
    "gpt-4o": (2_500, 10_000),  # $2.50 and $10
    "claude-haiku-4-5": (1_000, 5_000),  # $1 and $5
    "text-embedding-3-small": (20, 0),  # $0.02
}
CLASSIC = ("conversation_chain", "llm_chain", "tool_agent")


def bill(model: ModelStub) -> int:
    """What the provider bills for all calls since the last reset, in nano-dollars."""
    return sum(
        call.input_tokens * PRICES[call.model][0] + call.output_tokens * PRICES[call.model][1]
        for call in served(model)
    )


def served(model: ModelStub) -> list[BilledCall]:
    """The calls that were answered, and so billed."""
    return [call for call in model.calls if call.status == 200]


def wait_served(model: ModelStub, number: int) -> None:
    """Until so many calls were answered: a call left alone must not run into the next test."""
    deadline = time.monotonic() + 60
    while len(served(model)) < number:
        assert time.monotonic() < deadline, "Flowise did not run the flow to its end"
        time.sleep(0.02)


@pytest.fixture
def adapter(flowise: RunningFlowise) -> GenOpsFlowiseAdapter:
    return instrument_flowise(flowise.url, flowise.api_key, team="real", timeout=60)


def ask(adapter: GenOpsFlowiseAdapter, flow: str, stream: bool, **options: Any) -> Charge:
    """The charge of one prediction."""
    question = options.pop("question", QUESTION)
    if stream:
        events = adapter.predict_flow(flow, question, stream=True, **options)
        assert [event["event"] for event in events][-1] == "end"
        assert events.charge is not None
        return events.charge
    charge = adapter.predict_flow(flow, question, **options).charge
    assert charge is not None
    return charge


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("flow", ["agentflow_llm", "agentflow_agent"])
def test_agentflows_are_booked_exactly(
    adapter: GenOpsFlowiseAdapter, flowise_model: ModelStub, flow: str, stream: bool
) -> None:
    charge = ask(adapter, flow, stream)
    assert charge.nanos == bill(flowise_model) > 0
    assert charge.exactness is Exactness.EXACT
    assert len(charge.lines) == len(served(flowise_model))


def test_two_providers_are_booked_exactly_where_the_nodes_do_not_stream(
    adapter: GenOpsFlowiseAdapter, flowise_model: ModelStub
) -> None:
    charge = ask(adapter, "agentflow_two_providers_unstreamed", stream=False)
    assert charge.nanos == bill(flowise_model) > 0
    assert charge.exactness is Exactness.EXACT
    assert [line.usage.provider for line in charge.lines if line.usage] == ["openai", "anthropic"]


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_flowises_extra_anthropic_token_makes_an_upper_bound(
    adapter: GenOpsFlowiseAdapter, flowise_model: ModelStub, stream: bool
) -> None:
    charge = ask(adapter, "agentflow_two_providers", stream)
    assert charge.nanos == bill(flowise_model) + 5_000  # one output token of Claude Haiku
    assert charge.exactness is Exactness.UPPER
    openai, anthropic = charge.lines
    assert openai.exactness is Exactness.EXACT
    assert anthropic.exactness is Exactness.UPPER


@pytest.mark.parametrize("flow", CLASSIC)
def test_classic_flows_with_evaluation_are_booked_at_the_bill(
    adapter: GenOpsFlowiseAdapter, flowise_model: ModelStub, flow: str
) -> None:
    charge = ask(adapter, flow, stream=False, metering="evaluation")
    assert charge.nanos == bill(flowise_model) > 0
    # gpt-4o-mini has a price for cached input, which these metrics do not tell apart
    assert charge.exactness is Exactness.UPPER
    assert {str(line.source) for line in charge.lines} == {"evaluation"}


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("flow", [*CLASSIC, "agentflow_structured", "agentflow_summary"])
def test_what_flowise_does_not_report_is_flagged(
    adapter: GenOpsFlowiseAdapter, flowise_model: ModelStub, flow: str, stream: bool
) -> None:
    charge = ask(adapter, flow, stream)
    assert bill(flowise_model) > 0
    assert charge.nanos > 0
    assert charge.exactness is Exactness.ESTIMATED
    assert any(str(line.source) == "estimated" for line in charge.lines)


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_a_model_without_a_price_is_unknown_and_never_zero(
    adapter: GenOpsFlowiseAdapter, flowise_model: ModelStub, stream: bool
) -> None:
    charge = ask(adapter, "agentflow_unpriced", stream)
    assert charge.exactness is Exactness.UNKNOWN
    assert charge.lines[0].nanos is None
    assert (charge.usage[0].input_tokens, charge.usage[0].output_tokens) == (5, 13)
    with governance_context("capped", budget="0.50") as context:
        charge = ask(adapter, "agentflow_unpriced", stream)
    assert charge.exactness is Exactness.UNKNOWN
    assert context.total_cost == Decimal("0.025")  # what was reserved: a 20th of the budget


def test_a_workflow_of_several_flows_adds_up(adapter: GenOpsFlowiseAdapter, flowise_model: ModelStub) -> None:
    @governed(feature="draft")
    def draft() -> None:
        adapter.predict_flow("agentflow_llm", QUESTION)

    with governance_context("workflow", customer_id="c1", budget=1) as context:
        draft()
        with governance_context("review", feature="review") as review:
            adapter.predict_flow("agentflow_agent", QUESTION)
            adapter.predict_flow("agentflow_two_providers_unstreamed", QUESTION)
    nanos = bill(flowise_model)
    assert context.total_cost == Decimal(nanos).scaleb(-9)
    assert context.calls == 3
    assert context.inexact_cost == 0
    assert context.reserved == 0
    assert sum(context.cost_by("feature").values()) == context.total_cost
    assert context.cost_by("feature")["review"] == review.total_cost
    assert context.total_tokens == sum(call.total_tokens for call in served(flowise_model))
    assert f"{context.total_cost:.4f}" == f"{nanos / 10**9:.4f}"


def test_flows_are_found_by_id_too(
    adapter: GenOpsFlowiseAdapter, flowise: RunningFlowise, flowise_model: ModelStub
) -> None:
    charge = ask(adapter, flowise.flows["agentflow_llm"], stream=False)
    assert charge.name == "agentflow_llm"
    assert charge.nanos == bill(flowise_model)


def test_a_key_without_permissions_runs_flows_by_id(
    flowise: RunningFlowise, flowise_model: ModelStub
) -> None:
    adapter = instrument_flowise(flowise.url, flowise.noperm_key)
    charge = ask(adapter, flowise.flows["agentflow_llm"], stream=False)
    assert charge.nanos == bill(flowise_model)
    assert charge.exactness is Exactness.EXACT
    estimated = ask(adapter, flowise.flows["llm_chain"], stream=False)
    assert estimated.exactness is Exactness.UNKNOWN  # not even the model is known
    with pytest.raises(FlowisePermissionError, match="chatflows:view"):
        adapter.predict_flow("agentflow_llm", QUESTION)


def test_a_budget_refuses_before_anything_is_sent(
    adapter: GenOpsFlowiseAdapter, flowise_model: ModelStub
) -> None:
    with governance_context("small", budget="0.000001") as context:
        adapter.predict_flow("agentflow_llm", QUESTION)  # cut to what is left, then over it
        assert len(served(flowise_model)) == 1
        with pytest.raises(BudgetExceeded) as refused:
            adapter.predict_flow("agentflow_llm", QUESTION)
        with pytest.raises(BudgetExceeded):
            adapter.predict_flow("conversation_chain", QUESTION, stream=True)
    assert len(served(flowise_model)) == 1
    assert refused.value.limit == Decimal("0.000001")
    assert context.refused_calls == 2
    assert context.total_cost == Decimal(bill(flowise_model)).scaleb(-9)


def test_ten_of_fifty_at_once_fit_a_budget_for_ten(
    adapter: GenOpsFlowiseAdapter, flowise_model: ModelStub, held: Held
) -> None:
    """No model answers before 40 were refused: none had room that another gave back."""
    refusals, lock = 0, threading.Lock()

    def call() -> bool:
        nonlocal refusals
        try:
            adapter.predict_flow("agentflow_llm", "hello", max_cost="0.01")
        except BudgetExceeded:
            with lock:
                refusals += 1
                if refusals == 40:
                    held.let_go()
            return False
        return True

    held.warm_up(lambda: adapter.predict_flow("agentflow_llm", "hello"))
    with governance_context("fifty", budget="0.10") as context, ThreadPoolExecutor(50) as pool:
        results = [pool.submit(contextvars.copy_context().run, call) for _ in range(50)]
        ran = sum(result.result() for result in results)
    assert ran == 10
    assert len(served(flowise_model)) == 10
    assert context.total_cost == Decimal(bill(flowise_model)).scaleb(-9)
    assert context.reserved == 0


def test_mixed_flows_at_once_are_booked_each_on_its_own(
    adapter: GenOpsFlowiseAdapter, flowise_model: ModelStub
) -> None:
    flows = [("agentflow_llm", False), ("agentflow_agent", False), ("agentflow_llm", True)]

    def call(number: int) -> Charge:
        flow, stream = flows[number % 3]
        return ask(adapter, flow, stream, question=" ".join(["word"] * (number + 1)), attempt_no=str(number))

    with governance_context("mixed") as context, ThreadPoolExecutor(8) as pool:
        work = [pool.submit(contextvars.copy_context().run, call, number) for number in range(48)]
        charges = [item.result() for item in work]
    assert sum(charge.nanos for charge in charges) == bill(flowise_model)
    for number, charge in enumerate(charges):
        # each question has a length of its own; an agent's first call also reads its tool (10 tokens)
        words = number + 1 + (10 if number % 3 == 1 else 0)
        assert charge.usage[0].input_tokens == words
        assert charge.attribution["attempt_no"] == str(number)
    assert context.total_cost == Decimal(bill(flowise_model)).scaleb(-9)


# -- failures ------------------------------------------------------------------------------------


def test_a_part_way_failure_is_booked_by_the_nodes_that_finished(
    adapter: GenOpsFlowiseAdapter, flowise_model: ModelStub
) -> None:
    question = "[[fail:400@claude-haiku-4-5]] go"
    with pytest.raises(FlowiseModelError) as failed:
        adapter.predict_flow("agentflow_two_providers_unstreamed", question)
    assert failed.value.charge is not None
    assert failed.value.charge.nanos == bill(flowise_model) > 0
    flowise_model.reset()
    events = adapter.predict_flow("agentflow_two_providers_unstreamed", question, stream=True)
    with pytest.raises(FlowiseModelError) as failed:
        list(events)
    assert failed.value.charge is not None
    assert failed.value.charge.nanos == bill(flowise_model) > 0


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("flow", ["agentflow_llm", "llm_chain"])
def test_a_refused_model_call_costs_nothing(
    adapter: GenOpsFlowiseAdapter, flowise_model: ModelStub, flow: str, stream: bool
) -> None:
    with governance_context("failing", budget=1) as context, pytest.raises(FlowiseModelError) as failed:
        ask(adapter, flow, stream, question="[[fail:401]] hello")
    assert "401" in str(failed.value)
    assert failed.value.charge is not None
    assert failed.value.charge.nanos == bill(flowise_model) == 0
    assert context.reserved == 0


def test_a_slow_model_is_left_at_the_deadline_and_booked(
    adapter: GenOpsFlowiseAdapter, flowise_model: ModelStub, held: Held
) -> None:
    held.warm_up(lambda: adapter.predict_flow("llm_chain", "hello"))
    began = time.monotonic()
    with governance_context("slow", budget=1) as context, pytest.raises(FlowiseTimeoutError) as failed:
        adapter.predict_flow("llm_chain", "hello", timeout=1.5)
    assert time.monotonic() - began < 1.5 + 10
    assert failed.value.charge is not None
    assert failed.value.charge.nanos > 0
    assert failed.value.charge.exactness is Exactness.ESTIMATED
    assert context.reserved == 0
    held.wait_for(1)  # Flowise waits for it, and it is billed


def test_an_abandoned_stream_is_booked_and_flagged(
    adapter: GenOpsFlowiseAdapter, flowise_model: ModelStub
) -> None:
    with governance_context("left early") as context:
        with adapter.predict_flow("conversation_chain", "[[long:200]] tell me", stream=True) as events:
            assert next(events)["event"] == "start"
        dropped = adapter.predict_flow("agentflow_llm", "[[long:200]] tell me", stream=True)
        next(dropped)
        del dropped
        deadline = time.monotonic() + 60
        while context.calls < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert context.calls == 2
    assert context.total_cost > 0
    assert context.inexact_cost == context.total_cost
    wait_served(flowise_model, 2)  # Flowise ran both to their end, and they are billed


def test_a_flow_that_does_not_exist(adapter: GenOpsFlowiseAdapter, flowise_model: ModelStub) -> None:
    unknown = str(uuid.uuid4())
    for stream in (False, True):
        began = time.monotonic()
        with pytest.raises(FlowiseNotFoundError):
            adapter.predict_flow(unknown, QUESTION, stream=stream)
        assert time.monotonic() - began < 30
    with pytest.raises(FlowiseNotFoundError, match="did you mean 'agentflow_llm'"):
        adapter.predict_flow("agentflow_lm", QUESTION)
    assert served(flowise_model) == []


def test_a_stream_that_is_never_answered_ends_at_the_deadline(
    flowise: RunningFlowise, flowise_model: ModelStub
) -> None:
    adapter = instrument_flowise(flowise.url, flowise.noperm_key)  # cannot look whether the flow exists
    with pytest.raises(FlowiseTimeoutError, match="does not exist is never answered"):
        adapter.predict_flow(str(uuid.uuid4()), QUESTION, stream=True, timeout=1.5)


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_a_flow_with_a_key_of_its_own(
    flowise: RunningFlowise, flowise_model: ModelStub, stream: bool
) -> None:
    wrong = instrument_flowise(flowise.url, flowise.api_key)
    with governance_context("locked out", budget=1) as context, pytest.raises(FlowiseAuthenticationError):
        ask(wrong, "protected", stream)
    assert context.total_cost == 0
    assert context.reserved == 0
    right = instrument_flowise(flowise.url, flowise.flow_key)
    assert ask(right, flowise.flows["protected"], stream).lines


def test_flowises_own_rate_limit(
    adapter: GenOpsFlowiseAdapter, flowise_model: ModelStub, rate_limited_flow: Callable[[int], str]
) -> None:
    flow = rate_limited_flow(1)
    adapter.predict_flow(flow, QUESTION)
    with pytest.raises(FlowiseRateLimitError) as refused:
        adapter.predict_flow(flow, QUESTION)
    assert refused.value.retry_after is not None
    assert 0 < refused.value.retry_after <= 600
    assert refused.value.charge is not None
    assert refused.value.charge.nanos == 0
    assert len(served(flowise_model)) == 1


def test_a_slug_is_not_an_id(flowise: RunningFlowise) -> None:
    adapter = instrument_flowise(flowise.url)  # without a key, names cannot be looked up
    with pytest.raises(FlowiseAuthenticationError, match="its id works without"):
        adapter.predict_flow("agentflow_llm", QUESTION)


# -- the rest of the API -------------------------------------------------------------------------


def test_flows_and_messages(adapter: GenOpsFlowiseAdapter, flowise: RunningFlowise) -> None:
    names = {flow["name"] for flow in adapter.get_chatflows()}
    assert set(flowise.flows) <= names
    assert adapter.get_chatflow("llm_chain")["id"] == flowise.flows["llm_chain"]
    session = f"session-{uuid.uuid4()}"
    adapter.predict_flow("conversation_chain", QUESTION, sessionId=session)
    messages = adapter.get_chat_messages("conversation_chain", session)
    assert [message["role"] for message in messages] == ["userMessage", "apiMessage"]
    assert messages[0]["content"] == QUESTION
    adapter.delete_chat_messages("conversation_chain", session)
    assert adapter.get_chat_messages("conversation_chain", session) == []


def test_sessions_and_history_reach_the_model(
    adapter: GenOpsFlowiseAdapter, flowise_model: ModelStub
) -> None:
    session = f"session-{uuid.uuid4()}"
    first = ask(adapter, "conversation_chain", False, sessionId=session, metering="evaluation")
    second = ask(adapter, "conversation_chain", False, session_id=session, metering="evaluation")
    assert second.attribution["session_id"] == session
    assert second.usage[0].input_tokens > first.usage[0].input_tokens  # it reads the first turn again
    history = [{"role": "user", "message": "one two three"}, {"role": "assistant", "message": "four five"}]
    fresh = ask(adapter, "conversation_chain", False, metering="evaluation")
    told = ask(adapter, "conversation_chain", False, history=history, metering="evaluation")
    # three and two words, and Flowise writes "Human:" and "AI:" before them
    assert told.usage[0].input_tokens >= fresh.usage[0].input_tokens + 5
